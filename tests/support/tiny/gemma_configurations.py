"""Tiny configurations of the Gemma families."""

from __future__ import annotations

from typing import Any

import transformers

from support.tiny.configuration_settings import HIDDEN, text_settings, token_ids, vision_settings


def _gemma_text(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    return text_settings(tokenizer, head_dim=8, tie_word_embeddings=True, **settings)


_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
# The last layer borrows the keys and values of the one before it.
_SHARED = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 64,
    "num_kv_shared_layers": 1,
}


def gemma3(tokenizer: Any) -> Any:
    return transformers.Gemma3Config(
        text_config=_gemma_text(tokenizer, query_pre_attn_scalar=8, model_type="gemma3_text", **_LAYERS),
        vision_config=vision_settings(model_type="siglip_vision_model", patch_size=4, vision_use_head=False),
        mm_tokens_per_image=16,
        **token_ids(
            tokenizer,
            image_token_index="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )


def gemma3n(tokenizer: Any) -> Any:
    from timm.models._efficientnet_builder import decode_arch_def

    blocks = decode_arch_def([["er_r1_k3_s2_e2_c16"], ["uir_r1_a3_k5_s2_e2_c32", "uir_r1_a0_k0_s1_e1_c32"]])
    text = _gemma_text(
        tokenizer,
        vocab_size_per_layer_input=len(tokenizer),
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0, 0.0, 0.0],
        **_SHARED,
    )
    vision = {
        "model_type": "gemma3n_vision",
        "architecture": "mobilenetv5_300m_enc",
        "hidden_size": 2048,
        "vocab_size": 8,
        "vocab_offset": len(tokenizer),
        "model_args": {"block_args": blocks, "stem_size": 16, "msfa_output_resolution": 4},
    }
    audio = {
        "vocab_size": 8,
        "vocab_offset": len(tokenizer) + 8,
        "hidden_size": 16,
        "conf_num_hidden_layers": 1,
        "conf_num_attention_heads": 2,
        "sscp_conv_channel_size": [4, 4],
    }
    return transformers.Gemma3nConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        vision_soft_tokens_per_image=16,
        audio_soft_tokens_per_image=4,
        **token_ids(
            tokenizer,
            boi_token_id="<start_of_image>",
            eoi_token_id="<end_of_image>",
            image_token_id="<image_soft_token>",
            boa_token_id="<start_of_audio>",
            eoa_token_id="<end_of_audio>",
            audio_token_id="<audio_soft_token>",
        ),
    )


def gemma4(tokenizer: Any) -> Any:
    text = _gemma_text(
        tokenizer,
        vocab_size_per_layer_input=len(tokenizer),
        hidden_size_per_layer_input=8,
        global_head_dim=8,
        use_bidirectional_attention="vision",
        **_SHARED,
    )
    vision = {
        "model_type": "gemma4_vision",
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "position_embedding_size": 1024,
    }
    return transformers.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        **token_ids(
            tokenizer,
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            boa_token_id="<|audio>",
            eoa_token_index="<audio|>",
            audio_token_id="<|audio|>",
        ),
    )


def paligemma(tokenizer: Any) -> Any:
    return transformers.PaliGemmaConfig(
        text_config=_gemma_text(tokenizer, model_type="gemma"),
        vision_config=vision_settings(model_type="siglip_vision_model", vision_use_head=False, projection_dim=HIDDEN),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        vocab_size=len(tokenizer),
        **token_ids(tokenizer, image_token_index="<image>"),
    )
