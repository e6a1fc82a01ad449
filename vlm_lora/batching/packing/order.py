"""The order of packs: what a loader asks for by one index is a pack."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from torch.utils.data import Sampler

from vlm_lora.batching.ordering.rows import FillableRows
from vlm_lora.batching.packing.collation import Pack
from vlm_lora.batching.packing.plan import PackPlan
from vlm_lora.batching.packing.shape import ShapedPlan


class PackedRows(FillableRows):
    """`FillableRows` that can also be asked for several rows by one index, a tuple: they are a pack."""

    def __getitem__(self, index: int | tuple[int, ...]) -> Any:
        """Return a row or filler, or a pack of them."""
        if isinstance(index, tuple):
            return Pack(rows=tuple(super(PackedRows, self).__getitem__(one) for one in index))
        return super().__getitem__(index)

    def __getitems__(self, indices: Sequence[int | tuple[int, ...]]) -> list[Any]:
        """Return the packs of a batch; torch's loader asks for them so."""
        self.in_hand.note(list(chain.from_iterable(one if isinstance(one, tuple) else (one,) for one in indices)))
        return [self[index] for index in indices]


class PackOrder(Sampler[tuple[int, ...]]):
    """Indices for `PackedRows`: each consecutive `batch_size` of them are one batch, in full steps of all processes.

    The packs of an epoch depend on seed and epoch alone, and one global batch has the same packs however it is split.
    A last step that would be too small is filled up with packs of one short row whose labels are masked.

    Args:
        plan: the packs of each epoch.
        batch_size: packs of one batch on one process.
        processes: the number of batches is a multiple of this.
        drop_last: drop the packs of a last step that would be too small.
        carries_epoch: indices ask for the epoch's rows instead of epoch 0's.
    """

    def __init__(
        self,
        plan: PackPlan | ShapedPlan,
        *,
        batch_size: int,
        processes: int,
        drop_last: bool = False,
        carries_epoch: bool = False,
    ) -> None:
        self._plan = plan
        self._step = batch_size * processes
        self._drop_last, self._carries_epoch = drop_last, carries_epoch
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's packs; trainer and data loader call it. Epochs do not go back (see `BatchOrder`)."""
        self._epoch = max(self._epoch, epoch)

    def __len__(self) -> int:
        """Return the packs of every epoch, fillers included."""
        steps = self._plan.count // self._step if self._drop_last else math.ceil(self._plan.count / self._step)
        return steps * self._step

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Yield the epoch's packs, as indices of their rows."""
        carried = 2 * self._plan.rows * self._epoch if self._carries_epoch else 0
        packs = self._plan.packs(self._epoch)[: len(self)]
        filler = self._plan.rows + self._plan.shortest(self._epoch)
        for pack in [*packs, *[[filler]] * (len(self) - len(packs))]:
            yield tuple(carried + row for row in pack)
