"""What is asked of a quantization, and what it says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """What `quantize` does beyond what a run's settings say."""

    scheme: str
    rows: int = 128
    """How many training rows AWQ finds its scales from; the loss is compared on the first of them."""
    environment: Path | None = None
    """The environment that llm-compressor runs in; None: where `--make_environment` makes it."""
    max_shard_size: str = "5GB"
    """Of one file of weights, as transformers reads it."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"--rows {self.rows}: must be 1 or more.")


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found in the written folder, loaded by a process of its own next to the model before."""

    layers: int
    """Layers in fewer bits."""
    largest_error: float
    """The largest distance of one weight from the model's before (times AWQ's scales), in steps: half a step and what
    16 bits round."""
    untouched: int
    """Other tensors that are those of the model before, bit for bit."""
    scaled: int
    """Norms and biases that AWQ has divided by its scales."""
    deviation: float | None
    """How far AWQ's scales alone, before any rounding to fewer bits, move a logit, in units of the largest logit;
    None without AWQ."""
    rows: int
    """Rows that both losses were measured on."""
    loss_before: float
    """Mean negative log-likelihood of a supervised token, in nats."""
    loss_after: float


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What was quantized, how, and how it was proven."""

    model: str
    """The folder that was named: a run's, or a whole model's."""
    merged: bool
    """Whether it was merged first."""
    scheme: str
    meaning: str
    folder: str
    calibration_rows: int
    """Rows that AWQ found its scales from; 0 without AWQ."""
    size_before: int
    """Of the files of weights, in bytes."""
    size_after: int
    proof: Proof
    versions: dict[str, str]
    """Of what quantized it."""


def as_json(report: QuantizeReport) -> dict[str, Any]:
    """Return a report as JSON has it."""
    return asdict(report)
