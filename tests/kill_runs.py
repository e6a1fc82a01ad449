"""Training that is killed again and again, and started again by the same command until it is done.

`python tests/kill_runs.py FOLDER --kills 30` prints a report as JSON and ends with 1 if a start was refused or failed,
or if a finished run differs from one that nobody killed. Every start is a fork of one process that has imported
everything and begun nothing, and all starts have one command. A quarter of the kills comes at a random moment, a
quarter at a random change of the output folder, a quarter while results and manifests are written, and a quarter while
caches are; the same seed draws the same moments.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import importlib
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch: sums over tiny tensors are the same and faster on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before pyarrow: its allocator would begin a thread, and a process of several threads must not fork.
os.environ |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "JE_ARROW_MALLOC_CONF": "background_thread:false"}

ADAPTER = "adapter_model.safetensors"
STEPS = 3
RESULTS = ("_results.json", "predictions.jsonl", "README.md", "run_files.json", "trainer_state.json", "MANIFEST.json")
KINDS = ("moment", "change", "results", "caches")


class Changes:
    """Counts the changes of a run's files in this process, and kills it at one of them.

    Args:
        folder: the output folder.
        cache: where the run keeps its caches.
        die_at: the number of the change to die at; None dies at none.
        kind: `change` counts all of the output folder, `results` its results and manifests, `caches` the cache.

    A file is counted as soon as it is opened for writing, when it is empty; one that torch saves, when half of it is
    there; whatever is renamed or removed, before that.
    """

    def __init__(self, folder: Path, cache: Path, *, die_at: int | None = None, kind: str = "change") -> None:
        self.counts = dict.fromkeys(("change", "results", "caches"), 0)
        self.cache = cache
        self._folder, self._die_at, self._kind = str(folder), die_at, kind

    def watch(self) -> None:
        """Begin; it never ends in this process."""
        import torch

        opened, saved = io.open, torch.save

        def open_watched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            stream = opened(file, mode, *args, **kwargs)
            if set(mode) & set("wax+"):
                self._changed(file)
            return stream

        def save_watched(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            saved(value, file, *args, **kwargs)
            self._changed(file, cut=True)

        modules: tuple[Any, ...] = (builtins, io, torch)
        for module in modules[:2]:
            module.open = open_watched
        modules[2].save = save_watched
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            self._changed(arguments[0])

    def _changed(self, file: Any, *, cut: bool = False) -> None:
        name = os.fsdecode(file) if isinstance(file, (str, bytes, os.PathLike)) else ""
        kinds = ["caches"] if name.startswith(str(self.cache)) else []
        if name.startswith(self._folder):
            kinds = ["change"]
            manifest = "MANIFEST" in Path(name).name
            if any(part in Path(name).name for part in RESULTS) and (manifest or "checkpoint-" not in name):
                kinds.append("results")
        for kind in kinds:
            self.counts[kind] += 1
        if self._kind in kinds and self._die_at == self.counts[self._kind]:
            if cut:
                os.truncate(name, Path(name).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def start(words: list[str], log: Path, changes: Changes) -> int:
    """Fork and run the command line there; return the child's process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        import torch

        from vlm_lora.cli.main import run_script

        torch.set_num_threads(1)
        os.environ["VLM_LORA_CACHE"] = str(changes.cache)
        changes.watch()
        code = run_script(words)
        told = {"counts": changes.counts, "modules": sorted(sys.modules)}
        log.with_suffix(".json").write_text(json.dumps(told))
    finally:
        os._exit(code)


def import_all(modules: list[str]) -> None:
    """Import what a run imports on its way, so that the forks need not; the process must stay one of one thread."""
    for name in modules:
        # Some modules are made by others and have no file.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"{threads} threads: a fork of this process could hang")


def wait(child: int) -> int:
    """Return a child's exit code, -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_runs(folder: Path, kills: int, seed: int, flags: Callable[[Path], list[str]]) -> dict[str, Any]:
    """Run whole, then killed; return what happened."""
    chance, log = random.Random(seed), folder / "log"
    report: dict[str, Any] = {"kills": dict.fromkeys(KINDS, 0), "starts": 0, "finished": 0, "faults": []}
    whole = folder / "whole"
    begun = time.monotonic()
    code = wait(start(flags(whole), log, Changes(whole, folder / "cache")))
    if code:
        return {**report, "faults": [f"the run that nobody kills ended with {code}: {log.read_text()[-3000:]}"]}
    seconds = time.monotonic() - begun
    told = json.loads(log.with_suffix(".json").read_text())
    counts: dict[str, int] = told["counts"]
    import_all(told["modules"])
    expected, earlier = ((whole / place / ADAPTER).read_bytes() for place in ("", f"checkpoint-{STEPS - 1}"))
    if expected == earlier:
        report["faults"].append("the last step changed nothing: no comparison would show anything")
    # Few enough for most starts to come to it, also those that have a step left or none.
    most = {"change": counts["change"] // STEPS, "results": counts["results"] // 2, "caches": counts["caches"]}
    number = 0
    while sum(report["kills"].values()) < kills or (folder / f"run-{number}").exists():
        output, made = folder / f"run-{number}", sum(report["kills"].values())
        kind = KINDS[made % len(KINDS)] if made < kills else ""
        die_at = chance.randint(1, most[kind]) if kind in most else None
        child = start(flags(output), log, Changes(output, folder / f"cache-{number}", die_at=die_at, kind=kind))
        report["starts"] += 1
        if kind == "moment":
            # The first run also imported what the forks have already.
            time.sleep(chance.uniform(0, seconds / 4))
            os.kill(child, signal.SIGKILL)
        code = wait(child)
        if code == -signal.SIGKILL:
            report["kills"][kind] += 1
            continue
        if code:
            report["faults"].append(
                f"start {report['starts']} in {output.name} ended with {code}: {log.read_text()[-800:]}"
            )
        else:
            report["faults"] += differences(output, expected)
        report["finished"] += not code
        number += 1
    return report


def differences(output: Path, expected: bytes) -> list[str]:
    """Return what is wrong with a folder whose run has ended."""
    from vlm_lora.model.manifest import State, examine

    verdicts = {place: examine(place) for place in (output, *output.glob("checkpoint-*"))}
    faults = [
        f"{place}: {each.state.value} {each}" for place, each in verdicts.items() if each.state is not State.WHOLE
    ]
    if (output / ADAPTER).read_bytes() != expected:
        faults.append(f"{output.name} ended with other weights")
    return faults


def main(argv: list[str]) -> int:
    """Make model and data, and kill."""
    asked = argparse.ArgumentParser()
    asked.add_argument("folder", type=Path)
    asked.add_argument("--kills", type=int, default=30)
    asked.add_argument("--seed", type=int, default=0)
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
    # In a process of its own: the one that is forked computes nothing.
    maker = os.fork()
    if not maker:
        build_model_folder("gemma3", chosen.folder / "model")
        os._exit(0)
    wait(maker)
    data = write_uneven_rows(chosen.folder / "data", rows=6, validation=2)
    settings: dict[str, object] = {
        "do_train": True,
        "do_eval": True,
        "predict_with_generate": True,
        "max_new_tokens": 1,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lora_dropout": 0.1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "image_cache": "on",
        "resume_from_checkpoint": "auto",
    }

    def flags(output: Path) -> list[str]:
        return script_flags(chosen.folder / "model", data, output, **settings)

    report = kill_runs(chosen.folder, chosen.kills, chosen.seed, flags)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
