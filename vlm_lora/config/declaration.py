"""What an adapter declares about itself: names that must be known before its hardware, or torch, is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vlm_lora.config.values import MismatchError, convert

GROUP = "vlm_lora.backends"
"""The entry points by which adapters are found. Loading one imports no torch."""


@dataclass(frozen=True, kw_only=True)
class Alias:
    """Another name of a setting."""

    name: str
    canonical: str
    """The name here; `environment.NAME` is an environment variable."""
    users: str
    """Whose name it is."""
    values: Mapping[bool, Any] | None = None
    """For a switch: what true and false stand for. None as a value means that nothing is set."""
    empty_means_none: bool = False
    """An empty value is allowed and means that nothing is set."""
    words: Mapping[str, Any] | None = None
    """For a choice: what its values stand for, by the value in small letters (`null` for none); None means that nothing
    is set. In a list each item is one."""
    others: str = ""
    """With `words`: what to type for a value that is none of them; empty where it is taken as it is."""
    from_file: bool = False
    """Its value names a file, and the text in that file is the setting's value."""
    text: str = ""
    """What it means, where that depends on what is installed."""
    implied: tuple[Any, ...] = ()
    """Values of the canonical setting that say the same more exactly, and stand above this name's own."""
    preferred: bool = False
    """Where a backend's class has both names, it wants this one (the other warns)."""

    @property
    def chooses(self) -> bool:
        """Whether its values stand for others: null then sets nothing, unless the row says otherwise."""
        return self.values is not None or self.words is not None

    def translate(self, value: Any) -> Any:
        """Return the canonical setting's value, or None for nothing to set.

        Raises:
            MismatchError: a switch was given something other than true or false, a choice has no such value, or there
                is no text in the file.
        """
        if self.empty_means_none and (value is None or value == ""):
            return None
        if self.from_file:
            return _read_text(value)
        if self.words is not None:
            return self._choose(value)
        if self.values is None or value is None:
            return value
        return self.values[convert(value, bool)]

    def _choose(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            meant = [meaning for item in value if (meaning := self._choose(item)) is not None]
            return meant or None
        words = self.words or {}
        word = "null" if value is None else str(value).strip().lower()
        if word in words:
            return words[word]
        if not self.others:
            return value
        raise MismatchError(f"{' or '.join(filter(None, words))}; {self.others}")

    def restore(self, value: Any) -> Any:
        """Return this name's value for a canonical one, for a class that has only this name.

        Raises:
            LookupError: this name cannot say that.
        """
        if self.values is None:
            return value
        for switch, meaning in self.values.items():
            if meaning == value:
                return switch
        raise LookupError(self.name)


def _read_text(name: Any) -> str:
    """Return the text of a file without the line breaks at its end. Raises MismatchError: there is none."""
    path = Path(name).expanduser() if isinstance(name, str) and name.strip() else None
    try:
        text = "" if path is None else path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise MismatchError(f"a file with text in UTF-8 ({path.absolute() if path else name}: {reason})") from error
    if not text.strip():
        raise MismatchError("the name of a file with text in UTF-8" if path is None else "a file that is not empty")
    return text


def switch(
    users: str, name: str, canonical: str, *, true: Any, false: Any, text: str = "", implied: tuple[Any, ...] = ()
) -> Alias:
    """Return a name that is true or false and stands for a value of another setting."""
    values = {True: true, False: false}
    return Alias(name=name, canonical=canonical, users=users, values=values, text=text, implied=implied)


def renamed(users: str, **names: str) -> tuple[Alias, ...]:
    """Return names that mean the same as the settings they are given for."""
    return tuple(Alias(name=name, canonical=canonical, users=users) for name, canonical in names.items())


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What the core's tables take from one adapter."""

    logger: str
    """Root of its loggers, whose lines are shown like the core's: the name of its package."""
    shared_logger: str = ""
    """That of a package that it shares with other adapters; empty where there is none."""
    arguments: tuple[str, ...] = ("transformers.training_args:TrainingArguments",)
    """Where its arguments class is defined, its bases first: the fields are read from these files before any import."""
    flags: frozenset[str] = frozenset()
    """Keys of its arguments class that transformers' own class does not have. A change of one of them on resuming
    changes the result, unless the next two say otherwise."""
    free_flags: frozenset[str] = frozenset()
    """Those of them that change no result, and may differ in a run that goes on from a checkpoint."""
    path_flags: frozenset[str] = frozenset()
    """Those of them that may name a place: compared as absolute paths."""
    early_flags: frozenset[str] = frozenset()
    """Those of them that the training arguments do not keep, because the adapter acts on them itself."""
    before_torch: frozenset[str] = frozenset()
    """Variables of its `environment` that are read when torch is imported, and never again."""
    aliases: tuple[Alias, ...] = ()
    """Other names, among them the switch that asks for this adapter."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions `vlm-lora doctor` shows and a checkpoint keeps."""
    variables: tuple[str, ...] = ()
    """Environment variables that say what its hardware does (`NAME`, `NAME_*`): a run's record keeps them."""
    files: tuple[str, ...] = ()
    """What its trainer writes into output_dir next to the checkpoints."""
    launchers: tuple[str, ...] = ()
    """Launch flags that it understands in addition to torch's launcher, without dashes: `use_mpi`."""


@cache
def adapters() -> Mapping[str, Any]:
    """Return the classes of the installed adapters by name; the metadata of every distribution is read for it."""
    return {point.name: point.load() for point in entry_points(group=GROUP)}


def declarations() -> Mapping[str, Declaration]:
    """Return what the installed adapters declare, by their names."""
    return {name: adapter.declaration for name, adapter in adapters().items()}


def asking_for(name: str) -> str:
    """Return how a user asks for an adapter: by its own switch where it has one, else by `--backend`."""
    for alias in (alias for declared in declarations().values() for alias in declared.aliases):
        if alias.canonical == "backend" and alias.values is not None and alias.values[True] == name:
            return f"--{alias.name}"
    return f"--backend {name}"
