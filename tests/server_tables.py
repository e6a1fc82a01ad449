"""Writes vlm_lora/serving/servers.json from the source of vLLM, SGLang and the installed transformers.

By hand, when another version is pinned:

    python tests/server_tables.py --vllm SOURCE --vllm_version 0.33.0 --sglang SOURCE --sglang_version 0.5.23

It reads class definitions of the first two, and of transformers the tables that its server looks into; no server is
imported or run.
"""

from __future__ import annotations

import argparse
import ast
import json
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

TABLE = Path(__file__).parents[1] / "vlm_lora" / "serving" / "servers.json"


@dataclass(kw_only=True)
class Found:
    """One class of a server's models."""

    bases: list[str] = field(default_factory=list)
    values: dict[str, object] = field(default_factory=dict)
    methods: set[str] = field(default_factory=set)


def classes(folder: Path) -> dict[str, Found]:
    """Return all classes of a folder's files by name; a name that two files have is kept once, its marks together."""
    found: dict[str, Found] = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            one = found.setdefault(node.name, Found())
            one.bases += [ast.unparse(base).split("[")[0] for base in node.bases]
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    one.methods.add(part.name)
                elif isinstance(part, ast.Assign | ast.AnnAssign) and isinstance(part.value, ast.Constant):
                    targets = part.targets if isinstance(part, ast.Assign) else [part.target]
                    one.values |= {ast.unparse(target): part.value.value for target in targets}
    return found


def lineage(name: str, known: dict[str, Found]) -> list[str]:
    """Return a class's name and those of all classes above it, each once, nearest first."""
    order, queue = [], [name]
    while queue:
        one = queue.pop(0)
        if one not in order:
            order.append(one)
            queue += known[one].bases if one in known else []
    return order


def vllm_table(folder: Path) -> dict[str, dict[str, bool]]:
    """Return for each multimodal architecture that vLLM registers whether it takes LoRA, and LoRA on its tower."""
    models = folder / "vllm" / "model_executor" / "models"
    tree = ast.parse((models / "registry.py").read_text(encoding="utf-8"))
    registered = next(
        ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MULTIMODAL_MODELS"
    )
    known = classes(models)
    table = {}
    for architecture, (_, name) in sorted(registered.items()):
        above = lineage(name, known)
        tower = next(
            (
                known[one].values[mark]
                for one in above
                if one in known and (mark := "supports_tower_connector_lora") in known[one].values
            ),
            False,
        )
        if name in known:
            table[architecture] = {"lora": "SupportsLoRA" in above, "tower": tower is True}
    return table


def sglang_table(folder: Path) -> dict[str, dict[str, bool]]:
    """Return the multimodal architectures for which SGLang says itself which modules take LoRA: no tower's."""
    known = classes(folder / "sglang" / "srt" / "models")
    return {
        name: {"lora": True, "tower": False}
        for name in sorted(known)
        if any("should_apply_lora" in known[one].methods for one in lineage(name, known) if one in known)
        and name.endswith(("ForConditionalGeneration", "ForCausalLM"))
    }


def transformers_table() -> list[str]:
    """Return the classes that `transformers serve` knows to generate (cli/serving/model_manager.py, modality)."""
    from transformers.models.auto import modeling_auto

    kinds = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    tables = [getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").values() for kind in kinds]
    entries = [[entry] if isinstance(entry, str) else entry for table in tables for entry in table]
    return sorted({name for entry in entries for name in entry})


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("vllm", "sglang"):
        parser.add_argument(f"--{name}", type=Path, required=True)
        parser.add_argument(f"--{name}_version", required=True)
    own = parser.parse_args()
    content = {
        "vllm": {"version": own.vllm_version, "architectures": vllm_table(own.vllm)},
        "sglang": {"version": own.sglang_version, "architectures": sglang_table(own.sglang)},
        "transformers": {"version": metadata.version("transformers"), "architectures": transformers_table()},
    }
    TABLE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
