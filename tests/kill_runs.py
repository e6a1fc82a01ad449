"""Training that is killed again and again, and started again by the same command until it is done.

`python tests/kill_runs.py FOLDER --kills 30` prints a report as JSON and ends with 1 if a start was refused or failed,
or if a finished run differs from one that nobody killed. Every start is a fork of one process that has imported
everything and begun nothing. A third of the kills comes at a random moment, a third at a random change of the output
folder, and a third while results are written; the same seed draws the same moments.
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
RESULTS = ("_results.json", "predictions.jsonl", "README.md", "run_files.json", "trainer_state.json")


class Changes:
    """Counts the changes of a folder's files in this process, and kills it at one of them.

    A file is counted as soon as it is opened for writing, when it is empty; one that torch saves, when half of it is
    there; whatever is renamed or removed, before that.
    """

    def __init__(self, folder: Path, *, die_at: int | None, results_only: bool) -> None:
        self.count = 0
        self.results = 0
        self._folder, self._die_at, self._results_only = str(folder), die_at, results_only

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
        if not name.startswith(self._folder):
            return
        self.count += 1
        is_result = any(part in Path(name).name for part in RESULTS) and "checkpoint-" not in name
        self.results += is_result
        if self._die_at == (self.results if self._results_only else self.count) and (
            is_result or not self._results_only
        ):
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
        changes.watch()
        code = run_script(words)
        told = {"changes": changes.count, "results": changes.results, "modules": sorted(sys.modules)}
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


def whole_checkpoint(output: Path) -> bool:
    """Say whether a cluster's script would give --resume_from_checkpoint."""
    for state in output.glob("checkpoint-*/trainer_state.json"):
        try:
            json.loads(state.read_text(encoding="utf-8"))
        except ValueError:
            continue
        return True
    return False


def kill_runs(folder: Path, kills: int, seed: int, flags: Callable[[Path], list[str]]) -> dict[str, Any]:
    """Run whole, then killed; return what happened."""
    chance, log = random.Random(seed), folder / "log"
    report: dict[str, Any] = {"kills": 0, "kills in results": 0, "starts": 0, "finished": 0, "faults": []}
    whole = folder / "whole"
    begun = time.monotonic()
    code = wait(start(flags(whole), log, Changes(whole, die_at=None, results_only=False)))
    if code:
        return {**report, "faults": [f"the run that nobody kills ended with {code}: {log.read_text()[-3000:]}"]}
    seconds = time.monotonic() - begun
    told = json.loads(log.with_suffix(".json").read_text())
    count, results = told["changes"], told["results"]
    import_all(told["modules"])
    expected, earlier = ((whole / place / ADAPTER).read_bytes() for place in ("", f"checkpoint-{STEPS - 1}"))
    if expected == earlier:
        report["faults"].append("the last step changed nothing: no comparison would show anything")
    number = 0
    while report["kills"] < kills or (folder / f"run-{number}").exists():
        output = folder / f"run-{number}"
        words = flags(output) + (["--resume_from_checkpoint", "true"] if whole_checkpoint(output) else [])
        kind = ("moment", "change", "results")[report["kills"] % 3] if report["kills"] < kills else ""
        # Few enough for most starts to come to it, also those that have a step left or none.
        die_at = {"change": chance.randint(1, count // STEPS), "results": chance.randint(1, results // 2)}.get(kind)
        child = start(words, log, Changes(output, die_at=die_at, results_only=kind == "results"))
        report["starts"] += 1
        if kind == "moment":
            # The first run also imported what the forks have already.
            time.sleep(chance.uniform(0, seconds / 4))
            os.kill(child, signal.SIGKILL)
        code = wait(child)
        if code == -signal.SIGKILL:
            report["kills"] += 1
            report["kills in results"] += kind == "results"
            continue
        if code:
            report["faults"].append(
                f"start {report['starts']} in {output.name} ended with {code}: {log.read_text()[-800:]}"
            )
        elif (output / ADAPTER).read_bytes() != expected:
            report["faults"].append(f"{output.name} ended with other weights")
        report["finished"] += not code
        number += 1
    return report


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
    }

    def flags(output: Path) -> list[str]:
        return script_flags(chosen.folder / "model", data, output, **settings)

    report = kill_runs(chosen.folder, chosen.kills, chosen.seed, flags)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
