"""Packs of one shape, for hardware that compiles each new one: as many tokens, images and supervised tokens in each.

A pack with fewer images gets turns with a blank one, each a row of its own without labels. So that there is always
room for them, what a row takes are its tokens *beyond* blank turns: as if a pack held all of those from the start, and
each image of a row took one's place.

Rows are dealt out evenly: those with most images first, among them the longest, each to the pack that has fewest images
and then fewest tokens. So packs end up about equally long, whatever their number is, and no first fit leaves a last
one half empty.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_lora.batching.shapes import STEP
from vlm_lora.errors import ConfigError

_TRIED = 8
"""Draws whose packs the shape has room for; an epoch for which no other draw fits takes one of these."""
_DRAWS = 16
_SAMPLE = 4096
"""Rows on which numbers of packs are tried."""
_CANDIDATES = 24
"""Numbers of images that are tried at most."""
_GAIN = 0.005
"""Longer packs are taken where shorter ones would save no more than this share of the tokens."""
_NOISE = 0.01
"""Rows are dealt out in order of their length give or take this share: each epoch has other packs."""


@dataclass(frozen=True, kw_only=True)
class PackShape:
    """What every pack is brought to."""

    tokens: int
    images: int
    supervised: int


@dataclass(frozen=True, kw_only=True)
class RowSizes:
    """What each row takes of a pack, each `(rows,)` whole numbers."""

    tokens: Any
    images: Any
    supervised: Any


def deal(order: Sequence[int], lengths: Sequence[int], images: Sequence[int], count: int) -> list[list[int]]:
    """Deal rows out to `count` packs.

    Args:
        order: the rows, in the order in which they are dealt out.
        lengths: tokens of every row.
        images: of every row.
        count: packs, no more than rows.

    >>> deal([0, 1, 2, 3], [9, 8, 2, 1], [1, 1, 1, 1], 2)
    [[0, 3], [1, 2]]
    """
    packs: list[list[int]] = [[] for _ in range(count)]
    least = [(0, 0, place) for place in range(count)]  # a heap: all are equal
    lightest: list[tuple[int, int, int]] = []
    for row in order:
        if not images[row] and not lightest:
            # Rows without images come last, and go by tokens alone.
            lightest = [(tokens, held, place) for held, tokens, place in least]
            heapq.heapify(lightest)
        if lightest:
            tokens, held, place = lightest[0]
            heapq.heapreplace(lightest, (tokens + lengths[row], held, place))
        else:
            held, tokens, place = least[0]
            heapq.heapreplace(least, (held + images[row], tokens + lengths[row], place))
        packs[place].append(row)
    return packs


class ShapedPlan:
    """The packs of every epoch, all of one shape.

    Args:
        sizes: of the rows.
        count: packs of every epoch, no more than rows.
        blank: tokens of a turn with a blank image.
        seed: deals out anew each epoch; None deals in one order always.
    """

    def __init__(self, sizes: RowSizes, *, count: int, blank: int, seed: int | None) -> None:
        self._sizes, self._blank, self._seed = sizes, blank, seed
        self._beyond = sizes.tokens - blank * sizes.images
        # Lists: numbers of arrays are slow one by one.
        self._dealt = self._beyond.tolist(), sizes.images.tolist()
        self.rows, self.count = len(sizes.tokens), count
        tried = [self._most(self._draw(0, draw)) for draw in range(_TRIED if seed is not None else 1)]
        beyond, images, supervised = (max(kind) for kind in zip(*tried, strict=True))
        self.shape = PackShape(tokens=_up(beyond + blank * images), images=images, supervised=_up(supervised))
        """What every pack is brought to."""

    @property
    def computed(self) -> int:
        """Tokens of an epoch's packs, padding included."""
        return self.count * self.shape.tokens

    def packs(self, epoch: int) -> list[list[int]]:
        """Return an epoch's packs: row numbers, each row once."""
        draws = [(epoch, draw) for draw in range(_TRIED, _TRIED + _DRAWS)] if self._seed is not None else []
        found = next((packs for packs in (self._draw(*draw) for draw in draws) if self._fits(packs)), None)
        packs = self._draw(0, epoch % _TRIED if self._seed is not None else 0) if found is None else found
        if self._seed is None:
            return packs
        generator = np.random.default_rng([self._seed, epoch, _TRIED + _DRAWS])
        return [packs[place] for place in generator.permutation(len(packs))]

    def shortest(self, epoch: int) -> int:
        """Return the row that takes least of a pack."""
        return int(self._beyond.argmin())

    def _draw(self, epoch: int, draw: int) -> list[list[int]]:
        noise = 0.0 if self._seed is None else _NOISE
        drawn = np.random.default_rng([self._seed or 0, epoch, draw]).uniform(1 - noise, 1 + noise, self.rows)
        # Long before short; those with most images first.
        order = np.lexsort((-self._sizes.tokens * drawn, -self._sizes.images))
        return deal(order.tolist(), *self._dealt, self.count)

    def _most(self, packs: Sequence[Sequence[int]]) -> tuple[int, int, int]:
        """Return the most tokens beyond blank turns, images and supervised tokens of any pack."""
        owner = np.empty(self.rows, dtype=np.int64)
        for place, pack in enumerate(packs):
            owner[pack] = place
        kinds = (self._beyond, self._sizes.images, self._sizes.supervised)
        beyond, images, supervised = (
            int(np.bincount(owner, weights=kind, minlength=len(packs)).max()) for kind in kinds
        )
        return beyond, images, supervised

    def _fits(self, packs: Sequence[Sequence[int]]) -> bool:
        beyond, images, supervised = self._most(packs)
        shape = self.shape
        return (
            images <= shape.images
            and beyond + self._blank * shape.images <= shape.tokens
            and supervised <= shape.supervised
        )


def plan_shape(sizes: RowSizes, *, blank: int, most: int, seed: int | None) -> ShapedPlan:
    """Plan packs of the one shape that has little padding, with long packs where that costs nothing.

    Args:
        sizes: of the rows.
        blank: tokens of a turn with a blank image.
        most: tokens of a pack at most.
        seed: as for `ShapedPlan`.

    Raises:
        ConfigError: no shape within `most` has room for every row.
    """
    counts = sorted(set(_counts(sizes, most)))
    step = -(-len(sizes.tokens) // _SAMPLE)
    sample = RowSizes(tokens=sizes.tokens[::step], images=sizes.images[::step], supervised=sizes.supervised[::step])
    computed = {}
    for count in counts:
        plan = ShapedPlan(sample, count=max(1, count // step), blank=blank, seed=seed)
        computed[count] = plan.shape.tokens * count if plan.shape.tokens <= most else math.inf
    enough = min(computed.values()) * (1 + _GAIN)
    for count in counts:  # from few long packs to many short ones
        if computed[count] <= enough:
            plan = ShapedPlan(sizes, count=count, blank=blank, seed=seed)
            if plan.shape.tokens <= most:
                return plan
    raise ConfigError(
        f"--pack_length {most}: packs of one shape, which are filled up with blank images to equal numbers ({blank} "
        f"tokens each), have no room for the longest row of {int(sizes.tokens.max())} tokens. Type a larger "
        "--pack_length, or --packing false."
    )


def _counts(sizes: RowSizes, most: int) -> Iterator[int]:
    """Yield numbers of packs to try: for each number of images a pack may hold, or of the tokens alone."""
    rows, total, images = len(sizes.tokens), int(sizes.tokens.sum()), int(sizes.images.sum())
    fewest = max(1, math.ceil(total / most))
    if not images:
        # A little more than the tokens need: the shape is rounded up.
        yield from (min(rows, math.ceil(fewest * (1 + more))) for more in (0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1))
        return
    held = range(1, max(1, images // fewest) + 1)
    tried = {math.ceil(images / held[place]) for place in np.linspace(0, len(held) - 1, _CANDIDATES, dtype=int)}
    yield from (min(rows, count) for count in tried)


def _up(count: int) -> int:
    return -(-count // STEP) * STEP
