"""ZeRO-3 of an older DeepSpeed lets go of frozen weights before a checkpointed layer is computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.zero import partitioned_param_coordinator

from support.tiny.batches import load_plainly
from vlm_lora.backend import installed
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.families import family_of
from vlm_lora.model.tuning import apply_tuning
from vlm_lora.training.engine import refuse_lost_weights

LORA, FULL = TuningConfig(lora_rank=2), TuningConfig(peft_method="none")


def check(folder: Path, tuning: TuningConfig, stage: int | None) -> None:
    _, model = load_plainly(folder)
    family = family_of(model.config)
    arguments: Any = SimpleNamespace(deepspeed_plugin=None if stage is None else SimpleNamespace(zero_stage=stage))
    refuse_lost_weights(arguments, apply_tuning(model, family, tuning), family, installed()["cpu"])


def test_an_older_deepspeed_is_refused_where_weights_are_frozen(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder("llava")
    check(folder, LORA, 3)  # the installed one has the cure
    monkeypatch.delattr(partitioned_param_coordinator, "update_recompute_parameters")
    with pytest.raises(ConfigError, match=r"ZeRO-3 and frozen weights: .*--deepspeed zero2.*to 0\.19\.3 or later"):
        check(folder, LORA, 3)
    check(folder, FULL, 3)
    check(folder, LORA, 2)
    check(folder, LORA, None)
