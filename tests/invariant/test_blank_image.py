"""A blank image behind a row changes no loss and gives the tower gradients of zero, in every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support.tiny.folders import available
from vlm_lora.batching.blank import blank_conversation, with_blank
from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.data.conversation import Conversation, RowSource, Text, Turn
from vlm_lora.model.loading import load_model
from vlm_lora.model.objective import SupervisedHead, gather_targets
from vlm_lora.model.parts import find_parts
from vlm_lora.session import open_preprocessing

NO_TEXT_ONLY = ("paligemma",)
"""Its processor takes no row without an image."""
SEES_WHAT_FOLLOWS = ("mllama",)
"""transformers lets a token that may see no image attend to all of them, in a batch that has one."""


def text_rows() -> list[Conversation]:
    def row(number: int, question: str, answer: str) -> Conversation:
        turns = (
            Turn(role="user", parts=(Text(text=question),)),
            Turn(role="assistant", parts=(Text(text=answer),)),
        )
        return Conversation(turns=turns, source=RowSource(file="text", row=number))

    return [row(0, "How many are there?", "two"), row(1, "Which is it?", "the large one on the left")]


def losses_of(model: Any, head: SupervisedHead, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = dict(batch)
    positions = inputs.pop("supervised_positions")
    targets = gather_targets(inputs.pop("labels"), positions)
    with head.on(positions, targets):
        return head.losses(model(**inputs).logits, targets)


@pytest.mark.parametrize("name", [name for name in available() if name not in NO_TEXT_ONLY])
def test_losses_stay_and_the_tower_gets_zeros(
    name: str, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(model_name_or_path=str(model_folder(name)), trust_remote_code=True)
    tools = open_preprocessing(RunConfig(model=config))
    model = load_model(config, model_kwargs={"torch_dtype": torch.float32})
    head = SupervisedHead(model)
    rows = text_rows()
    without = losses_of(model, head, tools.collator(rows))
    tools.collator.require_images()
    batch = tools.collator(rows)
    losses = losses_of(model, head, batch)
    exact = name not in SEES_WHAT_FOLLOWS
    assert torch.allclose(losses, without, rtol=1e-5, atol=1e-6) is exact
    losses.sum().backward()
    parts = find_parts(model, tools.family)
    reached = [p.grad for n, p in model.named_parameters() if parts.part_of(n) == "vision" and p.grad is not None]
    assert reached, "the tower took part"
    if exact:
        assert all(not gradient.any() for gradient in reached)


def test_in_front_of_the_row_it_would_change_the_losses(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: where earlier tokens can see it, the test above notices."""
    config = ModelConfig(model_name_or_path=str(model_folder("gemma3")))
    tools = open_preprocessing(RunConfig(model=config))
    model = load_model(config, model_kwargs={"torch_dtype": torch.float32})
    head = SupervisedHead(model)
    rows = [tools.encoder.encode(row) for row in text_rows()]
    without = losses_of(model, head, tools.collator.collate(rows))
    (joined,) = with_blank([rows[0]], tools.encoder.encode(blank_conversation()))
    moved = in_front(joined, len(rows[0].input_ids))
    losses = losses_of(model, head, tools.collator.collate([moved, rows[1]]))
    assert not torch.allclose(losses[0], without[0], rtol=1e-3)


def in_front(row: EncodedRow, length: int) -> EncodedRow:
    """Return the row with its first `length` tokens moved behind the others."""

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[length:], tensor[:length]])

    return replace(
        row,
        input_ids=turned(row.input_ids),
        labels=turned(row.labels),
        token_tensors={name: turned(tensor) for name, tensor in row.token_tensors.items()},
    )


def test_a_batch_with_an_image_stays_as_it_is(model_folder: Callable[[str], Path]) -> None:
    tools = open_preprocessing(RunConfig(model=ModelConfig(model_name_or_path=str(model_folder("gemma3")))))
    rows = [*text_rows(), blank_conversation()]
    plain = tools.collator(rows)
    tools.collator.require_images()
    with_images = tools.collator(rows)
    assert all(torch.equal(plain[name], with_images[name]) for name in plain)
