"""Rows in a pack have the losses and give the gradient that they have unpacked, in every family that packs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention as attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from support.tiny.folders import available
from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.batching.packing.attention import visible
from vlm_lora.batching.packing.collation import PACK_ROWS, Pack, PackCollator, joined
from vlm_lora.batching.packing.inputs import PackedInputs
from vlm_lora.compat import IS_5
from vlm_lora.config.run_config import ModelConfig, RunConfig, TuningConfig
from vlm_lora.data.conversation import Conversation, ImageRef, Part, RowSource, Text, Turn
from vlm_lora.model.families import FAMILIES
from vlm_lora.model.loading import load_model
from vlm_lora.model.objective import SupervisedHead, gather_targets
from vlm_lora.model.tuning import apply_tuning
from vlm_lora.session import open_preprocessing
from vlm_lora.training.feeding.packing import packed_inputs

PACKED = [name for name in available() if (known := FAMILIES.get(name.partition("-")[0])) and known.packing.packs]
SHAPES = ("gemma3", "qwen2_5_vl", "llava")
CLOSE = 1e-5
FAR = 1e-3


def rows_of(name: str) -> list[Conversation]:
    """Rows with one image, none, several, and one again, starting at different places."""
    generator = np.random.default_rng(3)

    def picture() -> ImageRef:
        sides = generator.integers(32, 64, 2)
        return ImageRef(source=Image.fromarray(generator.integers(0, 256, (*sides, 3), dtype=np.uint8)))

    def row(number: int, parts: Sequence[Part], answer: str) -> Conversation:
        turns = (Turn(role="user", parts=tuple(parts)), Turn(role="assistant", parts=(Text(text=answer),)))
        return Conversation(turns=turns, source=RowSource(file="rows.jsonl", row=number))

    if name == "llava_onevision" and not IS_5:  # 4.55's takes no row of several images beside one of a single one
        return [row for row in rows_of("gemma3") if len(row.images) < 2]
    if name == "paligemma":  # images first, and never none
        return [
            row(1, (picture(), Text(text="Which is it?")), "the large one on the left"),
            row(2, (picture(), Text(text="How many are there in all of it?")), "two"),
            row(3, (picture(), Text(text="What?")), "a red bus and a blue one"),
        ]
    return [
        row(1, (Text(text="Look: "), picture(), Text(text="which is it?")), "the large one on the left"),
        row(2, (Text(text="How many sides has a square?"),), "four"),
        row(
            3,
            (
                Text(text="Compare these two, please, and say in a few words what they have in common: "),
                picture(),
                Text(text=" and "),
                picture(),
            ),
            "both are red",
        ),
        row(4, (picture(), Text(text="What?")), "a bus"),
    ]


class Bench:
    """A tiny model, its collator for rows and packs, and what turns packs into its inputs."""

    def __init__(self, folder: Path, attention: str = "sdpa") -> None:
        config = ModelConfig(model_name_or_path=str(folder), trust_remote_code=True)
        self.tools = open_preprocessing(RunConfig(model=config))
        family = self.tools.family
        self.collator = PackCollator(
            self.tools.encoder, family.rendering, pad_token_id=self.tools.tokenizer.pad_token_id
        )
        self.model = load_model(config, model_kwargs={"torch_dtype": torch.float32, "attn_implementation": attention})
        self.head = SupervisedHead(self.model)
        self.inputs = packed_inputs(self.model, family, longest=64)

    def add_lora(self) -> None:
        torch.manual_seed(0)
        self.model = apply_tuning(
            self.model, self.tools.family, TuningConfig(lora_rank=2), revision="main", learning_rate=1e-3
        )
        for name, matrix in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(matrix, std=0.2)
        self.head = SupervisedHead(self.model)
        self.inputs = packed_inputs(self.model, self.tools.family, longest=64)

    def token_losses(self, batch: dict[str, Any]) -> torch.Tensor:
        inputs = dict(batch)
        positions = inputs.pop("supervised_positions")
        targets = gather_targets(inputs.pop("labels"), positions)
        with self.head.on(positions, targets):
            return self.head.losses(self.model(**inputs).logits, targets)

    def gradient(self, losses: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gradient of the sum of losses, by parameter."""
        self.model.zero_grad()
        losses.sum().backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def unpacked(self, rows: Sequence[Conversation]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        losses = self.token_losses(self.collator(rows)).sum(dim=1)
        return losses.detach(), self.gradient(losses)

    def packs(self, *packs: Sequence[Conversation]) -> dict[str, Any]:
        return self.collator([Pack(rows=tuple(pack)) for pack in packs])

    def packed(self, batch: dict[str, Any], inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Losses of each row of a batch of packs, pack by pack, and the gradient of their sum."""
        losses = self.token_losses(inputs)
        positions = batch["supervised_positions"].clamp(min=0)
        owners = (batch[PACK_ROWS] + torch.arange(len(positions))[:, None] * 100).gather(1, positions)
        rows = [number for number in torch.unique(owners).tolist() if number % 100]
        by_row = torch.stack([losses[owners == number].sum() for number in rows])
        return by_row.detach(), self.gradient(losses)


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The distance of two gradients as a share of the first's length."""
    assert one.keys() == other.keys()
    apart = sum(float((one[name] - other[name]).double().square().sum()) for name in one)
    return float((apart / sum(float(tensor.double().square().sum()) for tensor in one.values())) ** 0.5)


@pytest.mark.parametrize("name", PACKED)
def test_losses_and_gradient_are_those_of_the_rows_alone(name: str, model_folder: Callable[[str], Path]) -> None:
    bench = Bench(model_folder(name))
    rows = rows_of(name)
    losses, gradient = bench.unpacked(rows)
    batch = bench.packs(rows[:2], rows[2:])
    packed, of_packs = bench.packed(batch, bench.inputs.prepare(batch))
    torch.testing.assert_close(packed, losses, rtol=CLOSE, atol=0)
    assert far(gradient, of_packs) < CLOSE


@pytest.mark.parametrize("name", SHAPES)
def test_eager_attention_with_lora_too(name: str, model_folder: Callable[[str], Path]) -> None:
    """All rows in one pack, a mask to add, and adapters in the language model."""
    bench = Bench(model_folder(name), "eager")
    bench.add_lora()
    rows = rows_of(name)
    losses, gradient = bench.unpacked(rows)
    batch = bench.packs(rows)
    packed, of_pack = bench.packed(batch, bench.inputs.prepare(batch))
    torch.testing.assert_close(packed, losses, rtol=CLOSE, atol=0)
    assert far(gradient, of_pack) < CLOSE


def varlen_reference(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **told: Any,
) -> tuple[torch.Tensor, None]:
    """What flash attention computes, segment by segment: `(B, heads, T, d)` in, `(B, T, heads, d)` out."""
    assert attention_mask is None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    bounds = torch.arange(len(query) + 1) * query.shape[2] if cu_seq_lens_q is None else cu_seq_lens_q
    q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    if cu_seq_lens_q is not None:
        assert torch.equal(told["cu_seq_lens_k"], cu_seq_lens_q)
        assert told["max_length_q"] == told["max_length_k"] == int(bounds.diff().max())
        assert int(bounds[-1]) == len(q)
    pieces = []
    for start, end in pairwise(bounds.tolist()):
        mask = visible(torch.ones(1, end - start), window=sliding_window)[0] if causal else None
        own = [states[start:end].transpose(0, 1) for states in (q, k, v)]
        pieces.append(attention(own[0], own[1], own[2], attn_mask=mask, scale=scaling).transpose(0, 1))
    return torch.cat(pieces).view(len(query), query.shape[2], query.shape[1], -1), None


BY_SEGMENTS = [name for name in PACKED if FAMILIES[name.partition("-")[0]].packing.flash]
# 4.55 makes masks for vision towers wherever attention is by a name that it does not know.
BY_SEGMENTS = BY_SEGMENTS if IS_5 else ["qwen2_5_vl", "llava"]


@pytest.mark.parametrize("name", BY_SEGMENTS)
def test_flash_attention_is_told_where_each_row_begins(
    name: str, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in that takes what the kernels take, in all parts of the model: no GPU computes it here."""
    bench = Bench(model_folder(name))
    rows = rows_of(name)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_reference", varlen_reference)
    for part in bench.model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = "flash_reference"
    inputs = packed_inputs(bench.model, bench.tools.family, longest=64)
    one_by_one = [{**bench.collator([row]), "attention_mask": None} for row in rows]
    losses = torch.stack([bench.token_losses(batch).sum() for batch in one_by_one])
    gradient = bench.gradient(losses)
    batch = bench.packs(rows[:2], rows[2:])
    packed, of_packs = bench.packed(batch, inputs.prepare(batch))
    torch.testing.assert_close(packed, losses.detach(), rtol=CLOSE, atol=0)
    assert far(gradient, of_packs) < CLOSE
    # The control, and what an evaluation in between would be: told nothing, whole sequences are one row.
    packed, _ = bench.packed(batch, {**inputs.prepare(batch), **untold(inputs)})
    assert ((packed - losses) / losses).abs().max() > FAR


def untold(inputs: PackedInputs) -> dict[str, Any]:
    """Let go of what the next pass would be told."""
    inputs._told = {}
    return {}


def left_to_positions(bench: Bench, batch: dict[str, Any]) -> dict[str, Any]:
    """What most tools do: positions that restart, and the mask of ones that a collator makes."""
    return dict(bench.inputs.prepare(batch), attention_mask=batch["attention_mask"])


def running_on(bench: Bench, batch: dict[str, Any]) -> dict[str, Any]:
    """A mask that ends no row: positions of one long row say no more."""
    return bench.inputs.prepare(dict(batch, pack_rows=torch.ones_like(batch[PACK_ROWS])))


def rope_over_the_pack(bench: Bench, batch: dict[str, Any]) -> dict[str, Any]:
    """M-RoPE and mask as the model makes them where it is told nothing of rows."""
    return {name: value for name, value in batch.items() if name != PACK_ROWS}


def rope_of_text(bench: Bench, batch: dict[str, Any]) -> dict[str, Any]:
    """Positions that restart for each row, and know nothing of its images."""
    places = torch.cat([torch.arange(int(count)) for count in torch.unique(batch[PACK_ROWS], return_counts=True)[1]])
    return dict(bench.inputs.prepare(batch), position_ids=places.expand(3, 1, -1))


def joined_images(bench: Bench, batch: dict[str, Any]) -> dict[str, Any]:
    """The last image of a row and the first of the next one as one."""
    inputs = bench.inputs.prepare(batch)
    image, rows = batch["token_type_ids"][0].eq(1), batch[PACK_ROWS][0]
    span = image & ((rows == 3) | (rows == 4))
    together = span[:, None] & span[None, :]
    return dict(inputs, attention_mask={kind: mask | together for kind, mask in inputs["attention_mask"].items()})


CONTROLS = [
    *((name, control) for name in SHAPES for control in (left_to_positions, running_on)),
    *(("qwen2_5_vl", control) for control in (rope_over_the_pack, rope_of_text)),
    ("gemma3", joined_images),
]


@pytest.mark.parametrize(("name", "wrong"), CONTROLS)
def test_a_wrong_pack_is_noticed(
    name: str,
    wrong: Callable[[Bench, dict[str, Any]], dict[str, Any]],
    model_folder: Callable[[str], Path],
) -> None:
    bench = Bench(model_folder(name))
    rows = rows_of(name)
    losses, gradient = bench.unpacked(rows)
    batch = bench.packs(rows)
    packed, of_pack = bench.packed(batch, wrong(bench, batch))
    assert ((packed - losses) / losses).abs().max() > FAR
    assert far(gradient, of_pack) > FAR


def test_no_row_learns_the_first_token_of_the_next(model_folder: Callable[[str], Path]) -> None:
    """Even where a row's very first token has a label, none in front of it is asked for it."""
    bench = Bench(model_folder("llava"))
    rows = [bench.tools.encoder.encode(row) for row in rows_of("llava")]
    pack = joined([replace(row, labels=row.input_ids.clone()) for row in rows], bench.tools.family.rendering)
    begins = torch.tensor([0, *(len(row.input_ids) for row in rows[:-1])]).cumsum(0)
    assert pack.labels[begins].eq(IGNORE_INDEX).all()
    assert int(pack.labels.ne(IGNORE_INDEX).sum()) == len(pack.labels) - len(rows)
    positions = bench.collator.collate([pack])["supervised_positions"][0]
    assert not set((begins - 1).tolist()) & set(positions.tolist())
