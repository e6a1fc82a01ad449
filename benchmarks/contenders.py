"""Ours, TRL's and the plain script: the same rows and the same LoRA, each trained by its own real loop.

A contender trains in a process of its own and takes turns with the others: `Turns` holds its loop before a step until
it is its turn. What a step costs is this process's CPU time (and, on a GPU, time on the clock after the device has
finished), told apart from what fetching its batch costs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RANK = 8
WRONG_LABELS = "wrong labels"
"""The negative control: a plain script that supervises the question, too."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who trains, and how."""

    name: str
    kind: str
    """`ours`, `trl`, `plain` or `WRONG_LABELS`."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Ours: of `vlm-lora train`. Others: fields of their arguments class."""
    warm_steps: int = 2
    """Steps that are not timed, after the first one, whose loss is compared."""
    cache: Path | None = None
    """Where ours keeps features and prepared images; None for a folder of the comparison."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all contenders of a comparison train."""

    model: Path
    data: Path
    output: Path
    batch_size: int
    steps: int = 100_000
    """More than will be taken."""
    device: str = "cpu"
    bf16: bool = False


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What one optimizer step cost."""

    loss: float
    cpu: float
    """Seconds of CPU time of the step itself."""
    fetching: float
    """Seconds of CPU time of this process before it: loading, collating."""
    wall: float
    """Seconds on the clock of the step itself."""
    tokens: int
    """Computed, padding included."""
    supervised: int
    memory: int = 0
    """The most bytes that PyTorch had given out on the GPU so far; 0 on a CPU."""


EPOCH = -1
"""Instead of a number of steps: up to the end of the epoch."""


class StopTrainingError(Exception):
    """Ends a contender's loop when no more steps are wanted."""


class Turns:
    """Stands around each step of a contender's loop.

    Args:
        next_turn: called when the steps of a turn are done, with their figures; returns how many to take now, `EPOCH`
            for the rest of the epoch, 0 to end. It is first called with nothing, before the first step.
        synchronize: waits until the device has finished.
        around: is called with the trainer's `train` instead of it.
        memory: returns the most bytes so far.
    """

    def __init__(
        self,
        next_turn: Callable[[list[StepFigures]], int],
        synchronize: Callable[[], None] = lambda: None,
        around: Callable[[Any, Callable[[], Any]], Any] | None = None,
        memory: Callable[[], int] = lambda: 0,
    ) -> None:
        self._memory = memory
        self._next_turn = next_turn
        self._synchronize = synchronize
        self._around = around
        self._left = 0
        self._done: list[StepFigures] = []
        self._ended = time.process_time()
        self._tokens = self._supervised = 0
        self._loss: Any = None

    def epoch_ended(self) -> None:
        """Take note that the next step is of another epoch."""
        if self._left < 0:
            self._left = 0

    def begin(self) -> None:
        """Wait for the turn; called when a step's batch is there."""
        fetching = time.process_time() - self._ended
        if self._left == 0:
            self._left = self._next_turn(self._done)
            self._done = []
            if self._left == 0:
                raise StopTrainingError
        self._synchronize()
        self._fetching, self._began, self._clock = fetching, time.process_time(), time.perf_counter()

    def end(self) -> None:
        """Take note of a step."""
        self._synchronize()
        wall, now = time.perf_counter() - self._clock, time.process_time()
        self._left -= 1 if self._left > 0 else 0
        figures = StepFigures(
            loss=float(self._loss),
            cpu=now - self._began,
            fetching=self._fetching,
            wall=wall,
            tokens=self._tokens,
            supervised=self._supervised,
            memory=self._memory(),
        )
        self._done.append(figures)
        self._tokens = self._supervised = 0
        self._ended = time.process_time()

    def watch(self, trainer: Any) -> Any:
        """Stand around a trainer's steps; return it."""
        from transformers import TrainerCallback

        turns, step, train = self, trainer.training_step, trainer.train

        class Around(TrainerCallback):
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                turns.begin()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                turns.end()

            def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
                turns.epoch_ended()

        def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._tokens += inputs["input_ids"].numel()
            self._supervised += int((inputs["labels"][:, 1:] != -100).sum())
            self._loss = step(model, inputs, *args, **kwargs)
            return self._loss

        trainer.training_step = training_step
        trainer.add_callback(Around())
        if self._around is not None:
            around = self._around
            trainer.train = lambda *args, **kwargs: around(trainer, lambda: train(*args, **kwargs))
        return trainer


def run(contender: Contender, job: Job, turns: Turns) -> None:
    """Train a contender until its turns end."""
    import torch

    if job.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    started = {"ours": _ours, "trl": _trl, "plain": _plain, WRONG_LABELS: _wrong}[contender.kind]
    try:
        started(contender, job, turns)
    except StopTrainingError:
        return


# Ours


def our_flags(contender: Contender, job: Job) -> dict[str, Any]:
    """Return the flags of `vlm-lora train` for a contender."""
    return {
        "backend": "cuda" if job.device == "cuda" else "cpu",
        "model_name_or_path": job.model,
        "dataset_name": job.data,
        "validation_fraction": 0,
        "output_dir": job.output / contender.name.replace(" ", "_").replace(",", ""),
        "overwrite_output_dir": True,
        "do_train": True,
        "max_steps": job.steps,
        "per_device_train_batch_size": job.batch_size,
        "lora_rank": RANK,
        "lora_alpha": 2 * RANK,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": job.steps,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "log_level": "error",
        "bf16": job.bf16,
        **contender.flags,
    }


def parsed(flags: Mapping[str, Any]) -> Any:
    """Return the run that a command with these flags starts."""
    from vlm_lora.config.sources import parse

    return parse([text for name, value in flags.items() for text in (f"--{name}", str(value))], environ={})


@contextmanager
def watched(turns: Turns) -> Iterator[None]:
    """Within this context, trainers that our pipeline builds take turns."""
    from vlm_lora.training import trainer as module

    build = module.build_trainer

    def built(*args: Any, **kwargs: Any) -> Any:
        return turns.watch(build(*args, **kwargs))

    module.build_trainer = built
    try:
        yield
    finally:
        module.build_trainer = build


def _ours(contender: Contender, job: Job, turns: Turns) -> None:
    from vlm_lora import pipeline

    os.environ["VLM_LORA_CACHE"] = str(contender.cache or job.output / "cache")
    with watched(turns):
        pipeline.train(parsed(our_flags(contender, job)))


# The others


def read_rows(data: Path) -> list[dict[str, Any]]:
    """Return a data folder's rows, images as paths."""
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**row, "image": str(data / row["image"])} for row in map(json.loads, lines)]


def _loaded(job: Job) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    dtype = torch.bfloat16 if job.bf16 else torch.float32
    return AutoModelForImageTextToText.from_pretrained(job.model, dtype=dtype).to(job.device)


def _lora(model: Any) -> Any:
    """Return LoRA on what ours tunes by default: the language model's linear layers."""
    from peft import LoraConfig

    from vlm_lora.config.run_config import TuningConfig
    from vlm_lora.model.adapters.targets import compact_regex, resolve_targets
    from vlm_lora.model.parts import find_parts

    names = resolve_targets(model, find_parts(model), TuningConfig().lora_targets).modules
    return LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=0.0,
        target_modules=compact_regex(model, names),
        task_type="CAUSAL_LM",
    )


def _common(contender: Contender, job: Job) -> dict[str, Any]:
    return {
        "output_dir": str(job.output / contender.name.replace(" ", "_")),
        "max_steps": job.steps,
        "per_device_train_batch_size": job.batch_size,
        "learning_rate": 1e-4,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": job.steps,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": job.device == "cpu",
        "bf16": job.bf16,
        "dataloader_pin_memory": job.device != "cpu",
        **contender.flags,
    }


def _trl(contender: Contender, job: Job, turns: Turns) -> None:
    """TRL as its documentation trains vision-language models on prompts and completions."""
    from datasets import Dataset, Features, Image, Sequence, Value
    from transformers import AutoProcessor
    from trl import SFTConfig, SFTTrainer

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": said("user", row["question"]),
            "completion": said("assistant", row["answer"]),
            "images": [row["image"]],
        }
        for row in read_rows(job.data)
    ]
    turn = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"prompt": turn, "completion": turn, "images": Sequence(Image())})
    model = _loaded(job)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**{"max_length": None, **_common(contender, job)}),
        train_dataset=Dataset.from_list(rows, features=features),
        processing_class=AutoProcessor.from_pretrained(job.model),
        peft_config=_lora(model),
    )
    turns.watch(trainer).train()


class PlainCollator:
    """What a training script of one's own does: template, processor, labels behind the prompt.

    Args:
        processor: the model's.
        whole: supervise the prompt, too.
    """

    def __init__(self, processor: Any, *, whole: bool = False) -> None:
        self._processor = processor
        self._whole = whole

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        """Return one batch."""
        from PIL import Image

        images = [[Image.open(row["image"]).convert("RGB")] for row in rows]
        asked = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}]
            for row in rows
        ]
        answered = [
            [*prompt, {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}]
            for prompt, row in zip(asked, rows, strict=True)
        ]
        template = self._processor.apply_chat_template
        texts = [template(one) for one in answered]
        prompts = [template(one, add_generation_prompt=True) for one in asked]
        call = {"padding": True, "padding_side": "right", "add_special_tokens": False, "return_tensors": "pt"}
        batch = self._processor(images=images, text=texts, **call)
        lengths = self._processor(images=images, text=prompts, **call)["attention_mask"].sum(dim=1)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, length in zip(labels, lengths.tolist(), strict=True):
            if not self._whole:
                row[:length] = -100
        batch["labels"] = labels
        return batch


def _plain(contender: Contender, job: Job, turns: Turns, *, whole: bool = False) -> None:
    """The script that people write: transformers' Trainer, logits of every position."""
    from peft import get_peft_model
    from transformers import AutoProcessor, Trainer, TrainingArguments

    model = _loaded(job)
    trainer = Trainer(
        model=get_peft_model(model, _lora(model)),
        args=TrainingArguments(remove_unused_columns=False, **_common(contender, job)),
        train_dataset=read_rows(job.data),
        data_collator=PlainCollator(AutoProcessor.from_pretrained(job.model), whole=whole),
    )
    turns.watch(trainer).train()


def _wrong(contender: Contender, job: Job, turns: Turns) -> None:
    _plain(contender, job, turns, whole=True)
