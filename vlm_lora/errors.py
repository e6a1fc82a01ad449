"""The errors a user can cause, how several become one message, and how near-miss names are suggested.

Libraries raise these; only the command line turns them into one message and an exit code.
"""

from __future__ import annotations

import difflib
import errno
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can fix: the message says what was given, what is allowed, what to type.

    The command line prints the message alone and exits with code 1; `--debug` adds the traceback.
    """

    told: Callable[[], object] | None = None
    """Set where all ranks raise the same: the first one alone writes it, and each calls this then."""


class ConfigError(UserError):
    """A flag, key or value that cannot be used."""


class DataError(UserError):
    """A data source, column or row that cannot be used. Names the file and row where there is one."""


class ImageError(DataError):
    """One image that is refused or cannot be decoded."""


class RenderingError(DataError):
    """A conversation whose rendering or labels would break the label promise."""


class ThinkingError(RenderingError):
    """An answer whose thoughts, or whose lack of them, the model's chat template does not prompt or write so."""


class TooLongError(RenderingError):
    """A row of more tokens than the limit. From a message alone it can be built too, as loader workers do."""

    def __init__(self, message: str, *, tokens: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.limit = limit


class ModelError(UserError):
    """A model folder, family or setting that cannot be used."""


class BackendError(UserError):
    """Hardware or a software stack that is asked for and not usable here."""


class MemoryExhaustedError(UserError):
    """A run that needs more memory than the device has."""


class DiskError(UserError):
    """A disk that does not take what a run writes, or has too little room for it."""


class NotFiniteError(UserError):
    """A loss, gradient or weight that is NaN or infinite, found by all ranks at one step; the first of them tells it.

    Args:
        message: the same on all ranks.
        told: as `UserError.told`.
    """

    def __init__(self, message: str, told: Callable[[], object]) -> None:
        super().__init__(message)
        self.told = told


class StalledError(UserError):
    """A process that others wait for, and that does not answer: a rank or a loader worker, stopped, stuck or killed."""


class EndedEarlyError(Exception):
    """A run that was told to end has saved a checkpoint and can go on from it; no mistake, but not done either."""


class SignalledError(KeyboardInterrupt):
    """A signal told a run to end at once: Ctrl-C, or another one that libraries shall take for it.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"{name}: ended at once. What was saved before is there; nothing else was.")
        self.number = number


class SeveralError(ConfigError):
    """Several settings that cannot be used, or that are missing.

    Args:
        parts: what is wrong, each as it would be said alone.
    """

    def __init__(self, parts: tuple[UserError, ...]) -> None:
        lines = [str(part).replace("\n", "\n    ") for part in parts]
        super().__init__("\n  ".join([f"{len(parts)} things are wrong with the settings:", *lines]))
        self.parts = parts


class Refusals:
    """Gathers what is refused, so that it can be said at once."""

    def __init__(self) -> None:
        self._errors: dict[str, UserError] = {}
        self.names: set[str] = set()
        """Settings that were given and refused: whoever goes on without them need not miss them, too."""

    @contextmanager
    def noting(self, *names: str) -> Iterator[None]:
        """Note what the code inside refuses, and go on behind it.

        Args:
            *names: the settings that it is about.
        """
        try:
            yield
        except UserError as error:
            self.note(error, *names)

    def note(self, error: UserError, *names: str) -> None:
        """Note an error; the same one counts once."""
        self.names |= {*names}
        for one in error.parts if isinstance(error, SeveralError) else (error,):
            self._errors.setdefault(str(one), one)

    def raise_any(self) -> None:
        """Raise what was noted, if anything was.

        Raises:
            UserError: the only one, or a `SeveralError`.
        """
        errors = tuple(self._errors.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise SeveralError(errors)


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return ` Did you mean 'x'?` for the closest known name, or an empty string where none is so alike (0 to 1)."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def plain_message(error: BaseException) -> str:
    """Return an error's own message.

    A loader worker sends its exception to the training process as text with the worker's traceback
    around it; the message proper follows the class name on the traceback's last lines.
    """
    text = str(error)
    if "Original Traceback" not in text:
        return text
    kind = type(error)
    _, found, message = text.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")
    return message.strip() if found else text


_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG),
)
"""What a file system answers to a path or a disk that is the user's to mend."""


def refused_file(error: BaseException) -> str | None:
    """Return a message where a file system refused a path and no one said it closer; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in _REFUSED:
        return None
    named = error.filename if isinstance(error.filename, (str, bytes)) else None
    what = "standard output or a file" if named is None else os.fsdecode(named)
    return f"{what} cannot be used: {error.strerror}. Make room, allow it, or name another file or folder."
