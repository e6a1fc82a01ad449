"""Full weights back from a checkpoint: by the model's own class, because the file's names are not the module's."""

from __future__ import annotations

from typing import Any

from vlm_lora.model.loading import check_weights


def load_full_weights(model: Any, checkpoint: str) -> None:
    """Put a checkpoint's weights into `model`, in place.

    transformers saves under the published names (`language_model.model.layers...`) and its trainer reads them back
    under the module's (`model.language_model.layers...`), where it finds none and goes on from the base's weights.

    Raises:
        ModelError: weights are missing from the checkpoint, or have another shape.
    """
    saved, report = type(model).from_pretrained(
        checkpoint, config=model.config, torch_dtype=model.dtype, output_loading_info=True
    )
    check_weights(checkpoint, saved, report)
    model.load_state_dict(saved.state_dict())
