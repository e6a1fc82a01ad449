"""What is asked of a merge, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlm_lora.deploy.folding import Folded
from vlm_lora.deploy.readings import Deviation
from vlm_lora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """What `merge` does beyond what a run's settings say."""

    rows: int = 4
    """How many rows both models answer; 0 for none."""
    max_shard_size: str = "5GB"
    """Of one file of weights, as transformers reads it."""

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ConfigError(f"--rows {self.rows}: must be 0 or more.")


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What was merged, and how it was proven."""

    adapter: str
    base: str
    folder: str
    dtype: str
    folded: Folded
    tensors: int
    """Tensors of the merged model, each of which is in the folder, bit for bit."""
    files: int
    """Files of weights."""
    size: int
    """Of them, in bytes."""
    deviation: Deviation | None
    """None where no rows were asked."""
    quantized: bool = False
    """Whether the adapter was trained on a base in 4 bits; it is merged onto the whole one."""


def as_json(report: MergeReport) -> dict[str, Any]:
    """Return a report as JSON has it."""
    folded, found = report.folded, report.deviation
    return {
        "adapter": report.adapter,
        "base_model": report.base,
        "dtype": report.dtype,
        "trained_in_4_bits": report.quantized,
        "layers": list(folded.layers),
        "layers_computed_twice": folded.recomputed,
        "modules_saved_whole": list(folded.whole),
        "largest_change": folded.largest_change,
        "tensors": report.tensors,
        "bytes": report.size,
        "proof": None
        if found is None
        else {
            "rows": found.rows,
            "largest_logit_difference": found.largest,
            "largest_logit": found.size,
            "equal_answers": found.equal_answers,
            "rounding_of_each_weight": found.rounding,
        },
    }
