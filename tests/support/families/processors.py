"""A processor of a type's own class, over a tiny tokenizer that knows what processor and configuration name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import transformers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from support.families.shapes import Shape
from support.families.shrinking import PATCH, SIDE
from support.tiny.vocabulary import Vocabulary, build_tokenizer

TURNS = ("<|im_start|>", "<|im_end|>")
PLAIN = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- IMAGE -}}{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""Our plain template, for types whose published one is not at hand. `IMAGE` is replaced by the type's own words."""

_LITTLE: Mapping[str, Any] = {
    "patch_size": PATCH,
    "min_pixels": SIDE * SIDE,
    "max_pixels": 4 * SIDE * SIDE,
    "do_image_splitting": False,
    "do_pan_and_scan": False,
    "crop_to_patches": False,
    "image_size": SIDE,
    "pad_size": {"height": SIDE, "width": SIDE},
    "max_image_size": {"longest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]],
}


def processor_class(model_type: str, shape: Shape) -> Any:
    """Return a type's processor class.

    Raises:
        LookupError: neither transformers nor the table names one.
    """
    name = shape.processor or PROCESSOR_MAPPING_NAMES.get(model_type)
    if name is None:
        raise LookupError(f"transformers maps no processor to {model_type}")
    return getattr(transformers, name)


def _little_size(size: Mapping[str, Any]) -> dict[str, Any]:
    """An image's size, whether it is said in pixels of a side or in pixels of the whole."""
    area = any(isinstance(value, int) and value > 3000 for value in size.values())
    if area:
        return {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}
    return dict.fromkeys(size, SIDE)


def build_images(model_type: str, shape: Shape) -> Any:
    """Build a type's image processor for small images."""
    name = shape.images
    if name is None:
        processor = processor_class(model_type, shape).__name__
        like = [other for other, kind in PROCESSOR_MAPPING_NAMES.items() if kind == processor]
        kinds = [
            IMAGE_PROCESSOR_MAPPING_NAMES[each] for each in (model_type, *like) if each in IMAGE_PROCESSOR_MAPPING_NAMES
        ]
        if not kinds:
            raise LookupError(f"transformers maps no image processor to {model_type}")
        name = kinds[0].get("pil") or kinds[0]["torchvision"]
    kind = getattr(transformers, name)
    default = kind()
    settings = {key: value for key, value in _LITTLE.items() if getattr(default, key, None) is not None}
    settings = {
        key: dict.fromkeys(before, value)
        if isinstance(before := getattr(default, key), Mapping) and isinstance(value, int)
        else value
        for key, value in settings.items()
    }
    if getattr(default, "size", None) is not None:
        settings["size"] = _little_size(dict(default.size))
    return kind(**{**settings, **shape.image_settings})


def build_processor(model_type: str, shape: Shape, config_tokens: tuple[str, ...]) -> Any:
    """Build a type's processor: once to read which tokens it names, then with a tokenizer that has them."""
    attributes = dict(shape.named)
    known = dict.fromkeys((*TURNS, *shape.tokens, *config_tokens))
    first = _build_asking(model_type, shape, attributes, tuple(known))
    known |= dict.fromkeys(
        value
        for key, value in sorted(vars(first).items())
        if key.endswith("token") and isinstance(value, str) and re.search(r"\W", value)
    )
    image = shape.image or getattr(first, "image_token", None)
    if image is None:
        raise LookupError(f"{type(first).__name__} names no image token")
    template = published(shape.template) if shape.template else PLAIN.replace("IMAGE", repr(image))
    return _build(model_type, shape, _vocabulary(tuple(known), attributes, shape.ends), template)


def _build_asking(model_type: str, shape: Shape, attributes: dict[str, str], tokens: tuple[str, ...]) -> Any:
    """Build a processor; each attribute that it misses in its tokenizer is added to `attributes`."""
    while True:
        try:
            return _build(model_type, shape, _vocabulary(tokens, attributes, shape.ends), None)
        except (AttributeError, ValueError) as error:
            missing = re.search(r"attribute '?(\w+_token)(?:_id)?\b", str(error))
            if missing is None or missing[1] in attributes:
                raise
            attributes[missing[1]] = f"<|{missing[1]}|>"


def _vocabulary(tokens: tuple[str, ...], attributes: Mapping[str, str], ends: str) -> Vocabulary:
    tokens = tuple(dict.fromkeys((*tokens, *attributes.values(), ends)))
    base = ("<unk>", "<s>", "</s>", "<pad>")
    return Vocabulary(
        kind="bytes",
        special=(*base, *(token for token in tokens if token not in base)),
        bos="<s>",
        eos=ends,
        pad="<pad>",
        unk="<unk>",
        named=attributes,
    )


def _build(model_type: str, shape: Shape, vocabulary: Vocabulary, template: str | None) -> Any:
    kind = processor_class(model_type, shape)
    takes = inspect.signature(kind.__init__).parameters
    tokenizer = build_tokenizer(vocabulary)
    if "chat_template" not in takes:
        tokenizer.chat_template = template
    parts: dict[str, Any] = {"image_processor": build_images(model_type, shape), "tokenizer": tokenizer}
    for part, build in (("video_processor", "VideoProcessor"), ("feature_extractor", "FeatureExtractor")):
        if part in takes:
            named = shape.videos if part == "video_processor" else None
            other = getattr(transformers, named) if named else _other(kind, build)
            parts[part] = other(**(shape.video_settings if part == "video_processor" else {}))
    little = {key: value for key, value in {"patch_size": PATCH, "chat_template": template}.items() if key in takes}
    return kind(**parts, **{**little, **shape.settings})


def _other(kind: Any, ending: str) -> Any:
    """The class of the video processor or feature extractor that lies next to a processor's class."""
    found = getattr(transformers, kind.__name__.removesuffix("Processor") + ending, None)
    return found or getattr(transformers, "Qwen2VLVideoProcessor" if ending[0] == "V" else "WhisperFeatureExtractor")


def published(name: str) -> str:
    """Return a published template by its name with `trl`."""
    from support.mask_cases import trl_template

    return trl_template(name)
