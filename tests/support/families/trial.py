"""What one type goes through: built, its masks checked, trained for three steps, saved and reloaded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from support.families.folders import build_folder
from support.families.shapes import Shape, shape_of
from support.families.shrinking import SIDE
from support.mask_cases import conversation, picture, read_image
from support.rows import WORDS, write_uneven_rows
from support.runs import script_flags
from support.tiny import available, build_model_folder
from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.cli.main import run_script
from vlm_lora.config.sources import parse
from vlm_lora.data.conversation import ImageRef, Role
from vlm_lora.model.head.completion import complete
from vlm_lora.session import Preprocessing, open_preprocessing
from vlm_lora.training import trainer as trainers

CAUSAL_TURNS: Sequence[Sequence[tuple[Role, Sequence[str]]]] = (
    (("user", ("image", "What is it?")), ("assistant", ("a red bus",))),
    (("user", ("Say yes",)), ("assistant", ("yes, 12",))),
    (
        ("user", ("image", "What is it?")),
        ("assistant", ("a red bus",)),
        ("user", ("And now?",)),
        ("assistant", ("still a bus",)),
    ),
)
"""With an image, without one, and two turns."""


class FailedError(Exception):
    """A step of the trial failed."""


@contextmanager
def step(name: str, row: dict[str, Any]) -> Iterator[None]:
    """Note how far a type came."""
    row["reached"] = name
    yield


def try_type(model_type: str, folder: Path) -> dict[str, Any]:
    """Try one type, and return its row: what was found; `failed` and `reached` where something went wrong."""
    began = time.perf_counter()
    row: dict[str, Any] = {}
    try:
        _try(model_type, folder, row)
        del row["reached"]
    except (Exception, SystemExit) as error:  # the row says what went wrong, whatever it is
        row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        import traceback

        (folder / "error.txt").write_text(traceback.format_exc())
    row["seconds"] = round(time.perf_counter() - began, 1)
    return row


def _try(model_type: str, folder: Path, row: dict[str, Any]) -> None:
    with step("build", row):
        by_hand = model_type in available()
        model = (build_model_folder if by_hand else build_folder)(model_type, folder / "model")
        shape = shape_of(model_type)
        template = shape.template
        if shape.flags:
            row["flags"] = " ".join(f"--{name} {value}" for name, value in shape.flags.items())
        row["template"] = "published" if by_hand or template else "plain"
    with step("masks", row):
        # Families under test have masks typed by hand for their published templates, in tests/golden/masks.
        row["rows_checked"] = "golden" if by_hand else check_masks(_open(model, shape), shape)
    with step("train", row):
        row |= check_training(model, folder, shape)


def _open(model: Path, shape: Shape) -> Preprocessing:
    flags = [word for name, value in shape.flags.items() for word in (f"--{name}", value)]
    return open_preprocessing(parse(["--model_name_or_path", str(model), *flags], environ={}))


def check_masks(preprocessing: Preprocessing, shape: Shape) -> int:
    """Hold each row against the rendering of its generation prompt, and return how many were held."""
    checked = 0
    for turns in CAUSAL_TURNS:
        if not shape.text_rows and not any("image" in texts for _, texts in turns):
            continue
        if shape.template and len(turns) > 2:  # which may write an answer otherwise once another one follows
            continue
        row = conversation(turns, image=picture(size=(SIDE, SIDE)))
        encoded = preprocessing.encoder.encode(row)
        labels = encoded.labels.tolist()
        ids = encoded.input_ids.tolist()
        expected = expected_labels(preprocessing, row, ids)
        if labels != expected:
            raise FailedError(f"labels are not what follows the generation prompt: {labels} instead of {expected}")
        shifted = [IGNORE_INDEX, *labels[:-1]]
        assert shifted != expected, "the check would let labels pass that are one token late"
        checked += 1
    return checked


def expected_labels(preprocessing: Preprocessing, row: Any, ids: list[int]) -> list[int]:
    """What must be produced by the renderings alone: behind each generation prompt, up to the first end token."""
    labels = [IGNORE_INDEX] * len(ids)
    for number, turn in enumerate(row.turns):
        if turn.role != "assistant":
            continue
        prompt = _direct(preprocessing, row, number)
        if ids[: len(prompt)] != prompt:
            raise FailedError(f"the row does not begin with its generation prompt: {ids} and {prompt}")
        place = len(prompt)
        while True:
            labels[place] = ids[place]
            if ids[place] in preprocessing.eos_token_ids:
                break
            place += 1
    return labels


def _direct(preprocessing: Preprocessing, row: Any, turns: int) -> list[int]:
    """The ids that the processor itself gives for the first turns and a generation prompt."""
    processor = preprocessing.processor
    messages = []
    images = []
    for turn in row.turns[:turns]:
        parts: list[dict[str, Any]] = []
        for part in turn.parts:
            parts.append({"type": "image"} if isinstance(part, ImageRef) else {"type": "text", "text": part.text})
            if isinstance(part, ImageRef):
                images.append(part.source)
        messages.append({"role": turn.role, "content": parts})
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    style = preprocessing.family.rendering
    extra: dict[str, Any] = dict(style.asked_for)
    if images:
        extra["images"] = images if style.images == "flat" else [images]
    bos = processor.tokenizer.bos_token
    if bos and text.startswith(bos):
        extra["add_special_tokens"] = False
    ids: list[int] = processor(text=[text], return_tensors="pt", **extra)["input_ids"][0].tolist()
    return ids


def check_training(model: Path, folder: Path, shape: Shape) -> dict[str, Any]:
    """Train three steps by the command line, reload by plain PEFT, and return what was trained."""
    from peft import PeftModel

    data = write_rows(folder / "data", text_rows=shape.text_rows)
    kept: list[Any] = []
    build = trainers.build_trainer

    def remember(*arguments: Any, **keywords: Any) -> Any:
        kept.append(build(*arguments, **keywords))
        return kept[-1]

    trainers.build_trainer = remember
    output = folder / "out"
    flags: dict[str, object] = {
        "do_train": True,
        "do_eval": True,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        **shape.flags,
    }
    code = run_script(script_flags(model, data, output, **flags))
    trainers.build_trainer = build
    if code != 0:
        raise FailedError(f"the command exited with {code}: {last_error(folder / 'log.txt')}")
    results = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
    trained = kept[0].model.eval()
    batch = kept[0].data_collator([kept[0].eval_dataset[i] for i in range(2)])
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "supervised_positions")}
    base = type(trained.get_base_model()).from_pretrained(model)
    complete(base)
    expected = logits_of(trained, inputs)
    if torch.allclose(logits_of(base.eval(), inputs), expected, atol=1e-4):
        raise FailedError("training changed nothing")
    again = logits_of(PeftModel.from_pretrained(base, output).eval(), inputs)
    error = float((again - expected).abs().max())
    if error > 1e-5 * max(1.0, float(expected.abs().max())):
        raise FailedError(f"reloaded logits differ by {error:.1e}")
    names = [name for name, _ in trained.named_parameters() if ".lora_A" in name]
    kinds = sorted({name.rpartition(".lora_A")[0].rpartition(".")[2] for name in names})
    return {
        "class": type(trained.get_base_model()).__name__,
        "adapted": kinds,
        "media": media_of(kept[0], batch),
        "reload_error": error,
        "perplexity": results["eval_perplexity"],
    }


def last_error(log: Path) -> str:
    """Return the last line of a log that names an exception or a refusal."""
    import sys

    sys.stderr.flush()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [line for line in lines if "Error: " in line or line.startswith("error: ")]
    return found[-1][:250] if found else ""


def media_of(trainer: Any, batch: Any) -> list[str]:
    """The tensors of media that a batch has."""
    return sorted(
        name for name in batch if name not in ("input_ids", "labels", "attention_mask", "supervised_positions")
    )


def write_rows(folder: Path, *, text_rows: bool) -> Path:
    """Write rows with images, and two without, in whatever batches they come."""
    write_uneven_rows(folder, rows=4 if text_rows else 6, validation=2)
    if not text_rows:
        return folder
    with (folder / "train.jsonl").open("a", encoding="utf-8") as file:
        for number in range(2):
            line = {"image": None, "question": f"Which row is {number}?", "answer": WORDS[number]}
            file.write(json.dumps(line) + "\n")
    return folder


def logits_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a model's logits for a batch."""
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


__all__ = ["read_image", "try_type"]
