"""What ranks say to each other where one of them stands still, over a store in this process."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from vlm_lora.training.guards import stall_roll
from vlm_lora.training.guards.stall_roll import StallRoll
from vlm_lora.training.guards.standing import Answer


def answer(count: int, excuse: str = "") -> Answer:
    return Answer(who=f"pid {count}", count=count, step=2, excuse=excuse, workers="")


def rolls(monkeypatch: pytest.MonkeyPatch, ranks: int = 2) -> list[StallRoll]:
    monkeypatch.setattr(stall_roll, "PATIENCE", 0.5)
    store = HashStore()
    return [
        StallRoll(store, rank, ranks, lambda host, pid: f"pid {pid} on {host}; T, stopped") for rank in range(ranks)
    ]


def talk(members: list[StallRoll], answers: list[Answer]) -> list[tuple[str, bool, int]]:
    """Let all talk at once."""
    heard: dict[int, Any] = {}

    def run(rank: int) -> None:
        heard[rank] = members[rank].talk(answers[rank], 60)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(answers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [heard[rank] for rank in range(len(answers))]


def test_all_hear_who_is_behind_and_one_of_them_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = talk(rolls(monkeypatch), [answer(9), answer(7)])
    assert {message for message, _, _ in heard} == {heard[0][0]}
    assert "rank 1 (pid 7), in step 3, is behind" in heard[0][0]
    assert sorted(first for _, first, _ in heard) == [False, True]


def test_one_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rolls(monkeypatch)
    second.introduce("node7", 4711, "an evaluation or a save")
    assert not first.is_called()
    message, speaks, silent = first.talk(answer(9), 60)
    assert "rank 1 (pid 4711 on node7; T, stopped) does not answer" in message
    assert (speaks, silent) == (True, 1)
    assert second.is_called()


def test_an_excuse_lets_all_wait_on_and_the_next_call_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    members = rolls(monkeypatch)
    assert [message for message, _, _ in talk(members, [answer(9), answer(7, "the first step of a shape")])] == ["", ""]
    assert not any(member.is_called() for member in members)
    assert all(
        "rank 0 (pid 8), in step 3, is behind" in message for message, _, _ in talk(members, [answer(8), answer(9)])
    )
