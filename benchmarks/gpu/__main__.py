"""`python -m benchmarks.gpu`: all that one CUDA GPU can tell, within a budget of seconds.

    python -m benchmarks.gpu [--seconds 480] [--wheels DIR] [--stages correctness,...] [--dry_run]
    python -m benchmarks.gpu --tiny --device cpu          # the whole of it in small, on a machine without a GPU

1. Small trainings that must have the same losses: bf16, flash attention, 4-bit weights, one rank of a process group,
   checkpointing, packing, cached features, answers in batches; first of all, wrong labels must be noticed.
2. Random models of Gemma 3's, Qwen2.5-VL's and Qwen3-VL's published sizes, built in place: ours, TRL and a plain script
   take turns after their first losses were found equal. Time of a step, tokens a second, MFU, peak, start-up.

Each stage has a share of the seconds and leaves what it does not use to those behind it; what did not fit is named.
No network is needed: peers that are missing are taken from a folder of wheels (`pip download --no-deps trl==1.16.0`),
or named, and their rows left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.compare import ContenderError, Left, OutOfTimeError, UnequalLossError, in_own_process
from benchmarks.figures import Figure, Results
from benchmarks.folders import build_folder
from benchmarks.gpu import correctness, speed
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.peers import State, look, unpack
from benchmarks.shapes import PUBLISHED, SMALL, Shape, tiny

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
SHARES: Mapping[str, float] = {"correctness": 0.28, **dict.fromkeys(PUBLISHED, 0.24)}
MOST, LEAST = 480, 60
"""Seconds: what was agreed on, and below which no stage could do anything."""
ROUNDS = 15


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, each checked.

    Raises:
        SystemExit: one is wrong; the message says what is allowed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=MOST, help=f"for everything, {LEAST} to {MOST} ({MOST})")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to take missing peers from")
    parser.add_argument("--stages", help=f"some of {', '.join(SHARES)}, joined by commas (all)")
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and check what was typed")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models and rounds that a CPU takes in a minute")
    parser.add_argument("--json", type=Path, default=None, help=f"the file of results ({RESULTS.relative_to(ROOT)})")
    parser.add_argument("--folder", type=Path, help="where models are built: up to 25 GB (a temporary folder)")
    own = parser.parse_args(arguments)
    if not LEAST <= own.seconds <= MOST:
        raise SystemExit(f"--seconds {own.seconds}: must be {LEAST} to {MOST}.")
    if own.device == "cpu" and not own.tiny:
        raise SystemExit("--device cpu: models of these sizes are for a GPU. Add --tiny.")
    own.stages = list(SHARES) if own.stages is None else [word.strip() for word in own.stages.split(",")]
    unknown = [word for word in own.stages if word not in SHARES]
    if unknown:
        raise SystemExit(f"--stages {','.join(unknown)}: allowed are {', '.join(SHARES)}.")
    if own.json is None:
        if own.tiny and not own.dry_run:
            raise SystemExit("--tiny: type --json FILE; docs/benchmarks.md is not made of tiny models.")
        own.json = RESULTS
    return own


def describe(own: argparse.Namespace, peers: Sequence[State]) -> str:
    """Return what a run with these arguments would do."""
    budget = Budget(own.seconds, {name: SHARES[name] for name in own.stages})
    lines = [f"Device: {own.device}. {own.seconds} seconds in all. Results: {own.json}.", "Peers:"]
    lines += [f"  {state.words()}" for state in peers]
    lines.append("Stages:")
    for name, seconds in budget.planned().items():
        lines.append(f"  {name}: at most {seconds:.0f} s at first")
        if name == "correctness":
            for way, value in correctness.WAYS.items():
                why = value.missing(own.device)
                lines.append(f"    {way}: {f'left out, {why}' if why else 'trained'}")
            lines += [f"    {one} against {other}, within {most:g}" for one, other, most in correctness.CHECKS]
            continue
        shape = shape_of(name, small=own.tiny)
        lines.append(
            f"    {shape.family}: {shape.layers} layers of {shape.hidden}, {shape.vocabulary:,} columns, a tower of "
            f"{shape.tower_layers} layers of {shape.tower_hidden}, images of {shape.side} px, "
            f"{rounds_of(own)} rounds of {', '.join(each.name for each in speed.contenders(trl=has_trl(peers)))}"
        )
    return "\n".join(lines)


def shape_of(name: str, *, small: bool) -> Shape:
    """Return a model's shape."""
    return tiny(PUBLISHED[name]) if small else PUBLISHED[name]


def rounds_of(own: argparse.Namespace) -> int:
    """Return how many rounds contenders take at most."""
    return 3 if own.tiny else ROUNDS


def has_trl(peers: Sequence[State]) -> bool:
    """Whether TRL is there, or will be."""
    return any(state.peer.name == "trl" and (state.usable or state.wheel is not None) for state in peers)


def card() -> dict[str, Any]:
    """Return the GPU: its name, its memory and its stated operations a second; asked for in a process of its own."""
    import torch

    from vlm_lora_cuda.devices import flops_of

    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA GPU is visible to PyTorch")
    properties = torch.cuda.get_device_properties(0)
    return {
        "processor": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}",
        "flops": flops_of(properties.name),
    }


def run_stage(name: str, own: argparse.Namespace, place: Path, peers: Sequence[State], flops: Any, left: Left) -> Any:
    """Return the figures of a stage and what is missing.

    Raises:
        ContenderError, UnequalLossError, OutOfTimeError: nothing was measured.
    """
    if name == "correctness":
        shape = tiny(SMALL) if own.tiny else SMALL
        model = in_own_process(build_folder, shape, place / "small", device=own.device, left=left)
        rows = correctness.rows_of(place / "small-rows", side=shape.side)
        job = correctness.Job(model=model, data=rows, output=place / "out", batch_size=2, device=own.device)
        return correctness.check(job, left, at_once=1 if own.device == "cpu" else 4)
    found = speed.measure(
        shape_of(name, small=own.tiny),
        name.replace(" ", "-"),
        place,
        own.device,
        trl=has_trl(peers),
        peak_flops=flops,
        left=left,
        rounds=rounds_of(own),
    )
    return found.figures, found.missing


def go(own: argparse.Namespace, peers: Sequence[State], place: Path, say: Callable[[str], None]) -> list[str]:
    """Run the stages; return those that failed."""
    budget = Budget(own.seconds, {name: SHARES[name] for name in own.stages})
    wrong = unpack(peers, own.wheels, place / "peers")
    if wrong:
        raise SystemExit(wrong)
    sys.path.append(str(place / "peers"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place / "peers"), os.environ.get("PYTHONPATH")]))
    machine: dict[str, Any] = {}
    if own.device == "cuda":
        machine = in_own_process(card, device=own.device)
    results = Results(own.json, {"seconds": own.seconds, "tiny": own.tiny})
    results.content["machine"] |= machine
    failed: list[str] = []
    for name in own.stages:
        began, left = time.monotonic(), budget.begin(name)
        say(f"\n{name}: at most {left():.0f} s")
        figures: list[Figure] = []
        try:
            figures, missing = run_stage(name, own, place, peers, machine.get("flops"), left)
        except OutOfTimeError:
            missing = [f"it did not fit into its {time.monotonic() - began:.0f} s"]
        except (ContenderError, UnequalLossError) as error:
            failed.append(name)
            say(str(error))
            missing = [f"the stage failed: {str(error).strip().splitlines()[-1]}"]
        for figure in figures:
            say(f"  {figure.line()}")
        for each in missing:
            say(f"  missing: {each}")
        results.add(name, figures, missing, time.monotonic() - began)
        if name != "correctness":
            shutil.rmtree(place / name.replace(" ", "-"), ignore_errors=True)
    failed += [name for name in own.stages if any(figure.met is False for figure in results.figures(name))]
    return list(dict.fromkeys(failed))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or say what it would do.

    Raises:
        SystemExit: an argument is wrong, or a stage failed.
    """
    own = parsed(arguments)
    peers = look(own.wheels)
    print(describe(own, peers), flush=True)
    if own.dry_run:
        return
    place = own.folder or Path(tempfile.mkdtemp(prefix="benchmarks-gpu-"))
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ["HF_HOME"] = str(place / "hub")
    try:
        failed = go(own, peers, place, lambda words: print(words, flush=True))
    finally:
        if own.folder is None:
            shutil.rmtree(place, ignore_errors=True)
    print(f"\nWritten to {own.json}.", file=sys.stderr)
    if failed:
        raise SystemExit(f"Failed, or not as it must be: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
