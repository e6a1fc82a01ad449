"""How answers are drawn: what is given, what it implies, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from vlm_lora.errors import ConfigError
from vlm_lora.evaluation.sampling import Sampling


@pytest.mark.parametrize(
    ("given", "keywords"),
    [
        ({}, {"do_sample": False, "num_beams": 1}),
        ({"temperature": 0}, {"do_sample": False, "num_beams": 1}),
        ({"num_beams": 3}, {"do_sample": False, "num_beams": 3}),
        ({"do_sample": True}, {"do_sample": True, "num_beams": 1}),
        ({"temperature": 0.5, "top_k": 5}, {"do_sample": True, "num_beams": 1, "temperature": 0.5, "top_k": 5}),
        ({"top_p": 1.0}, {"do_sample": True, "num_beams": 1, "top_p": 1.0}),
    ],
)
def test_any_setting_of_drawing_turns_it_on(given: dict[str, Any], keywords: dict[str, Any]) -> None:
    assert Sampling(**given).keywords == keywords


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": -1}, "--temperature -1: must be a finite number from 0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_p": 0}, "--top_p 0: must be above 0"),
        ({"top_k": -2}, "--top_k -2"),
        ({"num_beams": 0}, "--num_beams 0"),
        ({"do_sample": False, "top_p": 0.9}, "--do_sample false draws nothing, and --top_p 0.9"),
        ({"temperature": 0, "do_sample": True}, "--temperature 0 is greedy, and --do_sample"),
        ({"temperature": 0, "top_k": 4}, "--temperature 0 is greedy, and --top_k 4"),
        ({"num_beams": 2, "temperature": 0.7}, "--num_beams 2 looks for the likeliest answer, and --temperature 0.7"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**given)
    assert said in str(caught.value)
