"""The model card says whether head and embeddings are one tensor, where the configuration says it twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vlm_lora.report.model_card import _tied_otherwise


def config_of(whole: dict[str, bool], text: dict[str, bool]) -> Any:
    return SimpleNamespace(**whole, get_text_config=lambda: SimpleNamespace(**text))


@pytest.mark.parametrize(
    ("whole", "text", "said"),
    [
        (True, True, None),
        (False, True, True),
        (True, False, False),
        (True, None, None),  # GLM-4V: its text has no such setting
    ],
)
def test_what_the_text_says_counts_where_it_says_something(whole: bool, text: bool | None, said: bool | None) -> None:
    inner = {} if text is None else {"tie_word_embeddings": text}
    assert _tied_otherwise(config_of({"tie_word_embeddings": whole}, inner)) is said
