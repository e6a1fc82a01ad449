"""How far rounding alone moves what a model says."""

from __future__ import annotations

import pytest
import torch

from vlm_lora.deploy.readings import largest_difference, nudge


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_weight_moves_by_one_rounding_error_the_same_each_time(dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, again = (torch.nn.Linear(64, 64).to(dtype) for _ in range(2))
    again.load_state_dict(layer.state_dict())
    before = layer.weight.detach().clone()
    nudge(layer)
    moved = ((layer.weight - before) / before).abs() / torch.finfo(dtype).eps
    assert 0.5 <= float(moved.min().detach()) <= float(moved.max().detach()) <= 2
    assert 0.4 < float((layer.weight.abs() > before.abs()).float().mean()) < 0.6
    nudge(again)
    assert torch.equal(again.weight, layer.weight)


def test_what_is_not_finite_is_infinitely_far() -> None:
    one, other = torch.zeros(2, 3), torch.full((2, 3), float("nan"))
    assert largest_difference([one], [one + 0.5]) == 0.5
    assert largest_difference([one, one], [one, other]) == float("inf")
