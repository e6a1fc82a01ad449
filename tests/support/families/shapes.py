"""What the rules of `shrinking` and `processors` do not know of a type, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from support.families.shrinking import PATCH, SIDE


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One type's exceptions. Keys with dots are paths."""

    config: Mapping[str, Any] = field(default_factory=_empty)
    """Values of the configuration."""
    processor: str | None = None
    """The processor's class, where transformers maps none."""
    images: str | None = None
    """The image processor's class, where transformers maps none."""
    video_settings: Mapping[str, Any] = field(default_factory=_empty)
    """Settings of the video processor."""
    ends: str = "<|im_end|>"
    """The token that ends an answer in the template."""
    text_rows: bool = True
    """Whether a row may have no image: some processors take none without."""
    flags: Mapping[str, str] = field(default_factory=_empty)
    """Flags that the commands need."""
    videos: str | None = None
    """The video processor's class, where it is not named as the processor is."""
    image_settings: Mapping[str, Any] = field(default_factory=_empty)
    """Settings of the image processor."""
    settings: Mapping[str, Any] = field(default_factory=_empty)
    """Settings of the processor."""
    image: str | None = None
    """What our plain template writes for an image; None: the processor's image token."""
    tokens: tuple[str, ...] = ()
    """Control tokens that neither processor nor configuration names."""
    named: Mapping[str, str] = field(default_factory=_empty)
    """Attributes that the processor reads from its tokenizer."""
    ids: Mapping[str, str] = field(default_factory=_empty)
    """The token that a key of the configuration stands for."""
    template: str | None = None
    """A published chat template, by its name with `trl`."""


_LLAVA: Mapping[str, Any] = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_MROPE: Mapping[str, Any] = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [2, 1, 1],
    "partial_rotary_factor": 1.0,
}
_VISION_IDS = {"vision_start_token_id": "<|vision_bos|>", "vision_end_token_id": "<|vision_eos|>"}
_PLAIN_ROPE: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 1e4}

SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "aria": Shape(
            config={"vision_config.image_size": 490, "vision_config.patch_size": 14},
            image_settings={"max_image_size": 490},
        ),
        "aya_vision": Shape(
            settings={"img_size": 32, "patch_size": 8, "downsample_factor": 2},
            ids={"image_token_index": "<|IMG_PATCH|>"},
        ),
        "cohere2_vision": Shape(image_settings={"patch_size": 2}),
        "cohere_compass": Shape(
            config={"text_config.rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _PLAIN_ROPE)}
        ),
        "cosmos3_omni": Shape(processor="Qwen3VLProcessor"),
        "deepseek_vl": Shape(settings={"num_image_tokens": 16}),
        "deepseek_ocr2": Shape(
            config={
                "text_config.mlp_layer_types": ["dense", "sparse"],
                "text_config.num_experts_per_tok": 2,
                "vision_config.sam_config.downsample_channels": [16, 32],
                "vision_config.sam_config.image_size": 768,
                "vision_config.sam_config.patch_size": 16,
            },
            image_settings={"size": {"height": 768, "width": 768}, "tile_size": 768},
            settings={"patch_size": 16},
        ),
        "unlimited_ocr": Shape(
            config={"vision_config.sam_config.downsample_channels": [16, 32]},
            image_settings={"crop_to_patches": True, "tile_size": SIDE // 2},
        ),
        "deepseek_vl_hybrid": Shape(
            image_settings={"high_res_size": {"height": 32, "width": 32}}, settings={"num_image_tokens": 16}
        ),
        "dots3_note": Shape(
            config={
                "text_config.num_key_value_heads": 4,
                "text_config.head_dim": 16,
                **{
                    f"text_config.swa_{name}": 4 if name.startswith("num") else 16
                    for name in (
                        "num_attention_heads",
                        "num_key_value_heads",
                        "q_lora_rank",
                        "kv_lora_rank",
                        "head_dim",
                    )
                },
                "text_config.swa_qk_nope_head_dim": 8,
                "text_config.swa_v_head_dim": 8,
                "audio_config.adapter_input_size": 32,
            },
            image_settings={"temporal_patch_size": 1},
        ),
        "ernie4_5_vl_moe": Shape(
            video_settings={"draw_on_frames": False},
            config={
                "text_config.hidden_size": 64,
                "text_config.rope_parameters": {**_PLAIN_ROPE, "mrope_section": [3, 3, 2]},
            },
        ),
        **dict.fromkeys(("glm46v", "glm4v", "glm4v_moe"), Shape(config={"text_config.rope_parameters": _MROPE})),
        "gemma4_unified": Shape(
            image_settings={"patch_size": 16, "max_soft_tokens": 70},
            config={"vision_config": {}},
            named={"boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>"},
        ),
        "hunyuan_vl": Shape(
            config={"text_config.head_dim": 8, "text_config.rope_parameters": _MROPE},
            image="<|image_start_token|><|image_token|><|image_end_token|>",
        ),
        "inkling2": Shape(
            config={"vision_config.posemb_grid_size": 4},
            image_settings={"size": {"height": 16, "width": 16}},
        ),
        "kimi_k25": Shape(config={"text_config.num_key_value_heads": 4}),
        "inkling_mm_model": Shape(image_settings={"size": {"height": PATCH, "width": PATCH}}),
        "mistral_large4": Shape(
            config={"text_config.num_key_value_heads": 4},
            settings={"spatial_merge_size": 2},
            image_settings={"patch_size": {"height": 16, "width": 16}},
        ),
        "paligemma": Shape(text_rows=False),
        "muse_spark": Shape(config={"out_hidden_size": 128}),
        "paddleocr_vl": Shape(config={"text_config.rope_parameters": _MROPE}),
        "molmo2": Shape(
            config={"adapter_config.vision_feature_layer": [1, 0]},
            image_settings={"overlap_margins": [1, 1]},
            ids={"image_patch_id": "<im_patch>"},
        ),
        "nemotron_h_omni": Shape(
            config={"vision_config.video_temporal_patch_size": 2, "vision_config.max_img_size": 256},
            image_settings={"min_num_patches": 16, "max_num_patches": 64},
            ids={"image_token_id": "<image>", "video_token_id": "<video>"},
        ),
        "qwen4_exp": Shape(
            config={
                "text_config.indexer_n_heads": 4,
                "text_config.indexer_kv_heads": 1,
                "text_config.indexer_head_dim": 8,
                "text_config.indexer_budget": 64,
                "text_config.indexer_compress_ratio": 4,
                "text_config.ple_embed_dim": None,
            }
        ),
        "step3p7": Shape(
            config={"text_config.sliding_window": 64},
            image_settings={
                "vision_patch_size": PATCH,
                "patch_size": SIDE,
                "max_image_size": 2 * SIDE,
                "size": {"height": SIDE, "width": SIDE},
            },
        ),
        "got_ocr2": Shape(
            config={
                "vision_config.image_size": 1024,
                "vision_config.patch_size": 16,
                "vision_config.global_attn_indexes": [],
                "vision_config.window_size": 14,
            },
            image_settings={"size": {"height": 1024, "width": 1024}},
            text_rows=False,
        ),
        "llama4": Shape(config={"vision_config.intermediate_size": 128}, ids={"image_token_index": "<|patch|>"}),
        "perception_lm": Shape(
            config={
                "vision_config.architecture": "vit_pe_core_tiny_patch16_384",
                "vision_config.do_pooling": False,
                "vision_config.model_args": {
                    "embed_dim": 32,
                    "depth": 2,
                    "num_heads": 4,
                    "patch_size": PATCH,
                    "img_size": [SIDE, SIDE],
                    "ref_feat_shape": [4, 4],
                    "global_pool": "",
                },
                "projector_pooling_ratio": 2,
            },
            image_settings={"tile_size": SIDE},
        ),
        "pp_chart2table": Shape(image="<imgpad>", text_rows=False, ids={"image_token_id": "<imgpad>"}),
        "fast_vlm": Shape(
            processor="LlavaProcessor",
            images="CLIPImageProcessorPil",
            config={
                "vision_config.architecture": "test_resnet",
                "vision_config.do_pooling": False,
                "vision_config.hidden_size": 96,
                "vision_config.model_args": {},
            },
            image_settings={"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
            settings={"patch_size": 32, "vision_feature_select_strategy": "full"},
        ),
        "glm5_next": Shape(config={"text_config.num_key_value_heads": 4, "text_config.qk_rope_head_dim": 0}),
        "glm_ocr": Shape(processor="Glm46VProcessor", config={"text_config.rope_parameters": _MROPE}),
        "glmga": Shape(processor="Glm46VProcessor", config={"text_config.rope_parameters": _MROPE}),
        "granite4_vision": Shape(
            config={
                "downsample_rate": "1/2",
                "deepstack_layer_map": [[-1, 0]],
                "spatial_target_layers": [0, 1, 0, 1],
                "vision_config.hidden_size": 64,
                "qformer_config.hidden_size": 64,
                "qformer_config.encoder_hidden_size": 64,
            },
            settings={"downsample_rate": "1/2"},
        ),
        "granite_docling": Shape(
            config={"scale_factor": 2, "vision_config.scale_factor": 2}, settings={"image_seq_len": 4}
        ),
        "idefics2": Shape(settings={"image_seq_len": 4}),
        "janus": Shape(config={"vq_config.base_channels": 32}, settings={"num_image_tokens": 16}),
        "emu3": Shape(
            config={
                "vq_config.base_channels": 32,
                "vq_config.embed_dim": 4,
                "vq_config.codebook_size": 32,
                "vq_config.hidden_size": 128,
            },
            named={
                "image_token": "<image>",
                "boi_token": "<|image start|>",
                "eoi_token": "<|image end|>",
                "image_wrapper_token": "<|image token|>",
                "eof_token": "<|extra_201|>",
            },
            tokens=("<|extra_200|>", *(f"<|visual token {number:06d}|>" for number in range(32))),
        ),
        "chameleon": Shape(
            config={"vq_config.base_channels": 32, "vq_config.num_embeddings": 26},
            tokens=("<image>", *(f"IMGIMG{chr(65 + number // 10)}{chr(65 + number % 10)}Z" for number in range(26))),
            settings={"image_seq_length": 4},
        ),
        "llava_next_video": Shape(settings=_LLAVA),
        "minicpmv4_7": Shape(videos="MiniCPMV4_6VideoProcessor"),
        "ovis2": Shape(
            settings={"image_seq_length": 16},
            tokens=tuple(f"<IMG_{name}>" for name in ("START", "END", "GRID", "ROW", "COL", "ATOM")),
            ids={"image_token_id": "<IMG_ATOM>"},
        ),
        "qianfan_ocr": Shape(image="<image>", settings={"image_seq_length": 4}),
        "qwen2_5_omni_thinker": Shape(
            config={"text_config.rope_parameters": _MROPE},
            processor="Qwen2_5OmniProcessor",
            images="Qwen2VLImageProcessorPil",
            ids=_VISION_IDS,
        ),
        "qwen3_omni_moe_thinker": Shape(
            processor="Qwen3OmniMoeProcessor", images="Qwen2VLImageProcessorPil", ids=_VISION_IDS
        ),
        "vipllava": Shape(config={"vision_feature_layers": [-1, -2, -1, -2, 1]}, settings=_LLAVA),
        "qwen3_vl_moe": Shape(template="qwen3_vl"),
        "qwen3_5_moe": Shape(template="qwen3_5_nothink"),
        "muse_glimmer": Shape(template="muse_glimmer", ends="<|eot|>", config={"out_hidden_size": 128}),
    }
)


def shape_of(model_type: str) -> Shape:
    """Return a type's exceptions; none for a type that is not listed."""
    return SHAPES.get(model_type, Shape())
