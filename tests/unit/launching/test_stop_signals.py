"""Signals to a process: at once, where it is ready, by force; and a loader worker that leaves them to its parent."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_lora.errors import SignalledError
from vlm_lora.launch.stop_signals import StopSignals

IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2_000_000_000)"
"""Minutes of computing during which no handler of Python runs."""

LISTENING = """
import sys, time
from vlm_lora.launch.stop_signals import stop_signals
with stop_signals() as stops:
    stops.end_within = {limit}
    stops.before_hard_end = lambda said: print("told:", said, flush=True)
    with stops.deferring():
        print("ready", flush=True)
        {busy}
"""


IN_C_WITHIN = """
import threading
from contextlib import nullcontext
from vlm_lora.launch import stop_signals as module
module.UNHEARD = 0.2
with module.stop_signals() as stops:
    stops.before_hard_end = lambda said: print("told:", said, flush=True)
    with {within}:
        # By when the main thread is in C: a handler would run before.
        threading.Timer(0.5, lambda: print("ready", flush=True)).start()
        {busy}
"""


def start(limit: float | None, busy: str) -> subprocess.Popen[str]:
    code = LISTENING.format(limit=limit, busy=busy)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("busy", [IN_C, "time.sleep(600)"])
def test_ctrl_c_a_second_time_ends_at_once(busy: str) -> None:
    """The first one waits, also where it comes twice within a second, as from a terminal and a launcher."""
    process = start(None, busy)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert "Ctrl-C: finishing the step and saving." in errors or busy == IN_C
    if busy == IN_C:  # no handler ran: the process was ended from outside its main thread
        assert (process.returncode, out) == (130, "told: Ctrl-C a second time: ended without saving\n")
    else:
        assert "SignalledError: Ctrl-C: ended at once." in errors
        assert process.returncode == 1, "as Python ends by an exception; the command line makes 130 of it"


@pytest.mark.parametrize("deferred", [False, True])
def test_what_hears_no_signal_is_ended_unless_it_saves_first(deferred: bool) -> None:
    """A rank that waits for others to come, in C and for half an hour, for instance."""
    code = IN_C_WITHIN.format(within="stops.deferring()" if deferred else "nullcontext()", busy=IN_C)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        try:
            if deferred:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(timeout=1.5)
            else:
                assert process.wait(timeout=60) == 143
                assert process.stdout.read() == "told: SIGTERM: ended at once, in the middle of what heard no signal\n"
        finally:
            process.kill()


def test_what_takes_longer_than_it_may_is_ended_with_the_signals_code() -> None:
    process = start(0.2, IN_C)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert out == "told: SIGTERM: step and save took longer than --end_within 0.2 s; ended without\n"
    assert "ended without." in errors


def test_what_is_done_in_time_is_not_ended() -> None:
    process = start(0.3, "time.sleep(0.1); stops.over(); time.sleep(1); print('done')")
    process.send_signal(signal.SIGUSR1)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "done\n", "")


@pytest.mark.parametrize("state", ["at once", "deferred", "over"])
def test_a_signal_ends_a_run_also_where_a_library_makes_another_error_of_it(state: str) -> None:
    """As safetensors does that asks torch for the size of a storage; an error of a later moment stays what it is."""
    stops = StopSignals()

    def load() -> None:
        with stops.deferring() if state == "deferred" else contextlib.nullcontext():
            with contextlib.suppress(SignalledError):
                stops(signal.SIGTERM, None)
            if state == "over":
                stops.over()
            raise ValueError("a wrong object")

    expected: type[BaseException] = SignalledError if state == "at once" else ValueError
    with pytest.raises(expected) as raised, stops.heard():
        load()
    if isinstance(raised.value, SignalledError):
        assert raised.value.number == signal.SIGTERM
        assert isinstance(raised.value.__cause__, ValueError)


@pytest.mark.parametrize("first", ["leave_to_parent()", "pass"])
def test_a_worker_leaves_signals_to_its_parent(first: str, tmp_path: Path) -> None:
    """SIGTERM from its parent ends it, as `Process.terminate` does; from anybody else none of the three does.

    Also before it has done anything, as where a cluster's signal meets an evaluation that has just begun.
    """
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, signal, subprocess, sys, time\n"
        "from vlm_lora.launch.stop_signals import leave_to_parent, stop_signals\n"
        f"def work(ready):\n    {first}\n    ready.set()\n    time.sleep(600)\n"
        "with stop_signals():\n"
        "    forking = multiprocessing.get_context('fork')\n    ready = forking.Event()\n"
        "    worker = forking.Process(target=work, args=(ready,), daemon=True)\n    worker.start()\n    ready.wait()\n"
        "    for name in ('TERM', 'INT', 'USR1'):\n"
        "        subprocess.run(['kill', f'-{name}', str(worker.pid)], check=True)\n"
        "    worker.join(0.5)\n    print(worker.exitcode)\n"
        "    worker.terminate()\n    worker.join(60)\n    print(worker.exitcode)\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["None", "0"], done.stderr


def test_a_forked_worker_that_lives_on_does_not_hold_the_end_up() -> None:
    """It has the pipe of the signals open, too, so that its end never comes by closing it."""
    script = """
import os, sys
from vlm_lora.launch.stop_signals import stop_signals

stay, leave = os.pipe()
with stop_signals():
    worker = os.fork()
    if not worker:
        os.close(leave)
        os.read(stay, 1)
        os._exit(0)
print("went on")
os.close(leave)
os.waitpid(worker, 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "went on\n"
