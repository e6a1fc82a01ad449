"""The dtype that a model's weights are stored in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vlm_lora.errors import ModelError
from vlm_lora.model.stored_weights import stored_weights

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_dtype(config: Any, folder: Path) -> str:
    """Return the dtype of a model's weights: that of most of its tensors where its files are here, else the configured.

    Args:
        config: the model's.
        folder: where its safetensors files would be.

    Raises:
        ModelError: it is none that a model is trained in, or nothing says which it is.
    """
    counted: Counter[str] = Counter()
    # Of weights in few bits the files do not say what they are unpacked to.
    for path in sorted(folder.glob("model*.safetensors")) if stored_weights(config) is None else ():
        with safe_open(path, framework="pt") as file:
            counted.update(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
    if counted:
        stored = counted.most_common(1)[0][0]
        found = _NAMES.get(stored)
    else:
        configured = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        stored = str(configured).removeprefix("torch.")
        found = stored if stored in _NAMES.values() else None
    if found is None:
        raise ModelError(
            f"{folder}: its weights are stored as {stored}; an adapter is merged into float32, bfloat16 or float16. "
            "Type the one that they are to have: --dtype bfloat16"
        )
    return found
