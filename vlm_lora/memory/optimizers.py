"""What an optimizer keeps for each trained parameter, and what its step makes for a moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vlm_lora.errors import ConfigError, nearest
from vlm_lora.memory.trace import Weight

QUANTIZED_FROM = 4096
"""bitsandbytes keeps states of smaller tensors in float32 (`min_8bit_size`)."""
QUANTIZATION_BLOCK = 256
"""Elements of an 8-bit state that share one float32 scale (bitsandbytes' block-wise 8-bit optimizers)."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Bytes as functions of one parameter's shape."""

    state: Callable[[tuple[int, ...]], int]
    """Kept from the first step to the last, for float32 parameters."""
    transient: Callable[[Iterable[tuple[int, ...]]], int]
    """Alive during the step only, given all trained parameters."""


def _copies(count: int) -> Callable[[tuple[int, ...]], int]:
    return lambda shape: count * 4 * math.prod(shape)


def _eight_bit(count: int) -> Callable[[tuple[int, ...]], int]:
    def state(shape: tuple[int, ...]) -> int:
        elements = math.prod(shape)
        if elements < QUANTIZED_FROM:
            return count * 4 * elements
        return count * (elements + 4 * math.ceil(elements / QUANTIZATION_BLOCK))

    return state


def _factored(shape: tuple[int, ...]) -> int:
    """Adafactor's row and column means (Shazeer and Stern 2018, section 3); vectors are kept whole."""
    if len(shape) < 2:
        return 4 * math.prod(shape)
    rows, columns = shape[:-1], (*shape[:-2], shape[-1])
    return 4 * (math.prod(rows) + math.prod(columns))


def _nothing(shapes: Iterable[tuple[int, ...]]) -> int:
    return 0


def _largest(count: int) -> Callable[[Iterable[tuple[int, ...]]], int]:
    return lambda shapes: count * 4 * max((math.prod(shape) for shape in shapes), default=0)


def _everything(shapes: Iterable[tuple[int, ...]]) -> int:
    return 4 * sum(math.prod(shape) for shape in shapes)


_FUSED_ADAM = Optimizer(state=_copies(2), transient=_nothing)
# torch's foreach AdamW makes the denominators of all parameters at once.
_ADAM = Optimizer(state=_copies(2), transient=_everything)
_ADAM_8BIT = Optimizer(state=_eight_bit(2), transient=_nothing)
OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw_torch_fused": _FUSED_ADAM,
    "adamw_apex_fused": _FUSED_ADAM,
    "adamw_torch": _ADAM,
    "adamw_bnb_8bit": _ADAM_8BIT,
    "adamw_8bit": _ADAM_8BIT,
    "paged_adamw_8bit": _ADAM_8BIT,
    "paged_adamw_32bit": _FUSED_ADAM,
    "paged_adamw": _FUSED_ADAM,
    "adafactor": Optimizer(state=_factored, transient=_largest(2)),
    "sgd": Optimizer(state=_copies(0), transient=_nothing),
    "rmsprop": Optimizer(state=_copies(1), transient=_everything),
    "adagrad": Optimizer(state=_copies(1), transient=_everything),
    "lion_32bit": Optimizer(state=_copies(1), transient=_nothing),
    "lion_8bit": Optimizer(state=_eight_bit(1), transient=_nothing),
    "paged_lion_32bit": Optimizer(state=_copies(1), transient=_nothing),
    "paged_lion_8bit": Optimizer(state=_eight_bit(1), transient=_nothing),
}
"""By `--optim`. torch's AdamW: two moments in the parameter's dtype (Loshchilov and Hutter 2019); Lion: one
(Chen et al. 2023). Paged states are counted on the device, where they lie unless memory runs out."""


def find_optimizer(name: str) -> Optimizer:
    """Return what is known of `--optim NAME`.

    Raises:
        ConfigError: the plan does not know this optimizer's states.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(
            f"--optim {name}: the memory plan does not know what it keeps; it knows {', '.join(OPTIMIZERS)}."
            f"{nearest(name, OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def state_bytes(optimizer: Optimizer, weights: Iterable[Weight]) -> int:
    """Return the states of all trained parameters in bytes."""
    return sum(optimizer.state(weight.shape) for weight in weights if weight.trained)


def transient_bytes(optimizer: Optimizer, weights: Iterable[Weight]) -> int:
    """Return what the optimizer's step makes for a moment, in bytes."""
    return optimizer.transient([weight.shape for weight in weights if weight.trained])
