"""How the next token of an answer is chosen: the likeliest, or drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vlm_lora.errors import ConfigError

DRAWING = ("temperature", "top_p", "top_k")
"""Settings that say how tokens are drawn; each of them turns drawing on."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Greedy unless something is asked for.

    Raises:
        ConfigError: a number out of range, or settings that contradict each other.
    """

    do_sample: bool | None = None
    """Whether tokens are drawn; None leaves it to the others."""
    temperature: float | None = None
    """Above 0; 1 draws as the model's probabilities say, less draws the likely ones more often. 0 is greedy."""
    top_p: float | None = None
    """Draw from the likeliest tokens that have this probability together."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens; 0 for all."""
    num_beams: int = 1
    """So many answers are followed at once, and the likeliest as a whole is given."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(
                f"--temperature {self.temperature:g}: must be a finite number from 0 (greedy), such as 0.7."
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top_p {self.top_p:g}: must be above 0 and at most 1, such as 0.9.")
        if self.top_k is not None and self.top_k < 0:
            raise ConfigError(f"--top_k {self.top_k}: must be a whole number from 0 (all tokens), such as 50.")
        if self.num_beams < 1:
            raise ConfigError(f"--num_beams {self.num_beams}: must be a whole number from 1 (no beams).")
        given = [f"--{name} {getattr(self, name):g}" for name in DRAWING if getattr(self, name) is not None]
        if self.do_sample is False and given:
            raise ConfigError(f"--do_sample false draws nothing, and {given[0]} says how. Leave one of them out.")
        if self.temperature == 0 and (self.do_sample or len(given) > 1):
            other = "--do_sample" if self.do_sample else given[1]
            raise ConfigError(f"--temperature 0 is greedy, and {other} is for drawing. Leave one of them out.")
        if self.num_beams > 1 and self.draws:
            drawing = given[0] if given else "--do_sample"
            raise ConfigError(
                f"--num_beams {self.num_beams} looks for the likeliest answer, and {drawing} draws one. Leave one of "
                "them out."
            )

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        if self.do_sample is not None:
            return self.do_sample
        return self.temperature != 0 and any(getattr(self, name) is not None for name in DRAWING)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords for `generate`; numbers that are not given are as the model's folder has them."""
        if not self.draws:
            return {"do_sample": False, "num_beams": self.num_beams}
        given = {name: getattr(self, name) for name in DRAWING if getattr(self, name) is not None}
        return {"do_sample": True, "num_beams": 1, **given}
