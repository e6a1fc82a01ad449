"""The text of a training's live line, as wide as the terminal allows, and the plain line in its place."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_lora.progress import spell_rate, spell_seconds
from vlm_lora.report.terminal.pace import Rates
from vlm_lora.report.terminal.words import spell_figure
from vlm_lora.training.observers import Advance

GAP = "  "
BAR = 20
"""Cells of the bar, where there is room for one."""


def live_words(advance: Advance, figures: Mapping[str, float], rates: Rates, doing: str, columns: int) -> str:
    """Return the live line: what matters most is kept where the terminal is narrow.

    Args:
        advance: how far the training has come.
        figures: those last logged.
        rates: how fast it goes.
        doing: what else goes on, such as `evaluating 3 of 16`; empty for steps.
        columns: what the line may take.
    """
    step = f"step {advance.step:,} of {advance.steps:,}"
    named = _named(figures, rates)
    if columns < 60:
        step = f"{advance.step:,}/{advance.steps:,}"
        named["left"] = named["left"].removesuffix(" left")
    # In the order in which they stand; the last of `_KEPT` go first.
    parts = {"step": step, "doing": doing, **named}
    kept = [name for name in _KEPT if parts.get(name)]
    while kept and len(GAP.join(parts[name] for name in kept)) > columns:
        kept.pop()
    text = GAP.join(parts[name] for name in parts if name in kept)
    if len(text) + BAR + 4 <= columns and advance.steps:
        done = BAR * advance.step // advance.steps
        text = f"[{'=' * done}{' ' * (BAR - done)}]{GAP}{text}"
    return text


_KEPT = ("step", "doing", "loss", "left", "rate", "rows", "tokens")


def _named(figures: Mapping[str, float], rates: Rates) -> dict[str, str]:
    return {
        "loss": f"loss {spell_figure(figures['loss'])}" if "loss" in figures else "",
        "rate": f"rate {spell_figure(figures['learning_rate'])}" if "learning_rate" in figures else "",
        "rows": "" if rates.rows is None else f"{spell_rate(rates.rows)} rows/s",
        "tokens": "" if rates.tokens is None else f"{spell_rate(rates.tokens)} tokens/s",
        "left": "" if rates.seconds_left is None else f"{spell_seconds(rates.seconds_left)} left",
    }


def plain_words(step: int, steps: int, figures: Mapping[str, float], rates: Rates) -> str:
    """Return the line that stands for a logged step where no line is live."""
    named = _named(figures, rates)
    if named["rate"]:
        named["rate"] = f"learning {named['rate']}"
    return f"step {step} of {steps}: " + ", ".join(text for text in named.values() if text)
