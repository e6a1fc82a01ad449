"""The number of epochs that a training is said to have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vlm_lora.training.telling import epochs_of


@pytest.mark.parametrize(
    ("given", "steps", "epochs"),
    [
        ({"max_steps": -1, "num_train_epochs": 4}, 20, 4.0),
        ({"max_steps": 6}, 6, 1.2),
        ({"max_steps": 6, "dataloader_drop_last": True}, 6, 1.5),
    ],
)
def test_an_epochs_last_step_is_a_step_though_it_is_smaller(
    given: dict[str, object], steps: int, epochs: float
) -> None:
    arguments = SimpleNamespace(**{"num_train_epochs": 3, "dataloader_drop_last": False, **given})
    assert epochs_of(arguments, steps, batch=4, epoch=18) == epochs
