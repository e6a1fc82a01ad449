"""Merges an adapter of every family by the verb, and loads the merged folders in plain transformers of either stack.

By hand, minutes: `python tests/merge_families.py make WORK [FAMILY ...]` on one stack, then `... read WORK` on another.
`make` builds each family tiny, trains an adapter on all of its parts (and on its experts, where it has some), merges it
in float32, and onto the same base in bfloat16; then plain transformers and plain PEFT answer the same batch with the
merged folder and with the adapter. What float32 adds is told from what merging does by the same in float64. Three
merges broken on purpose must be refused. `read` loads what was merged and answers that batch again. Each prints a table
in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from support.families.folders import build_folder
from support.families.shapes import shape_of
from support.rows import write_uneven_rows
from support.runs import script_flags
from support.tiny import available, build_model_folder
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.cli.main import main as command
from vlm_lora.cli.main import run_script
from vlm_lora.compat import IS_5, known_model_types
from vlm_lora.deploy import folding
from vlm_lora.model.parts import find_parts

EXPERTS = ("aria", "llama4", "qwen3_vl_moe")
"""Types whose experts are one tensor a layer, each in another layout; built by rules that are for transformers 5."""
OWN_BASE = ("paligemma", "phi4_multimodal")
"""Types of which transformers 4.55 writes tiny models that 5 does not read: another tokenizer, other shapes."""
TRAINED = {"do_train": True, "max_steps": 2, "learning_rate": 1e-2, "validation_fraction": 0, "log_level": "error"}
BOUND = 1e-3
"""How far logits of one batch may lie apart, in units of the largest."""
EXACT = 1e-10
"""The same in float64, where only an error of merging could make it more."""


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
def logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a model's logits."""
    found: torch.Tensor = model.float().eval()(**batch).logits
    return found


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference in units of the largest logit."""
    return float((one - other).abs().max() / other.abs().max())


class InFloat64(TorchFunctionMode):
    """Whatever is computed inside in float32, as models do with norms and angles, is computed in float64."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        named = {name: wide(value) for name, value in (keywords or {}).items()}
        return function(*map(wide, arguments), **named)


@torch.no_grad()
def exact_logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of a model in float64, which it becomes."""
    for config in (getattr(module, "config", None) for module in model.modules()):
        if config is not None and hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"  # grouped products have no float64
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    with InFloat64():
        found: torch.Tensor = model.double().eval()(**wide).logits
    return found


def exactly(place: Path, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the adapter beside its base, and folded into it by the verb's own code, both in float64."""
    tuned = PeftModel.from_pretrained(load_plainly(place / "base")[1].float(), str(place / "adapter"))
    beside = exact_logits(tuned, batch)
    plain, _ = folding.fold(tuned)
    return beside, exact_logits(plain, batch)


def left_out(name: str, layer: Any) -> None:
    """Leave a layer as it was."""


def scaled(name: str, layer: Any) -> None:
    """Fold a layer in, and add a hundredth to its weight."""
    layer.merge(safe_merge=True)
    getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight")).mul_(1.01)


WAYS: Mapping[str, tuple[Callable[[str, Any], None], tuple[str, ...], bool]] = {
    "one tensor left out": (left_out, ("language",), False),
    "one tensor scaled": (scaled, ("language",), False),
    "tower forgotten": (left_out, ("vision", "projector"), True),
}
"""How a merge is broken: how layers of which parts are folded, and whether all of them or one."""


def caught(place: Path) -> int:
    """Return how many merges broken on purpose are refused by the name of a layer, with nothing left behind."""
    parts = find_parts(load_plainly(place / "base")[1])
    found = 0
    for wrongly, of, all_of_them in WAYS.values():
        spoiled: list[str] = []

        def fold_one(
            name: str,
            layer: Any,
            wrongly: Any = wrongly,
            of: Any = of,
            every: bool = all_of_them,
            so_far: Any = spoiled,
        ) -> None:
            trained = any(matrix.weight.any() for matrix in layer.lora_B.values())
            if trained and parts.part_of(name) in of and (every or not so_far):
                so_far.append(name)
                wrongly(name, layer)
            else:
                layer.merge(safe_merge=True)

        with mock.patch.object(folding, "_merge", fold_one):
            try:
                merge(place / "adapter", place / "broken", rows=0)
            except FailedError as error:
                found += "its merged weight is off by" in str(error) and not list(place.glob("*broken*"))
        shutil.rmtree(place / "broken", ignore_errors=True)
    return found


def make(name: str, place: Path, data: Path, bases: Path | None) -> list[str]:
    """Build, train, merge and load one family; return its row."""
    if bases is not None and name not in OWN_BASE and (bases / name / "base").is_dir():
        shutil.copytree(bases / name / "base", place / "base")
    else:
        (build_model_folder if name in available() else build_folder)(name, place / "base")
    targets = "all,experts" if name in EXPERTS else "all"
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
    beside, folded = exactly(place, batch)
    if not relative(folded, beside) < EXACT:
        raise FailedError(f"in float64 the merged model's logits lie {relative(folded, beside):.2g} apart")
    torch.save({"batch": batch, "logits": plain}, place / "answers.pt")
    return [
        f"{report['layers_computed_twice']} of {len(report['layers'])}",
        f"{proof['largest_logit_difference'] / proof['largest_logit']:.0e}",
        f"{(proof['rounding_of_each_weight'] or 0) / proof['largest_logit']:.0e}",
        f"{proof['equal_answers']} of {proof['rows']}",
        f"{rough['largest_logit_difference'] / rough['largest_logit']:.0e}",
        f"{relative(plain, tuned):.0e}",
        f"{relative(folded, beside):.0e}",
        f"{relative(tuned.double(), beside):.0e}, {relative(plain.double(), beside):.0e}",
        f"{caught(place)} of 3",
    ]


def read(name: str, place: Path) -> list[str]:
    """Load what was merged and answer the batch again; return the row."""
    config = json.loads((place / "merged" / "config.json").read_text(encoding="utf-8"))
    if "auto_map" not in config and config["model_type"] not in known_model_types():
        return ["not in this version"]
    kept = torch.load(place / "answers.pt", weights_only=True)
    processor, model = load_plainly(place / "merged")
    own = build_batch(processor)  # what this version's model wants beside the kept tensors
    batch = {name: kept["batch"].get(name, tensor) for name, tensor in own.items()}
    found = relative(logits(model, batch), kept["logits"])
    if not found < BOUND:
        raise FailedError(f"{name}: logits {found:.2g} apart")
    return [f"{found:.0e}"]


def main() -> None:
    """Print a row for each family; end with 1 where one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["make", "read"])
    parser.add_argument("work", type=Path)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--bases", type=Path, help="WORK of the other stack, to take the models that it has from there")
    own = parser.parse_args()
    everything = [*available(), *(EXPERTS if IS_5 else ())]
    if own.what == "read":
        everything = sorted(path.parent.name for path in own.work.glob("*/answers.pt"))
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
