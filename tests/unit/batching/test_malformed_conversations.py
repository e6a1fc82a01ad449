"""Forty malformed conversations and three families: each is refused with file, row and reason, or has exactly the
labels that are written here by hand.

Each row stands behind a good one of the same layout, which decides what the columns mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.mask_cases import new_encoder, processor_of
from vlm_lora.batching.masks import supervised_text
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.errors import DataError

FAMILIES = ("gemma3", "qwen2_5_vl", "llava")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row and what must become of it: `refused` with words (per family where they differ), or these `answers`."""

    row: Mapping[str, Any]
    refused: str | Mapping[str, str] = ""
    answers: Sequence[str] = ()

    def refusal(self, family: str) -> str:
        return self.refused if isinstance(self.refused, str) else self.refused.get(family, "")


def supervised(family: str, answers: Sequence[str]) -> list[str]:
    """Return what each family must produce for these answers.

    Gemma 3's template trims; LLaVA's writes a space before each answer and ends only the last one.
    """
    if family == "gemma3":
        return [f"{answer.strip()}<end_of_turn>" for answer in answers]
    if family == "qwen2_5_vl":
        return [f"{answer}<|im_end|>" for answer in answers]
    return [f" {answer}" for answer in answers[:-1]] + [f" {answers[-1]}</s>"]


PICTURE = {"type": "image"}


def text(words: Any) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(content: Any = None) -> dict[str, Any]:
    return {"role": "user", "content": [PICTURE, text("What?")] if content is None else content}


def model(content: Any = "red") -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any = "Be short.") -> dict[str, Any]:
    return {"role": "system", "content": content}


def chat(*turns: Any, image: Any = "a.png") -> dict[str, Any]:
    return {"messages": list(turns), "image": image}


def shared(*turns: Any, image: Any = "a.png") -> dict[str, Any]:
    return {"conversations": list(turns), "image": image}


def said(who: str, words: Any) -> dict[str, Any]:
    return {"from": who, "value": words}


ALTERNATE = {"gemma3": "Conversation roles must alternate"}

CASES: dict[str, Case] = {
    # No answer, or nothing at all.
    "no turns": Case(row=chat(), refused="is empty"),
    "null turns": Case(row={"messages": None, "image": "a.png"}, refused="is empty"),
    "text in the place of turns": Case(row={"messages": "hello", "image": "a.png"}, refused="no list of turns"),
    "number in the place of turns": Case(row={"messages": 7, "image": "a.png"}, refused="no list of turns"),
    "turns that are texts": Case(row=chat("hi", "ho"), refused="no list of turns"),
    "a turn that is null": Case(row=chat(user(), None), refused="no list of turns"),
    "only a question": Case(row=chat(user()), refused="No assistant turn"),
    "only a system turn": Case(row=chat(system()), refused="no user turn"),
    "the last turn is a question": Case(row=chat(user(), model(), user("And?")), refused="The last turn is the user's"),
    "the last turn is the system's": Case(row=chat(user(), model(), system()), refused="The last turn is the system's"),
    # Roles.
    "unknown role": Case(
        row=chat(user(), {"role": "narrator", "content": "x"}, model()), refused="unknown role 'narrator'"
    ),
    "role that is a number": Case(row=chat({"role": 1, "content": "x"}, model()), refused="unknown role"),
    "role that is null": Case(
        row=chat({"role": None, "content": "x"}, model()), refused="unknown role|no list of turns"
    ),
    "empty role": Case(row=chat({"role": "", "content": "x"}, model()), refused="unknown role ''"),
    "role with a control token": Case(
        row=chat({"role": "user<|im_end|>", "content": "x"}, model()), refused="unknown role"
    ),
    "a turn without a role": Case(row=chat(user(), {"content": "x"}), refused="no list of turns"),
    "a turn without content": Case(row=chat(user(), {"role": "assistant"}), refused="no list of turns"),
    "capital roles": Case(
        row=chat({"role": "USER", "content": [PICTURE, text("q")]}, {"role": "Assistant", "content": "red"}),
        answers=["red"],
    ),
    "two questions in a row": Case(row=chat(user(), user("Now?"), model()), refused=ALTERNATE, answers=["red"]),
    "two answers in a row": Case(
        row=chat(user(), model("red"), model("blue")), refused=ALTERNATE, answers=["red", "blue"]
    ),
    "an answer first": Case(
        row=chat(model("Hello"), user(), model("red")),
        refused={**dict.fromkeys(FAMILIES, "begins with an answer"), **ALTERNATE},
    ),
    "a system turn in the middle": Case(row=chat(user(), system(), model()), refused=ALTERNATE, answers=["red"]),
    # Contents.
    "null answer": Case(row=chat(user(), model(None)), refused="has no content"),
    "answer that is a number": Case(row=chat(user(), model(7)), answers=["7"]),
    "answer that is an object": Case(row=chat(user(), model({"a": 1})), refused="Turn 2 .assistant."),
    "answer without parts": Case(row=chat(user(), model([])), answers=[""]),
    "empty answer": Case(row=chat(user(), model("")), answers=[""]),
    "answer of white space": Case(row=chat(user(), model(" \n ")), answers=[" \n "]),
    "answer in two parts": Case(row=chat(user(), model([text("red"), text(" bus")])), answers=["red bus"]),
    "answer with an image": Case(row=chat(user("What?"), model([PICTURE, text("red")])), refused="holds an image"),
    "part of no type": Case(row=chat(user([{"text": "q"}, PICTURE]), model()), answers=["red"]),
    "part of an unknown type": Case(
        row=chat(user([{"type": "video", "video": "a.mp4"}]), model()), refused="type 'video'"
    ),
    "part that is null": Case(row=chat(user([None, PICTURE]), model()), refused="Turn 1"),
    "text part without text": Case(row=chat(user([PICTURE, {"type": "text"}]), model()), refused="Turn 1"),
    "text part with a null text": Case(row=chat(user([PICTURE, text(None)]), model()), refused="Turn 1"),
    # Images.
    "more places than images": Case(
        row=chat(user([PICTURE, PICTURE, text("q")]), model()), refused="2 places for images"
    ),
    "a place and no image": Case(row=chat(user(), model(), image=None), refused="1 place for images"),
    "more images than places": Case(row=chat(user(), model(), image=["a.png", "a.png"]), refused="1 place for images"),
    "an image in the system turn": Case(
        row=chat(system([PICTURE, text("s")]), user("q"), model()),
        refused={"gemma3": "placeholder|template"},
        answers=["red"],
    ),
    "image that is missing": Case(row=chat(user(), model(), image="gone.png"), refused="cannot be opened"),
    "place at an index that is not there": Case(
        row=chat(user([{"type": "image", "index": 5}, text("q")]), model()), refused="indices"
    ),
    # Texts that look like something else.
    "answer that is a whole chat": Case(
        row=chat(user(), model("x\nUSER: y ASSISTANT: z")), answers=["x\nUSER: y ASSISTANT: z"]
    ),
    "answer full of control strings": Case(
        row=chat(user(), model("<end_of_turn><|im_end|></s><eos><image>")),
        answers=["<end_of_turn><|im_end|></s><eos><image>"],
    ),
    "question that ends itself and answers": Case(
        row=chat(
            user([PICTURE, text("q<end_of_turn>\n<start_of_turn>model\nno</s> ASSISTANT: no<|im_end|>")]), model()
        ),
        answers=["red"],
    ),
    "invisible characters": Case(
        row=chat(user(), model("r\u200be\u202ed\ufeff\u0000!")), answers=["r\u200be\u202ed\ufeff\u0000!"]
    ),
    "private-use characters": Case(
        row=chat(user(), model("\U000f8000\U00108000\ue000")), answers=["\U000f8000\U00108000\ue000"]
    ),
    "half of a surrogate pair": Case(row=chat(user(), model("a\ud83d")), refused="half of a surrogate pair"),
    # LLaVA's layout.
    "LLaVA: unknown speaker": Case(
        row=shared(said("human", "<image>\nq"), said("bing", "red")), refused="unknown role 'bing'"
    ),
    "LLaVA: no placeholder": Case(row=shared(said("human", "q"), said("gpt", "red")), answers=["red"]),
    "LLaVA: two placeholders": Case(
        row=shared(said("human", "<image><image>q"), said("gpt", "red")), refused="2 places"
    ),
    "LLaVA: placeholder in the answer": Case(
        row=shared(said("human", "<image>q"), said("gpt", "an <image>")), answers=["an <image>"]
    ),
    "LLaVA: null value": Case(row=shared(said("human", "<image>q"), said("gpt", None)), refused="has no value"),
    "LLaVA: turns as JSON text that is cut off": Case(
        row={"conversations": '[{"from": "human", "value": "q"', "image": "a.png"}, refused="no list of turns"
    ),
}


def good(row: Mapping[str, Any]) -> dict[str, Any]:
    if "conversations" in row:
        return shared(said("human", "<image>\nWhat?"), said("gpt", "red"))
    return chat(user(), model())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rows")
    Image.new("RGB", (32, 32), "red").save(place / "a.png")
    return place


def encode(family: str, row: Mapping[str, Any], folder: Path) -> list[str]:
    """Read the row from a file, encode it, and return what is supervised."""
    lines = "".join(json.dumps(one) + "\n" for one in (good(row), row))
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    config = DataConfig(dataset_name=str(folder / "train.jsonl"), validation_fraction=0.0)
    data = load_splits(config, need_train=True, need_validation=False).train
    assert data is not None
    encoder = new_encoder(family, load_image=load_image, image_limits=ImageLimits())
    return supervised_text(encoder.encode(data[1]), processor_of(family).tokenizer)


def test_there_are_forty() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", list(CASES))
def test_refused_or_labelled_by_hand(name: str, family: str, folder: Path) -> None:
    case = CASES[name]
    words = case.refusal(family)
    if words:
        with pytest.raises(DataError, match=rf"(?s)^{folder}/train\.jsonl row 1 \(line 2\): .*({words})"):
            encode(family, case.row, folder)
    else:
        assert encode(family, case.row, folder) == supervised(family, case.answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_good_rows_are_trained_on(family: str, folder: Path) -> None:
    """The control: what the cases break is the row."""
    for row in (chat(user(), model()), shared(said("human", "<image>\nq"), said("gpt", "red"))):
        assert encode(family, row, folder) == supervised(family, ["red"])
        assert encode(family, row, folder) != supervised(family, ["blue"])
