"""How long ranks wait, and what a rank says that waited in vain."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d

from vlm_lora.errors import StalledError
from vlm_lora.launch import process_group, roll_call
from vlm_lora.launch.roll_call import NoAnswerError, introduce, limit_waiting, silent_rank, within
from vlm_lora.training.signals import Agreement

LATE = RuntimeError(
    "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 20000ms for recv operation to complete"
)
LOST = RuntimeError("[transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:27784.")
distributed: Any = torch.distributed


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> HashStore:
    """The store of two ranks, of which this is rank 0."""
    shared = HashStore()
    monkeypatch.setattr(roll_call, "_store", lambda: shared)
    monkeypatch.setattr(roll_call, "PATIENCE", 0.3)
    monkeypatch.setattr(roll_call, "_limits", [20])
    monkeypatch.setattr(process_group, "_leaving", [])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    return shared


@pytest.fixture
def stopped() -> Iterator[int]:
    """A process that is stopped."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    yield process.pid
    process.kill()
    process.wait()


def test_the_rank_that_does_not_answer_is_named(store: HashStore, stopped: int) -> None:
    store.set("who/1", f"{socket.gethostname()} {stopped}")
    message = silent_rank(LATE)
    assert message is not None
    said = f"Rank 1 (pid {stopped}, which is stopped) did not answer within --ddp_timeout 20 s; rank 0 waited in vain."
    assert message.startswith(said)
    assert process_group._leaving == [True], "gloo would wait for each collective that has begun"


def test_a_rank_elsewhere_is_named_with_its_machine(store: HashStore) -> None:
    store.set("who/1", "node7 4711")
    assert str(silent_rank(LATE)).startswith("Rank 1 (pid 4711 on node7) did not answer")


def test_ranks_that_all_answer_are_not_blamed(store: HashStore) -> None:
    """They wait for each other, at different places; and the control of the tests above."""
    store.set("here/1", "1")
    assert str(silent_rank(LATE)).startswith("Another rank did not answer within --ddp_timeout 20 s")


def test_one_that_lost_another_answers_and_lets_it_speak_first(store: HashStore, monkeypatch: Any) -> None:
    monkeypatch.setattr(roll_call, "PATIENCE", 30)
    store.set("called", "1")
    caller = threading.Timer(0.2, lambda: store.set("told", "1"))
    caller.start()
    assert silent_rank(LOST) is None
    assert store.check(["here/0", "told"])


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), ValueError("Timed out waiting 3 ms")])
def test_other_errors_call_no_roll(error: Exception, store: HashStore) -> None:
    assert silent_rank(error) is None
    assert not store.check(["called"])


def test_one_process_waits_for_nobody(store: HashStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert silent_rank(LATE) is None


def test_a_store_that_is_stopped_with_its_rank_is_not_waited_for(store: HashStore, monkeypatch: Any) -> None:
    """torch's store itself waits for ever (seen: `add` to a stopped server returned when that went on)."""
    never = threading.Event()
    with pytest.raises(NoAnswerError):
        within(0.1, never.wait)
    monkeypatch.setattr(roll_call, "_store", lambda: never.wait())
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert str(silent_rank(LATE)).startswith("Rank 0 or what keeps the store that the ranks met at (first:29500) did")


def test_steps_wait_no_longer_for_a_rank(store: HashStore) -> None:
    """Rank 1 is told nothing and comes to no step; the answer of the first is what the second waits for."""
    agreement = Agreement(store, 2, timedelta(seconds=0.5))
    assert agreement.any_told(False) is False
    with pytest.raises(StalledError, match=r"^Rank 1 did not answer within --ddp_timeout 20 s"):
        agreement.any_told(False)


def test_every_group_waits_as_long_as_was_said(store: HashStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that says nothing of it, as transformers on CPUs and DeepSpeed's own."""
    monkeypatch.setattr(distributed_c10d, "default_pg_timeout", distributed_c10d.default_pg_timeout)
    limit_waiting(20)
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        groups = [distributed.group.WORLD, distributed.new_group([0])]
        waits = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
        assert waits == [timedelta(seconds=20)] * 2
        introduce()
        assert store.get("who/0").decode() == f"{socket.gethostname()} {os.getpid()}"
    finally:
        distributed.destroy_process_group()
