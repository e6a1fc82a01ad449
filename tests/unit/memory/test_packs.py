"""A packed run is planned by packs: as long as they may be, and with as many images as fit."""

from __future__ import annotations

import torch

from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.style import CHAT
from vlm_lora.config.run_config import BatchingConfig
from vlm_lora.data.conversation import RowSource
from vlm_lora.memory.packs import as_packs
from vlm_lora.memory.sample import Rows, Sample


def row(tokens: int, images: int) -> EncodedRow:
    ids = torch.arange(tokens)
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[-2:] = ids[-2:]
    media = {"pixel_values": torch.zeros(images, 3, 4, 4)} if images else {}
    marks = {"token_type_ids": torch.zeros_like(ids)}
    return EncodedRow(
        input_ids=ids, labels=labels, token_tensors=marks, media=media, text="", source=RowSource(file="a.jsonl")
    )


READ = Rows(lengths=(90, 20, 10), supervised=2.0, pixels=32.0, total=3)
SAMPLE = Sample(rows=(row(90, 1), row(20, 1), row(10, 0)), is_everything=True, supervised=5, note="3 rows", read=READ)


def test_a_pack_is_full_of_the_row_with_most_images() -> None:
    packed = as_packs(SAMPLE, BatchingConfig(packing=True, pack_length=100), CHAT)
    (pack,) = packed.rows
    assert len(pack.input_ids) == 100
    assert pack.media["pixel_values"].shape == (5, 3, 4, 4)
    assert set(pack.token_tensors) == {"token_type_ids"}
    assert (packed.supervised, packed.is_everything) == (25, False)
    assert packed.note == "3 rows; packs of 100 tokens (--packing), 5 rows in each"


def test_without_packing_rows_stay_rows() -> None:
    assert as_packs(SAMPLE, BatchingConfig(), CHAT) is SAMPLE
