# mypy: ignore-errors
"""A minimal stand-in for Phi-3-Vision's remote processor: `<|image_1|>` becomes a run of -1, and so on."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

PATTERN = r"<\|image_\d+\|>"


class Phi3VImageProcessor(BaseImageProcessor):
    model_input_names = ("pixel_values", "image_sizes", "num_img_tokens")

    def __init__(self, side=32, patch_size=8, **kwargs):
        super().__init__(**kwargs)
        self.side = side
        self.patch_size = patch_size

    def preprocess(self, images, return_tensors=None, **kwargs):
        pixels, sizes = [], []
        for image in images:
            small = image.convert("RGB").resize((self.side, self.side))
            pixels.append(np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0)
            sizes.append((image.height, image.width))
        count = (self.side // self.patch_size) ** 2
        data = {
            "pixel_values": torch.from_numpy(np.stack(pixels)),
            "image_sizes": torch.tensor(sizes),
            "num_img_tokens": [count] * len(pixels),
        }
        return BatchFeature(data=data)

    def __call__(self, images, **kwargs):
        return self.preprocess(images, **kwargs)


class Phi3VProcessor(ProcessorMixin):
    attributes = ("image_processor", "tokenizer")
    image_processor_class = "BaseImageProcessor"
    tokenizer_class = ("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast")

    def __init__(self, image_processor, tokenizer, chat_template=None):
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = chat_template or tokenizer.chat_template

    @classmethod
    def from_pretrained(cls, folder, trust_remote_code=False, **kwargs):
        settings = json.loads(Path(folder, "preprocessor_config.json").read_text(encoding="utf-8"))
        images = Phi3VImageProcessor(side=settings["side"], patch_size=settings["patch_size"])
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return cls(images, tokenizer)

    def __call__(self, text=None, images=None, return_tensors=None, **kwargs):
        texts = [text] if isinstance(text, str) else list(text)
        if len(texts) != 1:
            raise ValueError("Phi3VProcessor takes one text at a time.")
        flat = [image for group in images or [] for image in (group if isinstance(group, (list, tuple)) else [group])]
        if not flat:
            return BatchFeature(data=dict(self.tokenizer(texts, return_tensors="pt")))
        processed = self.image_processor(flat)
        counts = processed.pop("num_img_tokens")
        chunks = [self.tokenizer(chunk).input_ids for chunk in re.split(PATTERN, texts[0])]
        tags = [int(tag.split("_")[1].rstrip("|>")) for tag in re.findall(PATTERN, texts[0])]
        if sorted(set(tags)) != list(range(1, len(flat) + 1)):
            raise ValueError("Image tags must be numbered from 1, one for each image.")
        ids = list(chunks[0])
        for tag, chunk in zip(tags, chunks[1:], strict=True):
            ids += [-tag] * counts[tag - 1] + chunk
        input_ids = torch.tensor([ids])
        return BatchFeature(data={"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **processed})
