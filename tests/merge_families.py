"""Merges an adapter of every family by the verb, and loads the merged folders in plain transformers of either stack.

By hand, minutes: `python tests/merge_families.py make WORK [FAMILY ...]` on one stack, then `... read WORK` on another.
`make` builds each family tiny, trains an adapter on it (and on its experts, where it has some), merges it in float32,
and onto the same base in bfloat16; then plain transformers and plain PEFT answer the same batch with the merged folder
and with the adapter. `read` loads what was merged and answers that batch again. Each prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from support.families.folders import build_folder
from support.families.shapes import shape_of
from support.rows import write_uneven_rows
from support.runs import script_flags
from support.tiny import available, build_model_folder
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.cli.main import main as command
from vlm_lora.cli.main import run_script
from vlm_lora.compat import known_model_types

EXPERTS = ("aria", "llama4", "qwen3_vl_moe")
"""Types whose experts are one tensor a layer, each in another layout."""
TRAINED = {"do_train": True, "max_steps": 2, "learning_rate": 1e-2, "validation_fraction": 0, "log_level": "error"}
BOUND = 1e-4
"""How far logits of one batch may lie apart, in units of the largest."""


class FailedError(Exception):
    """A step went wrong; the table says which."""


def quietly(what: str, run: Callable[[], int]) -> None:
    """Run a command; raise with what it said last where it fails."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = run()
    if code:
        raise FailedError(f"{what}: {said.getvalue().strip().splitlines()[-1]}")


def flags_of(name: str) -> dict[str, str]:
    """Return the flags that a family needs."""
    return {"trust_remote_code": "true"} if name == "phi3_v" else dict(shape_of(name).flags)


def merge(adapter: Path, output: Path, rows: int = 4) -> dict[str, Any]:
    """Merge by the verb; return its report."""
    words = ["merge", str(adapter), "--output_dir", str(output), "--rows", str(rows), "--use_cpu", "true"]
    flags = [word for name, value in flags_of(adapter.parent.name).items() for word in (f"--{name}", value)]
    more = ["--max_new_tokens", "6", "--accept_changed_files", "true", *flags]
    quietly(f"merge into {output.name}", lambda: command([*words, *more]))
    report: dict[str, Any] = json.loads((output / "merge_report.json").read_text(encoding="utf-8"))
    return report


def onto_bfloat16(place: Path) -> Path:
    """Write base and adapter again, the base in bfloat16; return the adapter."""
    base, adapter = place / "base-bf16", place / "adapter-bf16"
    shutil.copytree(place / "base", base)
    for file in base.glob("*.safetensors"):
        tensors = {name: t.bfloat16() if t.is_floating_point() else t for name, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    shutil.copytree(place / "adapter", adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return adapter


@torch.no_grad()
def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a model's logits."""
    found: torch.Tensor = model.float().eval()(**batch).logits
    return found


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference in units of the largest logit."""
    return float((one - other).abs().max() / other.abs().max())


def make(name: str, place: Path, data: Path, bases: Path | None) -> list[str]:
    """Build, train, merge and load one family; return its row."""
    if bases is not None:
        shutil.copytree(bases / name / "base", place / "base")
    else:
        (build_model_folder if name in available() else build_folder)(name, place / "base")
    targets = "language,experts" if name in EXPERTS else "language"
    flags = {**TRAINED, **flags_of(name), "lora_targets": targets}
    quietly("train", lambda: run_script(script_flags(place / "base", data, place / "adapter", **flags)))
    report = merge(place / "adapter", place / "merged")
    rounded = merge(onto_bfloat16(place), place / "merged-bf16")
    proof, rough = report["proof"], rounded["proof"]
    processor, base = load_plainly(place / "base")
    batch = {
        key: value.float() if value.is_floating_point() else value for key, value in build_batch(processor).items()
    }
    plain = logits(load_plainly(place / "merged")[1], batch)
    tuned = logits(PeftModel.from_pretrained(base.float(), str(place / "adapter")), batch)
    untouched = logits(load_plainly(place / "base")[1], batch)
    if not relative(plain, tuned) < BOUND < relative(untouched, tuned):
        raise FailedError(f"plain transformers and PEFT: {relative(plain, tuned):.2g}")
    torch.save({"batch": batch, "logits": plain}, place / "answers.pt")
    return [
        f"{report['layers_computed_twice']} of {len(report['layers'])}",
        f"{proof['largest_logit_difference'] / proof['largest_logit']:.0e}",
        f"{proof['equal_answers']} of {proof['rows']}",
        f"{rough['largest_logit_difference'] / rough['largest_logit']:.0e}",
        f"{relative(plain, tuned):.0e}",
    ]


def read(name: str, place: Path) -> list[str]:
    """Load what was merged and answer the batch again; return the row."""
    config = json.loads((place / "merged" / "config.json").read_text(encoding="utf-8"))
    if "auto_map" not in config and config["model_type"] not in known_model_types():
        return ["not in this version"]
    kept = torch.load(place / "answers.pt", weights_only=True)
    found = relative(logits(load_plainly(place / "merged")[1], kept["batch"]), kept["logits"])
    if not found < BOUND:
        raise FailedError(f"{name}: logits {found:.2g} apart")
    return [f"{found:.0e}"]


def main() -> None:
    """Print a row for each family; end with 1 where one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["make", "read"])
    parser.add_argument("work", type=Path)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--bases", type=Path, help="WORK of the other stack, to make adapters on its models")
    own = parser.parse_args()
    everything = [*available(), *(name for name in EXPERTS if name in known_model_types())]
    if own.what == "read":
        everything = sorted(path.parent.name for path in own.work.glob("*/answers.pt"))
    elif own.bases is not None:
        everything = sorted(path.parent.name for path in own.bases.glob("*/answers.pt"))
    if own.what == "make":
        write_uneven_rows(own.work / "data", rows=4)
    failed = False
    for name in own.families or everything:
        place = own.work / name
        try:
            row = read(name, place) if own.what == "read" else make(name, place, own.work / "data", own.bases)
        except (Exception, SystemExit) as error:  # whatever it is, the other families are tried
            failed, row = True, [f"{type(error).__name__}: {error}".splitlines()[0]]
        sys.stdout.write(f"| `{name}` | {' | '.join(row)} |\n")
        sys.stdout.flush()
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
