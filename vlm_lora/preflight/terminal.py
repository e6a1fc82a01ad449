"""The data report in the terminal: one screen of figures, then the first bad rows."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from vlm_lora.data.wording import counted
from vlm_lora.preflight.figures import DataReport, Distribution, NamedRow, SplitReport

BARS = "▁▂▃▄▅▆▇█"
SHOWN = 20
"""Bad rows that are printed; JSON and page list all."""


def print_report(report: DataReport, console: Console) -> None:
    """Print a data report."""
    console.print(f"Images are shown {report.image_size}.", style="dim", markup=False, highlight=False)
    for split, figures in report.splits.items():
        _print_split(split, figures, console)
    if report.leaked:
        said = counted(report.leaked, "validation row is", "validation rows are")
        said += f" also trained on: {_places(report.leaks)}"
        console.print(said, style="yellow", markup=False)
    if not report.bad:
        console.print(f"{counted(report.rows, 'row')}, none bad.", style="green")
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.kinds.items())
    console.print(f"{len(report.bad)} of {counted(report.rows, 'row')} bad ({kinds}):", style="bold red")
    for row in report.bad[:SHOWN]:
        console.print(f"  {row}", markup=False, highlight=False)
        console.print(f"    {row.kind}: {row.cure}", style="dim", markup=False, highlight=False)
    if len(report.bad) > SHOWN:
        console.print(f"  and {len(report.bad) - SHOWN} more; --json and --html FILE list all.")
    console.print("  Rows count from 0.", style="dim")


def _print_split(name: str, split: SplitReport, console: Console) -> None:
    console.rule(f"{name}: {counted(split.rows, 'row')}, {split.bad} bad, layout {split.layout}", style="dim")
    for line in split.columns:
        console.print(f"  {line}", style="dim", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False)
    for heading in ("", "least", "median", "95 %", "most", "total"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading, figures in distributions(split).items():
        numbers = (figures.least, figures.median, figures.high, figures.most, figures.total)
        table.add_row(heading, *(str(number) for number in numbers), _bars(figures))
    console.print(table)
    console.print(f"  supervised: {split.supervised_share:.1%} of the tokens", highlight=False)
    if split.unanswered:
        first = _places(split.unanswered_rows[:1])
        console.print(
            f"  empty answers: {counted(split.unanswered, 'row teaches', 'rows teach')} the model to say nothing, such "
            f"as {first}",
            markup=False,
        )
    if split.repeated:
        first = _places(split.repeats[0])
        console.print(
            f"  repeated: {counted(split.repeated, 'row says', 'rows say')} the same as an earlier one, such as "
            f"{first}",
            markup=False,
        )


def distributions(split: SplitReport) -> dict[str, Distribution]:
    """Return a split's distributions by what they are called."""
    return {
        "tokens a row": split.tokens,
        "supervised tokens": split.supervised,
        "images a row": split.pictures,
        "tokens an image": split.image_tokens,
        "image width": split.widths,
        "image height": split.heights,
    }


def _bars(figures: Distribution) -> str:
    tallest = max(figures.counts, default=0)
    # A bar that stands for at least one row is never empty.
    return "".join(BARS[-(-count * (len(BARS) - 1) // tallest)] if count else " " for count in figures.counts)


def _places(rows: tuple[NamedRow, ...]) -> str:
    return ", ".join(f"{row.file} row {row.row}" for row in rows)
