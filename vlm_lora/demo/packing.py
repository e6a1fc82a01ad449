"""Turns scenes into batches: one image, several questions about it, one forward pass.

Looking at an image costs more than answering a question about it, so a pre-training row holds
one image followed by several questions. Each question sees the image and itself but not the
other questions, and its positions start right after the image; it therefore gets exactly the
logits it would get alone through the Hugging Face processor (there is a test for that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import GemmaTokenizer

from vlm_lora.demo.architecture import IMAGE_TOKENS
from vlm_lora.demo.scenes import SIZE, Exchange, Scene, character_centres, draw_scene

IGNORED = -100
CHARACTERS = "0123456789.,ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SLOTS = 8
"""Places for a character inside a 16 x 16 pixel cell: 2 rows of 8 pixels, 4 columns of 4."""


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One batch of b images with n tokens each (padded at the end)."""

    pixel_values: Tensor
    """Float, shape (b, 3, 96, 96), in [-1, 1] as the image processor makes them."""
    input_ids: Tensor
    """Shape (b, n); every row starts with the same prefix that holds the image tokens."""
    labels: Tensor
    """Shape (b, n); the id of the *next* token where it belongs to an answer, else -100."""
    position_ids: Tensor
    """Shape (b, n)."""
    mask: Tensor
    """Boolean, shape (b, 1, n, n): whether the row's token may look at the column's."""
    cell_characters: Tensor
    """Shape (b, 36, 8): 1 + index into CHARACTERS of the character in each slot, 0 for none."""


class Packer:
    """Tokenizes and packs scenes; caches what repeats."""

    def __init__(self, tokenizer: GemmaTokenizer) -> None:
        self._tokenizer = tokenizer
        picture = "\n\n<start_of_image>" + "<image_soft_token>" * IMAGE_TOKENS
        self.prefix = self._encode(f"<bos><start_of_turn>user\n{picture}<end_of_image>\n\n")
        soft = tokenizer.convert_tokens_to_ids("<image_soft_token>")
        self.image_start = self.prefix.index(soft)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def turns(self, exchange: Exchange) -> tuple[list[int], list[int]]:
        """Token ids after the image: the question with the model's header, and the answer."""
        question = self._encode(f"{exchange.question}<end_of_turn>\n<start_of_turn>model\n")
        return question, self._encode(f"{exchange.answer}<end_of_turn>")

    def pack(self, scenes: Sequence[Scene], *, length: int) -> PackedBatch:
        """Pack as many questions of each scene as fit into ``length`` tokens (at least one)."""
        count, start = len(scenes), len(self.prefix)
        ids = np.zeros((count, length), dtype=np.int64)
        labels = np.full((count, length), IGNORED, dtype=np.int64)
        positions = np.zeros((count, length), dtype=np.int64)
        # Segment 0 is the image that everybody sees; -1 is padding.
        segments = np.full((count, length), -1, dtype=np.int64)
        ids[:, :start] = self.prefix
        positions[:, :start] = np.arange(start)
        segments[:, :start] = 0
        for row, scene in enumerate(scenes):
            end = start
            for segment, exchange in enumerate(scene.exchanges, start=1):
                question, answer = self.turns(exchange)
                tokens = [*question, *answer]
                if end + len(tokens) > length:
                    continue
                stop = end + len(tokens)
                ids[row, end:stop] = tokens
                labels[row, stop - len(answer) - 1 : stop - 1] = answer
                positions[row, end:stop] = np.arange(start, start + len(tokens))
                segments[row, end:stop] = segment
                end = stop
        used = int((segments >= 0).any(axis=0).sum())
        images = [draw_scene(scene) for scene in scenes]
        return PackedBatch(
            pixel_values=to_pixel_values(images),
            input_ids=torch.from_numpy(ids[:, :used]),
            labels=torch.from_numpy(labels[:, :used]),
            position_ids=torch.from_numpy(positions[:, :used]),
            mask=self._mask(torch.from_numpy(segments[:, :used])),
            cell_characters=torch.from_numpy(np.stack([cell_characters(s) for s in scenes])),
        )

    def _mask(self, segments: Tensor) -> Tensor:
        length = segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        same = segments[:, :, None] == segments[:, None, :]
        mask = causal & (same | (segments == 0)[:, None, :])
        image = slice(self.image_start, self.image_start + IMAGE_TOKENS)
        # Gemma 3 lets the tokens of one image see each other in both directions.
        mask[:, image, image] = True
        return mask[:, None]


def to_pixel_values(images: Sequence[Image.Image]) -> Tensor:
    """The image processor's result for 96 x 96 RGB images: float32, shape (b, 3, 96, 96)."""
    pixels = np.stack([np.asarray(image) for image in images])
    scaled = pixels.astype(np.float32) * np.float32(1 / 255)
    normalised = (scaled - np.float32(0.5)) / np.float32(0.5)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))


def cell_characters(scene: Scene) -> np.ndarray:
    """Which character has its centre in each slot of each cell: int64, shape (36, 8)."""
    side = SIZE // 16
    grid = np.zeros((side * side, SLOTS), dtype=np.int64)
    for item in scene.items:
        for character, x, y in character_centres(item):
            column, row = min(max(int(x), 0), SIZE - 1), min(max(int(y), 0), SIZE - 1)
            cell = (row // 16) * side + column // 16
            slot = (row % 16) // 8 * 4 + (column % 16) // 4
            grid[cell, slot] = 1 + CHARACTERS.find(character)
    return grid
