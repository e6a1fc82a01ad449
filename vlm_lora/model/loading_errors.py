"""What transformers raises about a model folder or Hub id, as one message that names the file and says what to type."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from vlm_lora.compat import IS_5, TRANSFORMERS, known_model_types
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ModelError, UserError
from vlm_lora.model.families import FAMILIES, family_of
from vlm_lora.model.folder_faults import AGAIN, INDEX, WEIGHTS, guilty_file
from vlm_lora.model.vocabulary import embedding_rows


@contextmanager
def translated(
    config: ModelConfig,
    base: ModelConfig,
    reading: Literal["config", "processor", "weights"],
    *,
    place: str | None = None,
    loaded: Any = None,
) -> Iterator[None]:
    """Turn what transformers raises into one message that says what to type.

    Args:
        config: what the user asked for.
        base: the same for the base model.
        reading: what is being read.
        place: the folder or Hub id that it is read from; by default the base's.
        loaded: the model's configuration, where that has been read.
    """
    name = place or str(base.model_name_or_path)
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise ModelError(f"{name}: this model needs a package that is missing: {first_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise _more_than_weights(name, error) from error
    except Exception as error:
        if "Unable to load weights from pytorch checkpoint" in str(error):  # 4.55's words for an UnpicklingError
            raise _more_than_weights(name, error) from error
        known = _known(name, error, config)
        if known is not None:
            raise known from error
        if reading == "weights" and loaded is not None:
            _check_that_it_builds(name, base, loaded)
        if not Path(name).is_dir():
            if isinstance(error, (ValueError, SafetensorError)):
                raise ModelError(f"{name}: {first_line(error)}") from error
            raise
        if isinstance(error, RuntimeError) and reading == "weights" and "mismatch" not in str(error):
            raise  # among them a device that is out of memory
        raise ModelError(_damaged(Path(name), reading, error)) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def few(names: list[str], count: int = 3) -> str:
    """Return the first names, and a sign that there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "") if names else "none"


def weights_name(folder: str) -> str:
    """Return the files that hold a folder's weights and describe them, for messages; the Hub id itself for one."""
    if not Path(folder).is_dir():
        return folder
    index = (Path(folder) / INDEX).is_file() and not (Path(folder) / WEIGHTS).is_file()
    return f"{Path(folder) / (INDEX if index else WEIGHTS)} and config.json next to it"


def _known(name: str, error: Exception, config: ModelConfig) -> ModelError | None:
    """Return the message for an error that is no damage."""
    text = str(error)
    if isinstance(error, ValueError) and "trust_remote_code" in text and not config.trust_remote_code:
        return ModelError(
            f"{name}: this model brings its own Python code. Read it, and if you trust it type "
            "--trust_remote_code true."
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return ModelError(f"{name}: {_unknown_architecture(name)}")
    if isinstance(error, OSError) and not Path(name).is_dir():
        return ModelError(
            f"{name}: not a folder here, and it could not be fetched from the Hub ({first_line(error)}). Check the "
            f"name; for a gated model type `hf auth login`; without a network type `hf download {name}` where there "
            "is one and give the folder."
        )
    return None


def _check_that_it_builds(name: str, base: ModelConfig, loaded: Any) -> None:
    try:
        embedding_rows(loaded, family_of(loaded), trust_remote_code=base.trust_remote_code)
    except Exception as error:  # whatever a model's class makes of a damaged setting: its settings are to blame
        where = Path(name) / "config.json" if Path(name).is_dir() else name
        raise ModelError(f"{where}: no model can be built from it ({_said(error)}). {AGAIN}") from error


def _damaged(folder: Path, reading: str, error: Exception) -> str:
    if reading == "weights" and isinstance(error, OSError):  # which names the file that is not there
        return f"{folder}: {_said(error)}. Copy the whole model folder again."
    if reading == "weights":
        return (
            f"{weights_name(str(folder))}: they do not belong together, or one is damaged ({_said(error)}). Copy the "
            "whole model folder again."
        )
    file = folder / "config.json" if reading == "config" else guilty_file(folder, error)
    if file is None:
        return f"{folder}: {_said(error)}. Copy the whole model folder again."
    if not file.is_file():
        return f"{file}: missing ({_said(error)}). Copy the whole model folder again."
    if file.name == "tokenizer_config.json" and not IS_5 and (newer := _of_version_5(file)):
        return (
            f"{file}: written by transformers 5 ({newer}), which {'.'.join(map(str, TRANSFORMERS))} here does not "
            'read. Set "tokenizer_class" there to "PreTrainedTokenizerFast" and "extra_special_tokens" to '
            '{"image_token": ..., ...}, as in the original model\'s file, or take that file. Folders that '
            "training and merging save are read by both."
        )
    return f"{file}: cannot be used ({_said(error)}). {AGAIN}"


def _of_version_5(file: Path) -> str:
    """Return what in a tokenizer's settings only transformers 5 writes; empty where nothing is."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # the error that is being said names it
        return ""
    if settings.get("tokenizer_class") == "TokenizersBackend":
        return '"tokenizer_class": "TokenizersBackend"'
    return 'a list of "extra_special_tokens"' if isinstance(settings.get("extra_special_tokens"), list) else ""


def _said(error: BaseException) -> str:
    """Return an error's first line, with its kind where the text alone says little."""
    text = first_line(error)
    return text if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"


def _more_than_weights(name: object, error: Exception) -> ModelError:
    return ModelError(
        f"{name}: a weight file holds more than weights, or is damaged; it was not loaded ({first_line(error)}). Only "
        ".safetensors files, and .bin files of plain tensors, are."
    )


def _unknown_architecture(name: str) -> str:
    settings = Path(name) / "config.json"
    kind = json.loads(settings.read_text(encoding="utf-8")).get("model_type") if settings.is_file() else None
    installed = ".".join(map(str, TRANSFORMERS))
    family = FAMILIES.get(str(kind))
    if family is not None and kind not in known_model_types():
        return f"model_type {kind!r} needs transformers {family.since} or newer; {installed} is installed."
    if kind is None:
        return f"config.json has no model_type, so it is damaged or no model's. {AGAIN}"
    return (
        f"the installed transformers {installed} does not know model_type {kind!r} of its config.json. Update "
        "transformers, or type --trust_remote_code true if the model brings its own code and you have read it."
    )
