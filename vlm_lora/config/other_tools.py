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

from vlm_lora.config.declaration import renamed, switch
from vlm_lora.config.name_rows import Dropped, OtherName, choice, no_effect, only, refused

CONFIG_DRIVEN = "config-driven tuning"
TRL, LLAMA_FACTORY, SWIFT, AXOLOTL = "TRL", "LLaMA-Factory", "ms-swift", "axolotl"
_SEVERAL = "several tools"

_PACKING = "rows are packed by --packing true, evaluation's never; leave it out"
_TEMPLATE = (
    "rows are rendered by the chat template in the model's folder, as it will be served; leave it out, or put another "
    "chat_template.jinja there"
)
_TOKENS = "tokens are added by --new_tokens FILE, one a line; leave it out"
_MODULES = "parts without LoRA stay frozen; type --train_fully projector, vision or embeddings, or leave it out"
_ADAPTER = "an adapter's folder as --model_name_or_path is trained on, with its own settings; or merge it first"
_ANSWERS = "answers alone are trained on, never questions; leave it out"
_PARTS = "type --freeze_language, --freeze_vision or --freeze_projector with --peft_method none, or --lora_targets"
_LORA_ONLY = "of PEFT's methods LoRA alone is offered, with --lora_init, --use_dora and --use_rslora; leave it out"
_STARTS: Mapping[str, str | None] = {"true": "default", "null": None}
_RATES = "type --vision_learning_rate, --projector_learning_rate or --language_learning_rate, or leave it out"
_OPTIMIZER = "optimizers are chosen by --optim; leave it out"
_KERNELS = "attention is chosen by --attn_implementation, and there are no other fused kernels; leave it out"
_PARALLEL = "a row is not divided among devices; leave it out, or type --deepspeed zero3 for models that are too large"
_LOSS = "the loss is the mean negative log-likelihood of the supervised tokens of a global batch; leave it out"
_AS_LOADED = "the model is trained as its folder has it; leave it out"
_ROUTERS = "routers stay frozen, and no loss balances the experts' load; leave it out"
_STOPPING = "type --early_stopping_patience N and --metric_for_best_model, or leave it out"
_STOPPING_AT_SAVES = "type --early_stopping_patience N, which counts evaluations instead of checkpoints"
_COLUMNS = "type --messages_column, --prompt_column, --response_column or --image_column"
_OVERFLOW = "nothing is ever cut; type --on_overflow drop, trim_turns or shrink_images"
_REWARDS = "answers are learnt from examples, without preferences or rewards; leave it out"
_GREEDY = "answers are generated greedily, and so the same each time; leave it out"
_TYPE_4BIT = "type --load_in_4bit, or leave it out"

_SHARED: tuple[OtherName, ...] = (
    *renamed(
        _SEVERAL,
        dataset="dataset_name",
        eval_dataset="validation_name",
        shuffle_buffer_size="shuffle_buffer",
        mlflow_tracking_uri="environment.MLFLOW_TRACKING_URI",
    ),
    *refused(_SEVERAL, _TEMPLATE, "template chat_template_path chat_template_jinja response_template"),
    *only(_SEVERAL, _TEMPLATE, chat_template="tokenizer_default"),
    *refused(
        _SEVERAL,
        "in place of its enable_thinking type --enable_thinking true or false; what else a template reads, set in the "
        "chat_template.jinja of the model's folder",
        "chat_template_kwargs",
    ),
    *only(_SEVERAL, _PACKING, padding_free=False, eval_packing=False),
    *refused(_SEVERAL, _TOKENS, "add_special_tokens new_special_tokens added_tokens_overrides"),
    *only(_SEVERAL, _TOKENS, tokens=[], special_tokens={}),
    *only(_SEVERAL, _MODULES, modules_to_save=[], lora_modules_to_save=[]),
    *only(_SEVERAL, "biases stay as they are; leave it out", bias="none", lora_bias="none"),
    *refused(
        _SEVERAL,
        "experts in one tensor get LoRA by --lora_targets language,experts; leave it out",
        "lora_target_parameters target_parameters",
    ),
    *renamed(_SEVERAL, moe_aux_loss_coef="router_aux_loss_coef"),
    *only(
        _SEVERAL,
        "a loss for an even load of experts is asked for by --router_aux_loss_coef 0.001; leave it out",
        output_router_logits=False,
    ),
    *refused(_SEVERAL, _RATES, "loraplus_lr_ratio lorap_lr_ratio"),
    *refused(_SEVERAL, _AS_LOADED, "rope_scaling model_init_kwargs model_kwargs experts_impl experts_implementation"),
    *refused(_SEVERAL, "each process has one device, and takes all of it; leave it out", "device_map max_memory"),
    *only(
        _SEVERAL, _OPTIMIZER, use_galore=False, use_apollo=False, use_badam=False, use_adam_mini=False, use_muon=False
    ),
    *only(_SEVERAL, _KERNELS, use_unsloth=False, use_unsloth_gc=False),
    *only(_SEVERAL, _PARALLEL, sequence_parallel_size=1, sequence_parallel_degree=1),
    *only(_SEVERAL, _PARALLEL, tensor_parallel_size=1),
    *only(_SEVERAL, "activations stay where they are; leave it out", activation_offloading=False),
    *only(_SEVERAL, "processes are started by `vlm-lora launch` or torchrun; leave it out", use_ray=False),
    *refused(_SEVERAL, _TOKENS, "eot_tokens"),
    *only(_SEVERAL, _GREEDY, do_sample=False, num_beams=1, temperature=0.0, repetition_penalty=1.0, length_penalty=1.0),
    *refused(_SEVERAL, _GREEDY, "top_k top_p stop_words logprobs stream"),
    *only(_SEVERAL, _LOSS, use_eaft=False),
    *no_effect(_SEVERAL, "dataset_num_proc low_cpu_mem_usage strict skip_special_tokens"),
)

_TRL: tuple[OtherName, ...] = (
    *renamed(
        TRL, dataset_config="dataset_config_name", dataset_streaming="streaming", test_split_size="validation_fraction"
    ),
    switch(TRL, "use_peft", "peft_method", true="lora", false="none"),
    *only(
        TRL,
        "splits are found by their names; name another file or data set by --dataset_name",
        dataset_train_split="train",
    ),
    *only(
        TRL,
        "splits are found by their names; name another file or data set by --validation_name",
        dataset_test_split=("test", "validation"),
    ),
    *only(TRL, _ANSWERS, completion_only_loss=True, assistant_only_loss=True),
    *only(TRL, _LOSS, loss_type="nll"),
    *only(TRL, _PACKING, packing_strategy="bfd"),
    *refused(TRL, _OVERFLOW, "truncation_mode"),
    *refused(TRL, _TOKENS, "eos_token pad_token"),
    *only(TRL, "padding is planned by --static_shapes; leave it out", pad_to_multiple_of="auto"),
    *only(TRL, "the task is answering about images; leave it out", lora_task_type="CAUSAL_LM"),
    *only(TRL, "4-bit weights are stored as bytes; leave it out", bnb_4bit_quant_storage="uint8"),
    *only(TRL, "type --ddp_broadcast_buffers false, or leave it out", ignore_bias_buffers=False),
    *no_effect(TRL, "shuffle_dataset"),
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
    choice(
        LLAMA_FACTORY,
        "finetuning_type",
        "peft_method",
        {"lora": "lora", "full": "none"},
        "type --peft_method lora, or none with --freeze_language, --freeze_vision or --freeze_projector",
    ),
    choice(LLAMA_FACTORY, "lora_target", "lora_targets", {"all": "language"}),
    choice(LLAMA_FACTORY, "quantization_bit", "load_in_4bit", {"4": True, "null": None}, _TYPE_4BIT),
    choice(
        LLAMA_FACTORY,
        "flash_attn",
        "attn_implementation",
        {"auto": "auto", "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"},
        "type --attn_implementation auto, sdpa, eager or flash_attention_2",
    ),
    switch(LLAMA_FACTORY, "disable_gradient_checkpointing", "gradient_checkpointing", true=False, false=True),
    switch(LLAMA_FACTORY, "disable_shuffling", "train_sampling_strategy", true="sequential", false="random"),
    *only(LLAMA_FACTORY, _REWARDS, stage="sft"),
    *only(
        LLAMA_FACTORY,
        "weights in 4 bits are bitsandbytes'; type --load_in_4bit",
        quantization_method=("bnb", "bitsandbytes"),
    ),
    *only(LLAMA_FACTORY, _ANSWERS, train_on_prompt=False),
    *only(
        LLAMA_FACTORY,
        "every answer of a chat is trained on; mark turns with weight 0, or leave it out",
        mask_history=False,
    ),
    *renamed(LLAMA_FACTORY, neat_packing="packing"),
    *refused(LLAMA_FACTORY, "name the files themselves by --dataset_name", "dataset_dir tokenized_path"),
    *only(LLAMA_FACTORY, "type --dataset_weights, or leave it out", mix_strategy="concat"),
    *refused(LLAMA_FACTORY, "type --dataset_weights, or leave it out", "interleave_probs"),
    *refused(LLAMA_FACTORY, _ADAPTER, "adapter_name_or_path adapter_folder"),
    *only(LLAMA_FACTORY, _ADAPTER, create_new_adapter=False),
    *refused(LLAMA_FACTORY, _MODULES, "additional_target"),
    *refused(LLAMA_FACTORY, _PARTS, "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules"),
    *only(LLAMA_FACTORY, _LORA_ONLY, pissa_init=False, use_llama_pro=False),
    *only(LLAMA_FACTORY, _TOKENS, resize_vocab=False, split_special_tokens=False),
    *refused(LLAMA_FACTORY, _TOKENS, "add_tokens new_special_tokens_config"),
    *only(LLAMA_FACTORY, "type --dtype bfloat16 --bf16, or leave it out", pure_bf16=False),
    *only(LLAMA_FACTORY, "checkpoints are made anew without re-entering; leave it out", use_reentrant_gc=False),
    *only(LLAMA_FACTORY, _AS_LOADED, shift_attn=False, upcast_layernorm=False, upcast_lmhead_output=False),
    *only(LLAMA_FACTORY, _AS_LOADED, train_from_scratch=False, use_fast_tokenizer=True),
    *refused(LLAMA_FACTORY, _AS_LOADED, "mixture_of_depths compute_dtype"),
    *only(LLAMA_FACTORY, _LOSS, use_dft_loss=False, use_asft_loss=False, use_eaft_loss=False),
    *only(LLAMA_FACTORY, "type --metrics exact_match token_f1, which score whole answers", compute_accuracy=False),
    *only(
        LLAMA_FACTORY,
        "losses are in trainer_state.json; type --report_to tensorboard to see them drawn",
        plot_loss=False,
    ),
    *only(
        LLAMA_FACTORY,
        "type --include_num_input_tokens_seen all, or leave it out",
        include_effective_tokens_per_second=False,
    ),
    *only(LLAMA_FACTORY, "type --report_to swanlab, or leave it out", use_swanlab=False),
    *only(LLAMA_FACTORY, "one validation set is read; leave it out", eval_on_each_dataset=False),
    *only(LLAMA_FACTORY, _LOSS, ignore_pad_token_for_loss=True),
    *refused(
        LLAMA_FACTORY, "models come from the Hugging Face Hub or a folder; leave it out", "ms_hub_token om_hub_token"
    ),
    *renamed(LLAMA_FACTORY, early_stopping_steps="early_stopping_patience"),
    *refused(LLAMA_FACTORY, _TEMPLATE, "tool_format"),
    *no_effect(LLAMA_FACTORY, "overwrite_cache preprocessing_batch_size preprocessing_num_workers"),
    *no_effect(LLAMA_FACTORY, "print_param_status use_kv_cache infer_dtype infer_backend offload_folder"),
    *no_effect(LLAMA_FACTORY, "data_shared_file_system video_max_pixels video_min_pixels video_fps video_maxlen"),
    *no_effect(LLAMA_FACTORY, "use_audio_in_video audio_sampling_rate"),
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
        choice(
            SWIFT,
            name,
            "peft_method",
            {"lora": "lora", "full": "none"},
            "type --peft_method lora, or none for full weights",
        )
        for name in ("tuner_type", "train_type")
    ),
    choice(SWIFT, "attn_impl", "attn_implementation", {"flash_attn": "flash_attention_2"}),
    choice(SWIFT, "quant_bits", "load_in_4bit", {"4": True, "null": None}, _TYPE_4BIT),
    choice(SWIFT, "truncation_strategy", "on_overflow", {"delete": "drop", "raise": "error", "null": None}, _OVERFLOW),
    switch(SWIFT, "train_dataloader_shuffle", "train_sampling_strategy", true="random", false="sequential"),
    *only(SWIFT, "weights in 4 bits are bitsandbytes'; type --load_in_4bit", quant_method="bnb"),
    *only(SWIFT, _LORA_ONLY, tuner_backend="peft", use_swift_lora=False),
    choice(SWIFT, "init_weights", "lora_init", _STARTS),
    *refused(SWIFT, _ADAPTER, "adapters"),
    *refused(
        SWIFT, _PARTS, "freeze_parameters freeze_parameters_regex trainable_parameters trainable_parameters_regex"
    ),
    *only(SWIFT, _PARTS, freeze_parameters_ratio=(0, 0.0)),
    *refused(SWIFT, "LoRA is kept in float32 where that is needed; leave it out", "lora_dtype"),
    *only(SWIFT, "models and data come from the Hugging Face Hub or a folder; leave it out", use_hf=True),
    *refused(SWIFT, _COLUMNS, "columns custom_dataset_info"),
    *refused(SWIFT, "type --dataset_weights, or leave it out", "interleave_prob"),
    *refused(SWIFT, "name the files themselves by --dataset_name", "cached_dataset cached_val_dataset"),
    *refused(SWIFT, "no code is loaded from files; leave it out", "external_plugins custom_register_path"),
    *refused(SWIFT, _STOPPING_AT_SAVES, "early_stop_interval"),
    *renamed(SWIFT, packing_length="pack_length"),
    *only(SWIFT, _PACKING, packing_num_proc=1),
    *only(SWIFT, _LOSS, loss_scale="default", acc_strategy="token", enable_dft_loss=False, enable_channel_loss=False),
    *only(SWIFT, _TEMPLATE, use_chat_template=True, template_backend="swift"),
    *refused(SWIFT, _TEMPLATE, "agent_template response_prefix"),
    *only(SWIFT, "rows are padded on the right in training; leave it out", padding_side="right"),
    *only(SWIFT, "the answer is text; leave it out", task_type="causal_lm"),
    *refused(SWIFT, "the answer is text; leave it out", "num_labels problem_type"),
    *only(SWIFT, "--output_dir is the folder itself; leave it out", add_version=False, create_checkpoint_symlink=False),
    *only(SWIFT, "checkpoints are safetensors; leave it out", safe_serialization=True),
    *refused(SWIFT, "type --gradient_checkpointing, which is for all parts", "vit_gradient_checkpointing"),
    *refused(SWIFT, "type --num_train_epochs or --max_steps", "max_epochs"),
    *no_effect(
        SWIFT, "lazy_tokenize load_from_cache_file dataset_shuffle val_dataset_shuffle download_mode check_model"
    ),
    *no_effect(SWIFT, "max_shard_size load_args load_data_args model_author"),
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
    choice(
        AXOLOTL,
        "adapter",
        "peft_method",
        {"lora": "lora", "qlora": "lora", "null": "none", "": "none"},
        "type --peft_method lora, or none for full weights",
    ),
    choice(
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
    *refused(AXOLOTL, f"name files or a Hub id by --dataset_name, and {_COLUMNS}", "datasets pretraining_dataset"),
    *refused(AXOLOTL, "name files or a Hub id by --validation_name", "test_datasets"),
    *refused(AXOLOTL, _PARTS, "unfrozen_parameters freeze_mm_modules"),
    *refused(AXOLOTL, _ADAPTER, "lora_model_dir"),
    *only(AXOLOTL, _LORA_ONLY, lora_fan_in_fan_out=False, relora=False),
    choice(AXOLOTL, "peft_init_lora_weights", "lora_init", _STARTS),
    *refused(
        AXOLOTL, _LORA_ONLY, "peft peft_layers_to_transform peft_layers_pattern lora_rank_pattern lora_alpha_pattern"
    ),
    *renamed(AXOLOTL, sample_packing="packing"),
    *only(AXOLOTL, _PACKING, eval_sample_packing=False, batch_flattening=False),
    *only(AXOLOTL, "padding is planned by --static_shapes; leave it out", pad_to_sequence_len=False),
    *only(AXOLOTL, _ANSWERS, train_on_inputs=False),
    *only(AXOLOTL, _KERNELS, lora_mlp_kernel=False, lora_qkv_kernel=False, lora_o_kernel=False),
    *only(AXOLOTL, _KERNELS, xformers_attention=False, flex_attention=False, sage_attention=False, s2_attention=False),
    *only(AXOLOTL, _AS_LOADED, tokenizer_type="AutoTokenizer", processor_type="AutoProcessor"),
    *only(AXOLOTL, _AS_LOADED, type_of_model=("AutoModelForImageTextToText", "AutoModelForVision2Seq")),
    *refused(AXOLOTL, _AS_LOADED, "tokenizer_config overrides_of_model_config overrides_of_model_kwargs"),
    *refused(AXOLOTL, "type --model_revision", "revision_of_model"),
    *refused(AXOLOTL, _REWARDS, "rl reward_model"),
    *only(AXOLOTL, "no code is loaded from files; leave it out", plugins=[]),
    *refused(AXOLOTL, "type --eval_strategy epoch, or --eval_strategy steps --eval_steps N", "evals_per_epoch"),
    *refused(AXOLOTL, "type --save_strategy epoch, or --save_strategy steps --save_steps N", "saves_per_epoch"),
    *refused(
        AXOLOTL, "type --lr_scheduler_type cosine_with_min_lr and its --lr_scheduler_kwargs", "cosine_min_lr_ratio"
    ),
    *refused(AXOLOTL, _RATES, "lr_groups embedding_lr_scale"),
    *refused(AXOLOTL, _OPTIMIZER, "adam_beta3 adam_epsilon2"),
    *refused(AXOLOTL, "--max_length is for training and evaluation; leave it out", "eval_sequence_len"),
    *refused(AXOLOTL, _TYPE_4BIT, "bnb_config_kwargs quantization gptq"),
    *only(AXOLOTL, "type --token, or log in by `hf auth login`", hf_use_auth_token=False),
    *only(AXOLOTL, "the first checkpoint is after --save_steps; leave it out", save_first_step=False),
    *only(AXOLOTL, "type --seed; rows are put in order anew in each epoch", shuffle_merged_datasets=True),
    *no_effect(
        AXOLOTL, "dataset_prepared_path dataset_processes skip_prepare_dataset lora_on_cpu loss_watchdog_patience"
    ),
    *no_effect(AXOLOTL, "loss_watchdog_threshold eval_table_size gc_steps"),
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
    choice(
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
    *refused(CONFIG_DRIVEN, f"name files by --training_data_path, and {_COLUMNS}", "data_config_path"),
    *refused(CONFIG_DRIVEN, _TEMPLATE, "data_formatter_template instruction_template"),
    *only(CONFIG_DRIVEN, _TOKENS, embedding_size_multiple_of=1),
    *only(CONFIG_DRIVEN, _LOSS, enable_reduce_loss_sum=False),
    *only(
        CONFIG_DRIVEN, "rows are read and checked without training by `vlm-lora check`", do_dataprocessing_only=False
    ),
    *only(
        CONFIG_DRIVEN,
        "rows are read where they lie; leave it out",
        num_train_dataset_shards=1,
        num_eval_dataset_shards=1,
    ),
    *only(CONFIG_DRIVEN, _LORA_ONLY, loftq_config={}),
    choice(CONFIG_DRIVEN, "init_lora_weights", "lora_init", _STARTS),
    *refused(CONFIG_DRIVEN, _LORA_ONLY, "layers_to_transform layers_pattern exclude_modules trainable_token_indices"),
    *refused(CONFIG_DRIVEN, _LORA_ONLY, "prompt_tuning_init num_virtual_tokens prompt_tuning_init_text"),
    *refused(CONFIG_DRIVEN, _STOPPING, "trainer_controller_config_file"),
    *refused(CONFIG_DRIVEN, "type --load_in_4bit and --bnb_4bit_quant_type, or leave it out", "bnb_qlora auto_gptq"),
    *refused(CONFIG_DRIVEN, _KERNELS, "fused_lora fast_kernels"),
    *refused(CONFIG_DRIVEN, _PARALLEL, "fast_moe"),
    *refused(CONFIG_DRIVEN, _PACKING, "multipack"),
)

_INTERNVL = "InternVL's scripts"
_FINETUNE = "Qwen2-VL-Finetune, Phi3-Vision-Finetune"
_BY_TILES = "type --max_pixels or --min_pixels: so many tiles times 448x448"

_IMAGE_SIZES: tuple[OtherName, ...] = (
    *refused(
        LLAMA_FACTORY,
        "some versions mean a side by it and others a number of pixels; type --image_size SIDE or --max_pixels N",
        "image_resolution",
    ),
    *refused(AXOLOTL, "images are resampled as the model's own processor does; leave it out", "image_resize_algorithm"),
    *refused(_INTERNVL, _BY_TILES, "max_dynamic_patch min_dynamic_patch"),
    *only(
        _INTERNVL,
        "a tile's side is the model's own; type --max_pixels N for how many pixels all tiles have",
        force_image_size=448,
    ),
    *refused(
        _FINETUNE,
        "write both resized sides into the rows' image parts, or type --max_pixels N for all images",
        "image_resized_width image_resized_height",
    ),
    *refused(_FINETUNE, "type --max_pixels N: so many crops times 336x336", "num_crops"),
)

OTHER_TOOLS: tuple[OtherName, ...] = (*_IMAGE_SIZES, *_SHARED, *_TRL, *_LLAMA_FACTORY, *_SWIFT, *_AXOLOTL, *_FMS)

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
    "sample_packing_": _PACKING,
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
