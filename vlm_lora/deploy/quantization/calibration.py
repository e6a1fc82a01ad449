"""Rows as the trained model sees them, made by our own preprocessing and written for another process to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from vlm_lora.data.conversation import Conversation
from vlm_lora.session import Preprocessing


def write_samples(preprocessing: Preprocessing, rows: Sequence[Conversation], folder: Path) -> list[Path]:
    """Write rows, one file each, with images, labels and the positions whose next token is supervised.

    Args:
        preprocessing: the trained model's.
        rows: with questions and answers.
        folder: is made.

    Returns:
        The files: a batch of one row each, `(1, T)` int64 tokens and labels, media tensors as the collator has them.
    """
    folder.mkdir(parents=True)
    files = []
    for number, row in enumerate(rows):
        batch = preprocessing.collator([row])
        file = folder / f"{number:05d}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in batch.items()}, file)
        files.append(file)
    return files
