"""Which checkpoint a run goes on from: the newest of its own that is as it was saved, or the one that was named.

Rank 0 decides and tells the others, which hash nothing. Where each machine saves into a folder of its own, the first
rank of each looks at its own part, and one is taken that is whole on all of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from vlm_lora.config.whole_files import free_name
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.manifest import MODEL_FILES, NAME, State, examine
from vlm_lora.training.checkpoints.contents import STATE_FILE, missing_parts
from vlm_lora.training.checkpoints.run_record import RECORD, numbered_checkpoints, read_record
from vlm_lora.training.checkpoints.sealing import machines_of
from vlm_lora.training.meeting import Meeting

logger = logging.getLogger(__name__)

NEWEST = ("true", "auto")
"""Values of `--resume_from_checkpoint` that ask for the newest one, or for the beginning where there is none."""


class Fate(Enum):
    """What can be done with a checkpoint; of several machines' views the first here holds."""

    DAMAGED = "damaged"
    """A file is not as it was saved."""
    INTERRUPTED = "interrupted"
    """Saving it was cut short."""
    LACKING = "lacking"
    """It was saved to its end without what a run needs to go on."""
    UNSEALED = "unsealed"
    """It has all that is needed and no manifest, as earlier versions saved them."""
    WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one machine sees of a checkpoint."""

    fate: Fate
    why: str = ""
    machines: frozenset[int] = frozenset({0})
    """The ranks whose manifests are here."""
    of: frozenset[int] = frozenset({0})
    """The ranks whose manifests there must be."""

    def text(self) -> str:
        """Return this for another rank."""
        return json.dumps([self.fate.value, self.why, sorted(self.machines), sorted(self.of)])

    @classmethod
    def read(cls, text: str) -> Look:
        """Return what `text` gave."""
        fate, why, machines, of = json.loads(text)
        return cls(fate=Fate(fate), why=why, machines=frozenset(machines), of=frozenset(of))


class Views:
    """What the ranks of a run see of one folder; by default one process is alone.

    Args:
        rank: this one's number.
        ranks: how many there are.
        looks: whether this one looks at the folder, and sets damaged checkpoints aside.
        timeout: in seconds, how long to wait for those that look.
    """

    def __init__(self, rank: int = 0, ranks: int = 1, *, looks: bool = True, timeout: float = 1800) -> None:
        self._rank, self._ranks, self.looks = rank, ranks, looks
        self._timeout = timedelta(seconds=timeout)

    @classmethod
    def of(cls, arguments: Any) -> Views:
        """Return those of a run: one rank looks, or the first of each machine where each has its own folder."""
        first = arguments.process_index == 0
        if machines_of(arguments):
            first = arguments.local_process_index == 0
        return cls(arguments.process_index, arguments.world_size, looks=first, timeout=arguments.ddp_timeout)

    @property
    def speaks(self) -> bool:
        """Whether this rank says what is the same for all."""
        return self._rank == 0

    def first(self, ask: Callable[[], Any]) -> Any:
        """Return, on all ranks, what rank 0's `ask` returns, of what JSON has; or raise its ConfigError."""
        told: dict[str, Any] = {}
        if self._rank == 0:
            try:
                told = {"value": ask()}
            except ConfigError as error:
                told = {"error": str(error)}
        heard = json.loads(self._meet(json.dumps(told), first=True))
        if "error" in heard:
            raise ConfigError(heard["error"])
        return heard["value"]

    def of_all(self, ask: Callable[[], Look]) -> list[Look]:
        """Return, on all ranks, what `ask` returns on those that look."""
        texts = json.loads(self._meet(ask().text() if self.looks else "", first=False))
        return [Look.read(text) for text in texts if text]

    def _meet(self, own: str, *, first: bool) -> str:
        compose = (lambda texts: texts[0]) if first else (lambda texts: json.dumps(list(texts)))
        if self._ranks == 1:
            return compose([own])
        return Meeting(self._rank, self._ranks, self._timeout).message(own, compose)


ALONE = Views()


def is_whole(checkpoint: Path) -> bool:
    """Say whether a checkpoint was saved to its end and its files have their sizes; their content is not read."""
    try:
        return look_at(checkpoint, contents=False).fate in (Fate.WHOLE, Fate.UNSEALED, Fate.LACKING)
    except OSError:
        return False


def look_at(checkpoint: Path, *, contents: bool = True, only: Sequence[str] = ("*",)) -> Look:
    """Compare a checkpoint with its manifest; without one look for what is missing, as for earlier versions'.

    Args:
        checkpoint: its folder.
        contents: read all its files; else their sizes alone are compared.
        only: patterns of the names to look at.

    Raises:
        OSError: a file cannot be read.
    """
    verdict = examine(checkpoint, contents=contents, only=only)
    if verdict.state is State.DAMAGED:
        return Look(fate=Fate.DAMAGED, why=str(verdict))
    if verdict.state is State.UNFINISHED:
        return Look(fate=Fate.INTERRUPTED, why="saving was interrupted")
    if verdict.state is State.NONE:
        if not _has_state(checkpoint):  # also of one that was half removed, or whose folder had only just been made
            return Look(fate=Fate.INTERRUPTED, why="saving was interrupted")
        if checkpoint.name in read_record(checkpoint.parent).sealed:
            return Look(fate=Fate.DAMAGED, why=f"{NAME}: missing")
    missing = missing_parts(checkpoint)
    fate = Fate.LACKING if missing else Fate.UNSEALED if verdict.state is State.NONE else Fate.WHOLE
    return Look(
        fate=fate,
        why=f"it lacks {', '.join(missing)}" if missing else "",
        machines=verdict.machines,
        of=verdict.of,
    )


def settle_checkpoint(arguments: Any) -> str | None:
    """Choose the checkpoint of a run once for all ranks, and leave it in its training arguments.

    Returns:
        The folder to go on from; None starts from the beginning.

    Raises:
        ConfigError: as `find_checkpoint` says.
    """
    found = find_checkpoint(
        Path(arguments.output_dir),
        arguments.resume_from_checkpoint,
        views=Views.of(arguments),
        sets_aside=bool(arguments.do_train),
    )
    arguments.resume_from_checkpoint = found
    return found


def asks_for_newest(resume: Any) -> bool:
    """Say whether `--resume_from_checkpoint` names no folder but asks for the newest one there is."""
    return str(resume).lower() in NEWEST


def find_checkpoint(
    folder: Path,
    resume: str | bool | None,
    *,
    views: Views = ALONE,
    sets_aside: bool = True,
    quiet: bool = False,
) -> str | None:
    """Turn `--resume_from_checkpoint` (true, auto, or a folder) into the checkpoint's path; None starts afresh.

    With true or auto, one that is damaged is set aside under another name; one whose saving was cut short, or that
    holds weights alone, is passed over. Each is said. Where none is left the run starts from the beginning.

    Args:
        folder: the run's `--output_dir`.
        resume: the setting.
        views: of the ranks; all call this.
        sets_aside: whether damaged ones are renamed.
        quiet: leave out the warnings.

    Raises:
        ConfigError: the folder that was named is no whole checkpoint; or there are only those of other runs.
    """
    if resume is None or str(resume).lower() in ("false", ""):
        return None
    if not asks_for_newest(resume):
        return _named(str(resume), views, quiet=quiet)
    passed: list[tuple[Path, Look]] = []
    chosen, speaks = None, views.speaks and not quiet
    for name in views.first(lambda: _newest_first(folder)):
        look = _seen(folder / name, views)
        if look.fate in (Fate.WHOLE, Fate.UNSEALED):
            chosen = folder / name
            _warn_unsealed(chosen, look, speaks)
            break
        passed.append((folder / name, look))
    if chosen is None:
        # The newest of those without the optimizer's state stands: who trains on is told what it lacks.
        chosen = next((path for path, look in passed if look.fate is Fate.LACKING), None)
        newer = [path for path, _ in passed].index(chosen) if chosen is not None else len(passed)
        passed = [(path, look) for place, (path, look) in enumerate(passed) if place < newer or _is_damaged(look)]
    what = "starting from the beginning" if chosen is None else f"going on from {chosen}"
    for path, look in passed:
        aside = _set_aside(path, views) if sets_aside and _is_damaged(look) else None
        if speaks:
            said = f"it is set aside as {aside}, and the run is {what}" if aside else f"{what} instead"
            logger.warning("%s: %s; %s.", path, look.why, said)
    if chosen is None and not passed and speaks:
        logger.info("%s holds no checkpoint yet: the run starts from the beginning.", folder)
    return None if chosen is None else str(chosen)


def _is_damaged(look: Look) -> bool:
    return look.fate is Fate.DAMAGED


def _newest_first(folder: Path) -> list[str]:
    """Return the names of a run's checkpoints: those on the folder's list; by number where it has none.

    Raises:
        ConfigError: there are checkpoints, and none is on the list.
    """
    listed = read_record(folder).checkpoints
    numbered = [path.name for _, path in numbered_checkpoints(folder) if path.is_dir()]
    own = numbered if listed is None else [name for name in listed if (folder / name).is_dir()]
    if numbered and not own:
        raise ConfigError(
            f"--resume_from_checkpoint true: no run on record in {folder} ({RECORD}) saved a checkpoint. To go on from "
            f"another's, type --resume_from_checkpoint {folder / numbered[-1]}."
        )
    return own[::-1]


def _named(resume: str, views: Views, *, quiet: bool) -> str:
    path = Path(resume)
    if not views.first(path.is_dir):
        raise ConfigError(f"--resume_from_checkpoint {resume}: no such folder.")
    look = _seen(path, views)
    if _is_damaged(look):
        raise ConfigError(
            f"--resume_from_checkpoint {resume}: damaged: {look.why}. Type another checkpoint (vlm-lora train "
            f"--list_checkpoints {path.parent} lists them), or true for the newest whole one."
        )
    if look.fate is Fate.INTERRUPTED:
        raise ConfigError(
            f"--resume_from_checkpoint {resume}: {NAME}, which is written last ({STATE_FILE} in earlier versions), is "
            "missing, unfinished or cut short: this is no checkpoint, or saving it was interrupted. Type another, or "
            "true for the newest whole one."
        )
    _warn_unsealed(path, look, views.speaks and not quiet)
    return resume


def check_best(checkpoint: Path, views: Views, *, engine: bool) -> None:
    """Refuse to load the best checkpoint at a training's end where it is not as it was saved; all ranks call this.

    Args:
        checkpoint: its folder.
        views: those of the run.
        engine: whether DeepSpeed or FSDP reads it, also from files of its own; else the weights count alone.

    Raises:
        ModelError: it is gone or damaged; what can be done instead is said.
    """
    if not views.first(checkpoint.is_dir):
        why = "is no longer there"
    else:
        look = _seen(checkpoint, views, only=("*",) if engine else MODEL_FILES)
        if look.fate not in (Fate.DAMAGED, Fate.INTERRUPTED):
            _warn_unsealed(checkpoint, look, views.speaks)
            return
        why = f"is not as it was saved: {look.why}"
    raise ModelError(
        f"--load_best_model_at_end: {checkpoint}, the best checkpoint, {why}. No weights were written as the run's "
        "result. The last checkpoint is kept: for its weights, the same command with --resume_from_checkpoint true "
        "--load_best_model_at_end false --allow_changed load_best_model_at_end. vlm-lora train --list_checkpoints "
        f"{checkpoint.parent} shows what else there is."
    )


def _seen(checkpoint: Path, views: Views, *, only: Sequence[str] = ("*",)) -> Look:
    """Return what the machines together see of a checkpoint: the worst of it."""

    def ask() -> Look:
        try:
            return look_at(checkpoint, only=only)
        except OSError as error:
            return Look(fate=Fate.DAMAGED, why=f"{error.filename}: cannot be read ({error.strerror})")

    looks = views.of_all(ask)
    worst = min(looks, key=lambda look: list(Fate).index(look.fate))
    if worst.fate is not Fate.WHOLE:
        return worst
    absent = frozenset().union(*(look.of for look in looks)) - frozenset().union(*(look.machines for look in looks))
    if absent:
        ranks = ", ".join(map(str, sorted(absent)))
        return Look(fate=Fate.DAMAGED, why=f"the parts of the machines of ranks {ranks} are missing")
    return worst


def _warn_unsealed(checkpoint: Path, look: Look, speaks: bool) -> None:
    if look.fate is Fate.UNSEALED and speaks:
        logger.warning(
            "%s has no %s, as earlier versions saved checkpoints: what is missing or cut off is seen, and a changed "
            "byte is not.",
            checkpoint,
            NAME,
        )


def _set_aside(checkpoint: Path, views: Views) -> str | None:
    """Give a damaged checkpoint another name, where a person can look at it; return that name."""
    if not views.looks:
        return None
    aside = free_name(checkpoint.with_name(f"{checkpoint.name}.damaged"))
    try:
        checkpoint.rename(aside)
    except OSError as error:
        logger.warning("%s cannot be renamed: %s.", checkpoint, error.strerror)
        return None
    return aside.name


def _has_state(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict)
