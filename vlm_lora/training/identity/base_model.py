"""Which model a run begins with: the files that make it, by content; a model of the Hub by its revision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ModelError
from vlm_lora.model.loading import adapter_folder, base_config, load_config
from vlm_lora.training.identity.contents import fingerprint, together

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
PROCESSOR = (
    "added_tokens.json",
    "chat_template.*",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "*.model",
    "tokenizer*.json",
    "video_preprocessor_config.json",
    "vocab.*",
)
MODEL_FILES = (*WEIGHTS, *PROCESSOR, "config.json", "generation_config.json")
ADAPTER_FILES = ("adapter_model.*", "adapter_config.json", *PROCESSOR)
CODE = ("*.py",)
"""With `--trust_remote_code true`: what the folder runs."""


def describe_base(model: ModelConfig) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what tells which base model a run has, and which adapter it begins with, if any.

    Args:
        model: resolved.

    Returns:
        Of the base model `name`, `revision` (the commit, of a Hub model), and of a folder `files` with the fingerprint
        of each and `sha256` over all of them; the same of the adapter's folder, or None.

    Raises:
        ModelError: a file cannot be read, or there is no such model.
    """
    base = base_config(model)
    folder = Path(str(base.model_name_or_path)).expanduser()
    code = CODE if model.trust_remote_code else ()
    described: dict[str, Any] = {"name": base.model_name_or_path, "revision": None, "sha256": None, "files": None}
    if folder.is_dir():
        described |= _described(folder, (*MODEL_FILES, *code))
    else:
        described["revision"] = getattr(load_config(replace(base)), "_commit_hash", None)
    own = adapter_folder(model)
    return described, None if own is None else {"name": str(own), **_described(own, ADAPTER_FILES)}


def _described(folder: Path, patterns: Iterable[str]) -> dict[str, Any]:
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in patterns)
    )
    try:
        files = {name: fingerprint(folder / name) for name in names}
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read ({error}).") from error
    return {"sha256": together(files), "files": files}


def changed_files(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> dict[str, tuple[str, str]]:
    """Return the files whose content differs, or the revision, in words, by name; empty where nothing can be compared.

    Args:
        before: as `describe_base` returned it for a base model or an adapter.
        now: the same, of this run.
    """
    if not before or not now:
        return {}
    old, new = before.get("files"), now.get("files")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        return {name: (_in_words(old.get(name)), _in_words(new.get(name))) for name in names}
    revisions = before.get("revision"), now.get("revision")
    if None not in revisions and revisions[0] != revisions[1]:
        return {"revision": (str(revisions[0]), str(revisions[1]))}
    return {}


def same_files(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    """Say whether two base models or adapters are known to be the same, wherever they lie; two of none are."""
    if before is None or now is None:
        return before is now
    if before.get("files") and now.get("files"):
        return bool(before["files"] == now["files"])
    return bool(before.get("name") == now.get("name") and before.get("revision") == now.get("revision"))


def _in_words(file: Mapping[str, Any] | None) -> str:
    if file is None:
        return "not there"
    mark = str(file.get("sha256") or file.get("sampled_sha256"))[:12]
    return f"{int(file.get('bytes', 0)):,} bytes, SHA-256 {mark}"
