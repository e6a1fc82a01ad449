"""GaudiTrainer, with what the project's loss and checkpointing need and a constructor cannot take."""

from __future__ import annotations

from typing import Any

from vlm_lora_habana.host_reads import HostReads
from vlm_lora_hpu.host_reads import TOKENS, unwrap

_NO_FIGURES = ("_end_time", "_graph_compliation_duration")


def gaudi_trainer_class() -> type:
    """Return optimum-habana's trainer with these differences.

    - The global batch's supervised tokens are counted also when its label batches have different widths
      (the vendor concatenates them, fails, and goes on without a count).
    - Gradient checkpointing that the core switched on for the language model stays on: the vendor's loop
      switches it off when its own argument is off.
    - What models read on the host stays there (`host_reads`).
    - It says what clips the gradients, so that they can be looked at before (`other_clippers`).
    """
    from optimum.habana import GaudiTrainer

    class ProjectGaudiTrainer(GaudiTrainer):
        """See `gaudi_trainer_class`."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.data_collator = HostReads(kwargs["data_collator"], self.model.config)

        @property
        def other_clippers(self) -> list[tuple[Any, str]]:
            """What clips gradients in place of accelerate: an object and its function's name."""
            return [] if self.FusedNorm is None else [(self.FusedNorm, "clip_norm")]

        def _prepare_inputs(self, inputs: Any) -> Any:
            return unwrap(super()._prepare_inputs(inputs))

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            figures = super().evaluate(*args, **kwargs)
            # A moment in time among the figures, and a misspelled duration that is counted in the runtime.
            return {name: value for name, value in figures.items() if not name.endswith(_NO_FIGURES)}

        def get_batch_samples_transformers(
            self, epoch_iterator: Any, num_batches: int, device: Any
        ) -> tuple[list[Any], Any]:
            batches = []
            for _ in range(num_batches):
                try:
                    batches.append(next(epoch_iterator))
                except StopIteration:
                    break
            if not batches:
                return batches, None
            tokens = sum(batch[TOKENS].tensor for batch in batches).to(device)
            return batches, self.accelerator.gather(tokens).sum()

        def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
            switch_off = self.model.gradient_checkpointing_disable
            self.model.gradient_checkpointing_disable = lambda: None
            try:
                return super()._inner_training_loop(*args, **kwargs)
            finally:
                self.model.gradient_checkpointing_disable = switch_off

    return ProjectGaudiTrainer
