"""What a run may ask about a page: the draws of its epochs, or all that any draw may ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.datasets import encode_png, write_jsonl
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import ConversationDataset, Splits, load_splits
from vlm_lora.data.mixture import Mixture
from vlm_lora.data.ocr.task_sampling import MOST_DRAWS, ONCE, Span, each_draw, everything, longest_of_each_task
from vlm_lora.data.split_parts import trained_parts
from vlm_lora.preflight.sampled_epochs import sampled_epochs, spans_of

PAGE = {
    "lines": [{"text": f"Line {n} " + "x" * n, "bbox": [2, n * 4, 60, n * 4 + 3]} for n in range(8)],
    "latex": [{"latex": "x^2", "box": [5, 36, 30, 40]}],
}


def load(tmp_path: Path, **config: Any) -> Splits:
    (tmp_path / "a.png").write_bytes(encode_png(Image.new("RGB", (64, 48))))
    path = write_jsonl(tmp_path / "train.jsonl", [{"image": "a.png", "text": PAGE}] * 4)
    given: dict[str, Any] = {"dataset_name": str(path), "validation_fraction": 0.0, "task_seed": 3, **config}
    if "tasks" not in given:
        given["tasks"] = ("reading", "detection", "localized_reading", "conditional_detection")
    return load_splits(DataConfig(**given), need_train=True, need_validation=False)


@pytest.fixture
def rows(tmp_path: Path) -> ConversationDataset:
    train = load(tmp_path).train
    assert isinstance(train, ConversationDataset)
    return train


def texts(conversation: Conversation) -> tuple[str, str]:
    question, answer = (turn.text for turn in conversation.turns)
    return question, answer


def test_each_draw_is_what_the_epochs_read(rows: ConversationDataset) -> None:
    span = Span(epochs=5, repeats=2)
    expected = [rows.at(2, epoch=epoch, repeat=repeat) for epoch in range(5) for repeat in range(2)]
    found = rows.asked(2, each_draw(span))
    assert found[0] == rows[2]
    assert [texts(row) for row in found] == list(dict.fromkeys(texts(row) for row in expected))
    assert len(found) > 5, "the control: draws differ"
    assert len({id(row.images[0]) for row in found}) == 1, "one image, to be decoded once"
    assert [texts(row) for row in rows.asked(1, each_draw(span))] != [texts(row) for row in found], "another row"


def test_everything_holds_each_draw_of_many_epochs_and_the_longest(rows: ConversationDataset) -> None:
    possible = {texts(row) for row in rows.asked(0, everything)}
    drawn = {texts(rows.at(0, epoch=epoch)) for epoch in range(400)}
    assert drawn <= possible
    assert len(drawn) > 100
    longest = [texts(row) for row in rows.asked(0, longest_of_each_task(len))]
    assert set(longest) <= possible
    assert longest[0] == texts(rows[0]), "the first epoch's comes first"
    most = max(len(question) + len(answer) for question, answer in possible)
    assert max(len(question) + len(answer) for question, answer in longest) == most
    assert len(longest) < len(possible) / 10


def test_many_or_unknown_epochs_are_looked_at_by_task() -> None:
    counted = {span: span.counted for span in (ONCE, Span(epochs=MOST_DRAWS), Span(epochs=MOST_DRAWS // 2, repeats=2))}
    assert all(counted.values())
    for span in (Span(epochs=None), Span(epochs=MOST_DRAWS + 1), Span(epochs=MOST_DRAWS, repeats=2)):
        assert not span.counted
        assert span.key == Span(epochs=None).key
    assert len({span.key for span in (*counted, Span(epochs=2), Span(epochs=None))}) == 5


@pytest.mark.parametrize(
    ("epochs", "repeats", "said"),
    [
        (3, 1, "the question of each of the 3 epochs"),
        (2, 3, "each of the 3 questions of each of the 2 epochs"),
        (1, 2, "each of the 2 questions of the epoch"),
        (1, 1, "the question of the epoch"),
        (None, 2, "the longest question of each task that the page can serve"),
    ],
)
def test_what_is_looked_at_is_said_in_words(epochs: int | None, repeats: int, said: str) -> None:
    assert Span(epochs=epochs, repeats=repeats).text == said


@pytest.mark.parametrize(
    ("epochs", "steps", "static", "drawn"),
    [(3, -1, False, 3), (2.5, -1, False, 3), (0, -1, False, 1), (3, 10, False, None), (3, 10, True, 1)],
)
def test_epochs_that_draw_anew(epochs: float, steps: int, static: bool, drawn: int | None) -> None:
    assert sampled_epochs(num_train_epochs=epochs, max_steps=steps, static_shapes=static) == drawn


def test_weights_repeat_rows_and_evaluation_reads_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{"question": "a", "answer": "b"}] * 4)
    name = f"{tmp_path / 'train.jsonl'} + {other}"
    splits = load(tmp_path, dataset_name=name, dataset_weights=(2.5, 0.5))
    assert spans_of(splits, 4) == {"train 1": Span(epochs=4, repeats=3), "train 2": Span(epochs=4, repeats=1)}
    train = splits.train
    assert isinstance(train, Mixture)
    both = replace(splits, validation=train)
    assert trained_parts(both) == ("train 1", "train 2")
    assert spans_of(both, 4) == {**spans_of(splits, 4), "validation 1": ONCE, "validation 2": ONCE}
    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "repeats", (3,))
        with pytest.raises(ValueError, match="zip"):
            spans_of(splits, 4)
    single = Splits(train=None, validation=load(tmp_path).train, explanation="")
    assert spans_of(single, 4) == {"validation": ONCE}
