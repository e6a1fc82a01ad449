"""What a model's own code does to logits behind its head, done here instead: the head returns no logits in training."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class AfterHead:
    """What a family does to its logits: keys of the text configuration.

    A key counts where the configuration has a value for it and the installed code of the model reads it: transformers
    4.55 has PaliGemma's key and leaves its logits as they are, transformers 5.23 caps them.
    """

    softcap: str | None = None
    """`c * tanh(logits / c)`."""
    divisor: str | None = None
    """`logits / d`."""


NOTHING = AfterHead()


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one model does to its logits."""

    softcap: float | None = None
    divisor: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits `(..., V)` as they leave the model."""
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.softcap is not None:
            # In place where autograd keeps nothing: a copy of these is the largest tensor of a step.
            logits = (logits / self.softcap).tanh_() * self.softcap
        return logits


def change_of(model: nn.Module, facts: AfterHead) -> Change:
    """Return what a model does to its logits.

    Args:
        model: without PEFT around it.
        facts: its family's.
    """
    config: Any = model.config
    text = config.get_text_config()
    code = inspect.unwrap(type(model).forward).__code__
    read = {*code.co_names, *(word for word in code.co_consts if isinstance(word, str))}

    def value(key: str | None) -> float | None:
        found = getattr(text, key, None) if key in read and key is not None else None
        return None if found is None else float(found)

    return Change(softcap=value(facts.softcap), divisor=value(facts.divisor))
