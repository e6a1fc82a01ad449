"""`python -m support.families [TYPE ...]`: try every type that has not gone through yet, and write what came out."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.families import deep, trial
from support.families.page import RESULTS, works
from support.warm import FOLDER, let_go
from vlm_lora.model.families import FAMILIES

MODULES = (
    *("accelerate", "bitsandbytes", "datasets", "deepspeed", "peft", "transformers.trainer", "vlm_lora.pipeline"),
    *("vlm_lora_torch.backend", "vlm_lora_cuda.backend", "vlm_lora_habana.backend", "vlm_lora_gaudi.backend"),
)
"""What every trial imports, as far as it is installed: once, in the process that all trials are forks of."""
UNTRIED = {"untried": "yes"}
LIMIT = 300
"""Seconds of a processor that one type may take, and minutes in all where it waits."""


def main() -> None:
    """Try types one after the other, each in a fork of this process; what was found before is kept."""
    parser = argparse.ArgumentParser(prog="make families")
    parser.add_argument("types", nargs="*", help="default: every mapped type")
    parser.add_argument("--again", action="store_true", help="try also what was tried before")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vlm-lora-families")
    parser.add_argument("--keep", action="store_true", help="leave the folders of the types in --work")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--deep", action="store_true", help="try more of ten types, or of those named: minutes each")
    options = parser.parse_args()
    results = options.results
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPED

    for module in MODULES:
        with contextlib.suppress(ModuleNotFoundError):  # another vendor's
            importlib.import_module(module)
    rows: dict[str, Any] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    rows = dict.fromkeys(MAPPED, UNTRIED) | rows
    rows |= {name: {"refused": family.refused} for name, family in FAMILIES.items() if family.refused}
    # Types that were never tried come first, those that failed before after them.
    order = sorted(MAPPED, key=lambda name: ("failed" in rows[name], name))
    if options.deep:
        os.environ.setdefault(FOLDER, tempfile.mkdtemp())
        for name in options.types or deep.TYPES:
            if "deep" in rows[name] and not options.again:
                continue
            rows[name]["deep"] = deep.try_deeper(name, options.work / name)
            sys.stderr.write(f"{name}: {json.dumps(rows[name]['deep'])}\n")
            results.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        let_go()
        return
    for name in options.types or order:
        if "refused" in rows.get(name, {}) or (works(rows.get(name, UNTRIED)) and not options.again):
            continue
        folder = options.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        deeper = {key: value for key, value in rows.get(name, {}).items() if key == "deep"}
        rows[name] = try_in_a_fork(name, folder) | deeper
        sys.stderr.write(f"{name}: {json.dumps(rows[name])}\n")
        results.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    results.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def try_in_a_fork(name: str, folder: Path) -> dict[str, Any]:
    """Try a type in a process of its own, which may hang or die, and return its row."""
    child = os.fork()
    if child == 0:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        signal.alarm(LIMIT * 60)
        row = trial.try_type(name, folder)
        (folder / "row.json").write_text(json.dumps(row), encoding="utf-8")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    try:
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        row = {"failed": f"its process ended with {os.waitstatus_to_exitcode(status)}", "seconds": LIMIT}
    return row


if __name__ == "__main__":
    main()
