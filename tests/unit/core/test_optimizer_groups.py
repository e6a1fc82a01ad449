"""Groups of an optimizer without a weight, which one trainer makes and the other does not: neither keeps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlm_lora.errors import ConfigError
from vlm_lora.training.rates import drop_empty_groups, resumed_rates


def adam(*groups: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW([{"params": group, "weight_decay": place / 10} for place, group in enumerate(groups)])


def state_after_a_step(*groups: list[torch.nn.Parameter]) -> dict[str, Any]:
    optimizer = adam(*groups)
    for group in groups:
        for parameter in group:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


@pytest.fixture
def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3))


def test_an_empty_group_goes_and_others_stay(weight: torch.nn.Parameter) -> None:
    optimizer = adam([], [weight], [])
    drop_empty_groups(optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]
    none = type("Engine", (), {})()
    drop_empty_groups(none)  # ZeRO-3's has no groups of its own


@pytest.mark.parametrize("saved_with", ["an empty group", "none"])
def test_a_checkpoint_with_and_without_goes_on(saved_with: str, weight: torch.nn.Parameter) -> None:
    state = state_after_a_step([weight], []) if saved_with == "an empty group" else state_after_a_step([weight])
    optimizer = adam([weight])
    with resumed_rates("checkpoint-1", optimizer):
        optimizer.load_state_dict(state)
    assert optimizer.state[weight]["step"] == 1
    with pytest.raises(ValueError, match="parameter group"):
        adam([weight]).load_state_dict(state_after_a_step([weight], []))  # the control: outside of the context


def test_another_optimizers_state_is_refused_and_another_versions_is_not(weight: torch.nn.Parameter) -> None:
    """As Gaudi's fused AdamW and torch's, which a record calls by one name."""
    state = state_after_a_step([weight])
    groups = state["param_groups"][0]
    older = {**state, "param_groups": [{name: groups[name] for name in groups if name != "capturable"}]}
    other = {**state, "param_groups": [{**older["param_groups"][0], "bias_correction": True}]}
    optimizer = adam([weight])
    with resumed_rates("checkpoint-1", optimizer):
        optimizer.load_state_dict(older)
    said = "of another optimizer, with bias_correction and without capturable, which this run's AdamW has"
    with pytest.raises(ConfigError, match=said), resumed_rates("checkpoint-1", optimizer):
        optimizer.load_state_dict(other)


def test_other_weights_are_refused(weight: torch.nn.Parameter) -> None:
    other = torch.nn.Parameter(torch.ones(2))
    optimizer = adam([weight])
    with pytest.raises(ConfigError, match="has other groups of weights"), resumed_rates("checkpoint-1", optimizer):
        optimizer.load_state_dict(state_after_a_step([weight], [other]))
