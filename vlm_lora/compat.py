"""The one place that knows where transformers 4.55 (Gaudi's stack) and 5.x differ."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import transformers

TRANSFORMERS = tuple(int(part) for part in transformers.__version__.split(".")[:2])
"""Major and minor version of the installed transformers."""
IS_5 = TRANSFORMERS >= (5, 0)

KV_SHARING_NEEDS_CACHE = not IS_5
"""Gemma3n's last layers borrow keys and values of earlier ones: in 4.55 only through the cache, which
training does not use, so their own projections train; in 5.x always, so their own are never used."""

TRAINER_TURNS_CACHE_OFF = IS_5
"""5.x's trainer switches the key-value cache off; with 4.55 a training step fills it."""

WINDOW_CUTS_SPANS = IS_5
"""5.x ends what is read in both directions (Gemma3's images) at a layer's window; 4.55 puts it over the window."""

RUNS_LOCAL_GENERATE = not IS_5
"""4.55 runs a local model folder's custom_generate/generate.py whatever trust_remote_code says."""


def set_dtype(config: Any, dtype: Any) -> None:
    """Make a model that is built from a configuration have this dtype in all parts, whatever the file says."""
    setattr(config, "dtype" if IS_5 else "torch_dtype", dtype)
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            set_dtype(part, dtype)


def without_initialisation() -> Any:
    """Return a context in which models are built without drawing their weights; weights are not tied either."""
    if IS_5:
        from transformers.initialization import no_init_weights
    else:
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()


@cache
def let_cpu_have_numbers() -> None:
    """Let torch load onto `cpu:0`, which 4.55's trainer asks for where several processes resume on CPUs."""
    if not IS_5:
        from torch.serialization import register_package

        register_package(
            priority=100,
            tagger=lambda storage: None,
            deserializer=lambda storage, location: storage if location.startswith("cpu:") else None,
        )


def known_model_types() -> frozenset[str]:
    """Return the `model_type` of every configuration that the installed transformers has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return frozenset(CONFIG_MAPPING_NAMES)


def known_attentions() -> frozenset[str]:
    """Return the names of the attention functions that the installed transformers has."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return frozenset(ALL_ATTENTION_FUNCTIONS.keys())


def stored_methods() -> frozenset[str]:
    """Return the methods of storing weights in few bits that the installed transformers reads, as folders name them."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return frozenset(name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING)


def load_image_processor(place: str, backend: str, **keywords: Any) -> Any:
    """Load the image processor of a model with the Pillow (`pil`) or `torchvision` implementation.

    Returns:
        The image processor, of the other implementation where the model has only that one: ask
        `image_backend`.
    """
    from transformers import AutoImageProcessor

    if IS_5:
        return AutoImageProcessor.from_pretrained(place, backend=backend, **keywords)
    slow = backend == "pil"
    try:
        return AutoImageProcessor.from_pretrained(place, use_fast=not slow, **keywords)
    except ValueError:
        # 4.55 raises where 5.x takes the other one (Phi-4 multimodal has no Pillow implementation).
        return AutoImageProcessor.from_pretrained(place, use_fast=slow, **keywords)


def keep_size(image_processor: Any, place: str, **keywords: Any) -> None:
    """Let an image processor have the size that its file says.

    4.55's Qwen2VLImageProcessor takes it from `min_pixels` and `max_pixels` alone, Glm4vImageProcessor not at all.
    Where a file has `size`, as 5.x writes it, images would be read at a default size instead of that of training.

    Args:
        image_processor: changed in place.
        place: the model folder or Hub id that it was loaded from.
        keywords: as for `from_pretrained`.
    """
    if IS_5:
        return
    settings, _ = image_processor.get_image_processor_dict(place, **keywords)
    size = settings.get("size")
    if settings.get("min_pixels") is None and isinstance(size, dict) and {"shortest_edge", "longest_edge"} <= set(size):
        set_budget(image_processor, size["shortest_edge"], size["longest_edge"])


def set_budget(image_processor: Any, least: int, most: int) -> None:
    """Let an image processor that scales by a number of pixels keep images between two numbers."""
    image_processor.size = type(image_processor.size)(shortest_edge=least, longest_edge=most)
    if hasattr(image_processor, "min_pixels"):  # 4.55 reads these
        image_processor.min_pixels, image_processor.max_pixels = least, most


def change_settings(image_processor: Any, changed: Mapping[str, Any]) -> None:
    """Give an image processor other settings, a size among them as its version keeps one."""
    for name, value in changed.items():
        if name == "size" and {"shortest_edge", "longest_edge"} <= set(value):
            set_budget(image_processor, value["shortest_edge"], value["longest_edge"])
        elif name == "size":
            image_processor.size = type(image_processor.size)(**value)
        else:
            setattr(image_processor, name, value)


def gemma3_pil_processor() -> Any:
    """Return Gemma3's image processor class that uses Pillow: 4.55 and 5.x name it differently."""
    if IS_5:
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        return Gemma3ImageProcessorPil
    from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor

    return Gemma3ImageProcessor


def complete_processor(processor: Any) -> None:
    """Give a processor what 4.55's `save_pretrained` reads and older remote code does not set."""
    if not IS_5 and not hasattr(processor, "audio_tokenizer"):
        processor.audio_tokenizer = None


def keep_checkpoint_names(model: Any) -> None:
    """Let a model be saved under the tensor names that it was loaded from.

    Under ZeRO-3, transformers 5.23 remembers also the renamings that the checkpoint did not need, and would undo
    them when saving: other programs would find none of the weights.
    """
    renamings = getattr(model, "_weight_conversions", None)
    if renamings is not None:
        model._weight_conversions = [renaming for renaming in renamings if renaming.was_used()]


def keep_tower_arguments(model: Any, arguments: Mapping[str, Any]) -> None:
    """Give the parts of a model's configuration the arguments of their towers back.

    timm writes functions into the arguments that it builds a tower from, and no configuration with functions can be
    saved.

    Args:
        model: as loaded.
        arguments: from `tower_arguments`, taken before.
    """
    for name, kept in arguments.items():
        getattr(model.config, name).model_args = kept


def tower_arguments(config: Any) -> dict[str, Any]:
    """Return a copy of the arguments that a configuration's parts have for timm's towers, by the part's name."""
    parts = {name: getattr(part, "model_args", None) for name, part in vars(config).items()}
    return {name: copy.deepcopy(found) for name, found in parts.items() if found is not None}


def keep_answers_causal(model: Any) -> None:
    """Let PaliGemma's answers be causal in every pass that has `token_type_ids`, which mark the answer.

    4.55 masks an answer's later tokens only where it is also given `labels`, and reads of them no more than that they
    are there. The loss here is computed outside of the model: each answer token would see the one it must produce.
    """
    if IS_5:
        return
    for module in model.modules():
        if type(module).__name__ == "PaliGemmaModel":
            module.register_forward_pre_hook(_with_labels, with_kwargs=True)


def _with_labels(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    marks = kwargs.get("token_type_ids")  # the processor makes none for a question without an answer
    return args, kwargs if marks is None else {**kwargs, "labels": marks}


def renamed_by_peft(config: Any) -> frozenset[str]:
    """Return the last names of linear layers that PEFT takes for experts as transformers 4 named them.

    With transformers 5 it rewrites what an adapter's configuration targets, for mixtures whose experts were linear
    layers once; whatever else has such a name is lost by that. Empty for all other models.
    """
    if not IS_5 or config is None:
        return frozenset()
    from peft.utils import transformers_weight_conversion as conversion
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if get_checkpoint_conversion_mapping(config.model_type) is None:
        return frozenset()
    pattern = conversion._MODEL_TO_CONVERSION_PATTERN.get(config.model_type)
    return frozenset(conversion._MOE_TARGET_MODULE_MAPPING.get(pattern, ()))


def read_by_peft(model: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return an adapter's tensors under the names that PEFT looks for them by, which it rewrites with transformers 5.

    Args:
        model: with or without PEFT around it.
        tensors: by their names in the adapter's file.
    """
    if not IS_5:
        return dict(tensors)
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    read: dict[str, Any] = convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(), dict(tensors))
    return read


def has_torchvision() -> bool:
    """Say whether image processors by torchvision can be had."""
    from transformers.utils.import_utils import is_torchvision_available

    return bool(is_torchvision_available())


def image_backend(image_processor: Any) -> str:
    """Return `pil`, `torchvision`, or `own` for an image processor that a model folder brings along."""
    kind = type(image_processor)
    if not kind.__module__.startswith("transformers."):
        # Its own code for `transformers_modules.*`: neither of the two.
        return "own"
    if IS_5:
        return "pil" if kind.__name__.endswith("Pil") else "torchvision"
    return "torchvision" if kind.__name__.endswith("Fast") else "pil"


def check_write_access(api: Any, repository: str) -> None:
    """Ask the Hub whether a token may write to a repository; the client of 4.55's stack cannot ask that.

    Raises:
        HfHubHTTPError: the Hub's, where it may not.
    """
    if "write" in inspect.signature(api.auth_check).parameters:
        api.auth_check(repository, write=True)
