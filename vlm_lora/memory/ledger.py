"""How many bytes of tensors are alive, by what they are for, at every moment of a step."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch

WEIGHTS, GRADIENTS = "weights", "gradients"
BATCH, LANGUAGE, VISION, LOGITS, BACKWARD = "batch", "activations", "vision tower", "logits", "backward"
PASSING = (BATCH, LANGUAGE, VISION, LOGITS, BACKWARD)
"""What comes and goes within a step."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Bytes alive at one moment that may be the peak."""

    gradients: int
    """Of parameters' gradients that are finished."""
    passing: Mapping[str, int]
    """Everything else but weights, by kind (`PASSING`)."""

    @property
    def passing_bytes(self) -> int:
        """The sum over the kinds."""
        return sum(self.passing.values())


Phase: TypeAlias = tuple[str, int]
"""A stretch of a step: its name, and the decoder layer it belongs to."""


def highest(moments: Iterable[Moment]) -> tuple[Moment, ...]:
    """Return the moments of which one is the peak, whatever share of the gradients a device holds.

    Gradients grow while the backward pass frees activations, so a device that holds a part of them peaks at
    another moment. A moment counts unless another has both more gradients and more of everything else.
    """
    kept: list[Moment] = []
    for moment in sorted(moments, key=lambda each: (-each.gradients, -each.passing_bytes)):
        if not kept or moment.passing_bytes > kept[-1].passing_bytes:
            kept.append(moment)
    return tuple(kept)


class Ledger:
    """Counts each storage from the moment it is first seen until it is freed.

    A storage is what the allocator hands out: views of one tensor count once, and what autograd saves counts as
    long as it is saved. The label under which it was made says what it is for.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[torch.UntypedStorage], str, int]] = {}
        self._alive: Counter[str] = Counter()
        self._labels = [WEIGHTS]
        self._phase: Phase = ("", 0)
        self.phases: dict[Phase, dict[int, Moment]] = {self._phase: {}}
        """By phase and bytes of gradients: the moment with most of everything else."""
        self.marks: dict[Phase, Mapping[str, int]] = {}
        """What was alive when a phase first began, by label."""

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._entries:
            return
        label, size = self._labels[-1], storage.nbytes()
        self._entries[key] = (weakref.ref(storage, lambda _: self._remove(key)), label, size)
        self._alive[label] += size
        self._note()

    def move(self, tensor: torch.Tensor, label: str) -> None:
        """Count a tensor's storage under another label from now on."""
        key = tensor.untyped_storage()._cdata
        reference, before, size = self._entries[key]
        self._entries[key] = (reference, label, size)
        self._alive[before] -= size
        self._alive[label] += size
        self._note()

    def alive(self, label: str) -> int:
        """Return the bytes that are alive under a label."""
        return self._alive[label]

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Within this context what is made is for `label`."""
        self.push(label)
        try:
            yield
        finally:
            self.pop()

    def push(self, label: str) -> None:
        """From now on what is made is for `label`."""
        self._labels.append(label)

    def pop(self) -> None:
        """Go back to the label before."""
        self._labels.pop()

    def begin(self, phase: Phase) -> None:
        """From now on moments belong to this phase."""
        self._phase = phase
        if phase not in self.marks:
            self.marks[phase] = {label: self._alive[label] for label in (GRADIENTS, *PASSING)}
            self.phases[phase] = {}
        self._note()

    def moments(self) -> tuple[Moment, ...]:
        """Return the moments of which one is the peak."""
        return highest(moment for moments in self.phases.values() for moment in moments.values())

    def _note(self) -> None:
        gradients = self._alive[GRADIENTS]
        passing = sum(self._alive[label] for label in PASSING)
        highest = self.phases[self._phase]
        before = highest.get(gradients)
        if before is None or passing > before.passing_bytes:
            highest[gradients] = Moment(gradients=gradients, passing={label: self._alive[label] for label in PASSING})

    def _remove(self, key: int) -> None:
        _, label, size = self._entries.pop(key)
        self._alive[label] -= size
