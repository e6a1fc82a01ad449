"""What the core's tables take from this adapter: optimum-habana's flags, and the names that Gaudi's users give."""

from __future__ import annotations

from vlm_lora.config.declaration import Declaration, renamed, switch
from vlm_lora_hpu.configuration import LISTS
from vlm_lora_hpu.modes import LAZY, VARIABLES
from vlm_lora_hpu.roads import NEW, OLD, road

_USERS = "LoRA on Gaudi"

_FREE = """
    use_hpu_graphs use_hpu_graphs_for_inference use_hpu_graphs_for_training
    disable_tensor_cache_hpu_graphs max_hpu_graphs cache_size_limit ignore_eos throughput_warmup_steps
    adjust_throughput profiling_warmup_steps profiling_steps profiling_warmup_steps_eval
    profiling_steps_eval profiling_record_shapes profiling_with_stack non_blocking_data_copy
"""
"""Keys of GaudiTrainingArguments (1.21) that transformers' class does not have, and that change no result."""

_OTHERS = """
    gaudi_config_name use_lazy_mode use_compiled_autograd compile_from_sec_iteration compile_dynamic
    use_zero3_leaf_promotion use_regional_compilation inline_inbuilt_nn_modules
    allow_unspec_int_on_nn_module distribution_strategy context_parallel_size minimize_memory
    pipelining_fwd_bwd flash_attention_recompute flash_attention_fast_softmax
    flash_attention_causal_mask flash_attention_fp8 sdp_on_bf16 fp8
"""
"""Those that change it."""

DECLARATION = Declaration(
    logger="vlm_lora_habana",
    shared_logger="vlm_lora_hpu",
    arguments=(
        "transformers.training_args:TrainingArguments",
        "optimum.habana.transformers.training_args:GaudiTrainingArguments",
    ),
    flags=frozenset((_FREE + _OTHERS).split()),
    free_flags=frozenset(_FREE.split()),
    path_flags=frozenset({"gaudi_config_name"}),
    early_flags=frozenset({"gaudi_config_name"}),
    before_torch=frozenset({LAZY, *LISTS.values()}),
    aliases=(
        switch(
            _USERS,
            "use_habana",
            "backend",
            true=road(),
            false=None,
            implied=(OLD, NEW),
            text="true: backend = gaudi with transformers 5, habana with optimum-habana; false: not set",
        ),
        *renamed(_USERS, lora_target_modules="lora_targets"),
    ),
    packages=("optimum-habana", "habana-torch-plugin"),
    files=("gaudi_config.json",),
    launchers=("use_mpi", "use_deepspeed"),
    variables=VARIABLES,
)
