"""Detection of columns: what is taken as what and why, explicit mappings, ambiguity, nothing found."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_jsonl
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import Schema, detect_schema
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
SHARE = [{"from": "human", "value": "<image>\nhi"}, {"from": "gpt", "value": "ho"}]

Detect = Callable[..., Schema]


@pytest.fixture
def detect(tmp_path: Path) -> Detect:
    def run(*rows: dict[str, Any], **config: Any) -> Schema:
        source = open_source(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
        return detect_schema(source.splits["train"], DataConfig(**config))

    return run


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"image": "a.png", "query": "q", "label": ["a"]},
            ("question_answer", "image", "query", "label", None),
        ),
        (
            {"image": "a.png", "question": "q", "answer": "a"},
            ("question_answer", "image", "question", "answer", None),
        ),
        (
            {"questionId": 3, "question": "q", "image": "a.png", "docId": 4, "answers": ["a", "b"]},
            ("question_answer", "image", "question", "answers", None),
        ),
        (
            {"image_path": "a.png", "prompt": "q", "response": "a"},
            ("question_answer", "image_path", "prompt", "response", None),
        ),
        (
            {"file_name": "a.png", "prompt": "q", "completion": "a"},
            ("question_answer", "file_name", "prompt", "completion", None),
        ),
        (
            {"instruction": "q", "input": "", "output": "a", "images": ["a.png"]},
            ("question_answer", "images", "instruction", "output", None),
        ),
        (
            {"input": "q", "output": "a", "image": "a.png"},
            ("question_answer", "image", "input", "output", None),
        ),
        (
            {"Image": "a.png", "Question": "q", "Answer": 3},
            ("question_answer", "Image", "Question", "Answer", None),
        ),
        (
            {"scan": "x/a.jpg", "query": "q", "label": "a"},
            ("question_answer", "scan", "query", "label", None),
        ),
        ({"messages": CHAT, "images": ["a.png"]}, ("messages", "images", None, None, "messages")),
        ({"talk": CHAT, "image": "a.png"}, ("messages", "image", None, None, "talk")),
        ({"talk": json.dumps(CHAT), "image": "a.png"}, ("messages", "image", None, None, "talk")),
        (
            {"conversations": SHARE, "image": "a.png", "id": "7"},
            ("messages", "image", None, None, "conversations"),
        ),
        (
            {"prompt": CHAT[:1], "completion": CHAT[1:]},
            ("prompt_completion", None, "prompt", "completion", None),
        ),
        ({"prompt": "q", "completion": CHAT[1:]}, ("prompt_completion", None, "prompt", "completion", None)),
        ({"prompt": "q", "messages": CHAT}, ("messages", None, None, None, "messages")),
        (
            {"image": "a.png", "image_id": 5, "query": "q", "label": 1},
            ("question_answer", "image", "query", "label", None),
        ),
    ],
)
def test_columns_are_found(detect: Detect, row: dict[str, Any], expected: tuple[str | None, ...]) -> None:
    found = detect(row)
    assert (found.layout, found.image, found.prompt, found.response, found.messages) == expected


def test_alpaca_input_continues_the_instruction_and_nothing_else(detect: Detect) -> None:
    assert detect({"instruction": "q", "input": "x", "output": "a"}).context == "input"
    assert detect({"question": "q", "input": "x", "output": "a"}).context is None


def test_columns_of_later_rows_count(detect: Detect) -> None:
    text_only = [{"query": "q", "label": "a"}] * 150
    assert detect(*text_only, {"image": "a.png", "query": "q", "label": "a"}).image == "image"


def test_empty_image_values_do_not_hide_the_column(detect: Detect) -> None:
    empties: tuple[Any, ...] = (None, [], "")
    for empty in empties:
        assert detect({"images": empty, "query": "q", "label": "a"}).image == "images"


def test_one_odd_row_does_not_hide_the_images(detect: Detect) -> None:
    """Without the column, all rows would be text only."""
    rows = [{"image": value, "query": "q", "label": "a"} for value in ("a.png", 7, "b.png")]
    assert detect(*rows).image == "image"
    with pytest.raises(DataError, match=r"called as images are, and holds none, such as 7.*--image_column no_pictures"):
        detect(*rows[1:2])


def test_one_odd_row_does_not_hide_a_chat(detect: Detect) -> None:
    assert detect({"messages": CHAT}, {"messages": [{"text": "?"}]}, {"messages": CHAT}).messages == "messages"


def test_an_explicit_mapping_wins(detect: Detect) -> None:
    row = {
        "image": "a.png",
        "scan": "b.png",
        "question": "q",
        "query": "r",
        "answer": "a",
        "label": "b",
        "talk": CHAT,
    }
    found = detect(row, image_column="scan", prompt_column="query", response_column="answer")
    assert (found.image, found.prompt, found.response) == ("scan", "query", "answer")
    assert "--image_column" in found.explain()
    assert "--prompt_column" in found.explain()
    chat = detect(row, image_column="scan", messages_column="talk")
    assert (chat.layout, chat.messages) == ("messages", "talk")


def test_one_mapped_column_leaves_the_others_to_detection(detect: Detect) -> None:
    found = detect({"image": "a.png", "q2": "q", "label": "a"}, prompt_column="q2")
    assert (found.prompt, found.response) == ("q2", "label")


def test_explanations_name_columns_and_reasons(detect: Detect) -> None:
    text = detect({"image": "a.png", "query": "q", "label": "a"}).explain().splitlines()
    assert text == [
        "layout: question_answer",
        "image: column 'image', by its name",
        "prompt: column 'query', by its name",
        "response: column 'label', by its name",
    ]
    assert "its values are lists of turns" in detect({"talk": CHAT, "image": "a.png"}).explain()
    assert "because its values are images" in detect({"scan": "a.png", "query": "q", "label": "a"}).explain()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"image": "a.png", "img": "b.png", "query": "q", "label": "a"},
            r"'image', 'img'.*Type --image_column",
        ),
        ({"one": "a.png", "two": "b.png", "query": "q", "label": "a"}, r"'one', 'two'.*Type --image_column"),
        (
            {"image": "a.png", "query": "q", "question": "p", "label": "a"},
            r"'query', 'question'.*--prompt_column",
        ),
        (
            {"image": "a.png", "query": "q", "answer": "b", "label": "a"},
            r"'answer', 'label'.*--response_column",
        ),
        ({"image": "a.png", "one": CHAT, "two": CHAT}, r"'one', 'two'.*Type --messages_column"),
        (
            {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]},
            r"'chosen' and 'rejected' hold answers.*--response_column chosen",
        ),
        (
            {"talk": CHAT, "question": "q", "answer": "a"},
            r"--messages_column talk, or --prompt_column question",
        ),
    ],
)
def test_two_candidates_are_an_error_that_names_the_flag(detect: Detect, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        detect(row)


def test_the_odd_rows_that_make_a_column_ambiguous_are_named(detect: Detect) -> None:
    row = {"image": "a.png", "query": "q", "label": "a"}
    other = {"image": "a.png", "question": "q", "label": "a"}
    said = r"'question'\. Only 1 of the first 4 rows have 'question', such as .*rows\.jsonl row 2 \(line 3\)\. Type"
    with pytest.raises(DataError, match=said):
        detect(row, row, other, row)
    chat = {"image": "a.png", "talk": CHAT}
    said = (
        r"\('query', 'label'\)\. Only 1 of the first 3 rows have 'talk', such as .*rows\.jsonl row 1 \(line 2\)\. Type"
    )
    with pytest.raises(DataError, match=said):
        detect(row, chat, row)
    # The control: every row has both.
    with pytest.raises(DataError, match=r"'query', 'question'\. Type"):
        detect(*[{**row, **other}] * 4)


def test_no_candidate_lists_what_was_seen_and_what_is_known(detect: Detect) -> None:
    with pytest.raises(DataError, match=r"as the prompt.*'image', 'foo', 'label'.*query, question.*--prompt_column"):
        detect({"image": "a.png", "foo": "q", "label": "a"})
    with pytest.raises(DataError, match=r"as the response.*'image', 'query', 'foo'.*--response_column"):
        detect({"image": "a.png", "query": "q", "foo": "a"})


def test_a_mapped_column_that_is_not_there_is_named_with_the_nearest(detect: Detect) -> None:
    row = {"image": "a.png", "query": "q", "label": "a"}
    with pytest.raises(DataError, match=r"--prompt_column qury: .*Did you mean 'query'\?.*'image', 'query', 'label'"):
        detect(row, prompt_column="qury")


def test_mappings_that_contradict_are_errors(detect: Detect) -> None:
    row = {"image": "a.png", "query": "q", "label": "a", "talk": CHAT}
    with pytest.raises(DataError, match="Leave one of them out"):
        detect(row, messages_column="talk", prompt_column="query")
    with pytest.raises(DataError, match=r"'query' holds no chat.*the first value is 'q'"):
        detect(row, messages_column="query")
    with pytest.raises(DataError, match="at once"):
        detect(row, prompt_column="query", response_column="query")


def test_text_only_data_is_said_aloud(detect: Detect, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert detect({"query": "q", "label": "a"}).image is None
    assert "text only" in caplog.text
    caplog.clear()
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "q"}]
    with caplog.at_level(logging.WARNING):
        found = detect({"messages": [{"role": "user", "content": parts}, CHAT[1]]})
    assert caplog.text == ""
    assert "bring their own" in found.explain()


def user(text: str, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, CHAT[1]], **columns}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": SHARE, "image": "a.png"}, "marks an image's place (ShareGPT turns)"),
        (user("<image>What?", images=["a.png"]), "where a row has as many as images without a part"),
        (user("What?", images=["a.png"]), "no <image> in the first rows' user texts"),
    ],
)
def test_what_image_marks_are_is_explained(detect: Detect, row: dict[str, Any], said: str) -> None:
    assert said in detect(row).explain()


def test_detection_needs_no_torch() -> None:
    code = "import sys, vlm_lora.data.dataset, vlm_lora.data.images.loader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
