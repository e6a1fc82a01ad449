# mypy: ignore-errors
"""A minimal stand-in for Phi-3-Vision's remote code, laid out as published.

Fused `qkv_proj` and `gate_up_proj`, the vision tower inside `model.vision_embed_tokens`, and image
positions marked by negative token ids.
"""

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_phi3_v import Phi3VConfig


class Phi3RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, states):
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.eps)


class Phi3ImageEmbedding(nn.Module):
    """Vision tower and projector; features of the layer before the last one."""

    def __init__(self, config):
        super().__init__()
        self.img_processor = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.vision_hidden_size,
                intermediate_size=2 * config.vision_hidden_size,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=4,
                image_size=config.image_side,
                patch_size=config.patch_size,
            )
        )
        self.img_projection = nn.Sequential(
            nn.Linear(config.vision_hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def forward(self, pixel_values):
        states = self.img_processor(pixel_values, output_hidden_states=True).hidden_states[-2]
        return self.img_projection(states[:, 1:])


class Phi3Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.heads
        self.theta = config.rope_theta
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def rotate(self, states, positions):
        steps = torch.arange(0, self.head_dim, 2, device=states.device, dtype=torch.float32)
        angles = positions[:, None, :, None] * self.theta ** (-steps / self.head_dim)
        cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        first, second = states.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def forward(self, states, mask, positions):
        batch, length, width = states.shape
        parts = self.qkv_proj(states).view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        query, key = self.rotate(query, positions), self.rotate(key, positions)
        states = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(states.transpose(1, 2).reshape(batch, length, width))


class Phi3MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states):
        gate, up = self.gate_up_proj(states).chunk(2, dim=-1)
        return self.down_proj(nn.functional.silu(gate) * up)


class Phi3DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = Phi3Attention(config)
        self.mlp = Phi3MLP(config)
        self.input_layernorm = Phi3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Phi3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, states, mask, positions):
        states = states + self.self_attn(self.input_layernorm(states), mask, positions)
        return states + self.mlp(self.post_attention_layernorm(states))


class Phi3VPreTrainedModel(PreTrainedModel):
    config_class = Phi3VConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Phi3DecoderLayer",)
    _supports_sdpa = True


class Phi3VModel(Phi3VPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.vision_embed_tokens = Phi3ImageEmbedding(config)
        self.layers = nn.ModuleList([Phi3DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = Phi3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def forward(self, input_ids=None, attention_mask=None, pixel_values=None, image_sizes=None, **kwargs):
        embeds = self.embed_tokens(input_ids.clamp(min=0))
        if pixel_values is not None:
            features = self.vision_embed_tokens(pixel_values.to(embeds.dtype))
            places = (input_ids < 0).unsqueeze(-1).expand_as(embeds)
            embeds = embeds.masked_scatter(places, features.to(embeds.dtype))
        length = input_ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()[None, None]
        positions = torch.arange(length, device=input_ids.device)[None]
        if attention_mask is not None:
            # Each token may look at itself, so that padded rows stay finite.
            itself = torch.eye(length, dtype=torch.bool, device=input_ids.device)
            mask = (mask & attention_mask[:, None, None, :].bool()) | itself
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        states = embeds
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                states = self._gradient_checkpointing_func(layer.__call__, states, mask, positions)
            else:
                states = layer(states, mask, positions)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states))


class Phi3VForCausalLM(Phi3VPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        kept = {name: kwargs.get(name) for name in ("pixel_values", "image_sizes")}
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False, **kept}

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        image_sizes=None,
        labels=None,
        use_cache=None,
        return_dict=None,
        **kwargs,
    ):
        states = self.model(input_ids, attention_mask, pixel_values, image_sizes).last_hidden_state
        logits = self.lm_head(states)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits)
