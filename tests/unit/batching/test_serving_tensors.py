"""One image through training and through asking: identical tensors for every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.mask_cases import FAMILIES, new_encoder
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.cli.main import main
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text, Turn
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.evaluation.generation import Answerer, Reply


def write_hard_image(path: Path, seed: int) -> None:
    """Write an image that careless loaders read differently: stored on its side, half transparent, of odd size."""
    samples = np.random.default_rng(seed).integers(0, 256, (37, 61, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(samples, "RGBA").save(path, exif=exif)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_hard_image(tmp_path / "a.png", 1)
    write_hard_image(tmp_path / "b.png", 2)
    row = {"image": "a.png", "question": "What is it?", "answer": "red"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return tmp_path


def training_row(data: Path) -> Conversation:
    config = DataConfig(dataset_name=str(data / "train.jsonl"), validation_fraction=0.0)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    return train[0]


def question(path: Path) -> Conversation:
    """Return the conversation that `ask` makes; `test_ask_asks_that` compares."""
    return Conversation(
        turns=(
            Turn(role="user", parts=(ImageRef(source=path), Text(text="What is it?"))),
            Turn(role="assistant", parts=(Text(text=""),)),
        ),
        source=RowSource(file="--image and --prompt"),
    )


def same(one: EncodedRow, other: EncodedRow) -> bool:
    return set(one.media) == set(other.media) and all(torch.equal(one.media[n], other.media[n]) for n in one.media)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_training_and_asking_give_the_model_the_same_image(family: str, data: Path) -> None:
    encoder = new_encoder(family, load_image=load_image, image_limits=ImageLimits())
    trained = encoder.encode(training_row(data))
    asked = encoder.encode_prompt(question(data / "a.png"))
    assert trained.media
    assert same(trained, asked)
    # As many placeholders, at the same places; one template writes the last token before the answer otherwise.
    length = next(i for i, label in enumerate(trained.labels.tolist()) if label >= 0) - 2
    assert trained.input_ids[:length].tolist() == asked.input_ids[:length].tolist()
    # The control: another image is another tensor.
    assert not same(trained, encoder.encode_prompt(question(data / "b.png")))


def test_ask_asks_that(
    data: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command's own conversation and tensors, taken where it hands them on."""
    conversations: list[Conversation] = []
    rows: list[EncodedRow] = []
    encode_prompt = RowEncoder.encode_prompt

    def remember(self: RowEncoder, conversation: Conversation) -> EncodedRow:
        rows.append(encode_prompt(self, conversation))
        return rows[-1]

    def reply(self: Answerer, questions: list[Conversation], **kwargs: Any) -> list[Reply]:
        conversations.extend(questions)
        return [Reply(text="red", prompt=rows[0])]

    monkeypatch.setattr(RowEncoder, "encode_prompt", remember)
    monkeypatch.setattr(Answerer, "reply", reply)
    words = ["--model_name_or_path", str(model_folder("gemma3")), "--image", str(data / "a.png"), "--use_cpu", "true"]
    words += ["--image_backend", "pil"]  # as `new_encoder` has it
    assert main(["ask", *words, "--prompt", "What is it?"]) == 0
    assert capsys.readouterr().out.endswith("red\n")
    assert conversations == [question(data / "a.png")]
    encoder = new_encoder("gemma3", load_image=load_image, image_limits=ImageLimits())
    assert same(rows[0], encoder.encode(training_row(data)))
