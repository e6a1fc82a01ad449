"""Which model classes run: transformers' own, with the vendor's fused attention on request.

optimum-habana replaces model and generation classes of transformers when its training arguments are
made. In 1.21.2 the vision-language ones are wrong for training: GaudiGemma3 drops `token_type_ids`, so
image tokens lose their bidirectional attention, and its sliding window keeps one key too many; GaudiLlava
returns hidden states for logits; GaudiQwen2_5_VL reads values on the host for every image. So nothing
is replaced, and what remains of the vendor's is what is exact: fused attention, AdamW, clip, the trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlm_lora.errors import BackendError

FUSED = "gaudi_fused_sdpa"
"""The vendor's attention, by its name in transformers' registry of attention functions."""


@contextmanager
def plain_models() -> Iterator[None]:
    """Within this context the vendor registers its fused attention and replaces no class."""
    from optimum.habana.transformers import modeling_utils

    adapt = modeling_utils.adapt_transformers_to_gaudi
    modeling_utils.adapt_transformers_to_gaudi = _register_fused_attention
    try:
        yield
    finally:
        modeling_utils.adapt_transformers_to_gaudi = adapt


def _register_fused_attention() -> None:
    from optimum.habana.transformers import modeling_utils

    modeling_utils.ALL_ATTENTION_FUNCTIONS.register(FUSED, modeling_utils.gaudi_fused_sdpa_attention_forward)


def check_plain(model: Any) -> None:
    """Refuse a model that has a vendor's class in it: it was built after something else adapted transformers.

    Raises:
        BackendError: names the first such module.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("optimum.habana"):
            raise BackendError(
                f"{name or 'The model'} is the vendor's {type(module).__name__}, which trains on something else than "
                "the model's own definition. Do not call adapt_transformers_to_gaudi() before vlm-lora loads it."
            )
