"""How a process knows that another has gone, and which message a launcher repeats."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from vlm_lora.launch.launching import Launch, run_launch
from vlm_lora.launch.process_group import LOST, lost_partner, port_taken

GLOO = "[transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:27784."


@pytest.mark.parametrize(
    ("error", "world_size", "lost"),
    [
        (RuntimeError(GLOO), "2", True),
        (ConnectionResetError("[Errno 104] Connection reset by peer"), "2", True),
        (RuntimeError(GLOO), "1", False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "2", False),
        (ValueError("closed by peer review"), "2", False),
    ],
)
def test_lost_partner(error: Exception, world_size: str, lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", world_size)
    monkeypatch.setenv("RANK", "1")
    message = lost_partner(error)
    assert (message is not None) is lost
    assert message is None or message.startswith(f"{LOST}; rank 1")


def test_a_taken_port_is_the_users_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs on one machine by launchers that always take the same port."""
    monkeypatch.setenv("MASTER_PORT", "29500")
    distributed: Any = torch.distributed
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with pytest.raises(RuntimeError) as caught:
            distributed.TCPStore("127.0.0.1", held.getsockname()[1], 1, is_master=True, timeout=timedelta(seconds=5))
    message = port_taken(caught.value)
    assert message is not None
    assert message.startswith("The port 29500, ")
    assert "--master_port" in message
    assert port_taken(RuntimeError(GLOO)) is None


@pytest.mark.parametrize(
    ("lines", "repeated"),
    [
        (["error: row 6 is bad", f"error: {LOST}; rank 1"], "error: row 6 is bad"),
        ([f"error: {LOST}; rank 1", "error: row 6 is bad"], "error: row 6 is bad"),
        (["error: row 6 is bad", "error: row 7 is bad"], "error: row 6 is bad"),
        ([f"error: {LOST}; rank 1", "internal error (KeyError): please report it"], "internal error (KeyError)"),
        (["Step 3", f"error: {LOST}; rank 1"], f"error: {LOST}; rank 1"),
        (["an error: within a line"], ""),
        (["\r 10%|# | 1/10 [00:01<00:09, 1.0s/it]error: row 6 is bad"], "error: row 6 is bad"),
        (["\r 10%|# | 1/10 [00:01<00:09]\r      \rerror: row 6 is bad"], "error: row 6 is bad"),
    ],
)
def test_the_first_cause_is_repeated_last(
    lines: list[str], repeated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "fails.py"
    script.write_text(f"import sys; sys.stderr.write({chr(10).join(lines)!r} + chr(10)); sys.exit(3)", encoding="utf-8")
    assert run_launch(Launch(argv=(sys.executable, str(script)))) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"The run ended with exit code 3. {repeated}".strip())


def test_a_bar_passes_before_its_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child waits for what it wrote to be seen; a relay that waits for the line's end would wait for ever."""
    seen, script = tmp_path / "seen", tmp_path / "waits.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\nsys.stderr.write('\\r 10%')\nsys.stderr.flush()\n"
        f"deadline = time.monotonic() + 60\nwhile not Path({str(seen)!r}).exists():\n"
        "    if time.monotonic() > deadline: sys.exit(4)\n    time.sleep(0.01)\nsys.exit(3)\n",
        encoding="utf-8",
    )
    written: list[str] = []

    class Watched:
        def write(self, text: str) -> None:
            written.append(text)
            if "10%" in text:
                seen.touch()

        def flush(self) -> None:
            """Nothing is held back."""

    monkeypatch.setattr(sys, "stderr", Watched())
    assert run_launch(Launch(argv=(sys.executable, str(script)))) == 3
    assert "".join(written).endswith("\r 10%\nThe run ended with exit code 3.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_is_a_child_reaches_it(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end the launcher alone, and leave a run behind that nobody waits for."""
    begin = subprocess.Popen

    def begin_late(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), number)
        return begin(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", begin_late)
    assert run_launch(Launch(argv=(sys.executable, "-c", "import time; time.sleep(60)"))) == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_says_by_what(number: signal.Signals, tmp_path: Path) -> None:
    """Whatever code a launcher makes of it; every signal is handed on as the one that no launcher limits."""
    script = tmp_path / "stopped.py"
    script.write_text(
        "import os, signal, sys, time\n"
        f"signal.signal({int(signal.SIGUSR1)}, lambda *_: sys.exit(1))\n"
        f"os.kill(os.getppid(), {int(number)})\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    assert run_launch(Launch(argv=(sys.executable, str(script)))) == 128 + number
