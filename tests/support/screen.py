"""A terminal's screen as far as our output uses one: lines that wrap, `\r`, and the sequence that erases a line."""

from __future__ import annotations

import re

from rich.cells import cell_len

_TOKENS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r\n|\n|\r|[^\x1b\r\n]")


class Screen:
    """Keeps every row that was ever on it, as a terminal's history does.

    Args:
        columns: its width.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self.rows: list[str] = [""]
        self._column = 0

    def feed(self, text: str) -> None:
        """Show what a program wrote; any control sequence that it does not know fails."""
        for token in _TOKENS.findall(text):
            if token in ("\n", "\r\n"):
                self.rows.append("")
                self._column = 0
            elif token == "\r":
                self._column = 0
            elif token == "\x1b[2K":
                self.rows[-1] = ""
            elif token.startswith("\x1b"):
                raise ValueError(f"a control sequence that is not known: {token!r}")
            else:
                self._put(token)

    def _put(self, character: str) -> None:
        if self._column + cell_len(character) > self._columns:
            self.rows.append("")
            self._column = 0
        row = self.rows[-1].ljust(self._column)
        self.rows[-1] = row[: self._column] + character + row[self._column + 1 :]
        self._column += 1
