"""Puts the adapters of `tests/unit/serving` before vLLM's own code, and compares what it says with our verdicts.

By hand, when another version is pinned: `PYTHONPATH=tests python tests/vllm_rules.py SOURCE`. vLLM itself is not
installed: its `PEFTHelper`, which judges an adapter's settings, and the function that reads tensors' names stand on
little else; which classes take LoRA is read from their definitions. Prints a table, and ends with 1 where vLLM refuses
what we call servable, or takes what we call refused, experts aside: those have not been shown to be applied.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shlex
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from safetensors import safe_open

from server_tables import vllm_table
from unit.serving.test_servable import BASES, CASES, adapter, verdict
from vlm_lora.serving.servable import Answer

LARGEST = 512


def helper_of(source: Path) -> Any:
    """Return vLLM's `PEFTHelper`, imported next to stand-ins of what it imports."""
    logger = SimpleNamespace(info_once=lambda *_: None)
    stand_ins = {name: ModuleType(name) for name in ("vllm", "vllm.config", "vllm.config.lora", "vllm.logger")}
    vars(stand_ins["vllm.config.lora"])["LoRAConfig"] = SimpleNamespace
    vars(stand_ins["vllm.logger"])["init_logger"] = lambda _: logger
    spec = importlib.util.spec_from_file_location("peft_helper", source / "vllm" / "lora" / "peft_helper.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {**stand_ins, "peft_helper": module}):
        spec.loader.exec_module(module)
    return module.PEFTHelper


def name_reader_of(source: Path) -> Any:
    """Return the function by which vLLM reads a tensor's name, which raises at one that it does not take."""
    tree = ast.parse((source / "vllm" / "lora" / "utils.py").read_text(encoding="utf-8"))
    wanted = [node for node in tree.body if getattr(node, "name", "") == "parse_fine_tuned_lora_name"]
    found: dict[str, Any] = {}
    exec(compile(ast.Module(body=wanted, type_ignores=[]), "utils.py", "exec"), found)
    return found["parse_fine_tuned_lora_name"]


def refusal(folder: Path, rank: int, helper: Any, read_name: Any) -> str:
    """Return why vLLM refuses an adapter, in its own words; empty where it takes it."""
    try:
        helper.from_local_dir(str(folder), 4096).validate_legal(SimpleNamespace(max_lora_rank=rank))
        with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                read_name(name)
    except ValueError as error:
        return str(error)
    return ""


def by_class(base: str, outside: bool, table: dict[str, dict[str, bool]]) -> str:
    """Return why vLLM's class of a model takes no such adapter; empty where it does, or there is no class."""
    known = table.get(BASES[base][1])
    if known is None:
        return "no such class"
    if not known["lora"]:
        return "the class does not support LoRA"
    return "the class has no LoRA on tower and connector" if outside and not known["tower"] else ""


def main() -> None:
    source = Path(sys.argv[1])
    helper, read_name, table = helper_of(source), name_reader_of(source), vllm_table(source)
    wrong = 0
    for case, (base, names, settings, *_) in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = adapter(Path(place), base, *names, **settings)
            ours = verdict(folder, "vLLM")
            words = shlex.split(ours.command or "")
            rank = int(words[words.index("--max-lora-rank") + 1]) if "--max-lora-rank" in words else LARGEST
            theirs = refusal(folder, rank, helper, read_name) or by_class(
                base, any("visual" in name or "vision" in name for name in names), table
            )
        agrees = (ours.answer is Answer.AS_IT_IS) == (not theirs) or "target_parameters" in settings
        wrong += not agrees
        sys.stdout.write(f"| {case} | {ours.answer.value} | {json.dumps(theirs)} | {'' if agrees else 'OTHERWISE'} |\n")
    sys.stdout.write(f"{len(CASES) - wrong} of {len(CASES)} agree.\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
