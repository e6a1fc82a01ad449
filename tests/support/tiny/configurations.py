"""One tiny configuration per family: the real architecture at hidden size 32 and two or three layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers

from support.tiny import gemma_configurations
from support.tiny.configuration_settings import HIDDEN, text_settings, token_ids, vision_settings
from support.tiny.processors import PINPOINTS, SIDE


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    return token_ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )


_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}


def _qwen2_vl(tokenizer: Any) -> Any:
    vision = {
        "depth": 2,
        "embed_dim": HIDDEN,
        "hidden_size": HIDDEN,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 8,
    }
    return transformers.Qwen2VLConfig(
        text_config=text_settings(tokenizer, **_MROPE), vision_config=vision, **_qwen_ids(tokenizer)
    )


def _qwen2_5_vl(tokenizer: Any) -> Any:
    vision = {
        "depth": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 8,
        "out_hidden_size": HIDDEN,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return transformers.Qwen2_5_VLConfig(
        text_config=text_settings(tokenizer, **_MROPE), vision_config=vision, **_qwen_ids(tokenizer)
    )


def _qwen3_vision() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 8,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 64,
    }


def _qwen3_vl(tokenizer: Any) -> Any:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 1e4}
    return transformers.Qwen3VLConfig(
        text_config=text_settings(tokenizer, head_dim=8, rope_parameters=rope),
        vision_config={**_qwen3_vision(), "deepstack_visual_indexes": [0]},
        **_qwen_ids(tokenizer),
    )


def _qwen3_5(tokenizer: Any) -> Any:
    rope = {
        "rope_type": "default",
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
    }
    text = text_settings(
        tokenizer,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=rope,
    )
    return transformers.Qwen3_5Config(text_config=text, vision_config=_qwen3_vision(), **_qwen_ids(tokenizer))


def _llava(tokenizer: Any) -> Any:
    return transformers.LlavaConfig(
        text_config=text_settings(tokenizer, model_type="llama"),
        vision_config=vision_settings(model_type="clip_vision_model", num_hidden_layers=3, projection_dim=HIDDEN),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **token_ids(tokenizer, image_token_index="<image>"),
    )


def _llava_next(tokenizer: Any) -> Any:
    return transformers.LlavaNextConfig(
        text_config=text_settings(tokenizer, model_type="mistral", head_dim=8),
        vision_config=vision_settings(model_type="clip_vision_model", num_hidden_layers=3, projection_dim=HIDDEN),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=PINPOINTS,
        **token_ids(tokenizer, image_token_index="<image>"),
    )


def _granite(tokenizer: Any) -> Any:
    return transformers.LlavaNextConfig(
        text_config=text_settings(
            tokenizer,
            model_type="granite",
            tie_word_embeddings=True,
            attention_multiplier=0.35,
            embedding_multiplier=2.0,
            logits_scaling=2.0,
            residual_multiplier=0.9,
        ),
        vision_config=vision_settings(model_type="siglip_vision_model"),
        vision_feature_layer=[-2, -1],
        vision_feature_select_strategy="full",
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=True,
        **token_ids(tokenizer, image_token_index="<image>"),
    )


def _llava_onevision(tokenizer: Any) -> Any:
    return transformers.LlavaOnevisionConfig(
        text_config=text_settings(tokenizer, model_type="qwen2"),
        vision_config=vision_settings(model_type="siglip_vision_model", vision_use_head=False),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=PINPOINTS,
        **token_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )


def _llava_pixtral(tokenizer: Any) -> Any:
    return transformers.LlavaConfig(
        text_config=text_settings(tokenizer, model_type="mistral", head_dim=8),
        vision_config=vision_settings(model_type="pixtral"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **token_ids(tokenizer, image_token_index="[IMG]"),
    )


def _mistral3(tokenizer: Any) -> Any:
    return transformers.Mistral3Config(
        text_config=text_settings(tokenizer, model_type="mistral", head_dim=8),
        vision_config=vision_settings(model_type="pixtral", patch_size=4),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
        **token_ids(tokenizer, image_token_index="[IMG]"),
    )


def _idefics3(tokenizer: Any) -> Any:
    return transformers.Idefics3Config(
        text_config=text_settings(tokenizer, model_type="llama"),
        vision_config=vision_settings(patch_size=4),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        **token_ids(tokenizer, image_token_id="<image>"),
    )


def _smolvlm(tokenizer: Any) -> Any:
    return transformers.SmolVLMConfig(
        text_config=text_settings(tokenizer, model_type="llama"),
        vision_config=vision_settings(patch_size=4),
        scale_factor=4,
        pad_token_id=tokenizer.pad_token_id,
        **token_ids(tokenizer, image_token_id="<image>"),
    )


def _mllama(tokenizer: Any) -> Any:
    vision = {
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 3 * HIDDEN,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    }
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    text = text_settings(
        tokenizer,
        vocab_size=len(tokenizer) - 1,
        num_hidden_layers=3,
        cross_attention_layers=[1],
        rope_scaling=rope,
    )
    return transformers.MllamaConfig(
        text_config=text, vision_config=vision, **token_ids(tokenizer, image_token_index="<|image|>")
    )


def _internvl(tokenizer: Any) -> Any:
    vision = vision_settings(image_size=[SIDE, SIDE], patch_size=[4, 4])
    return transformers.InternVLConfig(
        text_config=text_settings(tokenizer, model_type="qwen2"),
        vision_config=vision,
        image_seq_length=16,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
        **token_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )


def _lfm2_vl(tokenizer: Any) -> Any:
    text = text_settings(
        tokenizer,
        model_type="lfm2",
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
        tie_word_embeddings=True,
    )
    vision = {key: value for key, value in vision_settings(num_patches=64).items() if key != "image_size"}
    return transformers.Lfm2VlConfig(
        text_config=text,
        vision_config={**vision, "model_type": "siglip2_vision_model", "vision_use_head": False},
        projector_hidden_size=64,
        downsample_factor=2,
        **token_ids(tokenizer, image_token_id="<image>"),
    )


def _phi4_multimodal(tokenizer: Any) -> Any:
    vision = vision_settings(image_size=448, patch_size=14, crop_size=448, feature_layer=-2)
    audio = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_blocks": 1,
        "num_attention_heads": 2,
        "ext_pw_out_channel": 16,
        "depthwise_separable_out_channel": 16,
        "nemo_conv_channels": 8,
        "feature_layer": -1,
    }
    return transformers.Phi4MultimodalConfig(
        **text_settings(tokenizer, original_max_position_embeddings=2048, tie_word_embeddings=True),
        vision_config={**vision, **token_ids(tokenizer, image_token_id="<|image|>")},
        audio_config={**audio, **token_ids(tokenizer, audio_token_id="<|audio|>")},
    )


CONFIGURATIONS: Mapping[str, Callable[[Any], Any]] = {
    "gemma3": gemma_configurations.gemma3,
    "gemma3n": gemma_configurations.gemma3n,
    "gemma4": gemma_configurations.gemma4,
    "paligemma": gemma_configurations.paligemma,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_next-granite": _granite,
    "llava_onevision": _llava_onevision,
    "llava-pixtral": _llava_pixtral,
    "mistral3": _mistral3,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "mllama": _mllama,
    "internvl": _internvl,
    "lfm2_vl": _lfm2_vl,
    "phi4_multimodal": _phi4_multimodal,
}
