"""Several data sets as one: each with its own columns, seen as often an epoch as its weight says.

1. A weight's whole part is how many times each row is seen in every epoch: 2 is twice.
2. Its fraction is a share of the rows, other ones each epoch, drawn by (seed, epoch, data set): of 100 rows with
   weight 0.25, 25 are seen in each epoch.

The length is the same in every epoch. The order of all rows together is the trainer's, as for one data set.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from vlm_lora.data.conversation import Conversation, RowSource
from vlm_lora.errors import ConfigError, DataError

JOINT = " + "
"""What several names are joined with where one text names them all."""


class Member(Protocol):
    """What a mixture asks of each of its data sets; `dataset.ConversationDataset` is one."""

    name: str

    @property
    def varies(self) -> bool:
        """Whether a row's conversation depends on the epoch."""

    def __len__(self) -> int: ...

    def at(self, index: int, *, epoch: int = 0, repeat: int = 0) -> Conversation:
        """Return one conversation as it is in an epoch."""

    def source(self, index: int) -> RowSource:
        """Return file and row of a conversation."""


def split_names(name: str | None) -> tuple[str, ...]:
    """Return the data sets that a name stands for; a file or folder that is called so stays one."""
    if name is None:
        return ()
    if JOINT not in name or Path(name).expanduser().exists():
        return (name,)
    return tuple(part.strip() for part in name.split(JOINT))


def check_weights(names: Sequence[str], weights: Sequence[float]) -> tuple[float, ...]:
    """Return a weight for each name; without any, each is 1.

    Raises:
        ConfigError: as many weights as names are not there.
    """
    if not weights:
        return (1.0,) * len(names)
    if len(weights) != len(names):
        raise ConfigError(
            f"--dataset_weights {' '.join(f'{w:g}' for w in weights)}: {len(weights)} weights, and --dataset_name "
            f"names {len(names)} data sets ({', '.join(names)}). Give one for each, in the same order."
        )
    return tuple(weights)


AnyMember = TypeVar("AnyMember", bound=Member)


class Mixture(Generic[AnyMember]):
    """Conversations of several data sets by number. Picklable as far as they are.

    Args:
        members: the data sets.
        weights: how often an epoch the rows of each are seen, above 0.
        seed: chooses the rows of a fraction.

    Raises:
        DataError: a weight so small that it takes none of the rows.
    """

    def __init__(self, members: Sequence[AnyMember], weights: Sequence[float], *, seed: int) -> None:
        self.members = tuple(members)
        self.name = JOINT.join(member.name for member in self.members)
        """The splits as the log names them."""
        self._seed = seed
        self._parts = [round(weight % 1 * len(member)) for member, weight in zip(members, weights, strict=True)]
        self._starts: list[int] = []
        self._length = 0
        for member, weight, part in zip(members, weights, self._parts, strict=True):
            self._starts.append(self._length)
            if not int(weight) and not part:
                raise DataError(
                    f"--dataset_weights {weight:g}: takes none of the {len(member)} rows of {member.name}. Give a "
                    "larger weight, or leave the data set out."
                )
            self._length += int(weight) * len(member) + part
        self._weights = tuple(weights)
        self._drawn: dict[int, tuple[int, Sequence[int]]] = {}

    def __len__(self) -> int:
        """Return how many rows an epoch sees."""
        return self._length

    @property
    def varies(self) -> bool:
        """Whether a row's conversation depends on the epoch."""
        return any(self._parts) or any(member.varies for member in self.members)

    @property
    def repeats(self) -> tuple[int, ...]:
        """How often an epoch sees a row of each data set, at most."""
        return tuple(int(weight) + bool(part) for weight, part in zip(self._weights, self._parts, strict=True))

    def with_members(self, members: Sequence[AnyMember]) -> Mixture[AnyMember]:
        """Return a mixture of other data sets by the same weights and seed."""
        return Mixture(members, self._weights, seed=self._seed)

    def __getitem__(self, index: int) -> Conversation:
        """Return one conversation, of epoch 0.

        Raises:
            DataError: The row cannot be used; the message begins with file and row.
            IndexError: Outside -len .. len - 1.
        """
        return self.at(index)

    def at(self, index: int, *, epoch: int = 0) -> Conversation:
        """Return one conversation as it is in an epoch. Raises as `__getitem__` does."""
        member, place, repeat = self.find(index, epoch)
        return self.members[member].at(place, epoch=epoch, repeat=repeat)

    def source(self, index: int) -> RowSource:
        """Return file and row of a conversation of epoch 0 without reading it."""
        member, place, _ = self.find(index, 0)
        return self.members[member].source(place)

    def find(self, index: int, epoch: int) -> tuple[int, int, int]:
        """Return the data set's number, the row in it, and how often the row came before in the epoch."""
        if not -self._length <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        index %= self._length
        number = bisect_right(self._starts, index) - 1
        rows = len(self.members[number])
        repeat, place = divmod(index - self._starts[number], rows)
        if repeat < int(self._weights[number]):
            return number, place, repeat
        return number, self._share(number, epoch)[place], repeat

    def _share(self, number: int, epoch: int) -> Sequence[int]:
        """Return the rows of a data set that its weight's fraction takes in an epoch."""
        known = self._drawn.get(number)
        if known is None or known[0] != epoch:
            generator = random.Random(f"{self._seed}/{epoch}/{number}")
            known = epoch, sorted(generator.sample(range(len(self.members[number])), self._parts[number]))
            self._drawn[number] = known
        return known[1]
