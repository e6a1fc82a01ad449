"""A model's vision tower and projector by themselves: features from media tensors, and the model on features.

The features of one row are one tensor. It travels to the model as its `pixel_values` (Mllama: as its
`cross_attention_states`), so that everything the output depends on is an input of the model whatever wraps or captures
it; the inner model's `get_image_features`, which would run the tower, then only puts it into the form that the model
expects. The tower itself is run by `Tower.features`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce, wraps
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlm_lora.compat import IS_5
from vlm_lora.errors import ModelError
from vlm_lora.model.families import Family
from vlm_lora.model.parts import base_of

ENTRY = "pixel_values"
"""The argument through which features reach the model, unless they are cross-attention states."""
STATES = "cross_attention_states"


class Tower:
    """The tower of a model whose features can be handed over. From now on the model also takes features as pixels.

    Args:
        model: with or without PEFT around it.
        family: of the model; its `features.entry` is not `none`.

    Raises:
        ModelError: this version of transformers lays the model out differently.
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        base = base_of(model)
        self._style = family.features
        self._config: Any = base.config
        self._inner = _inner(base, "vision_model" if self._style.entry == STATES else "get_image_features")
        self._levels = _count(base.config, self._style.levels)
        self._handed = False
        if self._style.entry == "image_features":
            self._own = self._inner.get_image_features
            self._names = _accepted(self._own)
            # transformers' `generate` asks the signature which of a prompt's tensors to hand over.
            self._inner.get_image_features = wraps(self._own)(partial(self._given_or_own))

    def features(self, media: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run tower and projector on the media tensors of one row, without gradients.

        Returns:
            `(n, ...)`, images in order along dim 0: `(tokens, width)`, `(images or tiles, tokens, width)`, or Mllama's
            `(images * tiles, patches, width)`. With deepstack, all levels one behind the other in the last dimension.
        """
        with torch.no_grad():
            if self._style.entry == STATES:
                return self._states(media)
            found = self._own(**{name: value for name, value in media.items() if name in self._names})
        levels = getattr(found, "deepstack_features", None) or ()
        if len(levels) != self._levels:
            raise ModelError(
                f"The vision tower gives {len(levels)} further levels of features and its configuration names "
                f"{self._levels}: this version of transformers has another model. Type --cache_vision_features off."
            )
        return torch.cat([_joined(each) for each in (getattr(found, "pooler_output", found), *levels)], dim=-1)

    def inputs(
        self, features: Sequence[torch.Tensor | None], blank: Callable[[], torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the model's arguments for the features of several rows, in the order of the batch.

        Args:
            features: of each row, None where it has no image; at least one has.
            blank: returns the features of `blank_media`, with which Mllama's rows are filled up to as many images as
                the row with the most has, as its collated pixels are filled.
        """
        present = [tensor for tensor in features if tensor is not None]
        if self._style.entry != STATES:
            return {ENTRY: torch.cat(present)}
        most = max(len(tensor) for tensor in present)
        filled: list[torch.Tensor] = []
        for tensor in features:
            rest = most - (0 if tensor is None else len(tensor))
            filled += [] if tensor is None else [tensor]
            if rest:
                assert blank is not None
                one = blank()
                filled.append(one.repeat(rest // len(one), 1, 1))
        return {STATES: torch.cat(filled)}

    def blank_media(self) -> dict[str, torch.Tensor]:
        """Return the media tensors of one image of padding, as collation writes it for Mllama."""
        vision = self._config.vision_config
        tiles, side = vision.max_num_tiles, vision.image_size
        mask = torch.zeros(1, 1, tiles, dtype=torch.int64)
        mask[..., 0] = 1
        return {
            "pixel_values": torch.zeros(1, 1, tiles, vision.num_channels, side, side),
            "aspect_ratio_ids": torch.zeros(1, 1, dtype=torch.int64),
            "aspect_ratio_mask": mask,
        }

    @property
    def fills_up(self) -> bool:
        """Whether rows with fewer images than others of their batch get `blank_media`."""
        return self._style.entry == STATES

    @property
    def read_beside(self) -> tuple[str, ...]:
        """Names of media tensors that the model needs beside features."""
        return self._style.read_beside

    def given(self) -> _Handing:
        """Return a context in which the model is called with `inputs` in place of media tensors."""
        return _Handing(self)

    def _states(self, media: Mapping[str, torch.Tensor]) -> torch.Tensor:
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        output = self._inner.vision_model(**{name: media[name] for name in names}, return_dict=True)
        states = self._inner.multi_modal_projector(output.last_hidden_state)
        return states.reshape(-1, *states.shape[-2:])

    def _given_or_own(self, pixel_values: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not self._handed:
            return self._own(pixel_values, *args, **kwargs)
        first, *levels = pixel_values.chunk(self._levels + 1, dim=-1) if self._levels else (pixel_values,)
        form = [first] if self._style.listed else first
        if not IS_5:
            return form
        output = BaseModelOutputWithPooling(pooler_output=form)
        if levels:
            output["deepstack_features"] = [[level] for level in levels]
        return output


class _Handing:
    """See `Tower.given`."""

    def __init__(self, tower: Tower) -> None:
        self._tower = tower

    def __enter__(self) -> None:
        self._tower._handed = True

    def __exit__(self, *_: object) -> None:
        self._tower._handed = False


def _inner(base: nn.Module, name: str) -> Any:
    """Return the innermost module that has a member of this name: the one whose `forward` uses it."""
    found = [module for _, module in base.named_modules() if hasattr(module, name)]
    if not found:
        raise ModelError(
            f"{type(base).__name__} has no {name}: this version of transformers lays the model out differently. Type "
            "--cache_vision_features off."
        )
    return found[-1]


def _joined(found: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    return found if isinstance(found, torch.Tensor) else torch.cat(list(found))


def _accepted(function: Any) -> frozenset[str]:
    """Return the names of arguments that a function takes; 4.55's Llava hands the images' sizes (Pixtral) on."""
    declared = inspect.signature(function).parameters
    further = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in declared.values())
    return frozenset(declared).union(["image_sizes"] if further else [])


def _count(config: Any, key: str | None) -> int:
    return 0 if key is None else len(reduce(getattr, key.split("."), config))
