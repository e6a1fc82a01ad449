"""Every setting has a row that says what its change means to a run that goes on; names lead to rows."""

from __future__ import annotations

from dataclasses import fields

import pytest

from vlm_lora.backend import installed
from vlm_lora.config.fields import own_fields
from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.changed_settings import check_allowed
from vlm_lora.training.checkpoints.setting_kinds import Kind, kind_of, kinds


def arguments_classes() -> dict[str, type]:
    return {name: backend.arguments_class() for name, backend in installed().items() if backend.probe().usable}


def test_each_setting_has_a_row() -> None:
    """One that has none counts as changing the result: give a new one its row in `setting_kinds`."""
    classes = arguments_classes()
    assert classes
    known = {*own_fields(), *(field.name for cls in classes.values() for field in fields(cls))}
    assert sorted(known - kinds().keys()) == []


def test_an_unknown_setting_changes_the_result() -> None:
    assert kind_of("a_field_of_tomorrow") is Kind.CHANGES_RESULT
    assert kind_of("hub_token") is kind_of("token") is Kind.NOT_RECORDED


ALLOWED = {
    "learning_rate": "learning_rate",
    "weight-decay": "weight_decay",
    "--seed": "seed",
    "warmup_ratio": "warmup_steps",
    "epochs": "num_train_epochs",
    "torch_dtype": "dtype",
    "per_device_train_batch_size": "global_batch_size",
    "grad_accum": "global_batch_size",
    "optim": "optim",
}


@pytest.mark.parametrize("name", ALLOWED)
def test_any_name_of_a_setting_may_be_allowed(name: str) -> None:
    assert check_allowed([name], arguments_classes()["cpu"]) == {ALLOWED[name]}


def test_several_names_in_one_text() -> None:
    names = check_allowed(["learning_rate, seed", "bf16"], arguments_classes()["cpu"])
    assert names == {"learning_rate", "seed", "bf16"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lerning_rate", ("--allow_changed lerning_rate", "is no setting", "Did you mean 'learning_rate'?")),
        ("use_ipexx", ("is no setting",)),
        ("lora_r", ("--lora_rank cannot be changed", "A new run may begin", "--model_name_or_path")),
        ("dataset_name", ("cannot be changed",)),
    ],
)
def test_names_that_cannot_be_allowed(name: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        check_allowed([name], arguments_classes()["cpu"])
    for word in words:
        assert word in str(refused.value)
