"""Charts as inline SVG by matplotlib, whose import waits until a page is made.

No window system is asked for (the SVG canvas is named, pyplot is never imported), and the same log gives the same
bytes: no date, ids from a fixed salt. Colours are the page's own, so a chart is dark where the page is.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Sequence

from markupsafe import Markup

from vlm_lora.errors import ConfigError
from vlm_lora.report.run_page.curves import Chart, thinned

COLOURS = 6
"""Lines are told apart by so many colours of the style sheet, then they repeat dashed."""

NEEDS = 'pip install "vlm-lora[report]"'

_INK, _GRID = "#010203", "#040506"
"""Stand for the page's colours until the SVG is written; no line has them."""

_DOTTED = 60
"""Lines of at most so many points show each."""


def can_draw() -> bool:
    """Say whether what draws is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require(verb: str) -> None:
    """Refuse to go on without what draws.

    Raises:
        ConfigError: it is not installed.
    """
    if not can_draw():
        raise ConfigError(f"vlm-lora {verb} draws by matplotlib, which is not installed. Type: {NEEDS}")


def draw(chart: Chart, *, colours: Sequence[int] | None = None) -> Markup:
    """Return a chart as an SVG element, values over optimizer steps.

    Args:
        chart: its lines, none of them empty.
        colours: which colour each line has; by default in order.
    """
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    numbers = list(range(len(chart.lines))) if colours is None else list(colours)
    look = {
        "svg.hashsalt": chart.key,
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9,
        "axes.edgecolor": _GRID,
        "axes.labelcolor": _INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "grid.color": _GRID,
        "grid.linewidth": 0.8,
    }
    with style.context(["default", look]):
        figure = Figure(figsize=(5.0, 2.7), facecolor="none", layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        for line, number in zip(chart.lines, numbers, strict=True):
            steps, values = thinned(line)
            axes.plot(
                steps,
                [value / chart.unit for value in values],
                color=_colour(number),
                linewidth=1.6,
                linestyle="-" if number < COLOURS else "--",
                marker="o" if len(steps) <= _DOTTED else None,
                markersize=3.2 if len(steps) > 1 else 6,
            )
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.margins(x=0.02, y=0.08)
        if not any(value for line in chart.lines for value in line.values):
            axes.set_ylim(-0.04, 1)  # zeros alone, which would be drawn between values as small as they are meaningless
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=3))
        target = io.StringIO()
        figure.savefig(
            target, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"), None), facecolor="none"
        )
    return _inline(target.getvalue(), chart)


def _colour(number: int) -> str:
    return f"#07080{number % COLOURS}"


def _inline(text: str, chart: Chart) -> Markup:
    """Return the file's element alone, its colours the page's, its ids unlike those of the page's other charts."""
    element = text[text.index("<svg") :].strip()
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)
    element = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{chart.key}-", element)
    element = element.replace(_INK, "var(--dim)").replace(_GRID, "var(--line)")
    for number in range(COLOURS):
        element = element.replace(_colour(number), f"var(--s{number})")
    # A style of its own would hold for the whole page; text is in the page's own font.
    element = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", element, count=1, flags=re.DOTALL)
    element = re.sub(r"font-family: [^;\"]*;? ?", "", element)
    return Markup(element.replace("<svg", '<svg role="img"', 1))
