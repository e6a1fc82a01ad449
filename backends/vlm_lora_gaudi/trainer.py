"""transformers' trainer, with batches of which parts stay on the host."""

from __future__ import annotations

from typing import Any

from vlm_lora_gaudi.host_reads import HostReads
from vlm_lora_hpu.host_reads import TOKENS, unwrap


def hpu_trainer_class() -> type:
    """Return transformers' trainer with these differences.

    - What models read on the host stays there (`host_reads`).
    - The global batch's supervised tokens are counted on the host: counts of several label batches on the card would
      make a graph of each pair of shapes.
    """
    from transformers import Trainer

    class HpuTrainer(Trainer):
        """See `hpu_trainer_class`."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.data_collator = HostReads(kwargs["data_collator"], self.model.config)

        def _prepare_inputs(self, inputs: Any) -> Any:
            prepared = super()._prepare_inputs(inputs)
            prepared.pop(TOKENS, None)
            # On several ranks the model unwraps them itself, inside of what would move them (`unwrap_inside`).
            return unwrap(prepared) if self.args.world_size == 1 else prepared

        def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
            if not batch_samples:
                return None
            tokens = sum(batch[TOKENS].tensor for batch in batch_samples).to(device)
            return self.accelerator.gather(tokens).sum()

    return HpuTrainer
