"""Everything that a run may draw for a row, encoded: each image decoded once, and nothing near the limit trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.datasets import encode_png, write_jsonl
from support.mask_cases import new_encoder
from vlm_lora.batching.task_samples import TaskSamples
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import ConversationDataset, load_splits
from vlm_lora.data.ocr.task_sampling import Span, everything
from vlm_lora.errors import TooLongError

PAGE = {"lines": [{"text": "Dear Ann, " + "thanks " * n, "bbox": [2, n * 9, 60, n * 9 + 8]} for n in range(4)]}


@pytest.fixture
def rows(tmp_path: Path) -> ConversationDataset:
    (tmp_path / "a.png").write_bytes(encode_png(Image.new("RGB", (64, 48))))
    path = write_jsonl(tmp_path / "train.jsonl", [{"image": "a.png", "text": PAGE}])
    config = DataConfig(
        dataset_name=str(path), validation_fraction=0.0, task_seed=1, tasks=("reading", "conditional_detection")
    )
    train = load_splits(config, need_train=True, need_validation=False).train
    assert isinstance(train, ConversationDataset)
    return train


def lengths(rows: ConversationDataset, span: Span, **settings: Any) -> list[int]:
    drawn = TaskSamples(rows, new_encoder("qwen2_5_vl", load_image=None, **settings), span)
    return [len(row.input_ids) for row in drawn.encoded(0, drawn.choices(0))]


def alone(rows: ConversationDataset, conversation: Conversation) -> int:
    return len(new_encoder("qwen2_5_vl", load_image=None).encode(conversation).input_ids)


def test_each_draw_is_encoded_as_it_is_alone_and_its_image_decoded_once(rows: ConversationDataset) -> None:
    decoded: list[Any] = []
    encoder = new_encoder("qwen2_5_vl", load_image=None).watched_by(decoded.append)
    drawn = TaskSamples(rows, encoder, Span(epochs=12))
    choices = drawn.choices(0)
    found = [len(row.input_ids) for row in drawn.encoded(0, choices)]
    assert len(decoded) == 1
    assert len(found) > 6
    assert found == [alone(rows, conversation) for conversation in choices.conversations]
    assert lengths(rows, Span()) == found[:1], "the control: without a span it is the first epoch's"


def test_a_later_draw_that_is_too_long_says_what_is_asked(rows: ConversationDataset) -> None:
    span = Span(epochs=12)
    found = lengths(rows, span)
    assert found[0] < max(found), "else the first draw would be the one that is refused"
    with pytest.raises(TooLongError, match=r"train\.jsonl row 0 \(line 1\): When an epoch asks '.*': \d+ tokens"):
        lengths(rows, span, max_length=max(found) - 1)
    assert lengths(rows, span, max_length=max(found)) == found


def test_the_longest_of_a_task_is_not_trusted_near_the_limit(rows: ConversationDataset) -> None:
    possible = [alone(rows, conversation) for conversation in rows.asked(0, everything)]
    by_task = lengths(rows, Span(epochs=None))
    assert max(by_task) == max(possible)
    assert len(by_task) < len(possible)
    assert lengths(rows, Span(epochs=None), max_length=max(possible)) == by_task + possible
    assert lengths(rows, Span(epochs=None), max_length=max(possible) + 20) == by_task, "the control: far from it"
    with pytest.raises(TooLongError):
        lengths(rows, Span(epochs=None), max_length=max(possible) - 1)


def test_each_draw_is_found_among_the_conversations(rows: ConversationDataset) -> None:
    encoder = new_encoder("qwen2_5_vl", load_image=None)
    choices = TaskSamples(rows, encoder, Span(epochs=12, repeats=2)).choices(0)
    assert len(choices.drawn) == 24
    for draw, number in enumerate(choices.drawn):
        epoch, repeat = divmod(draw, 2)
        read = rows.at(0, epoch=epoch, repeat=repeat)
        assert [turn.text for turn in choices.conversations[number].turns] == [turn.text for turn in read.turns]
    assert set(choices.tasks) == {"reading", "conditional_detection"}
    assert len(choices.tasks) == len(choices.conversations) > 6
    assert TaskSamples(rows, encoder, Span(epochs=None)).choices(0).drawn == (), "nothing counts them"
