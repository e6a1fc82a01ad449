"""One live line on stderr for whatever takes longer than a few seconds; elsewhere plain lines, now and then.

A line is live where stderr is a terminal that can take a line away again: not in a file or pipe, not with a width of
0, not with `TERM=dumb`, not in CI, and not on any process but the first. It has no colours, so `NO_COLOR` changes
nothing. What others write to the terminal meanwhile (log lines, warnings, bars of libraries) stands whole above it:
`live_terminal` puts a stream in the place of `sys.stderr` and `sys.stdout` that takes the line away first.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size

from vlm_lora.launch.placement import number_among_all

ERASE = "\r\x1b[2K"
"""To the line's beginning, and all of it away."""

REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 30.0
"""How often a plain line says how far something has come; what is done sooner says nothing."""

Words = Callable[[int], str]
"""The text of a line, for a number of columns that it may take."""

HUB_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"
"""The variable that transformers reads, too."""

NO_BARS: Mapping[str, str] = {HUB_BARS: "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
"""Variables that keep the bars of huggingface_hub, transformers and datasets out of what is no terminal."""


def columns_of(stream: Any, environ: Mapping[str, str]) -> int:
    """Return the width of a terminal in columns, as `COLUMNS` or the terminal itself says; 0 where it is none."""
    if not stream.isatty():
        return 0
    said = environ.get("COLUMNS", "")
    if said.isdecimal():
        return int(said)
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):  # no file of the system's stands behind it
        return 0


def can_be_live(stream: Any, environ: Mapping[str, str]) -> bool:
    """Say whether a line on this stream can be drawn anew in place."""
    return number_among_all(environ) == 0 and can_take_lines_away(stream, environ)


def can_take_lines_away(stream: Any, environ: Mapping[str, str]) -> bool:
    """Say whether a stream is a terminal that understands `ERASE`, whichever process asks."""
    return (
        environ.get("CI", "").lower() in ("", "0", "false")
        and environ.get("TERM", "") not in ("", "dumb")
        and columns_of(stream, environ) > 0
    )


class Line:
    """The live line of a process. Of several texts that want it the one that came last is shown.

    Args:
        stream: a terminal.
        environ: the process's environment, of which `COLUMNS` counts.
        clock: returns seconds.
    """

    def __init__(
        self, stream: TextIO, *, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._environ, self._clock = stream, environ, clock
        self._texts: list[Words] = []
        self._drawn = False
        self._drawn_at = float("-inf")
        self._lock = threading.RLock()

    def put(self, text: Words) -> None:
        """Show a text until it is dropped."""
        with self._lock:
            self._texts.append(text)
            self._draw()

    def drop(self, text: Words) -> None:
        """Take a text away; the one before it is shown again."""
        with self._lock:
            if text in self._texts:
                self._texts.remove(text)
            self._erase()
            self._draw()

    def refresh(self) -> None:
        """Draw the line anew, if it was not just drawn."""
        with self._lock:
            if self._clock() - self._drawn_at >= REDRAW_SECONDS:
                self._draw()

    @contextmanager
    def away(self, *, comes_back: bool) -> Iterator[bool]:
        """Take the line away for what is written inside; yield whether it was there."""
        with self._lock:
            was_there = self._drawn
            self._erase()
            yield was_there
            if comes_back:
                self._draw()

    def columns(self) -> int:
        """Return how many columns the terminal has now."""
        return columns_of(self._stream, self._environ)

    def _draw(self) -> None:
        if not self._texts:
            return
        # The last column stays free: a terminal may go to the next line once it is filled.
        room = max(self.columns() - 1, 1)
        text = self._texts[-1](room)
        self._stream.write(ERASE + (text if cell_len(text) <= room else set_cell_size(text, room)))
        self._stream.flush()
        self._drawn, self._drawn_at = True, self._clock()

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(ERASE)
            self._stream.flush()
            self._drawn = False


class _Above:
    """A stream of the terminal that a line is live on: what is written stands whole above that line."""

    def __init__(self, stream: TextIO, line: Line) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        with self._line.away(comes_back=text.endswith("\n")) as was_there:
            count = self._stream.write(text)
            if was_there:
                self._stream.flush()
        return count

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_live: list[Line] = []


def live_line() -> Line | None:
    """Return this process's live line; None where there can be none."""
    return _live[-1] if _live else None


@contextmanager
def live_terminal() -> Iterator[None]:
    """Within this context there is a live line, if stderr can have one, and others' words keep out of its way.

    Enter it before anything remembers `sys.stderr`, as logging does.
    """
    if not can_be_live(sys.stderr, os.environ):
        yield
        return
    line, before = Line(sys.stderr), (sys.stderr, sys.stdout)
    _live.append(line)
    sys.stderr = _Above(before[0], line)
    if before[1].isatty():
        sys.stdout = _Above(before[1], line)
    try:
        yield
    finally:
        sys.stderr, sys.stdout = before
        _live.remove(line)


class Progress:
    """Shows how far something has come; a context.

    Args:
        what: what is done, such as `Reading the rows of train`.
        total: how much there is to do; None where nobody knows.
        unit: what is counted, such as `rows`.
        shown: whether it is said at all: on one process only.
        clock: returns seconds.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        *,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit, self._clock = what, total, unit, clock
        self._shown = shown and number_among_all(os.environ) == 0
        self._line = live_line() if self._shown else None
        self._began = self._said_at = clock()
        self._done = 0

    def __enter__(self) -> Progress:
        if self._line is not None:
            self._line.put(self._words)
        return self

    def __exit__(self, *error: object) -> None:
        if self._line is not None:
            self._line.drop(self._words)

    def advance(self, count: int = 1) -> None:
        """Count what was done."""
        self._done += count
        if self._line is not None:
            self._line.refresh()
        elif self._shown and self._clock() - self._said_at >= PLAIN_SECONDS:
            self._said_at = self._clock()
            sys.stderr.write(f"{self._text()}\n")

    def _words(self, columns: int) -> str:
        return self._text()

    def _text(self) -> str:
        seconds = self._clock() - self._began
        text = f"{self._what}: {self._done:,}" + ("" if self._total is None else f" of {self._total:,}")
        text += f" {self._unit}"
        if not self._done or seconds <= 0:
            return text
        text += f", {spell_rate(self._done / seconds)} a second"
        left = None if self._total is None else (self._total - self._done) * seconds / self._done
        return text if left is None else f"{text}, {spell_seconds(left)} left"


def spell_rate(rate: float) -> str:
    """Write a rate with three digits, as large ones are read: `0.412`, `16.8`, `4,812`."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def spell_seconds(seconds: float) -> str:
    """Write a duration by its two largest units: `8 s`, `3 min 20 s`, `5 h 02 min`, `2 d 3 h`."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole} s"
    if hours < 1:
        return f"{minutes} min {whole % 60:02} s"
    if days < 1:
        return f"{hours} h {minutes % 60:02} min"
    return f"{days} d {hours % 24} h"
