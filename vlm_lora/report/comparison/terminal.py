"""A comparison of runs in the terminal: what differs, the tests, and the first rows that changed."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlm_lora.data.wording import counted
from vlm_lora.report.comparison.compared import Against, Comparison, verdict
from vlm_lora.report.pages.rendering import heading, in_words, number
from vlm_lora.report.preview import visible

SHOWN = 10
"""Rows that changed; the page has more."""
_LONGEST = 60


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a comparison."""
    if comparison.settings:
        rows = [
            [name, *("not given" if value is None else value for value in values)]
            for name, values in comparison.settings
        ]
        _print_table(["setting", *comparison.names], rows, console)
    else:
        console.print("No setting differs.")
    if comparison.figures:
        console.print()
        figures = [[heading(name), *(in_words(value, name) for value in values)] for name, values in comparison.figures]
        _print_table(["result", *comparison.names], figures, console)
    for one in comparison.against:
        console.print()
        _print_against(one, comparison.names[0], console)


def _print_against(one: Against, first: str, console: Console) -> None:
    console.print(
        _plain(f"{one.name} against {first}, on the {counted(one.pairs, 'row')} that both answered:"), style="bold"
    )
    if not one.scores:
        console.print(f"  {one.nothing_paired}", markup=False)
        return
    rows = [
        [
            heading(name),
            f"{number(paired.first)} -> {number(paired.second)}",
            f"{paired.difference:+.4g}",
            f"{paired.interval[0]:.4g} to {paired.interval[1]:.4g}",
            number(paired.p),
            f"{paired.higher} / {paired.lower}",
            verdict(name, paired),
        ]
        for name, paired in one.scores.items()
    ]
    _print_table(["score", "mean", "difference", "95 % interval", "p", "higher / lower", ""], rows, console)
    tests = dict.fromkeys(f"{heading(name)} by the {paired.test}" for name, paired in one.scores.items())
    console.print(f"p: {', '.join(tests)}; each score by itself.", style="dim")
    if one.expected_differs:
        said = counted(one.expected_differs, "of these rows expects", "of these rows expect")
        said += " different answers in the two runs: the data are not the same."
        console.print(said, style="yellow")
    better = sum(row.better for row in one.changed)
    worse = len(one.changed) - better
    console.print(f"{counted(better, 'row')} better, {worse} worse, {one.reworded} answered otherwise but neither.")
    for row in one.changed[:SHOWN]:
        console.print(_plain(f"  {'better' if row.better else 'worse'}: {row.before.source}"))
        expected = " | ".join(row.before.accepted)
        console.print(
            _plain(
                f"    {_short(row.before.generated)} -> {_short(row.after.generated)}  (expected {_short(expected)})"
            ),
            style="dim",
        )


def _print_table(headings: list[str], rows: list[list[str]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in headings:
        table.add_column(_plain(name), overflow="fold")
    for row in rows:
        table.add_row(*(_plain(_short(cell)) for cell in row))
    console.print(table)


def _short(text: str) -> str:
    """Return a text on one line, of a long one the beginning."""
    line = " ".join(text.split())
    if not line:
        return "(nothing)" if not text.strip() and text != "" else ""
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _plain(text: str) -> Text:
    return Text(visible(text))
