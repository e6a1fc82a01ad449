"""What the processes of a launched run write to stderr, passed on as it comes; the message of the first that failed."""

from __future__ import annotations

import codecs
import os
import re
import sys
import threading
from collections.abc import Iterable
from typing import IO

from vlm_lora.launch.process_group import LOST

_LINE_ENDS = re.compile(r"[\r\n]")
_MESSAGE = re.compile(r"(?:^|\])((?:error: |internal error).*)")
"""How the command line's messages begin; another process's progress bar may stand before one."""


class Relay(threading.Thread):
    """Passes a stream on to stderr and remembers the message of the process that failed first."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self.cause = ""
        self.ends_in_a_line = False
        self.start()

    def run(self) -> None:
        """Read until every process has closed its end; what has no line end yet, as progress bars, passes at once."""
        if self._stream is None:
            return
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        line = ""
        with self._stream:
            while chunk := os.read(self._stream.fileno(), 1 << 16):
                text = decoder.decode(chunk)
                sys.stderr.write(text)
                sys.stderr.flush()
                *whole, line = _LINE_ENDS.split(line + text)
                self._look_at(whole)
        self._look_at([line])
        self.ends_in_a_line = bool(line)

    def _look_at(self, lines: Iterable[str]) -> None:
        for message in filter(None, map(_MESSAGE.search, lines)):
            self._remember(message[1].strip())

    def _remember(self, message: str) -> None:
        """The first message is the cause, unless it only says that another process has gone."""
        if not self.cause or (LOST in self.cause and LOST not in message):
            self.cause = message
