"""docs/metrics.md has a line for each metric, and its example of an own metric runs.

`make docs` writes the table again.
"""

from __future__ import annotations

from pathlib import Path

from support.made_pages import check_made
from vlm_lora.config.scoring import FIGURES, OF_PAGES, less_is_better
from vlm_lora.metrics.choice import choose
from vlm_lora.metrics.facts import DataFacts
from vlm_lora.metrics.scored import Answered
from vlm_lora.metrics.table import METRICS, Metric

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"
HEAD = ("| Metric | Figures | Says | Rule from | Range | Taken by `auto` when |", "|---|---|---|---|---|---|")
SHOWN = 4
"""So many figures of one metric are listed by name."""


def line(metric: Metric) -> str:
    figures = [f"`{name}` {'↑' if better else '↓'}" for name, better in metric.figures.items()]
    shown = figures if len(figures) <= SHOWN else [*figures[:SHOWN], "`ocr_box_{precision,recall,f1}_{50,75}` ↑"]
    needs = f" (`{', '.join(metric.packages)}`)" if metric.packages else ""
    cells = (f"`{metric.name}`{needs}", ", ".join(shown), metric.rule, metric.source, metric.span, metric.auto)
    return f"| {' | '.join(cells)} |"


def test_the_table_is_current() -> None:
    check_made(PAGE, BEGIN, END, "\n".join((*HEAD, *map(line, METRICS.values()))))


def test_the_own_metric_of_the_page_runs(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8").split("<!-- own metric: begin -->")[1]
    example = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "my_metric.py").write_text(example, encoding="utf-8")
    scorer = choose([str(tmp_path / "my_metric.py")], DataFacts())
    assert not scorer.greater_is_better("eval_my_metric")
    rows = [Answered(row=text, generated=text, accepted=("ab", "abcdef")) for text in ("abc", "abcd")]
    assert scorer.score(rows).figures == {"exact_match": 0.0, "my_metric": 1.5}


def test_help_names_all_metrics() -> None:
    said = (PAGE.parent / "configuration.md").read_text(encoding="utf-8")
    row = next(line for line in said.splitlines() if line.startswith("| `metrics`"))
    assert [name for name in METRICS if name not in row] == []


def test_settings_know_the_same_figures_and_directions() -> None:
    figures = {name: better for metric in METRICS.values() for name, better in metric.figures.items()}
    assert {name for name in figures if not name.startswith(OF_PAGES)} == set(FIGURES)
    assert {name: not less_is_better(f"eval_{name}") for name in figures} == figures
