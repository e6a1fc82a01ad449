"""A warm process behaves as a Python process that imports everything itself, as far as tests look at it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.warm import programs

TOLD = """
import atexit, os, sys
atexit.register(lambda: print("at exit"))
print(sys.argv, os.getcwd(), os.environ["GIVEN"], __name__, sys.path[0])
print("said", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def python() -> str:
    return str(programs(Path(sys.executable)) / "python")


def run(program: str, words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [program, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_words_folder_variables_streams_and_code_are_those_of_a_cold_one(python: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TOLD, encoding="utf-8")
    (tmp_path / "work").mkdir()
    for words in ([str(script), "7", "two words", "--n"], ["-u", str(script), "0"], ["-c", script.read_text(), "3"]):
        cold, warm = (run(program, words, tmp_path / "work", GIVEN="it") for program in (sys.executable, python))
        assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    module = run(python, ["-m", "script", "5"], tmp_path, GIVEN="it")
    assert (module.returncode, module.stderr) == (5, "said\n")
    wrong = run(python, ["-c", "raise ValueError('this')"], tmp_path)
    assert (wrong.returncode, wrong.stderr.splitlines()[-1]) == (1, "ValueError: this")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGUSR1])
def test_a_signal_ends_the_process_and_what_asked_for_it_alike(number: int, python: str, tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    asked = subprocess.Popen([python, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    asked.send_signal(number)
    assert asked.wait(timeout=60) == -number
    place = Path("/proc") / (tmp_path / "pid").read_text()
    wait_for(lambda: not place.exists())


def test_a_process_that_handles_a_signal_goes_on(python: str, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(9))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\ntime.sleep(100)"
    )
    asked = subprocess.Popen([python, "-c", code])
    wait_for((tmp_path / "ready").exists)
    asked.send_signal(signal.SIGUSR1)
    assert asked.wait(timeout=60) == 9
