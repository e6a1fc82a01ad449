"""A real headless Chromium, driven through its debugging pipe: no driver program and no further package.

The protocol (https://chromedevtools.github.io/devtools-protocol/) is JSON messages that end in a zero byte, read by
the browser from file descriptor 3 and written to 4.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LIMIT = 120
"""Seconds without a message after which the browser is taken for dead."""

_FIRST_FREE = 10


def find_chromium() -> str:
    """Return the browser's path; without one the test fails with what to type."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(
            f"This test opens a page in a real browser and none of {', '.join(NAMES)} is installed. Type: "
            "sudo apt-get update && sudo apt-get install -y chromium (macOS: brew install --cask chromium)"
        )
    return found


class Browser:
    """One running browser with one empty tab."""

    def __init__(self, commands: int, messages: int) -> None:
        self._commands, self._messages = commands, messages
        self._buffer = b""
        self._calls = 0
        self._session: str | None = None
        self.requests: list[str] = []
        """Every address that a page asked for, the page's own included."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self._call(f"{domain}.enable")

    def open(self, page: Path) -> None:
        """Load a file and wait until everything in it has been loaded or has failed to."""
        self.requests.clear()
        answer = self._call("Page.navigate", url=page.resolve().as_uri())
        assert "errorText" not in answer, answer
        while self._receive().get("method") != "Page.loadEventFired":
            continue

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression in the page (the page's own policy does not bind us)."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + LIMIT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._messages], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._messages, 1 << 16) if ready else b""
            assert piece, "the browser ended or said nothing more"
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


@contextmanager
def running_browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile in `profile`, and end it."""
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()
    command = [
        find_chromium(),
        "--headless",
        "--no-sandbox",  # CI runs as root, where Chromium's sandbox refuses to start
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # no name leads anywhere
        f"--user-data-dir={profile}",
        "--remote-debugging-pipe",
    ]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        process.terminate()
        process.wait(timeout=LIMIT)


def _pipe() -> tuple[int, int]:
    """Return a pipe's reading and writing end, neither of them 3 or 4."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
