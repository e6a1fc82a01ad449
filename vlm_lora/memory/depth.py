"""A deep model's step from a shallower one's: layers that repeat add the same bytes each time.

A model of `n` layers is simulated instead of one of `n + m * p`, where the layers repeat with period `p`. What is alive
when layer `i` begins grows by the same bytes from one period to the next in the forward pass, and shrinks by the same
in the backward pass while gradients grow. So the moments of a layer that was left out are those of a layer of its kind,
with that growth added as often as periods lie between them.

That layers repeat is read from the built model: classes, settings and shapes of every layer, and of everything around
the layers. That the growth is the same each time, and what a layer makes on top of it, is measured. Where one of these
does not hold, the whole model is simulated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm_lora.memory.ledger import GRADIENTS, PASSING, Ledger, Moment, Phase, highest

BEFORE, FORWARD, AFTER, TURN, BACKWARD = "before", "forward", "after", "turn", "backward"
"""Stages of a step: up to the first layer; layer by layer; up to the end of the forward pass; up to the last layer's
backward pass; layer by layer (until the end: what follows the first layer's counts as its own)."""

STEADY = 2
"""The growth over a period is compared between so many neighbouring layers."""

_OWN_NUMBER = ("layer_idx", "gradient_checkpointing")
"""What tells layers apart but not what they do, and what a step sets by itself."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A shallower model that stands for the whole one."""

    config: Any
    layers: int
    period: int
    missing: int
    """Periods that were left out."""
    first: int
    """Layers before this one get something that later ones do not."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """Classes, settings and shapes of a model, by which two are compared."""

    layers: Sequence[Any]
    around: Any
    """Everything but the layers."""

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[str]) -> Outline:
        """Return the outline of a model with these decoder layers."""
        return cls(
            layers=[_outline(model.get_submodule(name)) for name in layers], around=_outline(model, without=layers)
        )

    def stands_for(self, whole: Outline) -> bool:
        """Whether these layers are the first of the whole model's, and everything around them is the same."""
        count = len(self.layers)
        return count < len(whole.layers) and self.layers == whole.layers[:count] and self.around == whole.around


def cut_config(config: Any, whole: Outline) -> Cut | None:
    """Return a shallower configuration, or None where the layers do not repeat or are too few."""
    count = len(whole.layers)
    listed = dict(_per_layer(config.get_text_config(), count))
    kinds = [(layer, [values[index] for values in listed.values()]) for index, layer in enumerate(whole.layers)]
    special = len(getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ())
    for period in range(1, count // 2):
        if all(one == other for one, other in zip(kinds, kinds[period:], strict=False)):
            # Masks and the like are kept from the first layer of a kind on: the growth is that of later layers.
            first = max(period, 1 + special)
            missing = (count - first - STEADY - period) // period
            if missing < 1:
                return None
            left = count - missing * period
            shallow = _with_layers(config, count, left)
            return Cut(config=shallow, layers=left, period=period, missing=missing, first=first)
    return None


def mark_layers(layers: Sequence[nn.Module], ledger: Ledger) -> None:
    """Let the ledger know where each layer begins, forward and backward.

    A layer's backward pass begins when the gradient of its output is there: that of the next layer's input.
    """
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(_entered(ledger, index), with_kwargs=True)
    layers[-1].register_forward_hook(_left(ledger, len(layers) - 1))


def _entered(ledger: Ledger, index: int) -> Callable[..., None]:
    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        if (FORWARD, index) not in ledger.marks:  # else it is recomputed
            ledger.begin((FORWARD, index))
            _when_graded(args[0] if args else kwargs.get("hidden_states"), ledger, index - 1)

    return note


def _left(ledger: Ledger, index: int) -> Callable[..., None]:
    def note(module: nn.Module, args: Any, output: Any) -> None:
        if (AFTER, 0) not in ledger.marks:
            ledger.begin((AFTER, 0))
            _when_graded(output if isinstance(output, torch.Tensor) else output[0], ledger, index)

    return note


def _when_graded(tensor: Any, ledger: Ledger, index: int) -> None:
    if index >= 0 and isinstance(tensor, torch.Tensor) and tensor.requires_grad:
        tensor.register_hook(lambda _: ledger.begin((BACKWARD, index)))


def extend(ledger: Ledger, cut: Cut) -> tuple[Moment, ...] | None:
    """Return the whole model's moments, or None where the growth is not the same each time.

    Args:
        ledger: of the shallow step, its phases marked by `(phase, layer)`.
        cut: what the shallow model leaves out.
    """
    kept = _growth(ledger, FORWARD, cut)
    back = _growth(ledger, BACKWARD, cut)
    if kept is None or back is None or not _alike(ledger, cut):
        return None
    # In the backward pass an earlier layer has fewer activations and more gradients.
    gradients = {GRADIENTS: -back[GRADIENTS]}
    alive = {label: back[label] for label in PASSING}
    if gradients[GRADIENTS] < 0 or any(count < 0 for count in (*alive.values(), *kept.values())):
        return None
    return highest(_extended(ledger, cut, kept, alive, gradients))


def _extended(
    ledger: Ledger, cut: Cut, kept: Mapping[str, int], alive: Mapping[str, int], gradients: Mapping[str, int]
) -> Iterator[Moment]:
    for (phase, layer), moments in ledger.phases.items():
        # A later layer stands for all of its kind that were left out behind it.
        ahead = range(cut.missing + 1) if layer >= cut.first else range(1)
        for moment in moments.values():
            if phase == BEFORE:
                yield moment
            elif phase == FORWARD:
                yield from (_shifted(moment, kept, times) for times in ahead)
            elif phase == BACKWARD:
                for times in ahead:
                    yield _shifted(_shifted(moment, alive, times), gradients, cut.missing - times)
            else:
                yield _shifted(moment, kept if phase == AFTER else alive, cut.missing)


def _shifted(moment: Moment, growth: Mapping[str, int], times: int) -> Moment:
    return Moment(
        gradients=moment.gradients + times * growth.get(GRADIENTS, 0),
        passing={label: count + times * growth.get(label, 0) for label, count in moment.passing.items()},
    )


def _growth(ledger: Ledger, phase: str, cut: Cut) -> Mapping[str, int] | None:
    """Return by how much a phase's beginning differs from the one a period before, where it is always the same."""
    found = []
    for layer in range(cut.layers - STEADY - (1 if phase == BACKWARD else 0), cut.layers - (phase == BACKWARD)):
        late, early = ledger.marks.get((phase, layer)), ledger.marks.get((phase, layer - cut.period))
        if late is None or early is None:
            return None
        found.append({label: late[label] - early[label] for label in (GRADIENTS, *PASSING)})
    return found[0] if all(each == found[0] for each in found) else None


def _alike(ledger: Ledger, cut: Cut) -> bool:
    """Say whether the layers of a kind rise above where they begin by the same bytes, at the same gradients."""
    pairs = [
        ((phase, layer), (phase, layer - cut.period))
        for phase in (FORWARD, BACKWARD)
        for layer in range(cut.first + cut.period, cut.layers)
    ]
    rises = [(_rise(ledger, late), _rise(ledger, early)) for late, early in pairs]
    return all(late is not None and late == early for late, early in rises)


def _rise(ledger: Ledger, phase: Phase) -> Mapping[int, int] | None:
    begun = ledger.marks.get(phase)
    if begun is None:
        return None
    passing = sum(begun[label] for label in PASSING)
    return {
        gradients - begun[GRADIENTS]: moment.passing_bytes - passing
        for gradients, moment in ledger.phases[phase].items()
    }


def _outline(module: nn.Module, *, without: Sequence[str] = ()) -> Any:
    left_out = frozenset(without)
    found = []
    for name, inner in _modules(module, "", left_out):
        settings = sorted(
            (key, value)
            for key, value in vars(inner).items()
            if isinstance(value, (bool, int, float, str)) and key not in _OWN_NUMBER
        )
        tensors = [
            (key, tuple(value.shape), value.dtype, value.requires_grad)
            for key, value in (*inner._parameters.items(), *inner._buffers.items())
            if value is not None
        ]
        found.append((name, type(inner).__qualname__, repr(settings), tensors))
    return found


def _modules(module: nn.Module, name: str, without: frozenset[str]) -> Iterator[tuple[str, nn.Module]]:
    if name in without:
        return
    yield name, module
    for child, inner in module.named_children():
        yield from _modules(inner, f"{name}.{child}" if name else child, without)


def _per_layer(text: Any, count: int) -> Iterator[tuple[str, Sequence[Any]]]:
    for name, value in vars(text).items():
        if isinstance(value, (list, tuple)) and len(value) == count:
            yield name, value


def _with_layers(config: Any, whole: int, count: int) -> Any:
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    lists = {name: value[:count] for name, value in _per_layer(text, whole)}
    text.num_hidden_layers = count
    for name, value in lists.items():
        setattr(text, name, value)
    crossing = getattr(text, "cross_attention_layers", None)
    if crossing is not None:
        text.cross_attention_layers = [index for index in crossing if index < count]
    return shallow
