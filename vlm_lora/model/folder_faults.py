"""Damaged files of a model or adapter folder: found by name where that is cheap, before the folder is handed on.

What is looked at: a file must not be a pointer of Git LFS, every file of settings must be a JSON object, weights must
be there and have a header that fits their length, an index must agree with its files, and a key that is one flipped bit
away from a key that is missing is damage, not a setting. Values that another value could stand for are not seen.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vlm_lora.errors import ModelError

ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json", "merges.txt", "*.spm")
_TOKENIZER_KEYS = frozenset(
    [
        *(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "image", "video")),
        *("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "chat_template"),
        *("model_max_length", "padding_side", "truncation_side", "tokenizer_class", "processor_class"),
        *("add_bos_token", "add_eos_token", "add_prefix_space", "backend", "clean_up_tokenization_spaces"),
    ]
)
_CONTROL = re.compile(r"<[^<>\s]{2,60}>|\[[^\[\]\s]{2,60}\]")
AGAIN = "Copy it again from where it came from."
_POINTER = b"version https://git-lfs.github.com/spec/"
_BIN, _BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_OF_WEIGHTS = ("*.safetensors*", "*.bin*", "*.gguf", "*.incomplete", "*.pt*", "*.h5", "*.onnx")


def read_settings(file: Path) -> dict[str, Any]:
    """Return the settings of a JSON file.

    Raises:
        ModelError: it is empty, cut off or damaged.
    """
    refuse_pointer(file)
    try:
        content = file.read_bytes()
        settings = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        why = "empty" if not content.strip() else f"cut off or damaged ({error})"
        raise ModelError(f"{file}: {why}. {AGAIN}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{file}: damaged: it holds no settings but a {type(settings).__name__}. {AGAIN}")
    return settings


def refuse_damage(folder: Path) -> None:
    """Look through the files of a model or adapter folder that need no library to be read.

    Raises:
        ModelError: names the first damaged file, and how.
    """
    for file in sorted(folder.iterdir()):
        refuse_pointer(file)
    for name in SETTINGS:
        if (folder / name).is_file():
            read_settings(folder / name)
    _check_tokenizer(folder)
    _check_template(folder / "chat_template.jinja")
    for file in weight_files(folder):
        _check_header(file)


def refuse_pointer(file: Path) -> None:
    """Refuse a text of Git LFS in place of a file, as a clone without LFS has it.

    Raises:
        ModelError: names the file and how it is fetched.
    """
    if not file.is_file() or file.stat().st_size > 1024:  # the specification allows less
        return
    with file.open("rb") as opened:
        begins = opened.read(len(_POINTER))
    if begins == _POINTER:
        raise ModelError(
            f"{file}: a pointer of Git LFS instead of the file itself: the folder was cloned without its large files. "
            f"Type `git lfs install` and `git -C {file.parent} lfs pull`, or fetch the model by `hf download`."
        )


def refuse_missing_weights(folder: Path) -> None:
    """Refuse a model folder without weights that transformers finds, or with a part of them, by their names alone.

    Raises:
        ModelError: says which file is missing, and what is there instead.
    """
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX, _BIN)):
        return  # what an index of safetensors names is looked for where they are read
    if (folder / _BIN_INDEX).is_file():
        named = read_settings(folder / _BIN_INDEX).get("weight_map")
        shards = sorted(set(named.values())) if isinstance(named, dict) else []
        missing = [shard for shard in shards if not (folder / str(shard)).is_file()]
        if missing or not shards:
            raise ModelError(
                f"{folder / str(missing[0]) if missing else folder / _BIN_INDEX}: "
                f"{f'missing, and {folder / _BIN_INDEX} names it' if missing else 'damaged: it has no weight_map'}. "
                "Copy both again from where they came from."
            )
        return
    there = sorted({path.name for pattern in _OF_WEIGHTS for path in folder.glob(pattern)})
    if any(name.startswith("model-") and name.endswith(".safetensors") for name in there):
        raise ModelError(
            f"{folder / INDEX}: missing, next to {there[0]}, so nothing says what each file holds. {AGAIN}"
        )
    instead = f"; what it holds instead is not read: {', '.join(there[:3])}" if there else ""
    raise ModelError(
        f"{folder}: it has a config.json and no weights (no {WEIGHTS}, {INDEX}, {_BIN}){instead}. Copy the whole "
        "model folder again, or fetch it by `hf download`."
    )


def adapter_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of an adapter, whose keys must all be PEFT's.

    Raises:
        ModelError: the file is damaged, or the adapter's weights are not there.
    """
    from peft import LoraConfig

    settings = read_settings(folder / ADAPTER_FILE)
    refuse_misspelt(folder / ADAPTER_FILE, settings, {field.name for field in fields(LoraConfig)})
    if not any((folder / name).is_file() for name in (ADAPTER_WEIGHTS, "adapter_model.bin")):
        raise ModelError(f"{folder / ADAPTER_WEIGHTS}: missing, next to {ADAPTER_FILE}. {AGAIN}")
    return settings


def refuse_misspelt(file: Path, settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a key that nobody knows where a known one, a single flipped bit away from it, is missing.

    Raises:
        ModelError: names the file and both keys.
    """
    for key in settings:
        if key in known:
            continue
        meant = next((name for name in known if name not in settings and _one_bit_apart(key, name)), None)
        if meant is not None:
            raise ModelError(f"{file}: damaged: it has a key {key!r}, and {meant!r} is missing. {AGAIN}")


def check_config_keys(file: Path, config: Any) -> None:
    """Refuse misspelt keys of a config.json, in its parts too, by the configuration that was made of it."""
    _check_keys(file, read_settings(file), config)


def check_processor_keys(folder: Path, processor: Any) -> None:
    """Refuse misspelt keys of the processor's files, by the processor that was made of them."""
    for name, part in (
        ("preprocessor_config.json", "image_processor"),
        ("video_preprocessor_config.json", "video_processor"),
    ):
        if (folder / name).is_file() and getattr(processor, part, None) is not None:
            refuse_misspelt(folder / name, read_settings(folder / name), _declared(getattr(processor, part)))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            refuse_misspelt(folder / name, read_settings(folder / name), _TOKENIZER_KEYS)
    template = folder / "chat_template.jinja"
    if template.is_file():
        tokens = {added.content for added in processor.tokenizer.added_tokens_decoder.values()}
        for written in set(_CONTROL.findall(template.read_text(encoding="utf-8"))) - tokens:
            meant = next((token for token in tokens if _one_bit_apart(written, token)), None)
            if meant is not None:
                raise ModelError(f"{template}: damaged: it writes {written!r} instead of {meant!r}. {AGAIN}")


def template_place(name: str) -> str:
    """Return the file that holds a folder's chat template; a Hub id as it is."""
    files = [Path(name) / file for file in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")]
    return str(next((file for file in files if file.is_file()), name))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, those that its index names among them.

    Raises:
        ModelError: the index is damaged, or a file that it names is missing.
    """
    files = [folder / name for name in (ADAPTER_WEIGHTS, WEIGHTS) if (folder / name).is_file()]
    index = folder / INDEX
    if not index.is_file() or files:
        return files
    places = read_settings(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{index}: damaged: it has no weight_map. {AGAIN}")
    shards = sorted(set(places.values()))
    for shard in shards:
        file = folder / shard
        if not file.is_file():
            raise ModelError(f"{file}: missing, and {index} names it. Copy both again from where they came from.")
        held = set(_check_header(file))
        absent = [name for name, place in places.items() if place == shard and name not in held]
        if absent:
            raise ModelError(
                f"{file} and {index} do not agree: the index names {absent[0]}, which the file does not hold. Copy "
                "both again from where they came from."
            )
    return [folder / shard for shard in shards]


def guilty_file(folder: Path, error: BaseException) -> Path | None:
    """Return the file of a folder that makes its processor fail, by reading each part alone; None where none does."""
    from tokenizers import Tokenizer
    from transformers import AutoImageProcessor, AutoTokenizer, AutoVideoProcessor

    vocabulary = folder / "tokenizer.json"
    pictures = folder / "preprocessor_config.json"
    nested = folder / "processor_config.json"
    pictures = nested if nested.is_file() and not pictures.is_file() else pictures
    video = folder / "video_preprocessor_config.json"
    readers: list[tuple[Path, Any, str]] = [
        (vocabulary, Tokenizer.from_file, str(vocabulary)),
        (folder / "tokenizer_config.json", AutoTokenizer.from_pretrained, str(folder)),
        (pictures, AutoImageProcessor.from_pretrained, str(folder)),
        (video, AutoVideoProcessor.from_pretrained, str(folder)),
    ]
    named = [file for file, _, _ in readers if file.name in str(error)]
    if named:
        return named[0]
    for file, read, place in readers:
        if file in (vocabulary, video) and not file.is_file():
            continue
        try:
            read(place)
        except Exception:  # whatever a library makes of a damaged file: this is the file
            return file
    return nested if nested.is_file() else None


def _check_template(file: Path) -> None:
    if not file.is_file():
        return
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file}: damaged ({error}). {AGAIN}") from error
    if not text.strip():
        raise ModelError(f"{file}: empty. {AGAIN}")


def _check_tokenizer(folder: Path) -> None:
    vocabulary, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if vocabulary.is_file():
        with vocabulary.open("rb") as opened:
            opened.seek(max(0, vocabulary.stat().st_size - 64))
            end = opened.read().rstrip()
        if not end.endswith(b"}"):
            raise ModelError(f"{vocabulary}: {'cut off or damaged' if end else 'empty'}. {AGAIN}")
        if not settings.is_file():  # which names the special tokens
            raise ModelError(f"{settings}: missing, next to tokenizer.json. {AGAIN}")
        return
    if not settings.is_file() or "auto_map" in read_settings(settings):  # a tokenizer of the model's own code
        return
    if not any(next(folder.glob(pattern), None) for pattern in VOCABULARIES):
        raise ModelError(f"{vocabulary}: missing, next to tokenizer_config.json. {AGAIN}")


def _check_header(file: Path) -> list[str]:
    """Return the names of a safetensors file's tensors."""
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        why = "empty" if not file.stat().st_size else f"cut off or damaged ({error})"
        raise ModelError(f"{file}: {why}. {AGAIN}") from error


def _check_keys(file: Path, settings: Mapping[str, Any], config: Any) -> None:
    refuse_misspelt(file, settings, _declared(config))
    for name, value in settings.items():
        if not isinstance(value, dict):  # nor can every other setting be read: some layers may have it for themselves
            continue
        part = getattr(config, name, None)
        if hasattr(part, "to_dict"):
            _check_keys(file, value, part)


def _declared(thing: Any) -> frozenset[str]:
    """Return the settings that a class knows, whatever its instance was given."""
    return frozenset(_names(type(thing)))


def _names(kind: type) -> Iterator[str]:
    yield from dir(kind)
    for base in kind.__mro__:
        yield from inspect.get_annotations(base)
        if base is not object and "__init__" in vars(base):
            yield from inspect.signature(vars(base)["__init__"]).parameters
    yield from getattr(getattr(kind, "valid_kwargs", None), "__annotations__", {})


def _one_bit_apart(first: str, second: str) -> bool:
    if len(first) != len(second):
        return False
    apart = [ord(a) ^ ord(b) for a, b in zip(first, second, strict=True) if a != b]
    return len(apart) == 1 and apart[0].bit_count() == 1
