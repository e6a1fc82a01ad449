"""How long a training may stand still, what does not count, and who is named where it stood too long."""

from __future__ import annotations

import pytest

from vlm_lora.config.reporting import GuardConfig
from vlm_lora.errors import ConfigError
from vlm_lora.training.guards.standing import Answer, Standing, described, is_excused


def stands(standing: Standing, looks: int, tick: float = 1.0) -> list[bool]:
    return [standing.is_stalled(tick) for _ in range(looks)]


def test_only_steps_without_an_excuse_count() -> None:
    standing = Standing(3)
    assert not any(stands(standing, 10)), "the first step"
    standing.end_step(5, "")
    assert stands(standing, 4) == [False, False, False, True]
    standing.move()
    assert stands(standing, 4) == [False, False, False, True], "each move begins anew"
    standing.end_step(5, "an evaluation or a save")
    assert not any(stands(standing, 10))
    standing.move()
    assert not any(stands(standing, 10)), "what follows in it"
    standing.move("")
    assert stands(standing, 4)[-1]


def test_the_default_grows_with_long_steps() -> None:
    standing = Standing(None)
    assert standing.limit == 1800
    standing.end_step(10_000, "")
    assert standing.limit == 1800, "the first step does not count"
    for seconds in (1, 100, 300):
        standing.end_step(seconds, "")
    assert standing.limit == 2000
    assert Standing(7).limit == 7


def answer(count: int, *, step: int = 4, excuse: str = "", workers: str = "") -> Answer:
    return Answer(who=f"pid {count}", count=count, step=step, excuse=excuse, workers=workers)


@pytest.mark.parametrize(
    ("answers", "silent", "said"),
    [
        ({0: answer(9)}, {1: ("pid 7 on here; T, stopped", "")}, "rank 1 (pid 7 on here; T, stopped) does not answer"),
        ({0: answer(9), 1: answer(8), 2: answer(9)}, {}, "rank 1 (pid 8), in step 5, is behind, and the others wait"),
        ({0: answer(9), 1: answer(9)}, {}, "all 2 ranks stand at the same place, in step 5: "),
        ({0: answer(9)}, {}, "process pid 9 stands in step 5"),
        ({0: answer(9, workers="worker 3 is stopped (T)")}, {}, "stands in step 5; worker 3 is stopped (T). "),
    ],
)
def test_the_one_that_is_behind_is_named(
    answers: dict[int, Answer], silent: dict[int, tuple[str, str]], said: str
) -> None:
    message = described(answers, silent, limit=60)
    assert message.startswith("The training stood still for 60 seconds (--stall_timeout): ")
    assert said in message
    assert not is_excused(answers, silent)


def test_ranks_wait_for_one_that_has_an_excuse_but_not_if_it_is_stopped() -> None:
    compiles = "the first step of a shape"
    assert is_excused({0: answer(9), 1: answer(8, excuse=compiles)}, {})
    assert is_excused({0: answer(9)}, {1: ("pid 7 on here; R, computing", compiles)}), (
        "a compiler may keep it from answering"
    )
    assert not is_excused({0: answer(9)}, {1: ("pid 7 on here; T, stopped", compiles)})


def test_seconds_below_nought_are_refused() -> None:
    assert GuardConfig().stall_timeout is None
    assert GuardConfig(stall_timeout=0).stall_timeout == 0
    with pytest.raises(ConfigError, match=r"--stall_timeout -1: must be a number of seconds, or 0"):
        GuardConfig(stall_timeout=-1)


def test_how_many_steps_may_be_skipped() -> None:
    assert GuardConfig().skipped_in_a_row is None
    assert GuardConfig(on_nonfinite="skip_step").skipped_in_a_row == 10
    assert GuardConfig(on_nonfinite="skip_step", nonfinite_limit=3).skipped_in_a_row == 3
    with pytest.raises(ConfigError, match=r"--nonfinite_limit 0: must be a whole number from 1"):
        GuardConfig(on_nonfinite="skip_step", nonfinite_limit=0)
    with pytest.raises(ConfigError, match=r"--on_nonfinite skip: must be one of stop, skip_step"):
        GuardConfig(on_nonfinite="skip")  # type: ignore[arg-type]
