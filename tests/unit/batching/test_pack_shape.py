"""Packs of one shape: every row in one of them, room for the blank images that are missing, little padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlm_lora.batching.packing.shape import RowSizes, ShapedPlan, deal, plan_shape
from vlm_lora.errors import ConfigError

BLANK = 275


def sizes_of(images: Any, text: Any) -> RowSizes:
    """Rows with images of 256 tokens, as Gemma 3 has them, and so many tokens of text."""
    return RowSizes(tokens=20 + 262 * images + text, images=images, supervised=text // 10)


def rows(kind: str, count: int = 2000) -> RowSizes:
    generator = np.random.default_rng(3)
    images = {"one": np.ones(count, int), "mixed": generator.integers(0, 4, count), "none": np.zeros(count, int)}
    return sizes_of(images[kind], generator.integers(20, 120, count))


@pytest.mark.parametrize(("kind", "padding"), [("one", 0.03), ("mixed", 0.03), ("none", 0.03)])
def test_packs_of_one_shape_pad_little(kind: str, padding: float) -> None:
    sizes = rows(kind)
    plan = plan_shape(sizes, blank=BLANK, most=2048, seed=7)
    assert 1 - sizes.tokens.sum() / plan.computed <= padding
    assert 1024 < plan.shape.tokens <= 2048
    assert plan.shape.tokens % 16 == plan.shape.supervised % 16 == 0


@pytest.mark.parametrize("kind", ["one", "mixed", "none"])
@pytest.mark.parametrize("seed", [7, None])
def test_every_epoch_keeps_to_the_shape(kind: str, seed: int | None) -> None:
    sizes = rows(kind, 500)
    plan = plan_shape(sizes, blank=BLANK, most=2048, seed=seed)
    for epoch in range(12):
        packs = plan.packs(epoch)
        assert sorted(row for pack in packs for row in pack) == list(range(500))
        assert len(packs) == plan.count
        for pack in packs:
            images, tokens = int(sizes.images[pack].sum()), int(sizes.tokens[pack].sum())
            assert pack
            assert images <= plan.shape.images
            assert tokens + BLANK * (plan.shape.images - images) <= plan.shape.tokens
            assert sizes.supervised[pack].sum() <= plan.shape.supervised
    others = {frozenset(pack) for pack in plan.packs(1)}
    assert ({frozenset(pack) for pack in plan.packs(0)} == others) == (seed is None)
    assert plan.packs(3) == plan_shape(sizes, blank=BLANK, most=2048, seed=seed).packs(3)


def test_a_draw_that_does_not_fit_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ShapedPlan(rows("one", 100), count=20, blank=BLANK, seed=1)
    tried = [sorted(map(sorted, plan._draw(0, draw))) for draw in range(8)]
    monkeypatch.setattr(plan, "_fits", lambda packs: False)
    assert sorted(map(sorted, plan.packs(11))) == tried[11 % 8]


def test_rows_are_dealt_to_the_pack_with_fewest_images_and_then_fewest_tokens() -> None:
    assert deal([0, 1, 2, 3, 4], [9, 3, 5, 1, 2], [2, 1, 1, 0, 0], 2) == [[0, 4], [1, 2, 3]]


def test_a_row_without_room_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"--pack_length 512: .* no room for the longest row of 600 tokens"):
        plan_shape(sizes_of(np.array([1, 1]), np.array([318, 20])), blank=BLANK, most=512, seed=1)
