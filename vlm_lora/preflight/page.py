"""The data report as one HTML page that needs nothing outside itself: no script, no font, no network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from vlm_lora.preflight.figures import DataReport, Distribution
from vlm_lora.preflight.terminal import distributions

WIDTH, HEIGHT = 320, 90
"""Size of a histogram in pixels."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a histogram, in pixels from the top left corner."""

    x: float
    y: float
    width: float
    height: float
    label: str


def render_page(report: DataReport) -> str:
    """Return the page. Texts of the data are escaped wherever they stand."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files(__package__) / "page.html.j2").read_text(encoding="utf-8"))
    histograms = {
        name: {title: (figures, bars(figures)) for title, figures in distributions(split).items()}
        for name, split in report.splits.items()
    }
    return template.render(report=report, histograms=histograms, width=WIDTH, height=HEIGHT)


def bars(figures: Distribution) -> list[Bar]:
    """Return the bars of a histogram, the tallest as high as the image."""
    if not figures.counts:
        return []
    step, tallest = WIDTH / len(figures.counts), max(figures.counts)
    found = []
    for number, count in enumerate(figures.counts):
        height = count * HEIGHT / tallest
        first, last = figures.edges[number], figures.edges[number + 1] - 1
        place = str(first) if first == last else f"{first} to {last}"
        found.append(
            Bar(
                x=round(number * step, 1),
                y=round(HEIGHT - height, 1),
                width=round(step - 1, 1),
                height=round(height, 1),
                label=f"{place}: {count}",
            )
        )
    return found
