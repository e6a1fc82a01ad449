"""Every layout once: written to a file, detected without a flag, equal to a conversation written by hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.datasets import draw_chart, encode_png, write_jsonl
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import ImageRef, Part, Turn
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.images.loader import ImageLimits, load_image

ONE, TWO = encode_png(draw_chart(1, (40, 30))[0]), encode_png(draw_chart(2, (40, 30))[0])
URI = f"data:image/png;base64,{base64.b64encode(ONE).decode()}"
PIXELS = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [0, 255, 7]]]
A, B = object(), object()
"""Stand for the two images in what is expected."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows of one layout and the turns of its last row."""

    rows: tuple[Mapping[str, Any], ...]
    turns: tuple[tuple[str, tuple[Any, ...]], ...]
    parquet: bool = False


def case(*rows: Mapping[str, Any], turns: list[tuple[Any, ...]], parquet: bool = False) -> Case:
    return Case(rows=rows, turns=tuple((str(role), tuple(parts)) for role, *parts in turns), parquet=parquet)


def chat(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def share(*values: str) -> list[dict[str, Any]]:
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


ASKED = [("user", A, "How many?"), ("assistant", "14")]
PART = {"type": "text", "text": "How many?"}
QUESTION = (
    "Find every object in the picture. Answer with a JSON list of "
    '{"bbox_2d": [x1, y1, x2, y2], "label": "..."}, in pixels.'
)
BOXES = {"bbox": [[2.0, 3.0, 10.0, 5.0], [30.0, 20.0, 11.5, 11.5]], "category": ["mask", "glove"]}
FOUND = '[{"bbox_2d": [2, 3, 12, 8], "label": "mask"}, {"bbox_2d": [30, 20, 40, 30], "label": "glove"}]'
LINES = [{"text": "Invoice 7", "bbox": [2, 2, 38, 8]}, {"text": "Total 14", "bbox": [2, 12, 38, 18]}]

GALLERY: dict[str, Case] = {
    "chartqa": case({"image": "1.png", "query": "How many?", "label": ["14"]}, turns=ASKED),
    "docvqa": case({"image": "1.png", "question": "How many?", "answers": ["14", "fourteen"]}, turns=ASKED),
    "textvqa_objects": case(
        {"image": "1.png", "question": "How many?", "answers": [{"answer": "14"}, {"answer": "fourteen"}]}, turns=ASKED
    ),
    "prompt_response": case({"image_path": "1.png", "prompt": "How many?", "response": "14"}, turns=ASKED),
    "alpaca": case(
        {"image": "1.png", "instruction": "Count.", "input": "Red bars.", "output": "14"},
        turns=[("user", A, "Count.\nRed bars."), ("assistant", "14")],
    ),
    "image_folder": case({"file_name": "1.png", "prompt": "How many?", "completion": "14"}, turns=ASKED),
    "messages_of_text": case({"images": ["1.png"], "messages": chat("How many?", "14")}, turns=ASKED),
    "messages_of_parts": case({"images": ["1.png"], "messages": chat([{"type": "image"}, PART], "14")}, turns=ASKED),
    "any_column_of_messages": case({"image": "1.png", "texts": chat([{"type": "image"}, PART], "14")}, turns=ASKED),
    "messages_as_json_text": case({"image": "1.png", "chat": json.dumps(chat("How many?", "14"))}, turns=ASKED),
    "parts_with_a_path": case({"messages": chat([{"type": "image", "path": "1.png"}, PART], "14")}, turns=ASKED),
    "parts_with_an_image": case({"messages": chat([{"type": "image", "image": "1.png"}, PART], "14")}, turns=ASKED),
    "image_url_parts": case(
        {"messages": chat([{"type": "image_url", "image_url": {"url": URI}}, PART], "14")}, turns=ASKED
    ),
    "value_parts": case(
        {"messages": chat([{"type": "image_url", "value": URI}, {"type": "text", "value": "How many?"}], "14")},
        turns=ASKED,
    ),
    "null_filled_parts": case(
        {
            "images": [ONE],
            "messages": chat(
                [{"type": "image", "text": None}, PART],
                [{"type": "text", "text": "14"}],
            ),
        },
        turns=ASKED,
        parquet=True,
    ),
    "pictures_spread_over_turns": case(
        {
            "images": ["1.png", "2.png"],
            "messages": chat([{"type": "image"}, PART], "14", [{"type": "image"}, "Here?"], "9"),
        },
        turns=[*ASKED, ("user", B, "Here?"), ("assistant", "9")],
    ),
    "sharegpt": case({"image": "1.png", "conversations": share("<image>How many?", "14")}, turns=ASKED),
    "llava_with_marks_in_later_turns": case(
        {"images": ["1.png", "2.png"], "conversations": share("<image>How many?", "14", "And <image>?", "9")},
        turns=[*ASKED, ("user", "And ", B, "?"), ("assistant", "9")],
    ),
    "several_pictures": case(
        {"image": ["1.png", "2.png"], "question": "Same?", "answer": "no"},
        turns=[("user", A, B, "Same?"), ("assistant", "no")],
    ),
    "prompt_and_completion_of_messages": case(
        {"images": ["1.png"], "prompt": chat("How many?"), "completion": [{"role": "assistant", "content": "14"}]},
        turns=ASKED,
    ),
    "text_only_rows_mixed_in": case(
        {"image": "1.png", "question": "How many?", "answer": "14"},
        {"image": None, "question": "2 and 2?", "answer": "4"},
        turns=[("user", "2 and 2?"), ("assistant", "4")],
    ),
    "text_only": case({"question": "2 and 2?", "answer": "4"}, turns=[("user", "2 and 2?"), ("assistant", "4")]),
    "bytes": case({"image": ONE, "question": "How many?", "answer": "14"}, turns=ASKED, parquet=True),
    "bytes_and_path": case(
        {"image": {"bytes": ONE, "path": "x.png"}, "question": "How many?", "answer": "14"}, turns=ASKED, parquet=True
    ),
    "base64": case(
        {"image_base64": base64.b64encode(ONE).decode(), "question": "How many?", "answer": "14"}, turns=ASKED
    ),
    "data_uri": case({"picture": URI, "question": "How many?", "answer": "14"}, turns=ASKED),
    "boxes_as_lists": case({"image": "1.png", "objects": BOXES}, turns=[("user", A, QUESTION), ("assistant", FOUND)]),
    "boxes_as_objects": case(
        {"image": "1.png", "objects": [{"bbox": b, "category": c} for b, c in zip(*BOXES.values(), strict=True)]},
        turns=[("user", A, QUESTION), ("assistant", FOUND)],
    ),
    "no_boxes": case(
        {"image": "1.png", "objects": BOXES},
        {"image": "1.png", "objects": {"bbox": [], "category": []}},
        turns=[("user", A, QUESTION), ("assistant", "[]")],
    ),
    "boxes_from_parquet": case(
        {"image": ONE, "width": 40, "height": 30, "objects": BOXES},
        turns=[("user", A, QUESTION), ("assistant", FOUND)],
        parquet=True,
    ),
}


def shown(turns: tuple[Turn, ...]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    return tuple((turn.role, tuple(show(part) for part in turn.parts)) for turn in turns)


def show(part: Part) -> Any:
    if not isinstance(part, ImageRef):
        return part.text
    pixels = load_image(part.source, limits=ImageLimits()).tobytes()
    for encoded, mark in ((ONE, A), (TWO, B)):
        if pixels == load_image(encoded, limits=ImageLimits()).tobytes():
            return mark
    return pixels


def read(folder: Path, case: Case, **config: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    (folder / "1.png").write_bytes(ONE)
    (folder / "2.png").write_bytes(TWO)
    path = folder / ("rows.parquet" if case.parquet else "rows.jsonl")
    if case.parquet:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in case.rows]), path)
    else:
        write_jsonl(path, case.rows)
    data = load_splits(
        DataConfig(dataset_name=str(path), validation_fraction=0.0, **config), need_train=True, need_validation=False
    ).train
    assert data is not None
    return shown(data[len(case.rows) - 1].turns)


@pytest.mark.parametrize("name", GALLERY)
def test_each_layout_becomes_the_conversation_written_by_hand(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, GALLERY[name]) == GALLERY[name].turns


def test_the_comparison_sees_a_swapped_image_and_a_changed_word(tmp_path: Path) -> None:
    good = GALLERY["pictures_spread_over_turns"]
    row = good.rows[0]
    assert read(tmp_path, case({**row, "images": ["2.png", "1.png"]}, turns=[])) != good.turns
    assert read(tmp_path, case({**row, "messages": chat("How many?", "15")}, turns=[])) != good.turns


def test_nested_numbers_are_an_image(tmp_path: Path) -> None:
    for name, pixels, wanted in (
        ("colour", PIXELS, bytes(n for row in PIXELS for pixel in row for n in pixel)),
        ("gray", [[0, 128], [255, 7]], bytes(n for n in (0, 128, 255, 7) for _ in range(3))),
    ):
        (tmp_path / name).mkdir()
        row = {"image": pixels, "question": "q", "answer": "a"}
        for parquet in (False, True):
            found = read(tmp_path / name, case(row, turns=[], parquet=parquet))
            assert found == (("user", (wanted, "q")), ("assistant", ("a",)))


def test_several_nested_images_keep_their_order(tmp_path: Path) -> None:
    other = [[[9, 9, 9]]]
    found = read(tmp_path, case({"images": [PIXELS, other], "question": "q", "answer": "a"}, turns=[]))
    assert found[0][1][1:] == (bytes([9, 9, 9]), "q")
    assert len(found[0][1][0]) == 12


def test_names_of_categories_come_from_the_features_of_datasets(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
                "category": datasets.Sequence(datasets.ClassLabel(names=["coverall", "mask", "glove"])),
            },
        }
    )
    rows = {
        "image": [{"bytes": ONE, "path": None}],
        "objects": [{"bbox": BOXES["bbox"], "category": [1, 2]}],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    made.to_parquet(tmp_path / "files" / "train.parquet")
    for name in ("saved", "files"):
        config = DataConfig(dataset_name=str(tmp_path / name), validation_fraction=0.0)
        splits = load_splits(config, need_train=True, need_validation=False)
        assert splits.train is not None
        assert shown(splits.train[0].turns) == (("user", (A, QUESTION)), ("assistant", (FOUND,)))
        assert "names of categories: coverall, mask, glove, declared by the data" in splits.explanation


def test_pages_are_read_from_every_form_of_their_json(tmp_path: Path) -> None:
    page = {"lines": LINES}
    forms: list[dict[str, Any]] = [
        {"image": "1.png", "text": page},
        {"image": "1.png", "text": json.dumps(page)},
        {"image": "1.png", "json": {"text": page, "image": {"width": 40, "height": 30}}},
        {"image": "1.png", "json": json.dumps({"text": page})},
        {"image_path": "1.png", "text": page, "image": {"width": 40, "height": 30}},
        {"image": "1.png", "text": {"lines": [{"latex": i["text"], "box": i["bbox"]} for i in LINES]}},
        {"image": "1.png", "text": {"text": "Invoice 7\nTotal 14"}},
    ]
    for number, row in enumerate(forms):
        (tmp_path / str(number)).mkdir()
        user, answer = read(tmp_path / str(number), case(row, turns=[]))
        assert answer == ("assistant", ("Invoice 7\nTotal 14",)), row
        assert user[1][0] is A


def test_pages_survive_arrow_filling_in_nulls(tmp_path: Path) -> None:
    rows = (
        {"image": ONE, "text": {"lines": LINES, "text": None, "text2d": None}},
        {"image": ONE, "text": {"lines": None, "text": "whole", "text2d": None}},
    )
    assert read(tmp_path, case(*rows, turns=[], parquet=True))[1] == ("assistant", ("whole",))


def test_an_image_kept_as_reference_stays_undecoded(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(ONE)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"image": "1.png", "objects": BOXES}])
    data = load_splits(
        DataConfig(dataset_name=str(path), validation_fraction=0.0), need_train=True, need_validation=False
    ).train
    assert data is not None
    assert data[0].images == (ImageRef(source=tmp_path / "1.png"),)
