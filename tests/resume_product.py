"""The product of what a run may be resumed in, tried whole: every checkpoint of every kind of run is gone on from.

`python tests/resume_product.py FOLDER` trains each method (a table, full weights, a stream, tars, a mixture, grouping,
packing) with and without loader workers, with and without accumulation, on each family, over an epoch's end; then
goes on from the checkpoint of each step in a copy of its folder. It prints a line per combination and ends with 1 if
one ended in other weights than the run that nobody interrupted. `--families gemma3` and so on choose.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

# First: it sets what torch and pyarrow read.
from support.interrupted.forks import in_fork  # isort: skip
from support.interrupted.kinds import METHODS, WEIGHTS, write_data
from support.runs import script_flags

STEPS = 6
ROWS = 8
FAMILIES = ("gemma3", "qwen2_5_vl", "llava")


def weights(folder: Path) -> bytes:
    """Return the bytes of what was trained."""
    [found] = [folder / name for name in WEIGHTS if (folder / name).exists()]
    return found.read_bytes()


def gone_on_from(output: Path, words: list[str], step: int) -> str:
    """Keep a run's checkpoints up to a step in a copy of it, go on from there, and say how that ended."""
    from vlm_lora.cli.main import run_script

    place = output.with_name("again")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(output, place)
    for path in place.iterdir():
        later = path.name.startswith("checkpoint-") and int(path.name[11:]) > step
        if later:
            shutil.rmtree(path)
        elif path.name in (*WEIGHTS, "MANIFEST.json", "all_results.json", "train_results.json"):
            path.unlink()
    code = run_script([str(place) if word == str(output) else word for word in words])
    if code:
        return f"exit {code}"
    return "equal" if weights(place) == weights(output) else "OTHER WEIGHTS"


def tried(folder: Path, method: str, workers: int, accumulation: int, family: str) -> dict[str, str]:
    """Train one combination whole and from each of its checkpoints; return how each ended."""
    from support.tiny import build_model_folder
    from vlm_lora.cli.main import run_script

    model = folder / f"model-{family}"
    if not model.exists():
        build_model_folder(family, model)
    place = folder / method
    named = write_data(method, place, rows=ROWS) if not (place / "data").exists() else {}
    if method == "mixture":
        named = {"dataset_name": f"{place / 'data'} + {place / 'more'}"}
    output = place / "run"
    shutil.rmtree(output, ignore_errors=True)
    settings: dict[str, object] = {
        "do_train": True,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "resume_from_checkpoint": "auto",
        **METHODS[method],
        **named,
    }
    words = script_flags(model, place / "data", output, **settings)
    code = run_script(words)
    if code:
        return {"whole": f"exit {code}"}
    found = {str(step): gone_on_from(output, words, step) for step in range(1, STEPS)}
    # What is compared tells one step from the next.
    control = weights(output / f"checkpoint-{STEPS - 1}") != weights(output)
    return {**found, "control": "differs" if control else "EQUAL"}


def main(argv: list[str]) -> int:
    """Try all of them, and say how many ended as they should."""
    asked = argparse.ArgumentParser()
    asked.add_argument("folder", type=Path)
    asked.add_argument("--families", nargs="+", default=FAMILIES)
    asked.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    chosen = asked.parse_args(argv)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    os.environ["VLM_LORA_CACHE"] = str(chosen.folder / "cache")
    report = chosen.folder / "report.txt"
    good = bad = 0
    for case in itertools.product(chosen.methods, (0, 2), (1, 2), chosen.families):

        def noted(case: tuple[str, int, int, str] = case) -> None:
            with redirect_stdout(StringIO()):
                ended = tried(chosen.folder, *case)
            report.write_text(" ".join(f"{step}:{how}" for step, how in ended.items()), encoding="utf-8")

        report.write_text("it ended by itself", encoding="utf-8")
        in_fork(noted)
        said = report.read_text(encoding="utf-8")
        fine = said == " ".join([*(f"{step}:equal" for step in range(1, STEPS)), "control:differs"])
        good, bad = good + fine, bad + (not fine)
        method, workers, accumulation, family = case
        sys.stdout.write(f"{method}, {workers} workers, accumulation {accumulation}, {family}: {said}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{good} as they should, {bad} not\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
