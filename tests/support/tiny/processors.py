"""One real processor per family, sized so that an image becomes 4 to 70 tokens (Phi-4's class fixes 545)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers

from support.tiny.vocabularies import VOCABULARIES
from support.tiny.vocabulary import build_tokenizer

SIDE = 32
"""Side of an image in pixels, where the family fixes it."""
PINPOINTS = [[32, 64], [64, 32], [64, 64]]
_SQUARE = {"height": SIDE, "width": SIDE}

# Where a template lies: with `trl` (published ones), or next to this file (published ones that it lacks).
TEMPLATES: Mapping[str, str] = {
    "gemma3": "trl:gemma3",
    "gemma3n": "gemma3n",
    "gemma4": "trl:gemma4_v5",
    "qwen2_vl": "trl:qwen2_5_vl",
    "qwen2_5_vl": "trl:qwen2_5_vl",
    "qwen3_vl": "trl:qwen3_vl",
    "qwen3_5": "trl:qwen3_5_nothink",
    "llava": "llava",
    "llava_next": "trl:llava_next",
    "llava_next-granite": "granite_vision",
    "llava_onevision": "llava_onevision",
    "llava-pixtral": "pixtral",
    "mistral3": "mistral3",
    "idefics3": "trl:idefics3",
    "smolvlm": "trl:smolvlm",
    "mllama": "mllama",
    "internvl": "internvl",
    "lfm2_vl": "trl:lfm2_2_5_vl",
    "phi4_multimodal": "phi4_multimodal",
    "phi3_v": "phi3_v",
}


def read_template(name: str) -> str | None:
    """Return a family's chat template; None where it is published without one (PaliGemma)."""
    place = TEMPLATES.get(name)
    if place is None:
        return None
    if not place.startswith("trl:"):
        return (Path(__file__).parent / "templates" / f"{place}.jinja").read_text(encoding="utf-8")
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{place[4:]}.jinja").read_text(encoding="utf-8")


def _images(name: str, **settings: Any) -> Any:
    """The Pillow image processor: `XPil` in transformers 5.x, `X` in 4.55."""
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return kind(**settings)


def _clip(**settings: Any) -> Any:
    return _images("CLIPImageProcessor", size={"shortest_edge": SIDE}, crop_size=_SQUARE, **settings)


def _gemma3(tokenizer: Any, template: str | None) -> Any:
    images = _images("Gemma3ImageProcessor", size=_SQUARE, do_convert_rgb=True, do_pan_and_scan=False)
    return transformers.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=16)


def _gemma3n(tokenizer: Any, template: str | None) -> Any:
    return transformers.Gemma3nProcessor(
        feature_extractor=transformers.Gemma3nAudioFeatureExtractor(),
        image_processor=_images("SiglipImageProcessor", size={"height": 64, "width": 64}, do_normalize=False),
        tokenizer=tokenizer,
        chat_template=template,
        image_seq_length=16,
        audio_seq_length=4,
    )


def _gemma4(tokenizer: Any, template: str | None) -> Any:
    settings = {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 3}
    return transformers.Gemma4Processor(
        feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
        image_processor=_images("Gemma4ImageProcessor", **settings),
        tokenizer=tokenizer,
        video_processor=transformers.Gemma4VideoProcessor(**settings),
        chat_template=template,
        image_seq_length=70,
    )


def _paligemma(tokenizer: Any, template: str | None) -> Any:
    images = _images("SiglipImageProcessor", size=_SQUARE)
    images.image_seq_length = 16
    return transformers.PaliGemmaProcessor(images, tokenizer)


def _qwen2_vl(tokenizer: Any, template: str | None, *, name: str = "Qwen2VLProcessor", patch: int = 8) -> Any:
    settings = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 32 * 32,
        "max_pixels": 64 * 64,
    }
    video = "Qwen3VLVideoProcessor" if name == "Qwen3VLProcessor" else "Qwen2VLVideoProcessor"
    return getattr(transformers, name)(
        image_processor=_images("Qwen2VLImageProcessor", **settings),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, video)(patch_size=patch, merge_size=2, temporal_patch_size=2),
        chat_template=template,
    )


def _qwen2_5_vl(tokenizer: Any, template: str | None) -> Any:
    return _qwen2_vl(tokenizer, template, name="Qwen2_5_VLProcessor")


def _qwen3_vl(tokenizer: Any, template: str | None) -> Any:
    return _qwen2_vl(tokenizer, template, name="Qwen3VLProcessor")


def _llava(tokenizer: Any, template: str | None) -> Any:
    return transformers.LlavaProcessor(
        _clip(),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )


def _llava_next(tokenizer: Any, template: str | None) -> Any:
    images = _images(
        "LlavaNextImageProcessor",
        size={"shortest_edge": SIDE},
        crop_size=_SQUARE,
        image_grid_pinpoints=PINPOINTS,
    )
    return transformers.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )


def _granite(tokenizer: Any, template: str | None) -> Any:
    images = _images(
        "LlavaNextImageProcessor",
        size=_SQUARE,
        crop_size=_SQUARE,
        do_center_crop=True,
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return transformers.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=template,
        num_additional_image_tokens=0,
    )


def _llava_onevision(tokenizer: Any, template: str | None) -> Any:
    return transformers.LlavaOnevisionProcessor(
        image_processor=_images("LlavaOnevisionImageProcessor", size=_SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=_SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


def _pixtral(tokenizer: Any, template: str | None, *, merge: int = 1, patch: int = 8) -> Any:
    side = patch * merge
    images = _images(
        "PixtralImageProcessor",
        size={"longest_edge": SIDE},
        patch_size={"height": side, "width": side},
    )
    return transformers.PixtralProcessor(
        images, tokenizer, patch_size=patch, spatial_merge_size=merge, chat_template=template
    )


def _mistral3(tokenizer: Any, template: str | None) -> Any:
    return _pixtral(tokenizer, template, merge=2, patch=4)


def _idefics3(tokenizer: Any, template: str | None) -> Any:
    images = _images(
        "Idefics3ImageProcessor",
        size={"longest_edge": SIDE},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=False,
    )
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=16, chat_template=template)


def _smolvlm(tokenizer: Any, template: str | None) -> Any:
    images = _images(
        "SmolVLMImageProcessor",
        size={"longest_edge": 2 * SIDE},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=True,
    )
    video = transformers.SmolVLMVideoProcessor(size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE})
    return transformers.SmolVLMProcessor(images, tokenizer, video, image_seq_len=4, chat_template=template)


def _mllama(tokenizer: Any, template: str | None) -> Any:
    images = _images("MllamaImageProcessor", size=_SQUARE, max_image_tiles=4)
    return transformers.MllamaProcessor(images, tokenizer, chat_template=template)


def _internvl(tokenizer: Any, template: str | None) -> Any:
    return transformers.InternVLProcessor(
        image_processor=_images("GotOcr2ImageProcessor", size=_SQUARE, crop_to_patches=True, max_patches=2),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=_SQUARE),
        image_seq_length=16,
        chat_template=template,
    )


def _lfm2_vl(tokenizer: Any, template: str | None) -> Any:
    images = transformers.Lfm2VlImageProcessor(
        downsample_factor=2,
        do_image_splitting=False,
        min_image_tokens=4,
        max_image_tokens=16,
        max_num_patches=64,
        tile_size=64,
        encoder_patch_size=8,
        max_pixels_tolerance=2.0,
    )
    return transformers.Lfm2VlProcessor(images, tokenizer, chat_template=template)


def _phi4_multimodal(tokenizer: Any, template: str | None) -> Any:
    # The class counts 256 tokens per 448-pixel crop whatever its settings say.
    kind = getattr(transformers, "Phi4MultimodalImageProcessor", None)
    images = (kind or transformers.Phi4MultimodalImageProcessorFast)(dynamic_hd=1)
    return transformers.Phi4MultimodalProcessor(
        images,
        transformers.Phi4MultimodalFeatureExtractor(),
        tokenizer,
        chat_template=template,
    )


BUILDERS: Mapping[str, Callable[[Any, str | None], Any]] = {
    "gemma3": _gemma3,
    "gemma3n": _gemma3n,
    "gemma4": _gemma4,
    "paligemma": _paligemma,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_vl,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_next-granite": _granite,
    "llava_onevision": _llava_onevision,
    "llava-pixtral": _pixtral,
    "mistral3": _mistral3,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "mllama": _mllama,
    "internvl": _internvl,
    "lfm2_vl": _lfm2_vl,
    "phi4_multimodal": _phi4_multimodal,
}


def build_processor(name: str) -> Any:
    """Build the processor of a family; its tokenizer is trained on the spot, the same each time."""
    if name == "phi3_v":
        from support.tiny.remote import build_remote_processor

        return build_remote_processor()
    tokenizer = build_tokenizer(VOCABULARIES[name])
    return BUILDERS[name](tokenizer, read_template(name))
