"""`vlm-lora push`: a run's model, or a merged one, to a repository of the Hub, in one commit or not at all."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from vlm_lora.config.early import is_path_of_model
from vlm_lora.errors import ConfigError
from vlm_lora.model.folder_faults import ADAPTER_FILE, read_settings, refuse_damage, weight_files
from vlm_lora.model.manifest import refuse_changed
from vlm_lora.training.hub import KEPT_HERE, ROWS
from vlm_lora.training.hub_access import Repository, client, explained, open_repository

STATES = (
    *("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "latest", "zero_to_fp32.py"),
    *("*_states.pt", "pytorch_model_fsdp*", "run_files.json"),
)
"""Patterns of files that a training goes on from, and of the record of what it wrote: no part of a model."""
FOLDERS = (".*", "__pycache__", "checkpoint-*", "global_step*", "pytorch_model_fsdp*", "optimizer_*", "runs")
"""Patterns of folders that stay here with all that is in them."""

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push has brought to the Hub."""

    folder: str
    repository: str
    """`OWNER/NAME`."""
    url: str
    """Of the repository."""
    commit: str
    files: tuple[str, ...]
    """By path from the folder, sorted."""
    size: int
    """Of the files, in bytes."""
    rows_left: tuple[str, ...]
    """Files that hold rows of the data, and stayed here."""
    local_base: str | None
    """The adapter's base where it is a folder, which nobody else has."""


def push(folder: Path, repository: Repository, *, with_rows: bool = False, message: str | None = None) -> Pushed:
    """Push a model's or an adapter's folder; weights, settings, processor, card and figures, no trainer's state.

    Args:
        folder: a run's, one of its checkpoints, or a whole model's.
        repository: where to; it is tried before a file is read, and made where it is not there.
        with_rows: push files that hold rows of the data, too (`ROWS`).
        message: of the commit.

    Raises:
        ConfigError: there is no model in the folder, or the Hub does not take it.
        ModelError: the folder is damaged, or its run was cut short.
    """
    refuse_other_than_model(folder, f"{repository.asked_by}: ")
    whole = open_repository(repository)
    refuse_damage(folder)
    for weights in (True, False):
        refuse_changed(folder, accept=False, weights=weights)
    return upload(folder, repository, whole, with_rows=with_rows, message=message)


def upload(
    folder: Path, repository: Repository, whole: str, *, with_rows: bool = False, message: str | None = None
) -> Pushed:
    """Push a folder whose repository, `whole`, is known to be there; as `push`.

    Raises:
        ConfigError: the Hub does not take it; says the command that pushes it once more.
    """
    from huggingface_hub import CommitOperationAdd

    names, rows = files_of(folder, with_rows=with_rows)
    again = f"Nothing is lost: all of it is in {folder}. To push it again: {command(folder, repository, whole)}"
    with explained(repository, after=again):
        commit = client(repository).create_commit(
            whole,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=_content(folder, name, whole)) for name in names],
            commit_message=message or f"Upload {folder.resolve().name} with vlm-lora",
            revision=repository.revision,
        )
    return Pushed(
        folder=str(folder),
        repository=whole,
        url=commit.commit_url.partition("/commit/")[0],
        commit=commit.oid,
        files=tuple(names),
        size=sum((folder / name).stat().st_size for name in names),
        rows_left=tuple(rows),
        local_base=local_base(folder),
    )


def _content(folder: Path, name: str, whole: str) -> Path | bytes:
    """Return a file to push: as it is, but for our card, whose examples name the repository in place of the folder."""
    if name != CARD:
        return folder / name
    here, text = re.escape(folder.resolve().name), (folder / name).read_text(encoding="utf-8")
    if "tags: [vlm-lora" not in text:
        return folder / name
    text = re.sub(rf'(from_pretrained\((?:base, )?"){here}"', rf'\g<1>{whole}"', text)
    return re.sub(rf"(--model_name_or_path ){here} ", rf"\g<1>{whole} ", text).encode()


def command(folder: Path, repository: Repository, whole: str) -> str:
    """Return what to type to push a folder; its token is not in it."""
    words = ["vlm-lora", "push", str(folder), whole]
    words += ["--private"] if repository.private else []
    words += ["--revision", repository.revision] if repository.revision else []
    return shlex.join(words)


def files_of(folder: Path, *, with_rows: bool) -> tuple[list[str], list[str]]:
    """Return which files of a folder are pushed, and which stay here for the rows that they hold, by path from it."""
    pushed: list[str] = []
    rows: list[str] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or any(_matches(part, FOLDERS) for part in inside.parts[:-1]):
            continue
        name = inside.as_posix()
        if _matches(name, KEPT_HERE) or _matches(path.name, (*STATES, ".*")):
            continue
        (rows if _matches(name, ROWS) and not with_rows else pushed).append(name)
    return pushed, rows


def refuse_other_than_model(folder: Path, begin: str) -> None:
    """Refuse a folder that holds no model and no adapter; the message begins with `begin`.

    Raises:
        ConfigError: it does not.
    """
    if not folder.is_dir():
        raise ConfigError(f"{begin}{folder}: no such folder. The folder comes first, then the name.")
    settings = (folder / ADAPTER_FILE).is_file() or (folder / "config.json").is_file()
    if not settings or not weight_files(folder):
        raise ConfigError(
            f"{begin}{folder}: holds no model: there are no weights (safetensors) next to {ADAPTER_FILE} or "
            "config.json. Give a run's --output_dir, one of its checkpoints, or a merged model's folder."
        )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def local_base(folder: Path) -> str | None:
    """Return the base of an adapter's folder where that is a folder, there or not; None for a Hub id or no adapter."""
    if not (folder / ADAPTER_FILE).is_file():
        return None
    base = str(read_settings(folder / ADAPTER_FILE).get("base_model_name_or_path") or "")
    return base if is_path_of_model(base) or Path(base).is_dir() else None
