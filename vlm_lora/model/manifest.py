"""MANIFEST.json: size and SHA-256 of each file of a folder, so that a missing, cut or changed one is found and named.

It is there, saying that the folder is unfinished, before the first of its files is written, and is replaced in one go
once all of them are on the disk. So a folder that a killed run left is told from one that was damaged later, and both
from one that never had a manifest (the Hub's, other tools', earlier versions').

Where each machine saves into a folder of its own, each has its own manifest, named by the rank that wrote it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vlm_lora.config.whole_files import write_json
from vlm_lora.errors import ModelError
from vlm_lora.model.folder_faults import AGAIN, SETTINGS
from vlm_lora.model.hashing import known_hash, put_on_disk, sha256_of, sizes_and_hashes

logger = logging.getLogger(__name__)

NAME = "MANIFEST.json"
FORMAT = 1
"""Of the file; a newer one is refused."""

_NAMES = re.compile(r"MANIFEST(?:-(\d+))?\.json")
_SHOWN = 4

WEIGHTS = (
    "adapter_model*.safetensors",
    "adapter_model*.bin",
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*.bin",
)
RECORDS = ("run.json", "run_config.yaml")
"""What a model was trained with: read for which rows to measure it on, how it counts boxes, its precision."""
MODEL_FILES = (
    *WEIGHTS,
    *RECORDS,
    "adapter_config.json",
    *SETTINGS,
    "chat_template.jinja",
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.spm",
    "tekken.json",
)
"""What a model or adapter is loaded from, and measured by. README.md, reports and results are not covered."""

_LEFT_OUT = ("README.md", ".*.partial", "MANIFEST*.json")
"""In a checkpoint: what people write into, and what is none of its files."""


class State(Enum):
    """What a folder's manifest says."""

    NONE = "none"
    """There is no manifest."""
    UNFINISHED = "unfinished"
    """The folder was never written to its end."""
    WHOLE = "whole"
    DAMAGED = "damaged"
    """A file is not as it was written."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What one file must be."""

    size: int
    """In bytes."""
    sha256: str
    """As `hashing.sha256_of` returns it."""
    rank: int = 0
    """Of the process that wrote it."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a manifest holds."""

    files: Mapping[str, FileEntry] = field(default_factory=dict)
    """By path from the folder, with slashes."""
    complete: bool = True
    """Whether the folder was written to its end."""
    machines: tuple[int, ...] = (0,)
    """The ranks that wrote a manifest: one, or one a machine where each has a folder of its own."""
    step: int | None = None
    """Of a checkpoint."""
    record: str | None = None
    """The SHA-256 of the run's record of settings in this folder: what run it is of."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a folder since its manifest was written."""

    state: State
    faults: tuple[str, ...] = ()
    """Each a file and what is wrong with it; of a damaged folder at least one."""
    machines: frozenset[int] = frozenset({0})
    """The ranks whose manifests are here."""
    of: frozenset[int] = frozenset({0})
    """The ranks whose manifests there must be."""

    def __str__(self) -> str:
        more = len(self.faults) - _SHOWN
        return "; ".join(self.faults[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def manifest_name(rank: int = 0, machines: Iterable[int] = (0,)) -> str:
    """Return the name of the manifest that a rank writes."""
    return NAME if len(tuple(machines)) == 1 else f"MANIFEST-{rank}.json"


def manifests_in(folder: Path) -> list[Path]:
    """Return the manifests of a folder."""
    return sorted(path for path in folder.glob("MANIFEST*.json") if _NAMES.fullmatch(path.name))


def begin(folder: Path, name: str = NAME) -> None:
    """Say in a folder that it is unfinished, before its first file is written.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, Manifest(complete=False), name)


def write_manifest(folder: Path, manifest: Manifest, name: str = NAME) -> None:
    """Put a manifest in place, whole or not at all, and wait until it is on the disk.

    Raises:
        OSError: the disk does not take it.
    """
    content: dict[str, Any] = {"format": FORMAT, **asdict(manifest)}
    content["machines"] = list(manifest.machines)
    write_json(folder / name, {**content, "sha256": _own_hash(content)})
    put_on_disk(folder)


def uncover(folder: Path, names: Iterable[str]) -> None:
    """Take files out of a folder's manifest, before they are written anew; all else stays covered.

    Raises:
        OSError: the disk does not take it.
    """
    manifest = read_manifest(folder / NAME) if (folder / NAME).is_file() else Manifest()
    if isinstance(manifest, str):
        return  # a damaged one is found by whoever reads it
    left = {name: entry for name, entry in manifest.files.items() if name not in set(names)}
    if len(left) < len(manifest.files):
        write_manifest(folder, replace(manifest, files=left))


def read_manifest(path: Path) -> Manifest | str:
    """Return a manifest, or what is wrong with it.

    Raises:
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
        own = content.pop("sha256")
        if content["format"] != FORMAT:
            return f"{path.name}: of format {content['format']}, and this version of vlm-lora reads {FORMAT}"
        files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
        manifest = Manifest(
            files=files,
            complete=content["complete"],
            machines=tuple(content["machines"]),
            step=content["step"],
            record=content["record"],
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{path.name}: {'damaged' if path.stat().st_size else 'empty'}"
    return manifest if own == _own_hash(content) else f"{path.name}: damaged"


def files_of(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that its manifest covers, those of its folders too."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(fnmatchcase(path.name, pattern) for pattern in _LEFT_OUT)
    )


def entries_of(folder: Path, paths: Iterable[Path], *, rank: int = 0) -> dict[str, FileEntry]:
    """Put files on the disk and return what they are now, by their paths from `folder`.

    Raises:
        OSError: one cannot be read, or the disk does not take it.
    """
    wanted = list(paths)
    found = sizes_and_hashes(wanted, to_disk=True)
    for place in {path.parent for path in wanted} - {folder}:
        put_on_disk(place)
    return {
        path.relative_to(folder).as_posix(): FileEntry(size=size, sha256=digest, rank=rank)
        for path, (size, digest) in zip(wanted, found, strict=True)
    }


def examine(folder: Path, *, only: Iterable[str] = ("*",), contents: bool = True, again: bool = True) -> Verdict:
    """Compare a folder's files with its manifest.

    Args:
        folder: with or without a manifest.
        only: patterns of the names to look at.
        contents: compare hashes; without it sizes alone, which reads nothing.
        again: read each file. Without it large ones that did not change since they were last read are not.

    Raises:
        OSError: a file cannot be read.
    """
    patterns = tuple(only)
    faults: list[str] = []
    finished, here, of = True, set(), set()
    paths = manifests_in(folder)
    for path in paths:
        manifest = read_manifest(path)
        if isinstance(manifest, str):
            faults.append(manifest)
            continue
        finished &= manifest.complete
        here.add(int((_NAMES.fullmatch(path.name) or [0])[1] or 0))
        of |= set(manifest.machines)
        wanted = {
            name: entry
            for name, entry in manifest.files.items()
            if any(fnmatchcase(name.rpartition("/")[2], pattern) for pattern in patterns)
        }
        faults += _faults(folder, wanted, sha256_of if again else known_hash, contents=contents)
    state = State.DAMAGED if faults else State.WHOLE if finished else State.UNFINISHED
    return Verdict(
        state=state if paths else State.NONE, faults=tuple(faults), machines=frozenset(here), of=frozenset(of)
    )


_accepted: set[str] = set()
"""What was said of changed files that are taken as they are: a folder is read several times."""


def refuse_changed(folder: Path, *, accept: bool, weights: bool) -> None:
    """Refuse a model or adapter folder whose files are not those that its run wrote.

    Args:
        folder: one without a manifest, as from the Hub, is taken as it is.
        accept: `--accept_changed_files`: say what changed, and go on.
        weights: look at its weights; else at all its other files.

    Raises:
        ModelError: names the files, and what is wrong with each.
    """
    only = WEIGHTS if weights else [name for name in MODEL_FILES if name not in WEIGHTS]
    try:
        verdict = examine(folder, only=only, again=False)
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    if verdict.state in (State.NONE, State.WHOLE):
        return
    if verdict.state is State.UNFINISHED:
        what = f"{folder}: the run that wrote this folder was cut short while it did ({NAME} says so)"
        cure = "Run the same command again, or name one of its checkpoints. To take it as it is: --accept_changed_files"
    else:
        what = f"{folder}: not as its run wrote it ({NAME}): {verdict}"
        cure = f"{AGAIN} For files that were changed on purpose: --accept_changed_files"
    if not accept:
        raise ModelError(f"{what}. {cure}.")
    if what not in _accepted:
        logger.warning("--accept_changed_files: %s. They are taken as they are.", what)
    _accepted.add(what)


def _faults(
    folder: Path, entries: Mapping[str, FileEntry], hash_of: Callable[[Path], str], *, contents: bool
) -> list[str]:
    """Return what is wrong with files; only those of the right size are read."""
    found = []
    for name, entry in sorted(entries.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{name}: missing")
            continue
        size = path.stat().st_size
        if size != entry.size:
            kind = "empty" if not size else "cut off" if size < entry.size else "too long"
            found.append(f"{name}: {kind} ({size:,} bytes of {entry.size:,})")
        elif contents and hash_of(path) != entry.sha256:
            found.append(f"{name}: changed (its SHA-256 is another)")
    return found


def _own_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
