"""What the core's tables take from this adapter."""

from __future__ import annotations

from vlm_lora.config.declaration import Declaration
from vlm_lora_hpu.configuration import LISTS
from vlm_lora_hpu.modes import LAZY, VARIABLES

DECLARATION = Declaration(
    logger="vlm_lora_gaudi",
    shared_logger="vlm_lora_hpu",
    arguments=("transformers.training_args:TrainingArguments", "vlm_lora_gaudi.arguments:GaudiArguments"),
    flags=frozenset({"gaudi_config_name", "use_lazy_mode", "compile_dynamic", "cache_size_limit"}),
    free_flags=frozenset({"cache_size_limit"}),
    path_flags=frozenset({"gaudi_config_name"}),
    early_flags=frozenset({"gaudi_config_name"}),
    before_torch=frozenset({LAZY, *LISTS.values()}),
    packages=("habana-torch-plugin",),
    launchers=("use_mpi", "use_deepspeed"),
    variables=VARIABLES,
)
