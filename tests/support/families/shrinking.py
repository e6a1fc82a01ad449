"""Small configurations by rule: every number that says how large a model is, by the name of its key."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

LAYERS = 2
SIDE = 32
PATCH = 8
HEAD = 8
WINDOW = 2

SIZES: Mapping[str, Any] = {
    **dict.fromkeys(
        (
            *("hidden_size", "d_model", "embed_dim", "n_embd", "out_hidden_size", "output_dim", "decoder_hidden_size"),
            *(
                "encoder_hidden_size",
                "text_hidden_size",
                "projection_dim",
                "projection_hidden_size",
                "vision_hidden_size",
            ),
            *("hidden_size_per_layer_input", "image_token_embed_dim", "merged_hidden_size", "word_embed_proj_dim"),
            *(
                "ple_embed_dim",
                "cross_hidden_size",
                "d_ff",
                "adapter_out_dim",
                "adapter_in_dim",
                "projector_hidden_size",
            ),
            *("vision_output_dim", "projector_input_dim", "projector_output_dim", "image_text_hidden_size"),
            *("patch_embed_hidden_size", "output_channels"),
        ),
        32,
    ),
    **dict.fromkeys(
        (
            *("intermediate_size", "mlp_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "intermediate_size_mlp"),
            *("alignment_intermediate_size", "projection_intermediate_size", "shared_intermediate_size"),
            *("dense_intermediate_size", "projection_hidden_dim"),
        ),
        64,
    ),
    **dict.fromkeys(
        (
            *("moe_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size"),
            *("share_expert_dim", "moe_hidden_size", "moe_shared_expert_intermediate_size", "downsample_hidden_size"),
            *("kv_lora_rank", "q_lora_rank", "num_pos_feats", "base_channels"),
        ),
        16,
    ),
    **dict.fromkeys(
        (
            *("num_hidden_layers", "depth", "num_layers", "encoder_layers", "decoder_layers", "n_layers", "layers"),
            *(
                "num_decoder_layers",
                "resampler_depth",
                "perceiver_layers",
                "conf_num_hidden_layers",
                "num_global_layers",
            ),
        ),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            *("num_attention_heads", "num_heads", "attention_heads", "encoder_attention_heads", "index_n_heads"),
            *("decoder_attention_heads", "resampler_n_heads", "resampler_heads", "linear_num_value_heads"),
            *("linear_num_heads", "swa_num_attention_heads", "num_sliding_attention_heads", "mamba_num_heads"),
            *("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "resampler_n_latents"),
            *("num_query_tokens",),
        ),
        4,
    ),
    **dict.fromkeys(
        (
            *("num_key_value_heads", "swa_num_key_value_heads", "linear_num_key_heads", "num_experts_per_tok"),
            *("moe_topk", "moe_k", "hc_mult", "hc_count"),
        ),
        2,
    ),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(
        (
            *("head_dim", "global_head_dim", "swa_head_dim", "linear_key_head_dim", "linear_value_head_dim"),
            *("linear_head_dim", "resampler_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"),
            *("query_pre_attn_scalar", "mamba_head_dim", "attention_head_dim", "qk_rope_head_dim", "d_kv"),
        ),
        HEAD,
    ),
    "qk_head_dim": 16,
    "ssm_state_size": 16,
    "sliding_window": 64,
    "sliding_window_size": 64,
    "window_size": WINDOW,
    "max_position_embeddings": 2048,
    "image_size": SIDE,
    "patch_size": PATCH,
    "num_position_embeddings": (SIDE // PATCH) ** 2,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
    "global_attn_indexes": [1],
    "first_k_dense_replace": 1,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "position_embedding_size": 64,
    "mm_tokens_per_image": 4,
    "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]],
}
"""What stands in a tiny configuration under a key, in whichever part of the model. Tokens count the vocabulary."""


def shrink(default: Any, names: Callable[[str], int | None]) -> dict[str, Any]:
    """Return what to hand to a configuration's class instead of its defaults.

    Args:
        default: the configuration that its class makes without arguments.
        names: the number for a key that stands for a token or the vocabulary; None leaves the default.
    """
    declared = inspect.signature(type(default)).parameters
    # Settings that some layers have for themselves can be read for all of them only so.
    default.allow_global_per_layer_attribute_access = True
    small: dict[str, Any] = {}
    for key in declared:
        value = getattr(default, key, None)
        if value is not None and hasattr(value, "to_dict") and hasattr(value, "model_type"):
            small[key] = {**shrink(value, names), "model_type": value.model_type}
        elif value is None or isinstance(value, (bool, str)):
            continue
        elif (number := names(key)) is not None:
            small[key] = number
        elif key in SIZES:
            small[key] = _like(key, value)
    if (rope := getattr(default, "rope_parameters", None)) and "mrope_section" in rope:
        # Three sections, of half of what turns in a head: of all of it, or of a part.
        small["rope_parameters"] = {**rope, "mrope_section": [2, 1, 1]}
        small["head_dim"] = round(HEAD / rope.get("partial_rotary_factor", 1))
    return small | _per_layer(default, small, declared)


def _like(key: str, value: Any) -> Any:
    """Return a size as its default is written: one number, one for each of several, or pixels instead of patches."""
    small = SIZES[key]
    if isinstance(value, (list, tuple)) and isinstance(small, int):
        return [small] * len(value)
    return 4 * PATCH if key == "window_size" and value > 50 else small


def _per_layer(default: Any, small: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Cut lists with an entry for each layer: every kind of layer stays, in the order of its first appearance."""
    count = getattr(default, "num_hidden_layers", None)
    if not isinstance(count, int) or count < LAYERS:
        return {}
    lists = {
        key: list(value)
        for key in declared
        if isinstance(value := getattr(default, key, None), (list, tuple)) and len(value) == count
    }
    kinds = {
        key: list(dict.fromkeys(value)) for key, value in lists.items() if all(isinstance(each, str) for each in value)
    }
    layers = max([LAYERS, *map(len, kinds.values())])
    cut = {key: (value + value[-1:] * layers)[:layers] for key, value in kinds.items()}
    cut |= {key: value[:layers] for key, value in lists.items() if key not in kinds}
    return {**cut, **({"num_hidden_layers": layers} if "num_hidden_layers" in small else {})}


def merge(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Put `changes` (keys are paths such as `text_config.head_dim`; None takes a key away) into `settings`."""
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(leaf, None)
        else:
            place[leaf] = value
    return settings
