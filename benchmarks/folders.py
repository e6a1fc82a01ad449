"""Folders of models with random weights of a shape, and of rows for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.shapes import Shape


def configuration(shape: Shape, tokenizer: Any) -> Any:
    """Return the configuration of a shape."""
    from support.tiny.configurations import CONFIGURATIONS

    config = CONFIGURATIONS[shape.family](tokenizer)
    text, vision = config.text_config, config.vision_config
    heads = shape.hidden // shape.head_dim
    settings = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate or 4 * shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shape.kv_heads or max(1, heads // 2),
        "head_dim": shape.head_dim,
        "vocab_size": max(shape.vocabulary, len(tokenizer)),
        "max_position_embeddings": 8192,
        **shape.extra,
    }
    for name, value in settings.items():
        setattr(text, name, value)
    if shape.tied:
        config.tie_word_embeddings = text.tie_word_embeddings = True
    if getattr(text, "layer_types", None):
        sliding = shape.family == "gemma3"
        text.layer_types = [
            "sliding_attention" if sliding and layer % 6 != 5 else "full_attention" for layer in range(shape.layers)
        ]
        if sliding:
            text.query_pre_attn_scalar, text.sliding_window = shape.head_dim, 1024
            config.mm_tokens_per_image = shape.image_tokens
    qwen = shape.family.startswith("qwen")
    vision.hidden_size = shape.tower_hidden
    vision.intermediate_size = shape.tower_intermediate or 4 * shape.tower_hidden
    setattr(vision, "depth" if qwen else "num_hidden_layers", shape.tower_layers)
    vision.num_heads = vision.num_attention_heads = shape.tower_hidden // shape.tower_head_dim
    vision.patch_size = shape.patch
    if qwen:
        _qwen(shape, text, vision)
    else:
        vision.image_size = shape.side
    return config


def _qwen(shape: Shape, text: Any, vision: Any) -> None:
    """Positions in three parts of the head, windows of 8 x 8 patches, every seventh layer of the tower without them."""
    vision.out_hidden_size = text.hidden_size
    half = shape.head_dim // 2
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e6}
    if shape.family == "qwen3_vl":
        text.rope_parameters = {**rope, "mrope_interleaved": True}
        vision.deepstack_visual_indexes = [layer for layer in (1, 2, 3) if layer < shape.tower_layers]
        vision.num_position_embeddings = 48 * 48
    else:
        text.rope_parameters = {**rope, "type": "mrope"}
        vision.window_size = 8 * shape.patch
        vision.fullatt_block_indexes = [*range(6, shape.tower_layers - 1, 7), shape.tower_layers - 1]


def processor_of(shape: Shape) -> Any:
    """Return the family's processor for images of the shape's side."""
    from support.tiny.processors import BUILDERS, read_template
    from support.tiny.vocabularies import VOCABULARIES
    from support.tiny.vocabulary import build_tokenizer

    llava = shape.family == "llava"
    template = _TURNS if llava else read_template(shape.family)
    # A tokenizer that splits a prompt and its answer as it splits both together, as TRL's collator takes for granted.
    tokenizer = build_tokenizer(VOCABULARIES["llava_onevision" if llava else shape.family])
    template = _ENDS_WITH_THE_TURN.replace("TEMPLATE", template or "")
    processor = BUILDERS[shape.family](tokenizer, template)
    images = processor.image_processor
    if shape.family == "gemma3":
        processor = type(processor)(images, tokenizer, chat_template=template, image_seq_length=shape.image_tokens)
    processor.tokenizer.chat_template = template
    square = {"height": shape.side, "width": shape.side}
    if shape.family == "gemma3":
        images.size = square
    elif llava:
        images.size, images.crop_size = {"shortest_edge": shape.side}, square
        processor.patch_size = shape.patch
    else:
        images.patch_size = shape.patch
        images.min_pixels = images.size["shortest_edge"] = 56 * 56
        images.max_pixels = images.size["longest_edge"] = shape.side**2
    return processor


_ENDS_WITH_THE_TURN = "{%- set whole -%}TEMPLATE{%- endset -%}{{- whole if add_generation_prompt else whole | trim -}}"
"""Others train the line break behind an answer's end where a template writes one; here none is written."""

_TURNS = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{{- '<image>\\n' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}{%- endif -%}{{- '<|im_end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""LLaVA's own ends no answer with a token of its own, and other tools add none."""


def build_folder(shape: Shape, folder: Path, *, seed: int = 0, device: str = "cpu", dtype: str = "float32") -> Path:
    """Write a model folder with random weights, drawn on a device in a dtype; one that is there stays.

    The projector has values and attention is sharpened: a fresh Gemma 3 would not see its images.
    """
    import torch

    from support.tiny.folders import model_class, save_processor, waken

    if (folder / "config.json").is_file():
        return folder
    processor = processor_of(shape)
    tokenizer = processor.tokenizer
    config = configuration(shape, tokenizer)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device(device):
        torch.manual_seed(seed)
        model = model_class(config).from_config(config, dtype=getattr(torch, dtype))
        waken(model)
        _soften(model)
        model.tie_weights()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<end_of_turn>", "<|im_end|>")]
    ends = [end for end in ends if end is not None and end != tokenizer.unk_token_id]
    model.generation_config.update(bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, do_sample=False)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    save_processor(processor, folder)
    return folder


def _soften(model: Any) -> None:
    """Halve the tests' queries and keys: with more layers, they would make rounding as large as a wrong label."""
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("q_proj.weight", "k_proj.weight", "qkv.weight")):
            parameter.mul_(0.5)


def write_rows(folder: Path, rows: Sequence[tuple[int, int, int]], *, side: int, seed: int = 0) -> Path:
    """Write a data folder of questions about random images.

    Args:
        folder: where; one that is there stays.
        rows: for each row the number of its image, and the words of its question and of its answer.
        side: of the images in pixels.
        seed: of the images and words.
    """
    import numpy as np
    from PIL import Image

    from support.tiny.corpus import TEXT

    path = folder / "train.jsonl"
    if path.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    words = [word.strip(".,?!:") for word in TEXT.split()]
    words = [word for word in words if word.isalpha()]
    for number in sorted({image for image, _, _ in rows}):
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    lines = []
    for number, asked, answered in rows:
        question, answer = (" ".join(generator.choice(words, count)) for count in (asked, answered))
        lines.append(json.dumps({"image": f"{number}.png", "question": question, "answer": answer}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
