"""What a packed run's batches hold: packs in place of rows."""

from __future__ import annotations

from dataclasses import replace

from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.packing.collation import PACK_ROWS, joined
from vlm_lora.batching.packing.plan import pack_length
from vlm_lora.batching.style import RenderingStyle
from vlm_lora.config.run_config import BatchingConfig
from vlm_lora.memory.sample import Sample, lengthened


def as_packs(sample: Sample, batching: BatchingConfig, style: RenderingStyle) -> Sample:
    """Return a sample of one pack, filled with the row of which a pack holds most of images; as it is without packing.

    Args:
        sample: rows, longest first.
        batching: says whether the run packs, and how long packs are.
        style: says how media tensors are joined.
    """
    if not batching.packing:
        return sample
    capacity = pack_length(batching.pack_length, batching.max_length, sample.longest)

    def fill(row: EncodedRow) -> int:
        return max(1, capacity // len(row.input_ids))

    def images(row: EncodedRow) -> int:
        return fill(row) * sum(tensor.numel() for tensor in row.media.values())

    row = max(sample.rows, key=lambda row: (images(row), len(row.input_ids)))
    pack = joined([row] * fill(row), style)
    tensors = {name: tensor for name, tensor in pack.token_tensors.items() if name != PACK_ROWS}
    supervised = min(sample.supervised * fill(row), capacity - 1)
    return replace(
        sample,
        rows=(lengthened(replace(pack, token_tensors=tensors), capacity, supervised),),
        is_everything=False,
        supervised=supervised,
        note=f"{sample.note}; packs of {capacity} tokens (--packing), {fill(row)} rows in each",
    )
