"""Exact match and its interval."""

import pytest

from vlm_lora.evaluation.generation import Answer, ExactMatch, exact_match


def answer(generated: str, *accepted: str) -> Answer:
    return Answer(source="row", generated=generated, accepted=accepted)


def test_white_space_at_the_ends_does_not_count_and_any_accepted_answer_does() -> None:
    assert answer(" 12 \n", "twelve", "12").exact
    assert not answer("1 2", "12").exact
    assert exact_match([answer("a", "a"), answer("b", "a")]) == ExactMatch(correct=1, total=2)


def test_wilson_interval_of_a_published_case() -> None:
    """81 of 263 gives 0.2553 to 0.3662 (Newcombe 1998, table I, method 3)."""
    low, high = ExactMatch(correct=81, total=263).interval
    assert low == pytest.approx(0.2553, abs=5e-5)
    assert high == pytest.approx(0.3662, abs=5e-5)


def test_interval_stays_between_zero_and_one() -> None:
    assert ExactMatch(correct=0, total=20).interval[0] == 0.0
    assert ExactMatch(correct=20, total=20).interval[1] == 1.0
