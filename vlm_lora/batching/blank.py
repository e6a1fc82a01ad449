"""A blank image for batches without one, so that several processes always do the same work.

Where weights are sharded, gathering the vision tower's is itself a step that all processes take together; where the
tower trains, so is reducing its gradients. A process whose batch has no image would leave the others waiting. Here
such a batch gets a further turn with a blank image behind one of its rows. Its labels are masked and no earlier
token attends to it (attention is causal), so loss and gradients stay what they were; the tower's become zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text, Turn

SIDE = 56
"""Side of the blank image in pixels: two of Qwen's merged patches, and no processor refuses it."""


def image_conversation(picture: Image.Image) -> Conversation:
    """Return a short conversation about one image."""
    question = Turn(role="user", parts=(ImageRef(source=picture), Text(text="?")))
    answer = Turn(role="assistant", parts=(Text(text="!"),))
    return Conversation(turns=(question, answer), source=RowSource(file="a blank image"))


def blank_conversation() -> Conversation:
    """Return the conversation whose encoding is put behind a row."""
    # A slope from black to white: of one colour alone, norms in a tower may divide by zero and give NaN gradients.
    return image_conversation(Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB"))


def with_blank(rows: Sequence[EncodedRow], blank: EncodedRow) -> list[EncodedRow]:
    """Return the rows, the blank image behind the shortest one if none of them has an image."""
    if any(row.media for row in rows):
        return list(rows)
    shortest = min(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    return [joined(row, blank) if index == shortest else row for index, row in enumerate(rows)]


def joined(row: EncodedRow, blank: EncodedRow) -> EncodedRow:
    """Return one row of both: `(T + t,)` ids and labels, the blank's labels masked, its media."""
    names = dict.fromkeys([*row.token_tensors, *blank.token_tensors])
    return replace(
        row,
        input_ids=torch.cat([row.input_ids, blank.input_ids]),
        labels=torch.cat([row.labels, torch.full_like(blank.labels, IGNORE_INDEX)]),
        token_tensors={name: _joined_tensor(name, row, blank) for name in names},
        media=blank.media,
        text=row.text + blank.text,
    )


def _joined_tensor(name: str, row: EncodedRow, blank: EncodedRow) -> torch.Tensor:
    """Join one per-token tensor along the tokens; zeros where one of them has none."""
    own, further = row.token_tensors.get(name), blank.token_tensors.get(name)
    if further is None:
        assert own is not None
        further = own.new_zeros(len(blank.input_ids), *own.shape[1:])
    if own is None:
        own = further.new_zeros(len(row.input_ids), *further.shape[1:])
    return torch.cat([own, further])
