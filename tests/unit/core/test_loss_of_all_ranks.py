"""The loss of a training is that of all its ranks, also of the steps since the last log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlm_lora.compat import IS_5
from vlm_lora.training.checkpoints.so_far import SoFar


def trainer_of(ranks: list[float], *, step: int, begun: int) -> Any:
    """Return what a rank sees of a trainer, whose ranks' sums since the last log are these."""
    return SimpleNamespace(
        args=SimpleNamespace(world_size=len(ranks)),
        accelerator=SimpleNamespace(gather=lambda value: torch.tensor(ranks)),
        state=SimpleNamespace(global_step=step),
        finite=SimpleNamespace(skipped=SimpleNamespace(begun=begun)),
    )


def logged(ranks: list[float], *, rank: int, step: int, begun: int = 0) -> float:
    """Return what a rank logs: 2.0 before the last log, and then its own sum, over the steps that were made."""
    so_far = SoFar()
    so_far.note_loss(torch.tensor(ranks[rank]))
    logs: dict[str, Any] = {"train_loss": (2.0 + ranks[rank]) / (step - begun if IS_5 else step)}
    so_far.of_all_ranks(logs, trainer_of(ranks, step=step, begun=begun))
    return float(logs["train_loss"])


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_logs_the_mean(rank: int) -> None:
    assert logged([1.0, 3.0], rank=rank, step=4) == pytest.approx(1.0)
    assert logged([1.0, 3.0], rank=rank, step=4, begun=2) == pytest.approx(2.0 if IS_5 else 1.0)


def test_one_rank_and_other_logs_are_left_as_they_are() -> None:
    assert logged([1.0], rank=0, step=4) == 0.75
    so_far, logs = SoFar(), {"loss": 7.0}
    so_far.note_loss(torch.tensor(1.0))
    so_far.of_all_ranks(logs, trainer_of([1.0, 3.0], step=4, begun=0))
    assert logs == {"loss": 7.0}
