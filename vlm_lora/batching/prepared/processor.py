"""Stands in a processor in its image processor's place: what that makes of a row's images is made once and kept.

The processor asks it as it would ask the image processor, and writes image tokens by what it answers. The answer is
known by the images' bytes and sizes, how they are nested, the keywords of the call, and all that the image processor
is: its class, settings, code and the packages below it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from inspect import getsourcefile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature

from vlm_lora.batching.prepared.levels import PIXELS, RAW, Levels, as_levels, find_levels
from vlm_lora.batching.prepared.pictures import LazyPicture
from vlm_lora.batching.prepared.store import TensorStore
from vlm_lora.config.version import version_of

FORMAT = 1
"""Changes with what is kept of an answer."""

PLAIN = (
    "CLIPImageProcessor",
    "Gemma3ImageProcessor",
    "GotOcr2ImageProcessor",
    "LlavaImageProcessor",
    "Qwen2VLImageProcessor",
    "SiglipImageProcessor",
)
"""Image processors (by the start of the class's name: its end says the implementation) that finish by rescaling and
normalising and add no padding after that, by their code in transformers 4.55.4 and 5.23. The others' padding is no
level: their pixel values are kept as they are. `tests/invariant/test_prepared_images.py` tries all."""

_PACKAGES = ("transformers", "torch", "torchvision", "pillow", "numpy")
_STRUCTURE = ":structure"
"""The name under which an answer's structure lies next to its tensors."""
_LEAST_SIDE = 16


class PreparedImageProcessor:
    """An image processor that makes nothing twice. Can be pickled. All else about it is the image processor's own.

    Args:
        image_processor: the model's.
        store: where answers are kept; pixel values as levels where these give them back bit for bit.
    """

    def __init__(self, image_processor: Any, store: TensorStore) -> None:
        self._image_processor = image_processor
        self._store = store
        self._described = described(image_processor)
        self._levels: dict[str, Levels | None] = {}
        self._unkept: tuple[str, Mapping[str, torch.Tensor]] | None = None
        self.last: tuple[str, Any] = ("", None)
        """Of the last call: under what its answer is kept, and the pixel values that were given."""
        self.in_use: Levels | None = None
        """What levels stand for, once this process has asked for an image; None where there are none."""
        self.answered: tuple[torch.Tensor, Levels] | None = None
        """Of the last call: pixel values that were given as levels, and what these stand for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_image_processor":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self._image_processor, name)

    def __call__(self, images: Any = None, *args: Any, **keywords: Any) -> Any:
        """Answer as the image processor does, from what is kept where it was asked before."""
        self.answered, self._unkept, self.last = None, None, ("", None)
        pictures = _flat(images)
        identities = [getattr(picture, "identity", None) for picture in pictures]
        if args or not pictures or None in identities:
            return self._image_processor(_decoded(images), *args, **keywords)
        keywords["return_tensors"] = "pt"
        levels = self._levels_for(keywords)
        key = self._key(images, keywords, levels=levels is not None)
        kept = self._store.get(key)
        if kept is None:
            answer = self._image_processor(_decoded(images), **keywords, **({} if levels is None else RAW))
            content = dict(answer)
            if levels is not None:
                content[PIXELS] = as_levels(content[PIXELS])
            kept = _packed(content)
            if kept is None:
                return answer
            self._unkept = key, kept
        content = unpacked(kept)
        self.last, self.in_use = (key, content.get(PIXELS)), levels
        if levels is not None:
            self.answered = content[PIXELS], levels
        return BatchFeature(content)

    def keep(self) -> None:
        """Keep the last answer: its row is one that will be asked for again."""
        if self._unkept is not None:
            self._store.put(*self._unkept)
            self._unkept = None

    def _key(self, images: Any, keywords: Mapping[str, Any], *, levels: bool) -> str:
        content = [FORMAT, self._described, repr(sorted(keywords.items())), levels, _named(images)]
        return sha256(json.dumps(content).encode()).hexdigest()

    def _levels_for(self, keywords: Mapping[str, Any]) -> Levels | None:
        name = repr(sorted(keywords.items()))
        if name not in self._levels:
            own = self._image_processor
            if not type(own).__name__.startswith(PLAIN):
                return self._levels.setdefault(name, None)
            uncut = {"do_center_crop": False} if getattr(own, "do_center_crop", None) else {}
            step = _whole(own, "patch_size") * _whole(own, "merge_size")
            side = -(-_LEAST_SIDE // step) * step
            self._levels[name] = find_levels(partial(own, **{**keywords, **uncut}), side)
        return self._levels[name]


def _whole(owner: Any, name: str) -> int:
    value = getattr(owner, name, None)
    return value if isinstance(value, int) and value > 0 else 1


def _version(name: str) -> str:
    """Return a package's version; of torchvision, which need not be there, also that it is not."""
    try:
        return version_of(name)
    except PackageNotFoundError:
        return "not installed"


def described(image_processor: Any) -> str:
    """Return a hash of everything in an image processor that could change what it makes."""
    owner = type(image_processor)
    parts = [f"{owner.__module__}.{owner.__qualname__}", image_processor.to_json_string()]
    parts += [f"{name} {_version(name)}" for name in _PACKAGES]
    parts.append(torch.backends.cpu.get_cpu_capability())  # kernels of another one may round otherwise
    if not owner.__module__.startswith("transformers."):
        # Code that came with the model: its text is the only version it has.
        source = getsourcefile(owner)
        parts.append(Path(source).read_text(encoding="utf-8") if source else "")
    return sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()


def _flat(images: Any) -> list[Any]:
    if isinstance(images, Sequence):
        return [picture for each in images for picture in _flat(each)]
    return [] if images is None else [images]


def _decoded(images: Any) -> Any:
    """Return images as they are nested, each one decoded."""
    if isinstance(images, Sequence):
        return [_decoded(each) for each in images]
    return images.decoded() if isinstance(images, LazyPicture) else images


def _named(images: Any) -> Any:
    return [_named(each) for each in images] if isinstance(images, Sequence) else images.identity


def _packed(answer: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    """Return an answer as tensors, one of which says its structure; None where it holds anything else."""
    tensors: dict[str, torch.Tensor] = {}
    try:
        structure = _taken_apart(answer, tensors)
    except TypeError:
        return None
    text = json.dumps(structure).encode()
    return {**tensors, _STRUCTURE: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def _taken_apart(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a value's structure, as JSON has it; its tensors and arrays are added to `tensors`.

    Raises:
        TypeError: it has parts of another kind.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        name = str(len(tensors))
        tensors[name] = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        return ["tensor" if isinstance(value, torch.Tensor) else "array", name]
    if isinstance(value, Mapping):
        return ["mapping", [[str(key), _taken_apart(each, tensors)] for key, each in value.items()]]
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", [_taken_apart(each, tensors) for each in value]]
    if isinstance(value, np.integer):
        value = int(value)
    if value is None or isinstance(value, str | bool | int | float):
        return ["plain", value]
    raise TypeError(f"{type(value).__name__} is not kept")


def unpacked(kept: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return an answer as it was given, from the tensors that it is kept as."""
    structure = json.loads(kept[_STRUCTURE].numpy().tobytes())
    answer: dict[str, Any] = _put_together(structure, kept)
    return answer


def _put_together(structure: Any, kept: Mapping[str, torch.Tensor]) -> Any:
    kind, value = structure
    if kind == "tensor":
        return kept[value]
    if kind == "array":
        return kept[value].numpy()
    if kind == "mapping":
        return {key: _put_together(each, kept) for key, each in value}
    if kind in ("list", "tuple"):
        whole = [_put_together(each, kept) for each in value]
        return whole if kind == "list" else tuple(whole)
    return value
