"""Guards that keep models from reading the card: tensors that stay on the host, masks and checks without a look.

Each read waits for the card, cuts a lazy graph, and makes the rest of it depend on values, so that it compiles anew.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TOKENS = "supervised_tokens"
"""Counted on the host: counts of several label batches on the card would make a graph of each pair of shapes."""


class OnHost:
    """A tensor that stays where it is when its batch is moved."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> OnHost:
        """Stay."""
        return self


def unwrap(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the model's inputs: tensors in place of their wrappers, each where it is, without the count."""
    inputs.pop(TOKENS, None)
    return {name: value.tensor if isinstance(value, OnHost) else value for name, value in inputs.items()}


def unwrap_inside(model: Any) -> None:
    """Let a model take wrapped tensors: DistributedDataParallel moves every tensor that it sees to the card."""

    def unwrapped(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, unwrap(kwargs)

    model.register_forward_pre_hook(unwrapped, with_kwargs=True)


def check_placeholders_once(model: Any) -> None:
    """Let this model compare image tokens with image features in its first forward pass only."""
    for module in model.modules():
        if hasattr(module, "get_placeholder_mask"):
            module.get_placeholder_mask = _CheckedOnce(module)


def explicit_masks(*names: str) -> None:
    """Make the masks of these attention implementations without looking at their values.

    transformers' mask for SDPA asks whether the padding mask is all true, to leave the mask out: a read,
    and two graphs for one shape. The vendor's attention has no mask function at all, and would get none.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

    def explicit(*args: Any, **kwargs: Any) -> Any:
        return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})

    for name in names:
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, explicit)


class _CheckedOnce:
    """`get_placeholder_mask` that compares image tokens with image features in the first pass only.

    Boolean indexing has a shape that only the card knows. The encoder has checked each row's tokens.
    """

    def __init__(self, module: Any) -> None:
        original = type(module).get_placeholder_mask
        self._original = partial(original, module)
        self._config = module.config
        # image_features, and video_features or audio_features: a mask for each, in this order.
        names = [name for name in signature(original).parameters if name.endswith("_features")]
        self._token_ids = [f"{name.removesuffix('_features')}_token_id" for name in names]
        self._checked = False

    def __call__(self, input_ids: Any, inputs_embeds: Any, **features: Any) -> Any:
        if not self._checked or input_ids is None:
            self._checked = True
            return self._original(input_ids, inputs_embeds=inputs_embeds, **features)
        found = [input_ids == getattr(self._config, name) for name in self._token_ids]
        masks = tuple(mask.unsqueeze(-1).expand_as(inputs_embeds) for mask in found)
        return masks if len(masks) > 1 else masks[0]
