"""A frozen tower of convolutions is the same one after training: its running statistics stay, too."""

from __future__ import annotations

import torch
from torch import nn

from vlm_lora.model.tuning import keep_statistics


def tower(*, trained: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(trained)


def test_frozen_statistics_stay_and_are_normalised_by() -> None:
    pixels = torch.randn(2, 3, 8, 8)
    model = tower(trained=False)
    assert keep_statistics(model) == 1
    expected = model.eval()(pixels)
    assert torch.equal(model.train()(pixels), expected)
    assert torch.equal(model.state_dict()["1.running_mean"], torch.zeros(4))


def test_trained_statistics_move() -> None:
    """The control: the same batch in the same mode, with weights that train."""
    pixels = torch.randn(2, 3, 8, 8)
    model = tower(trained=True)
    assert keep_statistics(model) == 0
    expected = model.eval()(pixels)
    assert not torch.allclose(model.train()(pixels), expected)
    assert not torch.equal(model.state_dict()["1.running_mean"], torch.zeros(4))
