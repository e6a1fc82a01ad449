"""How LoRA's matrices begin (`--lora_init`): only in ways that leave the base as it is.

Whatever begins so loads on the untouched base again: an adapter's file holds all there is.
"""

from __future__ import annotations

from torch import nn

from vlm_lora.config.run_config import TuningConfig
from vlm_lora.config.sections.tuning import STARTS
from vlm_lora.errors import ConfigError
from vlm_lora.model.adapters.targets import CONVOLUTIONS, Targets


def start_setting(tuning: TuningConfig) -> bool | str:
    """Return `init_lora_weights` for PEFT."""
    return True if tuning.lora_init == STARTS[0] else tuning.lora_init


def check_start(tuning: TuningConfig, model: nn.Module, targets: Targets) -> None:
    """Refuse a start that PEFT has for linear layers alone where LoRA is on anything else.

    Raises:
        ConfigError: names it and what to type.
    """
    if tuning.lora_init != "orthogonal":
        return
    convolutions = [name for name in targets.modules if isinstance(model.get_submodule(name), CONVOLUTIONS)]
    others = [*targets.parameters, *convolutions]
    if others:
        raise ConfigError(
            f"--lora_init orthogonal with LoRA on {others[0]}: PEFT begins linear layers so, and neither experts in "
            "one tensor nor convolutions. Type --lora_init default or gaussian, or leave them out, for example by "
            "--lora_targets language."
        )
