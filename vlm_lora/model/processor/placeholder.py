"""A processor marks images by the token that its model looks for, or it is another model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vlm_lora.errors import DataError, ModelError

_MODEL_NAMES = ("image_token_id", "image_token_index")


def check_placeholder(config: Any, processor: Any, image_row: Callable[[], Sequence[int]]) -> None:
    """Refuse a processor of another model before the first step would fail, or would train without its images.

    Args:
        config: the model's configuration.
        processor: what was loaded for it.
        image_row: makes the token ids of a row with one image. Asked only where the processor's placeholder is not
            what the model looks for: some write another token in its place.

    Raises:
        ModelError: the model puts images in place of a token that the processor never writes.
    """
    wanted = next((value for name in _MODEL_NAMES if isinstance(value := getattr(config, name, None), int)), None)
    vocabulary = processor.tokenizer.get_vocab()
    owners = (processor, processor.tokenizer)
    # Gemma 3 names the expanded token on one of them, and the one in the template on the other.
    named = [getattr(owner, key, None) for key in ("image_token", "boi_token") for owner in owners]
    marks = {name: vocabulary[name] for name in named if isinstance(name, str) and name in vocabulary}
    # Without either there is nothing to compare; some models count images by negative numbers of no token.
    if wanted is None or wanted < 0 or not marks or wanted in marks.values():
        return
    try:
        written = image_row()
    except DataError:  # --max_length leaves no room for an image: its rows are refused or dropped by name
        return
    if wanted in written:
        return
    token, marked = next(iter(marks.items()))
    raise ModelError(
        f"The processor does not belong to the model: it marks images by {token} ({marked}), and the model "
        f"({config.model_type}) looks for token {wanted}. Processor and tokenizer files (preprocessor_config.json, "
        f"processor_config.json, tokenizer*.json) have to come from the folder or Hub id that the weights come from."
    )
