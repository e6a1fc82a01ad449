"""Loading configuration, processor, weights and adapters, with one clear message for each fault."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlm_lora.compat import (
    RUNS_LOCAL_GENERATE,
    complete_processor,
    image_backend,
    keep_checkpoint_names,
    keep_size,
    keep_tower_arguments,
    load_image_processor,
    read_by_peft,
    tower_arguments,
)
from vlm_lora.config.early import is_path_of_model
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.families import ENCODER_DECODER, FAMILIES, Family, family_of
from vlm_lora.model.finite_weights import check_loaded, nonfinite, refuse
from vlm_lora.model.folder_faults import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    AGAIN,
    adapter_settings,
    check_config_keys,
    check_processor_keys,
    refuse_damage,
    refuse_missing_weights,
)
from vlm_lora.model.head.completion import complete
from vlm_lora.model.loading_errors import few, first_line, translated, weights_name
from vlm_lora.model.manifest import refuse_changed
from vlm_lora.model.parts import say_what_is_tied
from vlm_lora.model.processor.image_backend import settle_backend
from vlm_lora.model.processor.image_size import set_image_size, trained_here
from vlm_lora.model.processor.thinking import set_thinking
from vlm_lora.model.stored_weights import unpacking

logger = logging.getLogger(__name__)

CUSTOM_GENERATE = "custom_generate/generate.py"
_EXAMPLE = "Qwen/Qwen2.5-VL-3B-Instruct"
_VISION_KEYS = ("vision", "visual", "img_processor", "image", "mm_vision", "vit")


def adapter_folder(config: ModelConfig) -> Path | None:
    """Return the folder that `--model_name_or_path` names if it holds a LoRA adapter, else None.

    Raises:
        ModelError: it holds an adapter's weights alone.
    """
    folder = Path(str(config.model_name_or_path)).expanduser()
    if not (folder / ADAPTER_FILE).is_file() and (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder / ADAPTER_FILE}: missing, next to {ADAPTER_WEIGHTS}. {AGAIN}")
    return folder if (folder / ADAPTER_FILE).is_file() else None


def base_config(config: ModelConfig) -> ModelConfig:
    """Return the configuration of the base model: for an adapter folder the model that it was trained on.

    Raises:
        ModelError: the adapter does not say which model it belongs to.
    """
    folder = adapter_folder(config)
    if folder is None:
        return config
    settings = adapter_settings(folder)
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{folder}: its {ADAPTER_FILE} names no base model. Set base_model_name_or_path there to the Hub id or "
            "folder of the model that the adapter was trained on."
        )
    revision = settings.get("revision") or config.model_revision
    return replace(config, model_name_or_path=base, model_revision=revision)


def load_config(config: ModelConfig) -> Any:
    """Load the configuration of the model (of the base model, for an adapter folder).

    Raises:
        ConfigError: no model was named.
        ModelError: no such folder, not a model, not reachable, or not a vision-language model.
    """
    base = _checked(config)
    for folder in {str(base.model_name_or_path): None, str(adapter_folder(config) or ""): None}:
        if folder and Path(folder).is_dir():
            refuse_damage(Path(folder))
    with translated(config, base, "config"):
        loaded = _read_config(base)
    if Path(str(base.model_name_or_path)).is_dir():
        check_config_keys(Path(str(base.model_name_or_path)) / "config.json", loaded)
    _refuse_kind(base, loaded)
    return loaded


def _read_config(base: ModelConfig) -> Any:
    """Return the configuration, the caller's to change; a folder's files are read again once they have changed."""
    from transformers import AutoConfig

    place = Path(str(base.model_name_or_path))
    if base.trust_remote_code or not (place / "config.json").is_file():
        return AutoConfig.from_pretrained(base.model_name_or_path, **_access(base))
    states = [file.stat() for file in sorted(place.glob("config*.json"))]
    stamps = tuple((state.st_ino, state.st_mtime_ns, state.st_size) for state in states)
    return copy.deepcopy(_read_local_config(str(place), stamps))


@lru_cache(maxsize=8)
def _read_local_config(place: str, stamps: tuple[tuple[int, int, int], ...]) -> Any:
    from transformers import AutoConfig

    # A run asks for it half a dozen times, and making it takes longer than copying it.
    return AutoConfig.from_pretrained(place, trust_remote_code=False)


def load_processor(config: ModelConfig) -> Any:
    """Load the processor, with the image backend that was asked for (`auto` is settled here) and right padding.

    For an adapter folder that holds a processor, that one is used: it is what the adapter was trained with.

    Raises:
        ConfigError: the image backend is not installed.
        ModelError: there is no processor or no chat template, or a package that it needs is missing.
    """
    from transformers import AutoProcessor

    base = _checked(config)
    loaded = load_config(config)
    family = family_of(loaded)
    folder = adapter_folder(config)
    config = settle_backend(config, loaded, adapter=folder is not None)
    place = str(folder) if folder is not None and _has_processor(folder) else str(base.model_name_or_path)
    access = _access(base)
    with translated(config, base, "processor", place=place):
        try:
            processor = AutoProcessor.from_pretrained(place, **access)
        except AttributeError as error:  # a special token that the processor needs and the tokenizer has not
            raise ValueError(f"processor and tokenizer do not go together: {error}") from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ModelError(
            f"{place}: it has a {type(processor).__name__} but no processor for images. Use a "
            "vision-language model, "
            f"for example {_EXAMPLE}, or copy preprocessor_config.json from the original model."
        )
    with translated(config, base, "processor", place=place):
        _set_image_backend(processor, place, config.image_backend, access)
    trained = place if place == str(folder or "") or trained_here(Path(place)) else None
    set_image_size(processor, config, trained=trained, longest=_longest_side(loaded))
    if Path(place).is_dir():
        check_processor_keys(Path(place), processor)
    complete_processor(processor)
    _prepare_tokenizer(processor.tokenizer)
    if not processor.chat_template:
        # Some processors lose the template on the way (Phi-4 multimodal); their tokenizer still has it.
        processor.chat_template = processor.tokenizer.chat_template
    set_thinking(processor, config, trained=trained)
    if not processor.chat_template and family.rendering.kind == "chat":
        raise ModelError(
            f"{place}: it has no chat template, so conversations cannot be rendered as the model expects them. Use "
            "the instruction-tuned model (names ending in -it, -Instruct, -Chat, -hf), or put its "
            "chat_template.jinja into the folder."
        )
    return processor


def _longest_side(loaded: Any) -> int | None:
    """Return the longest side in pixels that a vision tower has positions for, where its configuration says one."""
    side = getattr(getattr(loaded, "vision_config", None), "image_size", None)
    return side if isinstance(side, int) else None


def with_image_backend(run: RunConfig, *, checkpoint: str | None) -> RunConfig:
    """Return a training's run with its image backend settled, as its record keeps it.

    Args:
        run: resolved.
        checkpoint: the backend of the checkpoint that it goes on from, where it does.

    Raises:
        ConfigError: torchvision is asked for, or was trained with, and is not installed.
        ModelError: the model's configuration cannot be loaded.
    """
    model = run.model
    if model.model_name_or_path is None or model.image_backend != "auto":
        return run
    adapter = adapter_folder(model) is not None
    return replace(run, model=settle_backend(model, load_config(model), adapter=adapter, checkpoint=checkpoint))


def load_model(
    config: ModelConfig, *, model_kwargs: Mapping[str, Any], adapt: Callable[[Any], Any] | None = None
) -> Any:
    """Load the weights; for an adapter folder its base model with the adapter on top.

    Args:
        config: names the model.
        model_kwargs: the backend's `torch_dtype`, `attn_implementation` and the like.
        adapt: what the backend does to the base model, before an adapter is put on it.

    Returns:
        A `PreTrainedModel`, or a `PeftModel` for an adapter folder.

    Raises:
        ModelError: weights are missing, of another shape, or not those that the folder's run wrote (its manifest).
            Random weights are never trained silently.
    """
    import transformers

    base = _checked(config)
    loaded = load_config(config)
    check_weights_there(config)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the others of this machine end with it
        _refuse_changed(config, base, weights=True)
    family = family_of(loaded)
    keywords = {**_access(base), **_supported_attention(family, model_kwargs)}
    automatic = getattr(transformers, family.auto_class)
    arguments = tower_arguments(loaded)
    with translated(config, base, "weights", loaded=loaded):
        model, report = automatic.from_pretrained(
            base.model_name_or_path, config=unpacking(loaded), output_loading_info=True, **keywords
        )
    check_weights(str(base.model_name_or_path), model, report)
    check_loaded(str(base.model_name_or_path), model)
    keep_checkpoint_names(model)
    keep_tower_arguments(model, arguments)
    complete(model)
    if adapt is not None:
        model = adapt(model)
    folder = adapter_folder(config)
    return model if folder is None else load_adapter(model, folder)


def check_weights_there(config: ModelConfig) -> None:
    """Make sure that the base's folder, where it is one, has the files of its weights; none is read.

    Raises:
        ModelError: says which is missing.
    """
    folder = Path(str(base_config(config).model_name_or_path)).expanduser()
    if folder.is_dir():
        refuse_missing_weights(folder)


def load_adapter(model: Any, folder: Path) -> Any:
    """Put a saved adapter on its base model with plain PEFT, and check that every tensor found its place.

    Raises:
        ModelError: the adapter does not fit this model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    if adapter_settings(folder).get("megatron_config"):
        raise ModelError(
            f"{folder / ADAPTER_FILE}: megatron_config makes older PEFT import a module that the file names. "
            "Models here need no Megatron: remove it if you trust the adapter."
        )
    say_what_is_tied(model)
    try:
        with warnings.catch_warnings():
            # PEFT only warns about tensors that it does not find; below that is an error.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            tuned = PeftModel.from_pretrained(model, str(folder))
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{folder}: adapter_model.bin holds more than weights, or is damaged; it was not loaded "
            f"({first_line(error)}). Use an adapter_model.safetensors."
        ) from error
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(
            f"{folder}: the adapter does not fit {type(model).__name__} ({first_line(error)}). Give the model that "
            f"it was trained on as base_model_name_or_path in {folder / ADAPTER_FILE}, or copy that file and "
            f"{ADAPTER_WEIGHTS} again."
        ) from error
    except (LookupError, TypeError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"{folder / ADAPTER_FILE}: PEFT makes no adapter of it ({type(error).__name__}: {first_line(error)}). "
            f"{AGAIN}"
        ) from error
    weights = load_peft_weights(str(folder), device="cpu")
    refuse(str(folder), nonfinite(weights.items()))
    saved = set(read_by_peft(tuned, weights))
    # Rows of new tokens are saved alone, though the base has more rows than its folder says.
    alone = {"save_embedding_layers": False} if adapter_settings(folder).get("trainable_token_indices") else {}
    expected = set(get_peft_model_state_dict(tuned, **alone))
    if saved != expected:
        missing, strange = sorted(expected - saved), sorted(saved - expected)
        raise ModelError(
            f"{folder}: {len(missing)} adapter tensors of this model are not in the file ({few(missing)}) and "
            f"{len(strange)} in the file have no place ({few(strange)}): {ADAPTER_WEIGHTS} and {ADAPTER_FILE} do not "
            "belong together, or one is damaged. Vision towers are laid out differently by transformers 4.55 and "
            "5.x: load the adapter with the version that trained it."
        )
    return tuned


def _checked(config: ModelConfig) -> ModelConfig:
    """Return the base's configuration after looking at the folder, if it is one."""
    if not config.model_name_or_path:
        raise ConfigError(f"--model_name_or_path is missing: a Hub id such as {_EXAMPLE}, or a folder.")
    _refuse_changed(config, weights=False)
    base = base_config(config)
    _refuse_changed(config, base, weights=False)
    name = str(base.model_name_or_path)
    folder = Path(name).expanduser()
    adapter = f"(the base model of the adapter {Path(str(config.model_name_or_path)) / ADAPTER_FILE})"
    whose = f" {adapter}" if base is not config else ""
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            inside = sorted(entry.name for entry in folder.iterdir())
            raise ModelError(
                f"{name}{whose}: not a model folder, it has no config.json. It holds: {few(inside, 10)}. Give the "
                "folder that holds config.json and the weights, or a Hub id."
            )
        if RUNS_LOCAL_GENERATE and not base.trust_remote_code and (folder / CUSTOM_GENERATE).is_file():
            raise ModelError(
                f"{name}{whose}: {CUSTOM_GENERATE} in it is Python code that the installed transformers would run. "
                "Read it, and if you trust it type --trust_remote_code true; else remove it."
            )
        return replace(base, model_name_or_path=str(folder))
    if is_path_of_model(name) or folder.is_file():
        raise ModelError(f"{name}{whose}: no such folder. Give an existing folder, or a Hub id such as {_EXAMPLE}.")
    return base


def _refuse_changed(config: ModelConfig, base: ModelConfig | None = None, *, weights: bool) -> None:
    """Compare the files of the folder that was named, and of its base model's where that is one, with their manifests.

    Raises:
        ModelError: names the files that are not as they were written.
    """
    for name in dict.fromkeys(str(one.model_name_or_path) for one in (config, base or config)):
        if Path(name).expanduser().is_dir():
            refuse_changed(Path(name).expanduser(), accept=config.accept_changed_files, weights=weights)


def _access(config: ModelConfig) -> dict[str, Any]:
    """Keywords that every `from_pretrained` takes."""
    return {
        "revision": config.model_revision,
        "token": config.token,
        "cache_dir": config.cache_dir,
        # False, not None: None asks on the terminal, which a batch job has not got.
        "trust_remote_code": config.trust_remote_code,
    }


def _refuse_kind(base: ModelConfig, loaded: Any) -> None:
    """Refuse what does not continue a chat about images from left to right, by its type or its settings."""
    known = FAMILIES.get(loaded.model_type)
    parts = (loaded, getattr(loaded, "text_config", None))
    encodes = any(getattr(part, "is_encoder_decoder", False) is True for part in parts)
    reason = known.refused if known is not None and known.refused else ENCODER_DECODER if encodes else ""
    if reason:
        raise ModelError(
            f"{base.model_name_or_path}: a model of type {loaded.model_type!r} cannot be trained here: it {reason}. "
            f"Use a model that answers in a chat, for example {_EXAMPLE}."
        )
    keys = loaded.to_dict()
    if known is None and not any(word in key.lower() for key in keys for word in _VISION_KEYS):
        raise ModelError(
            f"{base.model_name_or_path}: model_type {loaded.model_type!r} is a text-only model, its configuration "
            f"says nothing about images. Use a vision-language model, for example {_EXAMPLE}."
        )


def _supported_attention(family: Family, model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    keywords = dict(model_kwargs)
    if str(keywords.get("attn_implementation", "")).startswith("flash") and not family.flash_attention:
        logger.warning("%s does not support flash attention; sdpa is used instead.", family.model_type)
        keywords["attn_implementation"] = "sdpa"
    return keywords


def check_weights(name: str, model: Any, report: Mapping[str, Any]) -> None:
    """Make sure that every weight came from the folder `name`; `report` is `from_pretrained`'s loading info.

    Raises:
        ModelError: weights are missing or of another shape, so they would start at random.
    """
    everything = dict(model.named_parameters(remove_duplicate=False))
    missing = set(report.get("missing_keys", ()))
    there = {id(tensor) for key, tensor in everything.items() if key not in missing}
    # A tied tensor is in the file under another name.
    lost = sorted(key for key in missing if key not in everything or id(everything[key]) not in there)
    mismatched = sorted(str(entry[0]) for entry in report.get("mismatched_keys", ()))
    if lost or mismatched:
        raise ModelError(
            f"{weights_name(name)}: {len(lost)} weights are missing ({few(lost)}) and {len(mismatched)} have another "
            f"shape ({few(mismatched)}), so they would start at random. Copy the whole model folder again, or use "
            "the transformers version that the model was saved with."
        )
    unexpected = sorted(report.get("unexpected_keys", ()))
    if unexpected:
        logger.warning("%s: %d weights in the file are not used (%s).", name, len(unexpected), few(unexpected))


def _has_processor(folder: Path) -> bool:
    names = ("processor_config.json", "preprocessor_config.json")
    return any((folder / name).is_file() for name in names) and (folder / "tokenizer_config.json").is_file()


def _set_image_backend(processor: Any, place: str, wanted: str, access: Mapping[str, Any]) -> None:
    found = image_backend(processor.image_processor)
    if found not in (wanted, "own"):
        processor.image_processor = load_image_processor(place, wanted, **access)
        found = image_backend(processor.image_processor)
    keep_size(processor.image_processor, place, **access)
    name = type(processor.image_processor).__name__
    if found == wanted:
        logger.info("Image processor: %s (%s).", name, found)
    else:
        logger.warning("--image_backend %s: this model has only %s (%s), which is used.", wanted, name, found)


def _prepare_tokenizer(tokenizer: Any) -> None:
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("The tokenizer has no padding token; %s pads, masked out.", tokenizer.eos_token)
