"""The members of transformers' Trainer that the project overrides or calls, private ones with their parameters.

A new transformers that moves one of them fails here first, with its name.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import transformers

from vlm_lora.backend import installed
from vlm_lora.compat import IS_5
from vlm_lora.training.trainer import VlmTrainerMixin

ROOT = Path(__file__).parents[2]
PRIVATE = {
    "_get_eval_sampler": ("eval_dataset",),
    "_get_train_sampler": ("train_dataset",),
    "_inner_training_loop": ("batch_size", "args", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_load_rng_state": ("checkpoint",),
    "_maybe_log_save_evaluate": (
        *("tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate"),
    ),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
}
"""Name and parameters, in both versions, of those that are overridden."""
CALLED = {
    "_determine_best_metric": ("metrics", "trial"),
    "_evaluate": ("trial", "ignore_keys_for_eval", "skip_scheduler"),
    "_prepare_inputs": ("inputs",),
}
"""The same of those that are only called."""
PUBLIC = {
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_optimizer": ("model",) if IS_5 else (),
    "create_scheduler": ("num_training_steps", "optimizer"),
    "evaluate": ("eval_dataset", "ignore_keys", "metric_key_prefix"),
    "evaluation_loop": ("dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"),
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "get_eval_dataloader": ("eval_dataset",),
    "get_train_dataloader": (),
    "log": ("logs", "start_time"),
    "prediction_step": ("model", "inputs", "prediction_loss_only", "ignore_keys"),
    "save_model": ("output_dir", "_internal_call"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
}
USABLE = sorted(name for name, backend in installed().items() if backend.probe().usable)


def parameters(owner: type, name: str) -> tuple[str, ...]:
    found = inspect.signature(getattr(owner, name)).parameters.values()
    return tuple(one.name for one in found if one.name != "self" and one.kind is not one.VAR_KEYWORD)


@pytest.mark.parametrize("name", [*PRIVATE, *CALLED, *PUBLIC])
def test_it_is_there_with_these_parameters(name: str) -> None:
    assert parameters(transformers.Trainer, name) == {**PRIVATE, **CALLED, **PUBLIC}[name]


@pytest.mark.parametrize("backend", USABLE)
def test_a_backends_trainer_has_them_too(backend: str) -> None:
    trainer = installed()[backend].trainer_class()
    assert [name for name in (*PRIVATE, *CALLED, *PUBLIC) if not hasattr(trainer, name)] == []


def test_the_tables_name_every_member_that_is_overridden() -> None:
    own = {name for name, member in vars(VlmTrainerMixin).items() if inspect.isfunction(member)}
    overridden = {name for name in own if hasattr(transformers.Trainer, name)}
    assert overridden - {"train"} == PRIVATE.keys() | PUBLIC.keys()


def called(source: str) -> set[str]:
    """Return the private members that are called on something named trainer or super()."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            named = isinstance(owner, ast.Name) and owner.id == "trainer"
            parent = isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super"
            if named or parent:
                found.add(node.attr)
    return found


def test_the_table_names_every_private_member_that_is_called() -> None:
    files = [*(ROOT / "vlm_lora" / "training").rglob("*.py"), ROOT / "vlm_lora" / "pipeline.py"]
    names = set().union(*(called(path.read_text(encoding="utf-8")) for path in files))
    assert "_save_checkpoint" in names
    assert {name for name in names if hasattr(transformers.Trainer, name)} <= PRIVATE.keys() | CALLED.keys()


def test_the_search_sees_a_call() -> None:
    """The control."""
    assert called("trainer._maybe_log()\nsuper()._inner()\nself._own()") == {"_maybe_log", "_inner"}
