"""Bases in few bits that cannot be loaded, or not be used as a run means to: refused before any weights are read."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from torch import nn

from vlm_lora.backend import Backend
from vlm_lora.compat import IS_5, TRANSFORMERS, stored_methods
from vlm_lora.config.run_config import RunConfig
from vlm_lora.errors import BackendError, ConfigError, ModelError
from vlm_lora.model.loading import base_config
from vlm_lora.model.parts import find_parts
from vlm_lora.model.quantization import partitioning_engine
from vlm_lora.model.stored_weights import METHODS, Method, Road, Stored, is_packed, stored_weights

logger = logging.getLogger(__name__)

_WHOLE = "give the base whose weights are whole as --model_name_or_path"


def check_stored(run: RunConfig, config: Any, backend: Backend, *, trains: bool, partitioned: str = "") -> None:
    """Refuse a base in few bits where it cannot be loaded, or not be used as the run means to.

    Args:
        run: what was asked for.
        config: the base's.
        backend: of the device.
        trains: whether weights are trained at all.
        partitioned: the engine that shares out weights among processes, by its name; empty without one.

    Raises:
        BackendError: the hardware does not compute with such weights.
        ConfigError: they do not go together with other settings.
        ModelError: the method is not known, a package for it is missing, or nothing is trained on it.
    """
    stored = stored_weights(config)
    if stored is None:
        return
    base = str(base_config(run.model).model_name_or_path)
    if run.model.load_in_4bit:
        raise ConfigError(
            f"--load_in_4bit: this base is stored quantized ({stored.words}), and is used as it is. Leave "
            f"--load_in_4bit out, or {_WHOLE}."
        )
    _check_method(base, stored, backend, trains=trains)
    if not stored.is_packed:
        return
    if partitioned:
        raise ConfigError(
            f"{base}: it is stored in {stored.words}, and with {partitioned} transformers does not share out such "
            f"weights. Type --deepspeed zero2, where each device holds the whole base, or {_WHOLE}."
        )
    if not trains:
        return
    if run.tuning.peft_method == "none":
        raise ConfigError(
            f"--peft_method none: {base} is stored in {stored.words}, and such weights cannot be trained. Type "
            f"--peft_method lora, or {_WHOLE}."
        )
    if run.tuning.lora_init not in ("default", "gaussian"):
        raise ConfigError(
            f"--lora_init {run.tuning.lora_init}: {base} is stored in {stored.words}, and LoRA would begin from the "
            f"packed weights. Type --lora_init default or gaussian, or {_WHOLE}."
        )


def check_stored_run(run: RunConfig, config: Any, backend: Backend, arguments: Any) -> None:
    """As `check_stored`, by a run's training arguments.

    Raises:
        BackendError, ConfigError, ModelError: as `check_stored`; or its weights would be cast.
    """
    check_stored(run, config, backend, trains=arguments.do_train, partitioned=partitioning_engine(arguments))
    stored = stored_weights(config)
    for flag in ("bf16_full_eval", "fp16_full_eval"):
        if stored is not None and stored.is_packed and getattr(arguments, flag):
            raise ConfigError(
                f"--{flag}: the base is stored in {stored.words}, and such weights cannot be cast. Leave it out."
            )


def _check_method(base: str, stored: Stored, backend: Backend, *, trains: bool) -> None:
    if not stored.name or stored.name not in stored_methods():
        raise ModelError(
            f"{base}: its config.json says that its weights are quantized, by {stored.name or 'a method that it does '}"
            f"{'' if stored.name else 'not name'}; the installed transformers {'.'.join(map(str, TRANSFORMERS))} reads "
            f"no such weights. Update transformers, or {_WHOLE}."
        )
    if trains and stored.method.road is Road.NO_TRAINING:
        trained = ", ".join(name for name, method in METHODS.items() if method.road is not Road.NO_TRAINING)
        raise ModelError(
            f"{base}: it is stored in {stored.words}, on which no LoRA is trained here (on these it is: {trained}). "
            f"{_WHOLE.capitalize()}; --load_in_4bit then takes as little memory."
        )
    missing = _missing(stored.method)
    if missing:
        raise ModelError(
            f"{base}: it is stored in {stored.words}, which needs packages that are not installed: pip install "
            f"{' '.join(missing)}. Or {_WHOLE}."
        )
    if stored.method.road is Road.UNPACKED and not IS_5:
        raise ModelError(
            f"{base}: it is stored in {stored.words}, which transformers 5 unpacks, and "
            f"{'.'.join(map(str, TRANSFORMERS))} is installed. {_WHOLE.capitalize()}."
        )
    if stored.method.road is Road.AS_STORED and not backend.traits.quantization:
        raise BackendError(
            f"{base}: it is stored in {stored.words}, with which the {backend.name} backend does not compute. "
            f"{_WHOLE.capitalize()}: LoRA on it needs no other flag."
        )


def _missing(method: Method) -> list[str]:
    """Return what `pip install` has to get before such weights are read."""
    return [pip for module, pip in method.packages.items() if importlib.util.find_spec(module) is None]


def describe_methods() -> dict[str, str]:
    """Return what becomes of bases in few bits here, by the method that stored them, and which packages they lack."""
    roads = {
        Road.AS_STORED: "LoRA trains on it as it is, with backends that take --load_in_4bit",
        Road.UNPACKED: "unpacked, then LoRA trains on it",
        Road.NO_TRAINING: "nothing trains on it",
    }
    found = {}
    for name, method in METHODS.items():
        missing = _missing(method)
        if name not in stored_methods() or (method.road is Road.UNPACKED and not IS_5):
            found[name] = f"not read with transformers {'.'.join(map(str, TRANSFORMERS))}"
        else:
            found[name] = roads[method.road] + (f"; needs pip install {' '.join(missing)}" if missing else "")
    return found


def say_loaded(model: nn.Module) -> None:
    """Say which linear layers of a loaded base are in few bits, if any are, and which are whole."""
    parts = find_parts(model)
    packed = [name for name, module in model.named_modules() if is_packed(module)]
    if not packed:
        return
    outside = [name for name in packed if parts.part_of(name) != "language"]
    whole = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in set(packed)
    ]
    logger.info(
        "Quantization: %d linear layers are in few bits, %d of them outside of the language model%s; %d are whole.",
        len(packed),
        len(outside),
        f" ({outside[0]}, ...)" if outside else "",
        len(whole),
    )
