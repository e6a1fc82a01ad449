"""The order of the rows: every row once an epoch, in full batches, whatever the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from vlm_lora.batching.ordering.grouping import blocks_by_length


class BatchOrder(Sampler[int]):
    """Indices for `FillableRows`: each consecutive `batch_size` of them are one batch of one group.

    The order depends on seed and epoch alone, so a resumed epoch goes on as it was, on every stack alike. With
    one group it does not depend on batch size and processes either: one global batch has the same rows however
    it is split. With several, the processes' batches of one step are of one group, so that all wait alike.

    Args:
        groups: row indices that may share a batch (rows of one shape; one group where shapes do not matter).
        batch_size: rows of one batch on one process.
        processes: the number of batches is a multiple of this.
        seed: shuffles rows within groups, then batches; None keeps the rows' order.
        drop_last: drop batches that are too small instead of filling them.
        carries_epoch: indices ask `FillableRows` for the epoch's rows instead of epoch 0's.
        lengths: returns `(N,)`, tokens by row index, of an epoch: rows of like length then share a batch (see
            `grouping`); None shuffles. Needs a seed.
        accumulation: batches of one process whose gradients make one step, where lengths are given.

    Example: rows 0-4 in batches of two for two processes, in order; 5 + i is row i as a filler.

        >>> list(BatchOrder([range(5)], batch_size=2, processes=2, seed=None))
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        *,
        batch_size: int,
        processes: int,
        seed: int | None,
        drop_last: bool = False,
        carries_epoch: bool = False,
        lengths: Callable[[int], Any] | None = None,
        accumulation: int = 1,
    ) -> None:
        self._groups = groups
        self._rows = sum(len(group) for group in groups)
        self._batch_size = batch_size
        self._processes = processes
        self._seed = seed
        self._drop_last = drop_last
        self._carries_epoch = carries_epoch
        self._lengths = lengths
        self._accumulation = accumulation
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; trainer and data loader call it. Epochs do not go back.

        accelerate 1.10 starts counting anew in the loader that skips a resumed epoch's first batches, and would
        give that epoch the order of the first.
        """
        self._epoch = max(self._epoch, epoch)

    def __len__(self) -> int:
        """Return the number of indices, fillers included."""
        return sum(self._kept(len(group)) for group in self._groups)

    def __iter__(self) -> Iterator[int]:
        """Yield the epoch's indices."""
        carried = 2 * self._rows * self._epoch if self._carries_epoch else 0
        for index in self._places():
            yield carried + index

    def _places(self) -> Iterator[int]:
        generator = torch.Generator()
        if self._seed is not None:
            # Hashed together: torch's generator takes 32 bits of a seed, so the two cannot just stand side by side.
            generator.manual_seed(int(np.random.SeedSequence([self._seed, self._epoch]).generate_state(1)[0]))
        if self._lengths is None:
            filled = [self._filled(self._shuffled(group, generator)) for group in self._groups]
        else:
            filled = [self._by_length(group, generator) for group in self._groups]
        if len(filled) == 1:
            yield from filled[0]
            return
        size = self._step
        steps = [group[start : start + size] for group in filled for start in range(0, len(group), size)]
        for step in self._shuffled(steps, generator):
            yield from step

    def _by_length(self, group: Sequence[int], generator: torch.Generator) -> Sequence[int]:
        """Return a group's indices, rows of like length in one batch."""
        assert self._lengths is not None  # asked before
        kept = min(len(group), self._kept(len(group)))
        blocks = blocks_by_length(
            self._shuffled(group, generator)[:kept],
            self._lengths(self._epoch if self._carries_epoch else 0),
            # Several groups' steps are shuffled together, and any of them may then share gradients.
            size=self._step * (self._accumulation if len(self._groups) == 1 else 1),
            generator=generator,
            longest_first=self._epoch == 0,
        )
        missing = self._kept(len(group)) - kept
        # The last block's shortest rows: they make no batch longer.
        fillers = [self._rows + blocks[-1][-1 - place % len(blocks[-1])] for place in range(missing)]
        return [*(index for block in blocks for index in block), *fillers]

    @property
    def _step(self) -> int:
        """Rows of all processes' batches of one step."""
        return self._batch_size * self._processes

    def _kept(self, rows: int) -> int:
        """Return how many indices a group of `rows` rows gives."""
        steps = rows // self._step if self._drop_last else math.ceil(rows / self._step)
        return steps * self._step

    def _shuffled(self, items: Sequence, generator: torch.Generator) -> Sequence:
        if self._seed is None:
            return items
        return [items[place] for place in torch.randperm(len(items), generator=generator).tolist()]

    def _filled(self, group: Sequence[int]) -> Sequence[int]:
        """Cut a group to whole steps, or fill it up with its own rows as fillers."""
        kept = self._kept(len(group))
        if kept <= len(group):
            return group[:kept]  # a range stays one: a stream's may be long
        fillers = [self._rows + group[place % len(group)] for place in range(kept - len(group))]
        return [*group, *fillers]
