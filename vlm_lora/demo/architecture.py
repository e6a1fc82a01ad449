"""The shape of the demo's base model: Gemma 3's architecture at about two million parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaTokenizer,
    GenerationConfig,
    SiglipVisionConfig,
)

from vlm_lora.compat import gemma3_pil_processor
from vlm_lora.demo.scenes import SIZE

IMAGE_TOKENS = 36
"""Image tokens per image: a 6 x 6 grid of 16 x 16 pixel cells."""
PATCH = 8


def build_config(tokenizer: GemmaTokenizer) -> Gemma3Config:
    """The configuration; every token id comes from the tokenizer."""
    pad, eos, bos, boi, eoi, soft = tokenizer.convert_tokens_to_ids(
        ["<pad>", "<eos>", "<bos>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    )
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=40,
        query_pre_attn_scalar=40,
        max_position_embeddings=1024,
        # Longer than any prompt of the demo, so the sliding layers see everything.
        sliding_window=512,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        tie_word_embeddings=True,
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=bos,
    )
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_index=soft,
        tie_word_embeddings=True,
    )


def build_processor(tokenizer: GemmaTokenizer) -> Gemma3Processor:
    """The processor; its image processor is the Pillow one, so torchvision is not needed."""
    images = gemma3_pil_processor()(size={"height": SIZE, "width": SIZE}, do_pan_and_scan=False, do_convert_rgb=True)
    template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    return Gemma3Processor(
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=template,
        image_seq_length=IMAGE_TOKENS,
    )


def build_model(tokenizer: GemmaTokenizer) -> Gemma3ForConditionalGeneration:
    """A freshly initialised model in float32; set torch's seed before for the same weights."""
    model = Gemma3ForConditionalGeneration(build_config(tokenizer))
    # transformers starts the projector at zero, from where a model without pre-trained halves
    # learns to see only slowly.
    weight = model.model.multi_modal_projector.mm_input_projection_weight
    nn.init.normal_(weight, std=weight.shape[0] ** -0.5)
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    config = model.config.get_text_config()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[config.eos_token_id, end_of_turn],
        pad_token_id=config.pad_token_id,
        do_sample=False,
        max_new_tokens=32,
    )
    return model


def save_base(model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, folder: Path) -> None:
    """Write weights in bfloat16, configuration, tokenizer and template; the model is unchanged."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = Gemma3ForConditionalGeneration(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.tie_weights()
    copy.generation_config = model.generation_config
    copy.save_pretrained(folder)
    processor.save_pretrained(folder)
