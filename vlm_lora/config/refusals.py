"""All that is refused at once: who has three things to correct corrects them in one go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlm_lora.errors import ConfigError, UserError


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
