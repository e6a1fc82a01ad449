"""The loss on supervised positions equals the loss on all positions."""

import pytest
import torch
from torch import nn

from vlm_lora.errors import ModelError
from vlm_lora.model.objective import SupervisedHead, gather_targets, row_sums
from vlm_lora.training.trainer import perplexity_metrics

LABELS = torch.tensor([[-100, -100, 3, 4, -100], [-100, 2, -100, -100, 1]])
POSITIONS = torch.tensor([[1, 2, -1], [0, 3, -1]])


class Body(nn.Module):
    """A model of one embedding and one head, called `calls` times."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(8, 6)
        self.head = nn.Linear(6, 8)
        self.calls = calls

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        for _ in range(self.calls):
            logits = self.head(hidden)
        return logits


def test_targets_are_the_next_tokens() -> None:
    assert gather_targets(LABELS, POSITIONS).tolist() == [[3, 4, -100], [2, 1, -100]]


def test_head_sees_only_supervised_positions_and_the_loss_is_the_same() -> None:
    model = Body()
    ids = torch.tensor([[1, 2, 3, 4, 5], [5, 2, 6, 0, 1]])
    full = model(ids)
    expected = nn.functional.cross_entropy(
        full[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    head = SupervisedHead(model)
    targets = gather_targets(LABELS, POSITIONS)
    with head.on(POSITIONS, targets):
        compact = model(ids)
    assert compact.shape == (2, 3, 8)
    total = head.losses(compact, targets).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    wrong = head.losses(compact, gather_targets(LABELS.flip(0), POSITIONS.flip(0))).sum()
    assert wrong.item() != pytest.approx(expected.item(), rel=1e-3)
    torch.testing.assert_close(model(ids), full)


def test_row_sums_count_each_row_by_itself() -> None:
    losses = torch.tensor([[0.5, 1.5, 0.0], [2.0, 4.0, 0.0]])
    sums = row_sums(losses, gather_targets(LABELS, POSITIONS))
    torch.testing.assert_close(sums, torch.tensor([[2.0, 2.0], [6.0, 2.0]]))


def run_times(model: Body, head: SupervisedHead, calls: int) -> None:
    with head.on(POSITIONS, gather_targets(LABELS, POSITIONS)):
        for _ in range(calls):
            model(torch.zeros(2, 5, dtype=torch.long))


@pytest.mark.parametrize("calls", [0, 2])
def test_a_head_that_does_not_run_once_is_an_error(calls: int) -> None:
    model = Body(calls=1)
    head = SupervisedHead(model)
    with pytest.raises(ModelError, match=f"{calls} times"):
        run_times(model, head, calls)


def test_logits_of_another_shape_are_an_error() -> None:
    with pytest.raises(ModelError, match="supervised positions"):
        SupervisedHead(Body()).losses(torch.zeros(2, 5, 8), torch.zeros(2, 3, dtype=torch.long))


def test_perplexity_is_one_division_at_the_end() -> None:
    figures = perplexity_metrics(torch.tensor([[2.0, 1.0], [3.0, 9.0]]), "eval")
    assert figures["eval_loss"] == pytest.approx(0.5)
    assert figures["eval_perplexity"] == pytest.approx(1.6487212707)
    assert figures["eval_supervised_tokens"] == 10
