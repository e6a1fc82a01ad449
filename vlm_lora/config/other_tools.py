"""What users of TRL, LLaMA-Factory, ms-swift, axolotl and fms-hf-tuning type, and what becomes of it here.

Read from the argument classes of trl 1.16 (`SFTConfig`, `ModelConfig`, `ScriptArguments`), LLaMA-Factory
(`src/llamafactory/hparams`), ms-swift (`swift/arguments`, `swift/trainers/arguments.py`), axolotl
(`src/axolotl/utils/schemas`) and fms-hf-tuning (`tuning/config`), November 2026.

A name that means the same as one of ours is another name of it. One that says nothing about what happens here is
accepted with the values that ask for what happens anyway, null among them; any other value is refused in one line that
says what to type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_lora.config.declaration import Alias, renamed, switch
from vlm_lora.config.name_rows import Dropped, OtherName

CONFIG_DRIVEN = "config-driven tuning"
TRL, LLAMA_FACTORY, SWIFT, AXOLOTL = "TRL", "LLaMA-Factory", "ms-swift", "axolotl"
_SEVERAL = "several tools"

_NO_PACKING = "rows are not packed together; leave it out"
_TEMPLATE = (
    "rows are rendered by the chat template in the model's folder, as it will be served; leave it out, or put another "
    "chat_template.jinja there"
)
_TOKENS = "tokens are not added in training; add them to the model's folder before, or leave it out"
_MODULES = "parts without LoRA stay frozen; leave it out, or train full weights by --peft_method none"
_ADAPTER = "training starts from a base model; go on with a run by --resume_from_checkpoint, or merge its adapter first"
_ANSWERS = "answers alone are trained on, never questions; leave it out"
_PARTS = "type --freeze_language, --freeze_vision or --freeze_projector with --peft_method none, or --lora_targets"
_LORA_ONLY = "of PEFT's methods LoRA alone is offered, with --use_dora and --use_rslora; leave it out"
_RATES = "type --vision_learning_rate, --projector_learning_rate or --language_learning_rate, or leave it out"
_OPTIMIZER = "optimizers are chosen by --optim; leave it out"
_KERNELS = "attention is chosen by --attn_implementation, and there are no other fused kernels; leave it out"
_PARALLEL = "a row is not divided among devices; leave it out, or type --deepspeed zero3 for models that are too large"
_LOSS = "the loss is the mean negative log-likelihood of the supervised tokens of a global batch; leave it out"
_AS_LOADED = "the model is trained as its folder has it; leave it out"
_STOPPING = (
    "runs end after --num_train_epochs or --max_steps; leave it out, or keep the best by --load_best_model_at_end"
)
_COLUMNS = "type --messages_column, --prompt_column, --response_column or --image_column"
_OVERFLOW = "nothing is ever cut; type --on_overflow drop, trim_turns or shrink_images"
_REWARDS = "answers are learnt from examples, without preferences or rewards; leave it out"
_GREEDY = "answers are generated greedily, and so the same each time; leave it out"
_TYPE_4BIT = "type --load_in_4bit, or leave it out"


def _only(users: str, cure: str, **harmless: Any) -> tuple[Dropped, ...]:
    """Return names with the value that is accepted of each (a tuple for several), in addition to null."""
    rows = []
    for name, given in harmless.items():
        values = given if isinstance(given, tuple) else (given,)
        accepted = (*(value for value in values if value is not None), None)
        rows.append(Dropped(name=name, hint=_hint(values), harmless=accepted, cure=cure, users=users))
    return tuple(rows)


def _hint(values: tuple[Any, ...]) -> Any:
    kinds: tuple[tuple[type, Any], ...] = (
        (bool, bool | None),
        (float, float | None),
        (int, int | None),
        (str, str | None),
        (list, list[Any] | None),
        (dict, Mapping[str, Any] | None),
    )
    return next((hint for kind, hint in kinds if any(isinstance(value, kind) for value in values)), Any)


def _refused(users: str, cure: str, names: str) -> tuple[Dropped, ...]:
    """Return names of which null alone is accepted."""
    return _only(users, cure, **dict.fromkeys(names.split()))


def _no_effect(users: str, names: str) -> tuple[Dropped, ...]:
    """Return settings of how another tool works inside, which change nothing of what is trained."""
    return tuple(Dropped(name=name, any_value=True, cure="", users=users) for name in names.split())


def _choice(users: str, name: str, canonical: str, words: Mapping[str, Any], others: str = "") -> Alias:
    return Alias(name=name, canonical=canonical, users=users, words=words, others=others)


_SHARED: tuple[OtherName, ...] = (
    *renamed(
        _SEVERAL,
        dataset="dataset_name",
        eval_dataset="validation_name",
        shuffle_buffer_size="shuffle_buffer",
        mlflow_tracking_uri="environment.MLFLOW_TRACKING_URI",
    ),
    *_refused(
        _SEVERAL, _TEMPLATE, "template chat_template_path chat_template_jinja chat_template_kwargs response_template"
    ),
    *_only(_SEVERAL, _TEMPLATE, chat_template="tokenizer_default"),
    *_only(_SEVERAL, _NO_PACKING, packing=False, padding_free=False, eval_packing=False),
    *_refused(_SEVERAL, _TOKENS, "add_special_tokens new_special_tokens added_tokens_overrides"),
    *_only(_SEVERAL, _TOKENS, tokens=[], special_tokens={}),
    *_only(_SEVERAL, _MODULES, modules_to_save=[], lora_modules_to_save=[]),
    *_only(_SEVERAL, "biases stay as they are; leave it out", bias="none", lora_bias="none"),
    *_refused(
        _SEVERAL,
        "LoRA is put on linear layers, by --lora_targets; leave it out",
        "lora_target_parameters target_parameters",
    ),
    *_refused(_SEVERAL, "the learning rate of a mixture's router is not changed; leave it out", "moe_aux_loss_coef"),
    *_only(_SEVERAL, _LOSS, router_aux_loss_coef=(0, 0.0)),
    *_refused(_SEVERAL, _RATES, "loraplus_lr_ratio lorap_lr_ratio"),
    *_refused(_SEVERAL, _AS_LOADED, "rope_scaling model_init_kwargs model_kwargs experts_impl experts_implementation"),
    *_refused(_SEVERAL, "each process has one device, and takes all of it; leave it out", "device_map max_memory"),
    *_refused(_SEVERAL, _STOPPING, "early_stopping_steps early_stopping_patience early_stop_interval"),
    *_only(
        _SEVERAL, _OPTIMIZER, use_galore=False, use_apollo=False, use_badam=False, use_adam_mini=False, use_muon=False
    ),
    *_only(_SEVERAL, _KERNELS, use_unsloth=False, use_unsloth_gc=False),
    *_only(_SEVERAL, _PARALLEL, sequence_parallel_size=1, sequence_parallel_degree=1),
    *_only(_SEVERAL, _PARALLEL, tensor_parallel_size=1),
    *_only(_SEVERAL, "activations stay where they are; leave it out", activation_offloading=False),
    *_only(_SEVERAL, "processes are started by `vlm-lora launch` or torchrun; leave it out", use_ray=False),
    *_refused(_SEVERAL, _TOKENS, "eot_tokens"),
    *_only(
        _SEVERAL, _GREEDY, do_sample=False, num_beams=1, temperature=0.0, repetition_penalty=1.0, length_penalty=1.0
    ),
    *_refused(_SEVERAL, _GREEDY, "top_k top_p stop_words logprobs stream"),
    *_only(_SEVERAL, _LOSS, use_eaft=False),
    *_no_effect(_SEVERAL, "dataset_num_proc low_cpu_mem_usage strict skip_special_tokens"),
)

_TRL: tuple[OtherName, ...] = (
    *renamed(
        TRL, dataset_config="dataset_config_name", dataset_streaming="streaming", test_split_size="validation_fraction"
    ),
    switch(TRL, "use_peft", "peft_method", true="lora", false="none"),
    *_only(
        TRL,
        "splits are found by their names; name another file or data set by --dataset_name",
        dataset_train_split="train",
    ),
    *_only(
        TRL,
        "splits are found by their names; name another file or data set by --validation_name",
        dataset_test_split=("test", "validation"),
    ),
    *_only(TRL, _ANSWERS, completion_only_loss=True, assistant_only_loss=True),
    *_only(TRL, _LOSS, loss_type="nll"),
    *_only(TRL, _NO_PACKING, packing_strategy="bfd"),
    *_refused(TRL, _OVERFLOW, "truncation_mode"),
    *_refused(TRL, _TOKENS, "eos_token pad_token"),
    *_only(TRL, "padding is planned by --static_shapes; leave it out", pad_to_multiple_of="auto"),
    *_only(TRL, "the task is answering about images; leave it out", lora_task_type="CAUSAL_LM"),
    *_only(TRL, "4-bit weights are stored as bytes; leave it out", bnb_4bit_quant_storage="uint8"),
    *_only(TRL, "type --ddp_broadcast_buffers false, or leave it out", ignore_bias_buffers=False),
    *_no_effect(TRL, "shuffle_dataset"),
)

_LLAMA_FACTORY: tuple[OtherName, ...] = (
    *renamed(
        LLAMA_FACTORY,
        cutoff_len="max_length",
        model_max_length="max_length",
        media_dir="image_root",
        max_samples="max_train_samples",
        buffer_size="shuffle_buffer",
        val_size="validation_fraction",
        default_system="system_prompt",
        freeze_vision_tower="freeze_vision",
        freeze_multi_modal_projector="freeze_projector",
        freeze_language_model="freeze_language",
        quantization_type="bnb_4bit_quant_type",
        double_quantization="bnb_4bit_use_double_quant",
        enable_liger_kernel="use_liger_kernel",
        hf_hub_token="token",
    ),
    _choice(
        LLAMA_FACTORY,
        "finetuning_type",
        "peft_method",
        {"lora": "lora", "full": "none"},
        "type --peft_method lora, or none with --freeze_language, --freeze_vision or --freeze_projector",
    ),
    _choice(LLAMA_FACTORY, "lora_target", "lora_targets", {"all": "language"}),
    _choice(LLAMA_FACTORY, "quantization_bit", "load_in_4bit", {"4": True, "null": None}, _TYPE_4BIT),
    _choice(
        LLAMA_FACTORY,
        "flash_attn",
        "attn_implementation",
        {"auto": "auto", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"},
        "type --attn_implementation auto, sdpa, eager or flash_attention_2",
    ),
    switch(LLAMA_FACTORY, "disable_gradient_checkpointing", "gradient_checkpointing", true=False, false=True),
    switch(LLAMA_FACTORY, "disable_shuffling", "train_sampling_strategy", true="sequential", false="random"),
    *_only(LLAMA_FACTORY, _REWARDS, stage="sft"),
    *_only(
        LLAMA_FACTORY,
        "weights in 4 bits are bitsandbytes'; type --load_in_4bit",
        quantization_method=("bnb", "bitsandbytes"),
    ),
    *_only(LLAMA_FACTORY, _ANSWERS, train_on_prompt=False),
    *_only(
        LLAMA_FACTORY,
        "every answer of a chat is trained on; mark turns with weight 0, or leave it out",
        mask_history=False,
    ),
    *_only(LLAMA_FACTORY, _NO_PACKING, neat_packing=False),
    *_refused(LLAMA_FACTORY, "name the files themselves by --dataset_name", "dataset_dir tokenized_path"),
    *_only(LLAMA_FACTORY, "type --dataset_weights, or leave it out", mix_strategy="concat"),
    *_refused(LLAMA_FACTORY, "type --dataset_weights, or leave it out", "interleave_probs"),
    *_refused(LLAMA_FACTORY, _ADAPTER, "adapter_name_or_path adapter_folder"),
    *_only(LLAMA_FACTORY, _ADAPTER, create_new_adapter=False),
    *_refused(LLAMA_FACTORY, _MODULES, "additional_target"),
    *_refused(LLAMA_FACTORY, _PARTS, "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules"),
    *_only(LLAMA_FACTORY, _LORA_ONLY, pissa_init=False, use_llama_pro=False),
    *_only(LLAMA_FACTORY, _TOKENS, resize_vocab=False, split_special_tokens=False),
    *_refused(LLAMA_FACTORY, _TOKENS, "add_tokens new_special_tokens_config"),
    *_only(LLAMA_FACTORY, "type --dtype bfloat16 --bf16, or leave it out", pure_bf16=False),
    *_only(LLAMA_FACTORY, "checkpoints are made anew without re-entering; leave it out", use_reentrant_gc=False),
    *_only(LLAMA_FACTORY, _AS_LOADED, shift_attn=False, upcast_layernorm=False, upcast_lmhead_output=False),
    *_only(LLAMA_FACTORY, _AS_LOADED, train_from_scratch=False, use_fast_tokenizer=True),
    *_refused(LLAMA_FACTORY, _AS_LOADED, "mixture_of_depths compute_dtype"),
    *_only(LLAMA_FACTORY, _LOSS, use_dft_loss=False, use_asft_loss=False, use_eaft_loss=False),
    *_only(LLAMA_FACTORY, "type --predict_with_generate for the share of exact answers", compute_accuracy=False),
    *_only(
        LLAMA_FACTORY,
        "losses are in trainer_state.json; type --report_to tensorboard to see them drawn",
        plot_loss=False,
    ),
    *_only(
        LLAMA_FACTORY,
        "type --include_num_input_tokens_seen all, or leave it out",
        include_effective_tokens_per_second=False,
    ),
    *_only(LLAMA_FACTORY, "type --report_to swanlab, or leave it out", use_swanlab=False),
    *_only(LLAMA_FACTORY, "one validation set is read; leave it out", eval_on_each_dataset=False),
    *_only(LLAMA_FACTORY, _LOSS, ignore_pad_token_for_loss=True),
    *_refused(
        LLAMA_FACTORY, "models come from the Hugging Face Hub or a folder; leave it out", "ms_hub_token om_hub_token"
    ),
    *_refused(LLAMA_FACTORY, _TEMPLATE, "tool_format"),
    *_no_effect(LLAMA_FACTORY, "overwrite_cache preprocessing_batch_size preprocessing_num_workers"),
    *_no_effect(LLAMA_FACTORY, "print_param_status use_kv_cache infer_dtype infer_backend offload_folder"),
    *_no_effect(LLAMA_FACTORY, "data_shared_file_system video_max_pixels video_min_pixels video_fps video_maxlen"),
    *_no_effect(LLAMA_FACTORY, "use_audio_in_video audio_sampling_rate"),
)

_SWIFT: tuple[OtherName, ...] = (
    *renamed(
        SWIFT,
        model="model_name_or_path",
        val_dataset="validation_name",
        split_dataset_ratio="validation_fraction",
        system="system_prompt",
        freeze_llm="freeze_language",
        freeze_vit="freeze_vision",
        freeze_aligner="freeze_projector",
        vit_lr="vision_learning_rate",
        aligner_lr="projector_learning_rate",
        target_regex="lora_targets",
        eval_limit="max_eval_samples",
        resume_only_model="load_model_only",
    ),
    *(
        _choice(
            SWIFT,
            name,
            "peft_method",
            {"lora": "lora", "full": "none"},
            "type --peft_method lora, or none for full weights",
        )
        for name in ("tuner_type", "train_type")
    ),
    _choice(SWIFT, "attn_impl", "attn_implementation", {"flash_attn": "flash_attention_2"}),
    _choice(SWIFT, "quant_bits", "load_in_4bit", {"4": True, "null": None}, _TYPE_4BIT),
    _choice(SWIFT, "truncation_strategy", "on_overflow", {"delete": "drop", "raise": "error", "null": None}, _OVERFLOW),
    switch(SWIFT, "train_dataloader_shuffle", "train_sampling_strategy", true="random", false="sequential"),
    *_only(SWIFT, "weights in 4 bits are bitsandbytes'; type --load_in_4bit", quant_method="bnb"),
    *_only(SWIFT, _LORA_ONLY, tuner_backend="peft", init_weights=True, use_swift_lora=False),
    *_refused(SWIFT, _ADAPTER, "adapters"),
    *_refused(
        SWIFT, _PARTS, "freeze_parameters freeze_parameters_regex trainable_parameters trainable_parameters_regex"
    ),
    *_only(SWIFT, _PARTS, freeze_parameters_ratio=(0, 0.0)),
    *_refused(SWIFT, "LoRA is kept in float32 where that is needed; leave it out", "lora_dtype"),
    *_only(SWIFT, "models and data come from the Hugging Face Hub or a folder; leave it out", use_hf=True),
    *_refused(SWIFT, _COLUMNS, "columns custom_dataset_info"),
    *_refused(SWIFT, "type --dataset_weights, or leave it out", "interleave_prob"),
    *_refused(SWIFT, "name the files themselves by --dataset_name", "cached_dataset cached_val_dataset"),
    *_refused(SWIFT, "no code is loaded from files; leave it out", "external_plugins custom_register_path"),
    *_only(SWIFT, _NO_PACKING, packing_num_proc=1),
    *_refused(SWIFT, _NO_PACKING, "packing_length"),
    *_only(SWIFT, _LOSS, loss_scale="default", acc_strategy="token", enable_dft_loss=False, enable_channel_loss=False),
    *_only(SWIFT, _TEMPLATE, use_chat_template=True, template_backend="swift"),
    *_refused(SWIFT, _TEMPLATE, "agent_template response_prefix"),
    *_only(SWIFT, "rows are padded on the right in training; leave it out", padding_side="right"),
    *_only(SWIFT, "the answer is text; leave it out", task_type="causal_lm"),
    *_refused(SWIFT, "the answer is text; leave it out", "num_labels problem_type"),
    *_only(
        SWIFT, "--output_dir is the folder itself; leave it out", add_version=False, create_checkpoint_symlink=False
    ),
    *_only(SWIFT, "checkpoints are safetensors; leave it out", safe_serialization=True),
    *_refused(SWIFT, "type --gradient_checkpointing, which is for all parts", "vit_gradient_checkpointing"),
    *_refused(SWIFT, "type --num_train_epochs or --max_steps", "max_epochs"),
    *_no_effect(
        SWIFT, "lazy_tokenize load_from_cache_file dataset_shuffle val_dataset_shuffle download_mode check_model"
    ),
    *_no_effect(SWIFT, "max_shard_size load_args load_data_args model_author"),
)

_AXOLOTL: tuple[OtherName, ...] = (
    *renamed(
        AXOLOTL,
        sequence_len="max_length",
        micro_batch_size="per_device_train_batch_size",
        eval_batch_size="per_device_eval_batch_size",
        optimizer="optim",
        lr_scheduler="lr_scheduler_type",
        val_set_size="validation_fraction",
        embedding_lr="embeddings_learning_rate",
        peft_use_dora="use_dora",
        peft_use_rslora="use_rslora",
        default_system_message="system_prompt",
        eval_max_new_tokens="max_new_tokens",
        wandb_name="run_name",
        mlflow_run_name="run_name",
        wandb_run_id="environment.WANDB_RUN_ID",
        wandb_entity="environment.WANDB_ENTITY",
        wandb_mode="environment.WANDB_MODE",
        wandb_watch="environment.WANDB_WATCH",
        wandb_log_model="environment.WANDB_LOG_MODEL",
        mlflow_experiment_name="environment.MLFLOW_EXPERIMENT_NAME",
    ),
    _choice(
        AXOLOTL,
        "adapter",
        "peft_method",
        {"lora": "lora", "qlora": "lora", "null": "none", "": "none"},
        "type --peft_method lora, or none for full weights",
    ),
    _choice(
        AXOLOTL, "excess_length_strategy", "on_overflow", {"drop": "drop", "raise": "error", "null": None}, _OVERFLOW
    ),
    *(
        switch(AXOLOTL, name, "attn_implementation", true=attention, false=None)
        for name, attention in (
            ("flash_attention", "flash_attention_2"),
            ("sdp_attention", "sdpa"),
            ("eager_attention", "eager"),
        )
    ),
    *(
        switch(AXOLOTL, name, "report_to", true=tracker, false=None)
        for name, tracker in (
            ("use_wandb", "wandb"),
            ("use_mlflow", "mlflow"),
            ("use_comet", "comet_ml"),
            ("use_trackio", "trackio"),
            ("use_tensorboard", "tensorboard"),
        )
    ),
    switch(AXOLOTL, "lora_target_linear", "lora_targets", true="all-linear", false=None),
    switch(AXOLOTL, "bfloat16", "dtype", true="bfloat16", false=None),
    switch(AXOLOTL, "float16", "dtype", true="float16", false=None),
    switch(AXOLOTL, "float32", "dtype", true="float32", false=None),
    switch(AXOLOTL, "auto_resume_from_checkpoints", "resume_from_checkpoint", true=True, false=None),
    *_refused(AXOLOTL, f"name files or a Hub id by --dataset_name, and {_COLUMNS}", "datasets pretraining_dataset"),
    *_refused(AXOLOTL, "name files or a Hub id by --validation_name", "test_datasets"),
    *_refused(AXOLOTL, _PARTS, "unfrozen_parameters freeze_mm_modules"),
    *_refused(AXOLOTL, _ADAPTER, "lora_model_dir"),
    *_only(AXOLOTL, _LORA_ONLY, lora_fan_in_fan_out=False, relora=False, peft_init_lora_weights=True),
    *_refused(
        AXOLOTL, _LORA_ONLY, "peft peft_layers_to_transform peft_layers_pattern lora_rank_pattern lora_alpha_pattern"
    ),
    *_only(AXOLOTL, _NO_PACKING, sample_packing=False, eval_sample_packing=False, batch_flattening=False),
    *_only(AXOLOTL, "padding is planned by --static_shapes; leave it out", pad_to_sequence_len=False),
    *_only(AXOLOTL, _ANSWERS, train_on_inputs=False),
    *_only(AXOLOTL, _KERNELS, lora_mlp_kernel=False, lora_qkv_kernel=False, lora_o_kernel=False),
    *_only(AXOLOTL, _KERNELS, xformers_attention=False, flex_attention=False, sage_attention=False, s2_attention=False),
    *_only(AXOLOTL, _AS_LOADED, tokenizer_type="AutoTokenizer", processor_type="AutoProcessor"),
    *_only(AXOLOTL, _AS_LOADED, type_of_model=("AutoModelForImageTextToText", "AutoModelForVision2Seq")),
    *_refused(AXOLOTL, _AS_LOADED, "tokenizer_config overrides_of_model_config overrides_of_model_kwargs"),
    *_refused(AXOLOTL, "type --model_revision", "revision_of_model"),
    *_refused(AXOLOTL, _REWARDS, "rl reward_model"),
    *_only(AXOLOTL, "no code is loaded from files; leave it out", plugins=[]),
    *_refused(AXOLOTL, "type --eval_strategy epoch, or --eval_strategy steps --eval_steps N", "evals_per_epoch"),
    *_refused(AXOLOTL, "type --save_strategy epoch, or --save_strategy steps --save_steps N", "saves_per_epoch"),
    *_refused(
        AXOLOTL, "type --lr_scheduler_type cosine_with_min_lr and its --lr_scheduler_kwargs", "cosine_min_lr_ratio"
    ),
    *_refused(AXOLOTL, _RATES, "lr_groups embedding_lr_scale"),
    *_refused(AXOLOTL, _OPTIMIZER, "adam_beta3 adam_epsilon2"),
    *_refused(AXOLOTL, "--max_length is for training and evaluation; leave it out", "eval_sequence_len"),
    *_refused(AXOLOTL, _TYPE_4BIT, "bnb_config_kwargs quantization gptq"),
    *_only(AXOLOTL, "type --token, or log in by `hf auth login`", hf_use_auth_token=False),
    *_only(AXOLOTL, "the first checkpoint is after --save_steps; leave it out", save_first_step=False),
    *_only(AXOLOTL, "type --seed; rows are put in order anew in each epoch", shuffle_merged_datasets=True),
    *_no_effect(
        AXOLOTL, "dataset_prepared_path dataset_processes skip_prepare_dataset lora_on_cpu loss_watchdog_patience"
    ),
    *_no_effect(AXOLOTL, "loss_watchdog_threshold eval_table_size gc_steps"),
)

_FMS: tuple[OtherName, ...] = (
    *renamed(
        CONFIG_DRIVEN,
        dataset_conversation_field="messages_column",
        flash_attn_implementation="attn_implementation",
        mlflow_experiment="environment.MLFLOW_EXPERIMENT_NAME",
        clearml_project="environment.CLEARML_PROJECT",
        clearml_task="environment.CLEARML_TASK",
    ),
    _choice(
        CONFIG_DRIVEN,
        "trackers",
        "report_to",
        {"file_logger": None, "none": None, "null": None, "mlflow": "mlflow", "clearml": "clearml"},
        "type --report_to with a tracker that transformers knows, such as mlflow, wandb or tensorboard",
    ),
    Dropped(
        name="save_model_dir",
        hint=str | None,
        harmless=(None,),
        same_as="output_dir",
        cure="the trained model is saved in --output_dir itself, its checkpoints in folders there; leave it out",
        users=CONFIG_DRIVEN,
    ),
    Dropped(
        name="tokenizer_name_or_path",
        hint=str | None,
        harmless=(None,),
        same_as="model_name_or_path",
        cure="the tokenizer in the folder of --model_name_or_path is used; put others there, or leave it out",
        users=CONFIG_DRIVEN,
    ),
    Dropped(
        name="base_model_config",
        hint=str | None,
        harmless=(None,),
        same_as="model_name_or_path",
        cure="the configuration in the folder of --model_name_or_path is used; leave it out",
        users=AXOLOTL,
    ),
    *_refused(CONFIG_DRIVEN, f"name files by --training_data_path, and {_COLUMNS}", "data_config_path"),
    *_refused(CONFIG_DRIVEN, _TEMPLATE, "data_formatter_template instruction_template"),
    *_only(CONFIG_DRIVEN, _TOKENS, embedding_size_multiple_of=1),
    *_only(CONFIG_DRIVEN, _LOSS, enable_reduce_loss_sum=False),
    *_only(
        CONFIG_DRIVEN, "rows are read and checked without training by `vlm-lora check`", do_dataprocessing_only=False
    ),
    *_only(
        CONFIG_DRIVEN,
        "rows are read where they lie; leave it out",
        num_train_dataset_shards=1,
        num_eval_dataset_shards=1,
    ),
    *_only(CONFIG_DRIVEN, _LORA_ONLY, init_lora_weights=True, loftq_config={}),
    *_refused(CONFIG_DRIVEN, _LORA_ONLY, "layers_to_transform layers_pattern exclude_modules trainable_token_indices"),
    *_refused(CONFIG_DRIVEN, _LORA_ONLY, "prompt_tuning_init num_virtual_tokens prompt_tuning_init_text"),
    *_refused(CONFIG_DRIVEN, _STOPPING, "trainer_controller_config_file"),
    *_refused(CONFIG_DRIVEN, "type --load_in_4bit and --bnb_4bit_quant_type, or leave it out", "bnb_qlora auto_gptq"),
    *_refused(CONFIG_DRIVEN, _KERNELS, "fused_lora fast_kernels"),
    *_refused(CONFIG_DRIVEN, _PARALLEL, "fast_moe"),
    *_refused(CONFIG_DRIVEN, _NO_PACKING, "multipack"),
)

OTHER_TOOLS: tuple[OtherName, ...] = (*_SHARED, *_TRL, *_LLAMA_FACTORY, *_SWIFT, *_AXOLOTL, *_FMS)

FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("adalora_", "boft_", "fourier_", "llamapro_", "lora_ga_", "oft_", "pissa_"), _LORA_ONLY),
    **dict.fromkeys(("reft_", "relora_", "vera_", "lisa_", "eaft_", "asft_"), _LORA_ONLY),
    **dict.fromkeys(("galore_", "qgalore_", "apollo_", "badam_", "dion_", "jagged_"), _OPTIMIZER),
    **dict.fromkeys(("cpo_", "dpo_", "kto_", "orpo_", "ppo_", "pref_", "ref_model_", "reward_model_", "rl_"), _REWARDS),
    **dict.fromkeys(("rpo_", "simpo_", "ebft_"), _REWARDS),
    **dict.fromkeys(
        ("gradio_", "kt_", "sglang_", "vllm_"), "the trained model is served by other programs; leave it out"
    ),
    "export_": "an adapter is merged after training; leave it out",
    "generation_": _GREEDY,
    "pose_": _OVERFLOW,
    "sample_packing_": _NO_PACKING,
    "ray_": "processes are started by `vlm-lora launch` or torchrun; leave it out",
    "profiler_": "runs are not profiled from here; leave it out",
    "fsdp_": "write it into --fsdp_config, without fsdp_",
    "fp8_": "type --bf16, or leave it out",
    "comet_": "type --report_to comet_ml, and set what it needs under environment in the configuration file",
    "swanlab_": "type --report_to swanlab, and set what it needs under environment in the configuration file",
    "aim_": "type --report_to with a tracker that transformers knows, such as mlflow, wandb or tensorboard",
    "flash_attn_": _KERNELS,
}
"""How names begin that belong to something that is not here: what to do, where the name itself is in no other row."""
