"""Runs of the command line in a process of their own, with everything recorded that two stacks must agree on.

`python tests/record_runs.py REPORT.json RUNS.json` runs each list of flags of RUNS.json in turn and writes one
record per run to REPORT.json (to REPORT.json.1, ... on further ranks). Recording reads nothing from a device
before the run is over.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before torch: sums over tiny tensors are the same and faster on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def record_run(flags: list[str]) -> dict[str, Any]:
    """Run `run_lora_vlm.py` with these flags and return what happened, step by step."""
    from transformers import TrainerCallback

    from vlm_lora.batching.collator import Collator
    from vlm_lora.cli import main as cli
    from vlm_lora.training import planning as _planning
    from vlm_lora.training import trainer as _trainer

    # Their functions are replaced for the length of the run.
    planning: Any = _planning
    trainer: Any = _trainer

    losses: list[Any] = []
    steps: list[dict[str, Any]] = []
    batches: list[tuple[dict[str, str], list[int]]] = []
    found: dict[str, Any] = {}
    originals = (trainer.supervised_loss, trainer.build_trainer, Collator.collate, planning.compile_budget)

    class Steps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.append({"losses": list(losses), **device_counts()})
            losses.clear()
            die_if_due(len(steps))

    def loss(*args: Any, **kwargs: Any) -> Any:
        value = originals[0](*args, **kwargs)
        losses.append(value.detach().clone())  # the trainer scales it in place
        return value

    def build(*args: Any, **kwargs: Any) -> Any:
        made = originals[1](*args, **kwargs)
        made.add_callback(Steps())
        found["trainer"] = made
        return made

    def collate(self: Collator, rows: Any) -> Any:
        batch = originals[2](self, rows)
        batches.append((digests_of(batch), batch["labels"].ne(-100).sum(dim=1).tolist()))
        return batch

    def budget(*args: Any) -> int:
        found["budget"] = originals[3](*args)
        return int(found["budget"])

    trainer.supervised_loss, trainer.build_trainer = loss, build
    planning.compile_budget = budget
    Collator.collate = collate  # type: ignore[method-assign]
    try:
        with counting_chunks() as chunks:
            code = cli.run_script(flags)
    finally:
        trainer.supervised_loss, trainer.build_trainer = originals[0], originals[1]
        planning.compile_budget = originals[3]
        Collator.collate = originals[2]  # type: ignore[method-assign]
    if code:
        return {"code": code}
    return {
        "code": code,
        **columns(batches),
        "budget": found.get("budget"),
        "chunks": chunks,
        **summary(found["trainer"], steps),
    }


@contextmanager
def counting_chunks() -> Iterator[list[int]]:
    """Give a list that gets the number of chunks of each call of the head."""
    from vlm_lora.model import objective as _objective

    objective: Any = _objective
    chunk_rows, counts = objective.chunk_rows, []

    def counted(rows: int, *args: Any) -> int:
        each = int(chunk_rows(rows, *args))
        counts.append(-(-rows // each))
        return each

    objective.chunk_rows = counted
    try:
        yield counts
    finally:
        objective.chunk_rows = chunk_rows


def columns(batches: list[tuple[dict[str, str], list[int]]]) -> dict[str, Any]:
    """Return what was seen of each batch: digests of its tensors, and each row's number of supervised tokens."""
    return {"digests": [digests for digests, _ in batches], "supervised": [counts for _, counts in batches]}


def die_if_due(step: int) -> None:
    """End this process by SIGKILL at the step that the test chose."""
    if step == int(os.environ.get("RECORDER_KILL_AT_STEP", "-1")):
        os.kill(os.getpid(), 9)


def summary(trainer: Any, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the record of a finished run as JSON values."""
    history = trainer.state.log_history
    return {
        "steps": [{**step, "losses": [float(loss.cpu()) for loss in step["losses"]]} for step in steps],
        "grad_norms": [entry["grad_norm"] for entry in history if "grad_norm" in entry],
        "perplexity": [entry["eval_perplexity"] for entry in history if "eval_perplexity" in entry],
        "classes": sorted({type(module).__module__ for module in trainer.model.modules()}),
        "wrapped": type(trainer.model_wrapped).__name__,
        "trainer": [base.__name__ for base in type(trainer).__mro__],
        "parameters": digest_of_trainable(trainer),
        "device": str(trainer.args.device),
        "world_size": trainer.args.world_size,
        "checkpointing": bool(trainer.model.is_gradient_checkpointing),
        "end": device_counts(),
    }


def digest_of_trainable(trainer: Any) -> str:
    """Return one digest of all trainable tensors as this process has them, gathered where they are sharded."""
    digest = hashlib.sha256()
    for name, parameter in sorted(trainer.model.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode())
            digest.update(whole(parameter).detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def whole(parameter: Any) -> Any:
    """Return a parameter as one tensor; all processes call it together."""
    if hasattr(parameter, "full_tensor"):
        return parameter.full_tensor()
    if not hasattr(parameter, "ds_numel"):
        return parameter
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def digests_of(batch: dict[str, Any]) -> dict[str, str]:
    """Return a digest of type, shape and bytes of each tensor of a batch; of kept features, of their keys."""
    return {name: hashlib.sha256(_content(value)).hexdigest() for name, value in batch.items()}


def _content(value: Any) -> bytes:
    if hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
    return repr([None if row is None else row.key for row in value]).encode()


def device_counts() -> dict[str, int]:
    """Return what the simulated device counts; nothing where there is none.

    graphs: those that the device cut (in eager mode: operators with their shapes); reads: the host's; the others: what
    torch.compile handed over.
    """
    if "hpu_simulator.library" not in sys.modules:
        return {}
    from hpu_simulator.compiled import compiled

    figures = sys.modules["hpu_simulator.library"].statistics()
    return {
        "cut": figures.graphs_compiled,
        "reads": figures.items + figures.copies_to_host + figures.dynamic_shapes,
        **compiled()._asdict(),
    }


def obey_variables() -> None:
    """Change what the run does as the test that started it asks."""
    if os.environ.get("RECORDER_FSDP_ON_CPU"):
        from support import fsdp_on_cpu

        fsdp_on_cpu.install()
    if elements := os.environ.get("RECORDER_CHUNK_ELEMENTS"):
        from vlm_lora.model.objective import SupervisedHead

        defaults = SupervisedHead.__init__.__kwdefaults__
        assert defaults is not None
        defaults["chunk_elements"] = int(elements)
    if os.environ.get("RECORDER_DIVIDED"):
        divide_logits()
    if os.environ.get("RECORDER_WITHOUT_BLANKS"):
        from vlm_lora.training import engine as _engine

        engine: Any = _engine
        engine.needs_images = lambda *args: False
    if os.environ.get("PT_HPU_TC_MODE") == "1":
        import torch

        # dynamo's own way is to go on uncompiled.
        torch._dynamo.config.fail_on_recompile_limit_hit = True


def divide_logits() -> None:
    """Let LLaVA-NeXT divide its logits where its text is Granite's, as Granite's own code does."""
    from transformers import LlavaNextForConditionalGeneration as _Model

    model: Any = _Model
    forward = model.forward

    def divided(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits / self.config.text_config.logits_scaling
        return output

    model.forward = divided


def main() -> int:
    """Run what RUNS.json lists; the exit code is the first that is not 0."""
    obey_variables()
    report, runs = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    records = [record_run(flags) for flags in runs]
    rank = int(os.environ.get("RANK", "0"))
    path = report if rank == 0 else Path(f"{report}.{rank}")
    path.write_text(json.dumps(records), encoding="utf-8")
    return next((record["code"] for record in records if record["code"]), 0)


if __name__ == "__main__":
    sys.exit(main())
