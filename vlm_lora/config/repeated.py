"""`--from_run`: the settings of an earlier run, from its `run.json`, without those of its folder and its moment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError

FILE = "run.json"
"""The record of a run."""
FORMAT = 1
"""Of the file; another one is refused."""
MASK = "***"
"""What stands in it where a secret stood."""

_OF_ITS_MOMENT = """
    output_dir overwrite_output_dir resume_from_checkpoint allow_changed from_run list_checkpoints output_model_name
    tracking_uri accept_changed_files
    dry_run dry_run_samples no_model dry_run_generate dry_run_max_new_tokens
    push_to_hub hub_model_id hub_revision hub_strategy hub_private_repo hub_always_push
    push_to_hub_model_id push_to_hub_organization
"""
NOT_REPEATED = frozenset(_OF_ITS_MOMENT.split())
"""Settings that say where a run's results go, or how it began. A repeat that uploads would write over the first."""

_SETTLED = ("cache_vision_features",)
"""Settings whose `auto` depends on what lies on the disk: the repeat has what became of them."""
_PLACES = ("model_name_or_path", "dataset_name", "validation_name", "image_root", "task_file", "cache_dir")
"""Settings that may name places, relative ones from where the run was started."""


def find_record(name: Any) -> Path:
    """Return the `run.json` that `--from_run` names: the file, or the folder of a run or checkpoint that holds it.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError("--from_run: needs the folder of a run or its run.json, for example --from_run runs/first.")
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - the other way raises where there is no such home
    if path.is_file() and path.name == FILE:
        return path
    if (path / FILE).is_file():
        return path / FILE
    if (path / "run_config.yaml").is_file():
        raise ConfigError(
            f"--from_run {name}: holds no {FILE}, because an earlier version ran it. Its settings can be repeated, "
            f"compared with nothing: --config {path / 'run_config.yaml'} --output_dir NEW"
        )
    raise ConfigError(
        f"--from_run {name}: holds no {FILE}, which training writes into its output folder and checkpoints "
        f"(looked from {Path.cwd()})."
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings to repeat, by name; `output_dir` is the run's own folder with `-repeat` behind its name.

    Args:
        path: from `find_record`.

    Raises:
        ConfigError: the file cannot be read.
    """
    content = _record(path)
    given, settled, start = content["config"], content["settings"], content.get("directory")
    settings = {name: value for name, value in given.items() if name not in NOT_REPEATED}
    settings |= {name: settled[name] for name in _SETTLED if name in settings and settled.get(name) is not None}
    if isinstance(start, str) and Path(start) != Path.cwd():
        settings |= {name: _from(Path(start), settings[name]) for name in _PLACES if name in settings}
    folder = path.resolve().parent
    folder = folder.parent if folder.name.startswith("checkpoint-") else folder
    return {**settings, "output_dir": f"{folder}-repeat"}


def _record(path: Path) -> dict[str, Any]:
    """Return a record's content: of this format, with the mappings `config` and `settings`."""
    other = "Name the folder of a run, one of its checkpoints, or their run.json as it was written."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--from_run {path}: cannot be read as the record of a run ({error}). {other}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--from_run {path}: is no record of a run, which is one JSON object. {other}")
    if content.get("format") != FORMAT:
        made_by = content.get("versions")
        known = made_by.get("vlm_lora") if isinstance(made_by, dict) else None
        raise ConfigError(
            f"--from_run {path}: has the format {json.dumps(content.get('format'))}, and this version reads {FORMAT}. "
            f"Repeat the run with the version of vlm-lora that wrote it{f' ({known})' if known else ''}, or name "
            "another record."
        )
    for key in ("config", "settings"):
        if not isinstance(content.get(key), dict):
            what = "no mapping of settings" if key in content else "missing"
            raise ConfigError(f"--from_run {path}: its `{key}` is {what}, so there is nothing to repeat. {other}")
    return content


def refuse_masked(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse settings of which the record keeps no more than that they held a secret.

    Raises:
        ConfigError: names them.
    """
    lost = [f"--{name}" for name, value in settings.items() if MASK in json.dumps(value, default=str)]
    if lost:
        raise ConfigError(
            f"--from_run {path}: the record keeps no secrets, and these settings held one: {', '.join(lost)}. Add them "
            "to this command."
        )


def _from(start: Path, value: Any) -> Any:
    """Return a setting's places as absolute ones where they lie in the folder `start`."""
    if not isinstance(value, str):
        return value
    return " + ".join(",".join(_one_from(start, name) for name in part.split(",")) for part in value.split(" + "))


def _one_from(start: Path, name: str) -> str:
    first = Path(name.strip()).parts[:1]
    relative = bool(first) and not Path(name.strip()).is_absolute() and not name.strip().startswith("~")
    return str(start / name.strip()) if relative and "://" not in name and (start / first[0]).exists() else name
