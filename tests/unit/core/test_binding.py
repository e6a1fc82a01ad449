"""Processes that end with what started them: a chain as launchers make it, killed at its head and in its middle.

The ranks' script imports nothing heavy: the chain is about processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.killed_launchers import is_running
from vlm_lora.launch.binding import LAUNCHER, RANK_ENTRY

HEAD = """
import sys
from vlm_lora.launch.launching import Launch, bound, run_launch
words = bound(sys.argv[2:]) if sys.argv[3] == "bound" else sys.argv[2:]
sys.exit(run_launch(Launch(argv=(sys.executable, sys.argv[1], *words))))
"""

MIDDLE = """
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, *sys.argv[1:], str(rank)], start_new_session=True) for rank in range(2)]
for rank in ranks:
    rank.wait()
"""

RANK = """
import os, sys, time
from pathlib import Path
words = f"{os.getpid()} {os.getppid()} {os.environ.get('VLM_LORA_LAUNCHER')}"
Path(__file__).with_name("rank" + sys.argv[-1]).write_text(words)
time.sleep(300)
"""


def wait_for(what: object, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def start(folder: Path, *, bound: bool) -> tuple[subprocess.Popen[bytes], int, list[int], list[str]]:
    """Start the chain; return its head, its middle, its ranks, and what these know of the launcher."""
    for name, text in (("head", HEAD), ("middle", MIDDLE), ("script", RANK)):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    words = [folder / "head.py", folder / "middle.py", folder / "script.py", "bound" if bound else "free"]
    head = subprocess.Popen([sys.executable, *map(str, words)], stderr=subprocess.DEVNULL)
    files = [folder / f"rank{rank}" for rank in range(2)]
    assert wait_for(lambda: all(path.exists() and len(path.read_text().split()) == 3 for path in files))
    told = [path.read_text().split() for path in files]
    return head, int(told[0][1]), [int(words[0]) for words in told], [words[2] for words in told]


@pytest.mark.parametrize("killed", ["head", "middle"])
@pytest.mark.parametrize("stopped", [False, True])
def test_ranks_end_with_what_started_them(killed: str, stopped: bool, tmp_path: Path) -> None:
    """In sessions of their own, where no signal to a group reaches them; also one that is stopped."""
    head, middle, ranks, known = start(tmp_path, bound=True)
    try:
        if stopped:
            os.kill(ranks[0], signal.SIGSTOP)
        os.kill(head.pid if killed == "head" else middle, signal.SIGKILL)
        assert wait_for(lambda: not any(is_running(pid) for pid in (middle, *ranks)))
        assert known == ["None", "None"], "what a script starts of itself is its own affair"
        assert head.wait(timeout=60) == (-signal.SIGKILL if killed == "head" else 128 + signal.SIGKILL)
    finally:
        clear(head, [middle, *ranks])


def test_a_chain_that_is_not_bound_outlives_its_middle(tmp_path: Path) -> None:
    """The control: what the tests above see is the binding's work."""
    head, middle, ranks, _ = start(tmp_path, bound=False)
    try:
        os.kill(middle, signal.SIGKILL)
        assert wait_for(lambda: not is_running(middle))
        assert not wait_for(lambda: not any(is_running(pid) for pid in ranks), seconds=1)
    finally:
        clear(head, [middle, *ranks])


def clear(head: subprocess.Popen[bytes], pids: list[int]) -> None:
    for pid in pids:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    head.kill()
    head.wait()


def test_a_rank_whose_launcher_has_gone_before_it_is_bound_ends(tmp_path: Path) -> None:
    """The launcher's number is that of a process that has ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    script = tmp_path / "script.py"
    script.write_text("print('runs')", encoding="utf-8")

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-u", str(RANK_ENTRY), str(script)]
        return subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True, check=False)

    lost = run(**{LAUNCHER: str(gone.pid)})
    assert (lost.returncode, lost.stdout) == (-signal.SIGKILL, "")
    below = run(**{LAUNCHER: str(os.getpid())})
    assert (below.returncode, below.stdout) == (0, "runs\n")
    elsewhere = run()  # another machine's rank is not told
    assert (elsewhere.returncode, elsewhere.stdout) == (0, "runs\n")


def test_a_rank_is_the_script_with_its_own_words_and_interpreter_flags(tmp_path: Path) -> None:
    script = tmp_path / "a script.py"
    script.write_text("import sys; print(sys.argv, sys.orig_argv[1:3], sys.flags.optimize, sys.path[0])")
    words = ["-u", "-O", str(RANK_ENTRY), str(script), "--n", "two words", "--", "-u"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[str(script), *words[4:]]} ['-u', '-O'] 1 {tmp_path}\n"
