"""What rendering, masks and collation need to know about a family of models, as data.

`RenderingStyle()` without arguments is right for any family that has a chat template and whose media
tensors stack along their first dimension; a family that differs in a detail has an entry in `STYLES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MediaBatching:
    """How one media tensor of several rows becomes one tensor.

    Rows are always joined along dim 0; every other dimension is first padded at its end to the longest
    of the batch (which does nothing where all sizes agree: Qwen's flat patches, Gemma 3's fixed images).
    """

    leading: Literal["media", "row"] = "media"
    """What dim 0 counts: media items (a row without images adds nothing) or rows (dim 0 is 1, and a row
    without images gets a block of padding, so that row i of the tensor belongs to row i of the batch)."""
    pad_value: float = 0
    """What padding holds."""
    first_tile_on: bool = False
    """Mllama's aspect ratio mask: in a padded image the first tile stays 1, as its processor writes it."""


def _empty() -> Mapping[str, MediaBatching]:
    return MappingProxyType({})


def _nothing() -> Mapping[str, bool]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class RenderingStyle:
    """One family's conventions for text, masks and media."""

    kind: Literal["chat", "prefix_suffix"] = "chat"
    """`chat`: rendered by the model's chat template. `prefix_suffix` (PaliGemma): one question as a prefix
    with bidirectional attention, one answer as the suffix; the processor adds line break and eos."""
    content: Literal["auto", "parts", "string"] = "auto"
    """What the template takes as a message's content: a list of parts, or one string. `auto` tries it out."""
    image_placeholder: str | None = None
    """Text that stands for an image in a `string` content; `{n}` is the image's number from 1.
    None: the processor's own image token."""
    media_tokens: tuple[str, ...] = ()
    """Names of placeholder tokens that are never supervised, beyond those the processor itself names."""
    images: Literal["by_row", "flat"] = "by_row"
    """How the processor takes the images of a row: a list for each text, or one list for all texts."""
    asked_for: Mapping[str, bool] = field(default_factory=_nothing)
    """Keywords by which the processor is asked for what its model needs and it does not return by itself."""
    append_eos: bool = True
    """Append an eos where the template ends the last answer without one. False: such rows are refused."""
    counts: tuple[str, ...] = ()
    """Processor outputs that are lists of numbers, one entry for each image; rows hold them as tensors."""
    token_tensors: tuple[str, ...] = ("token_type_ids", "mm_token_type_ids", "cross_attention_mask")
    """Processor outputs with one entry per token, shape `(1, T, ...)`; padded with 0 along T."""
    media: Mapping[str, MediaBatching] = field(default_factory=_empty)
    """Media tensors that do not follow the default `MediaBatching()`, by name."""
    dropped_outputs: tuple[str, ...] = ("labels", "num_crops", "rows", "cols", "text_replacement_offsets")
    """Processor outputs that no model takes, and the processor's own idea of labels."""

    def batching(self, name: str) -> MediaBatching:
        """Return how the media tensor `name` is batched."""
        return self.media.get(name, _JOINED)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the read-only mappings as plain ones (loader workers are spawned on some systems)."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return (_rebuilt, (values | {"media": dict(self.media), "asked_for": dict(self.asked_for)},))


def _rebuilt(values: dict[str, object]) -> RenderingStyle:
    for name in ("media", "asked_for"):
        mapping = values[name]
        assert isinstance(mapping, dict)
        values[name] = MappingProxyType(mapping)
    return RenderingStyle(**values)  # type: ignore[arg-type]


_JOINED = MediaBatching()
_PER_ROW = MediaBatching(leading="row")

CHAT = RenderingStyle()
"""Any family with a chat template: the default, also for families nobody has listed."""

_IDEFICS3 = RenderingStyle(
    # (1, images or tiles, C, H, W); an all-zero image is what these models take for "no image here".
    media=MappingProxyType({"pixel_values": _PER_ROW, "pixel_attention_mask": _PER_ROW}),
    media_tokens=("<image>", "<fake_token_around_image>", "<global-img>"),
)
_QWEN = RenderingStyle(
    media_tokens=("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
)
_LLAVA = RenderingStyle(media_tokens=("<image>",))
_PIXTRAL = RenderingStyle(media_tokens=("[IMG]", "[IMG_BREAK]", "[IMG_END]"))

STYLES: Mapping[str, RenderingStyle] = MappingProxyType(
    {
        "gemma3": RenderingStyle(
            media_tokens=("<image_soft_token>", "<start_of_image>", "<end_of_image>"),
        ),
        "gemma3n": RenderingStyle(
            media_tokens=("<image_soft_token>", "<audio_soft_token>", "<start_of_image>", "<end_of_image>"),
        ),
        "gemma4": RenderingStyle(
            media_tokens=("<|image|>", "<|image>", "<image|>", "<|video|>", "<|audio|>"),
            media=MappingProxyType({"image_position_ids": MediaBatching(pad_value=-1)}),
        ),
        "qwen2_vl": _QWEN,
        "qwen2_5_vl": _QWEN,
        "qwen3_vl": _QWEN,
        "qwen3_vl_moe": _QWEN,
        "qwen3_5": _QWEN,
        "qwen3_5_moe": _QWEN,
        # Its processor ends every text with a separator, which a template has written already where it belongs.
        "chameleon": RenderingStyle(
            media_tokens=("<image>",), asked_for=MappingProxyType({"return_for_text_completion": True})
        ),
        "cosmos3_edge": RenderingStyle(
            media_tokens=_QWEN.media_tokens, asked_for=MappingProxyType({"return_mm_token_type_ids": True})
        ),
        "got_ocr2": RenderingStyle(images="flat"),
        "qianfan_ocr": RenderingStyle(image_placeholder="<image>"),
        "unlimited_ocr": RenderingStyle(counts=("num_local_patches", "patches_grid")),
        "idefics3": _IDEFICS3,
        "smolvlm": _IDEFICS3,
        "lfm2_vl": RenderingStyle(
            media_tokens=("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
        ),
        "llava": _LLAVA,
        "llava_next": _LLAVA,
        "granite4_vision": _LLAVA,
        "llava_onevision": RenderingStyle(
            media_tokens=("<image>", "<video>"),
        ),
        "mistral3": _PIXTRAL,
        "internvl": RenderingStyle(
            media_tokens=("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        ),
        "mllama": RenderingStyle(
            media_tokens=("<|image|>",),
            media=MappingProxyType(
                {
                    "pixel_values": _PER_ROW,
                    "aspect_ratio_ids": _PER_ROW,
                    "aspect_ratio_mask": MediaBatching(leading="row", first_tile_on=True),
                }
            ),
            dropped_outputs=("labels", "num_tiles"),
        ),
        "paligemma": RenderingStyle(kind="prefix_suffix", media_tokens=("<image>",)),
        "phi4_multimodal": RenderingStyle(
            media_tokens=("<|endoftext10|>", "<|endoftext11|>", "<|image|>", "<|audio|>"),
        ),
    }
)
"""What differs from `CHAT`, by the `model_type` of a model's configuration."""


def style_for(model_type: str) -> RenderingStyle:
    """Return the style of a family, `CHAT` for one that is not listed."""
    return STYLES.get(model_type, CHAT)
