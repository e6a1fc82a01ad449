"""Training that is told to end again and again, and started again by the same command until it is done.

`python tests/signal_runs.py FOLDER --signals 20 --ranks 2` sends so many of each of SIGTERM, SIGUSR1 and SIGINT at
random moments, prints a report as JSON, and ends with 1 if a start failed or was not ended as it should be, or if a
finished run differs from one that nobody told anything. Every start is a fork of one process that has imported
everything, or as many as there are ranks; a signal goes to all of them or to one, as chance has it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

# Before torch, and before pyarrow: see there.
from kill_runs import ADAPTER, import_all, wait

KINDS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STEPS = 30
EARLY = 1 / 8
"""Share of the signals that may come at any moment of a start; the others wait for its first step."""


def start(words: list[str], folder: Path, *, rank: int, ranks: int, port: int) -> int:
    """Fork and run the command line there as one rank; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        stream = os.open(folder / f"log{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        import torch

        from vlm_lora.cli.main import run_script
        from vlm_lora.training.signals import EndOnSignal

        torch.set_num_threads(1)

        def note(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (folder / f"step{rank}").write_text(str(state.global_step + 1))

        EndOnSignal.on_step_begin = note
        code = run_script(words)
        (folder / "modules").write_text("\n".join(sorted(sys.modules)))
    finally:
        os._exit(code)


def step_of(folder: Path) -> int:
    """Return the step that rank 0 has begun last in this start; 0 for none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((folder / "step0").read_text())
    return 0


def runs(child: int) -> bool:
    """Say whether a child has not ended; one that has and waits to be counted has no files open."""
    return Path(f"/proc/{child}/fd/1").exists()


def tell(children: list[int], folder: Path, number: int, chance: random.Random) -> int:
    """Send a signal at a random moment; return the step under way, -1 where the run had ended before."""
    (folder / "step0").unlink(missing_ok=True)
    if chance.random() > EARLY:
        deadline = time.monotonic() + 120
        while not step_of(folder) and time.monotonic() < deadline and runs(children[0]):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 1.0))
    else:
        time.sleep(chance.uniform(0, 3.0))
    begun = step_of(folder)
    for child in children if chance.random() > 0.3 else [chance.choice(children)]:
        if runs(child):
            os.kill(child, number)
            time.sleep(chance.uniform(0, 0.02))
    return begun


def fault_of(output: Path, codes: list[int], number: int, begun: int) -> str:
    """Return what is wrong with how a run ended that was told; empty where nothing is."""
    state: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        state = json.loads((output / "RUN_STATE.json").read_text())
    if 75 in codes:
        saved = int(str(state.get("checkpoint")).rpartition("-")[2])
        if state.get("state") != "preempted" or set(codes) != {75}:
            return f"{codes}, {state}"
        # One step begins between the look and the signal; ranks agree on the one after it.
        return f"saved {saved}, told in {begun}" if begun and saved > begun + 1 + (len(codes) > 1) else ""
    # Before the first step, and in the evaluation after the last one, which no checkpoint holds.
    if 128 + number in codes and begun in (0, STEPS):
        return "" if state.get("state") in (None, "preempted", "running") else f"{codes}, {state}"
    return f"{codes}, told in step {begun}, {state}"


def signal_runs(folder: Path, chosen: argparse.Namespace, flags: Any) -> dict[str, Any]:
    """Run whole, then told; return what happened."""
    from vlm_lora.launch.launching import free_port

    chance = random.Random(chosen.seed)
    report: dict[str, Any] = {"signals": Counter(), "codes": Counter(), "starts": 0, "finished": 0, "faults": []}

    def start_all(output: Path) -> list[int]:
        words, port = [*flags(output), "--resume_from_checkpoint", "auto"], free_port()
        return [start(words, folder, rank=rank, ranks=chosen.ranks, port=port) for rank in range(chosen.ranks)]

    whole = folder / "whole"
    codes = [wait(child) for child in start_all(whole)]
    if any(codes):
        return {**report, "faults": [f"the run that nobody tells ended with {codes}: {(folder / 'log0').read_text()}"]}
    import_all((folder / "modules").read_text().splitlines())
    expected = (whole / ADAPTER).read_bytes()
    left = [kind for kind in KINDS for _ in range(chosen.signals)]
    chance.shuffle(left)
    number = 0
    while left or (folder / f"run-{number}").exists():
        output = folder / f"run-{number}"
        children = start_all(output)
        report["starts"] += 1
        kind = left[-1] if left else 0
        begun = tell(children, folder, kind, chance) if kind else 0
        codes = [wait(child) for child in children]
        report["codes"][str(codes)] += 1
        if not any(codes):
            report["finished"] += 1
            number += 1
            if (output / ADAPTER).read_bytes() != expected:
                report["faults"].append(f"{output.name} ended with other weights")
            continue
        fault = fault_of(output, codes, kind, begun)
        if fault:
            report["faults"].append(f"{signal.Signals(kind).name}: {fault}: {(folder / 'log0').read_text()[-600:]}")
            if len(report["faults"]) > 5:
                break
        report["signals"][signal.Signals(kind).name] += 1
        left.pop()
    return report


def main(argv: list[str]) -> int:
    """Make model and data, and tell."""
    asked = argparse.ArgumentParser()
    asked.add_argument("folder", type=Path)
    asked.add_argument("--signals", type=int, default=4)
    asked.add_argument("--ranks", type=int, default=1)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--workers", type=int, default=0)
    chosen = asked.parse_args(argv)
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLM_LORA_CACHE": str(chosen.folder / "cache"),
    }
    sys.path.insert(0, str(Path(__file__).parent))
    from support.rows import write_uneven_rows
    from support.runs import script_flags
    from support.tiny import build_model_folder

    chosen.folder.mkdir(parents=True, exist_ok=True)
    maker = os.fork()
    if not maker:
        build_model_folder("gemma3", chosen.folder / "model")
        os._exit(0)
    wait(maker)
    data = write_uneven_rows(chosen.folder / "data", rows=8, validation=2)
    settings: dict[str, object] = {
        "do_train": True,
        "do_eval": True,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lora_dropout": 0.1,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "dataloader_num_workers": chosen.workers,
        **({"ddp_backend": "gloo"} if chosen.ranks > 1 else {}),
    }

    def flags(output: Path) -> list[str]:
        return script_flags(chosen.folder / "model", data, output, **settings)

    report = signal_runs(chosen.folder, chosen, flags)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
