"""Padding and joining: a batch must hold each row as it is alone, and what the processor itself would make."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from support.mask_cases import (
    CASES,
    FAMILIES,
    IMAGE,
    SINGLE,
    case_of,
    conversation,
    direct_inputs,
    encoder_of,
    new_encoder,
    picture,
    processor_of,
    style_of,
)
from vlm_lora.batching.collator import (
    FED,
    ROWS,
    SUPERVISED,
    BatchRow,
    Collator,
    Fed,
    NamesRows,
    join_media,
    supervised_positions,
)
from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.batching.ordering.rows import FillableRows
from vlm_lora.batching.style import STYLES, MediaBatching, style_for
from vlm_lora.data.conversation import Conversation

SIZES = ((32, 32), (64, 32), (32, 64), (48, 40))
TWO_IMAGES = (("user", (IMAGE, "Compare ", IMAGE)), ("assistant", ("equal",)))


def collator_of(family: str) -> Collator:
    pad = processor_of(family).tokenizer.pad_token_id
    return Collator(encoder_of(family), style_of(family), pad_token_id=pad)


def rows_of(family: str) -> list[Conversation]:
    """Four rows of different lengths and image sizes; two images and no image where the family reads them."""
    several = family != "paligemma"
    turns = [SINGLE, TWO_IMAGES if several else CASES["blank"], CASES["empty"], CASES["turns"] if several else SINGLE]
    return [
        conversation(turn, image=picture(40 * number, size=size), row=number)  # type: ignore[arg-type]
        for number, (turn, size) in enumerate(zip(turns, SIZES, strict=True))
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_of_a_batch_equals_the_row_alone(family: str) -> None:
    rows = rows_of(family)
    batch = collator_of(family)(rows)
    length = batch["input_ids"].shape[1]
    position = dict.fromkeys(batch, 0)
    for number, row in enumerate(rows):
        alone = collator_of(family)([row])
        size = alone["input_ids"].shape[1]
        assert batch["attention_mask"][number].tolist() == [1] * size + [0] * (length - size)
        assert batch["labels"][number, size:].eq(IGNORE_INDEX).all()
        found = batch["supervised_positions"][number]
        assert found[found >= 0].tolist() == alone["supervised_positions"][0].tolist()
        for name, tensor in alone.items():
            if name == "supervised_positions":
                continue
            start = position[name]
            position[name] += len(tensor)
            inner = tuple(slice(0, extent) for extent in tensor.shape[1:])
            assert torch.equal(batch[name][(slice(start, start + len(tensor)), *inner)], tensor), name
    assert all(position[name] == len(batch[name]) for name in batch if name != "supervised_positions")


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"paligemma", "phi3_v"}))  # these take one text
def test_a_batch_equals_the_processors_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # LLaVA-OneVision's own batches take a wrong image's size behind a row of several (transformers 4.55).
    rows = [row for row in rows_of(family) if family != "llava_onevision" or len(row.images) == 1]
    processor = processor_of(family)
    monkeypatch.setattr(processor.tokenizer, "padding_side", "right")
    inputs = [direct_inputs(family, row) for row in rows]
    bos = processor.tokenizer.bos_token
    extra = {"add_special_tokens": False} if bos and inputs[0][0].startswith(bos) else {}
    own = processor(
        text=[text for text, _ in inputs],
        images=[pictures for _, pictures in inputs],
        padding=True,
        return_tensors="pt",
        **extra,
    )
    mine = collator_of(family)(rows)
    for name, tensor in own.items():
        if name == "cross_attention_mask":  # Mllama's lets padding look at images, which nothing reads
            tensor = tensor * own["attention_mask"][..., None, None]
        if name not in style_of(family).dropped_outputs:
            assert torch.equal(mine[name], tensor), name
    assert set(mine) - set(own) == {"labels", "supervised_positions"}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "paligemma"])
def test_rows_without_images_mix_with_rows_that_have_some(family: str) -> None:
    rows = [conversation(CASES["text"]), conversation(SINGLE), conversation(CASES["text"])]
    batch = collator_of(family)(rows)
    alone = collator_of(family)([rows[1]])
    for name, tensor in alone.items():
        batching = style_of(family).batching(name)
        if name in style_of(family).token_tensors or name in ("input_ids", "labels"):
            assert torch.equal(batch[name][1, : tensor.shape[1]], tensor[0])
        elif name not in ("supervised_positions", "attention_mask") and batching.leading == "row":
            assert len(batch[name]) == 3
            assert torch.equal(batch[name][1:2], tensor)
            assert name == "aspect_ratio_mask" or not batch[name][0].any()
        elif name not in ("supervised_positions", "attention_mask"):
            assert torch.equal(batch[name], tensor)
    text_only = collator_of(family)(rows[:1])
    assert not {"pixel_values", "image_pixel_values"} & set(text_only)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_padded_on_the_left_and_are_what_the_answers_follow(family: str) -> None:
    rows = rows_of(family)
    batch = collator_of(family).prompt_batch(rows)
    assert "labels" not in batch
    length = batch["input_ids"].shape[1]
    for number, row in enumerate(rows):
        full = encoder_of(family).encode(row)
        mask = batch["attention_mask"][number]
        size = int(mask.sum())
        assert mask.tolist() == [0] * (length - size) + [1] * size
        prompt = batch["input_ids"][number, length - size :]
        supervised = full.labels.ne(IGNORE_INDEX)
        runs = [i for i in range(1, len(supervised)) if supervised[i] and not supervised[i - 1]]
        if family in ("llava_onevision", "qwen3_5-think"):  # their prompts end unlike the finished turn
            size = min(size, runs[-1]) - 2
        assert size <= runs[-1]
        assert torch.equal(prompt[:size], full.input_ids[:size])


def test_a_wrong_image_changes_the_pixels_and_nothing_else() -> None:
    for family in FAMILIES:
        batches = [collator_of(family)([conversation(SINGLE, image=picture(red))]) for red in (0, 250)]
        changed = {name for name in batches[0] if not torch.equal(batches[0][name], batches[1][name])}
        assert changed == ({"image_pixel_values"} if "image_pixel_values" in batches[0] else {"pixel_values"})


def test_supervised_positions_are_those_before_a_label() -> None:
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, -100, 8], [-100, -100, -100, 9]])
    assert supervised_positions(labels).tolist() == [[1, 2], [0, 2], [2, -1]]


def test_supervised_positions_give_back_every_label() -> None:
    batch = collator_of("qwen2_5_vl")(rows_of("qwen2_5_vl"))
    for labels, positions in zip(batch["labels"], batch["supervised_positions"], strict=True):
        kept = positions[positions >= 0]
        assert torch.equal(labels[kept + 1], labels[labels.ne(IGNORE_INDEX)])


def test_media_are_joined_as_the_style_says() -> None:
    one, two = torch.ones(1, 2, 3), torch.full((2, 1, 4), 2.0)
    joined = join_media([one, None, two], MediaBatching(pad_value=-1))
    assert joined.tolist() == [
        [[1, 1, 1, -1], [1, 1, 1, -1]],
        [[2, 2, 2, 2], [-1, -1, -1, -1]],
        [[2, 2, 2, 2], [-1, -1, -1, -1]],
    ]
    by_row = join_media([one, None], MediaBatching(leading="row"))
    assert by_row.tolist() == [[[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("family", ["gemma3", "paligemma", "mllama", "phi3_5"])
def test_a_pickled_collator_gives_the_same_batch(family: str) -> None:
    collator = collator_of(family)
    copied: Collator = pickle.loads(pickle.dumps(collator))
    rows = rows_of(family)
    first, second = collator(rows), copied(rows)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_styles_survive_pickling_and_unknown_families_have_one() -> None:
    assert pickle.loads(pickle.dumps(STYLES["mllama"])) == STYLES["mllama"]
    assert style_for("a_family_from_next_year").kind == "chat"


def test_the_processor_is_called_once_per_row_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = processor_of("qwen2_5_vl")
    tokenizer = processor.tokenizer
    encoder = new_encoder("qwen2_5_vl")
    calls: list[dict[str, Any]] = []
    real = type(processor).__call__

    def counted(self: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return real(self, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", counted)
    for case in ("single", "turns", "typed"):
        encoder.encode(case_of("qwen2_5_vl", case))
    encoder.encode_prompt(case_of("qwen2_5_vl", "single"))
    assert len(calls) == 4
    assert processor.tokenizer is tokenizer


def test_a_batch_says_which_rows_it_is_of() -> None:
    rows = [conversation(CASES["single"], row=number) for number in (5, 9)]
    fillable = FillableRows(rows)
    positions = torch.tensor([[1, 2, 5], [4, -1, -1], [-1, -1, -1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    made = {"supervised_positions": positions, "attention_mask": mask}
    batch = NamesRows(lambda rows: made)([fillable[1], fillable[0], fillable[3]])
    assert batch == {
        **made,
        FED: Fed(rows=2, tokens=9, computed=12),
        SUPERVISED: 4,
        ROWS: (BatchRow(1, "rows.jsonl row 9"), BatchRow(0, "rows.jsonl row 5"), BatchRow(1, "rows.jsonl row 9")),
    }
