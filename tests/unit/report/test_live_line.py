"""The live line: where there is one, how it gives way to others' words, and what it says at each width."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping

import pytest

from support.screen import Screen
from vlm_lora import progress
from vlm_lora.progress import Line, Progress, can_be_live, spell_rate, spell_seconds
from vlm_lora.report.terminal.evaluations import EvaluationTable, plain_evaluation
from vlm_lora.report.terminal.pace import Pace, Rates
from vlm_lora.report.terminal.steps import live_words, plain_words
from vlm_lora.report.terminal.view import TerminalView
from vlm_lora.report.terminal.words import rounded, spell_figure
from vlm_lora.training.observers import Advance

TERMINAL = {"TERM": "xterm-256color", "COLUMNS": "80"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("environ", "live"),
    [
        ({}, True),
        ({"COLUMNS": "0"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": ""}, False),
        ({"CI": "true"}, False),
        ({"CI": "false"}, True),
        ({"RANK": "1"}, False),
        ({"RANK": "0"}, True),
        ({"OMPI_COMM_WORLD_RANK": "3"}, False),
        ({"NO_COLOR": "1"}, True),
    ],
)
def test_where_a_line_can_be_live(environ: Mapping[str, str], live: bool) -> None:
    assert can_be_live(Terminal(), {**TERMINAL, **environ}) is live
    assert not can_be_live(io.StringIO(), {**TERMINAL, **environ}), "a file or pipe is none"


def test_a_terminal_without_a_width_has_none() -> None:
    assert not can_be_live(Terminal(), {"TERM": "xterm"}), "no device stands behind this one that could say it"


def test_words_of_others_stand_whole_above_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {**TERMINAL, "CI": "", "COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with progress.live_terminal():
        line = progress.live_line()
        assert line is not None

        def text(columns: int) -> str:
            return "x" * columns

        line.put(text)
        sys.stderr.write("a warning\n")
        sys.stderr.writelines(["two ", "parts"])
        sys.stderr.write("\n")
        sys.stderr.write("\rbar 50%")
        sys.stderr.write("\rbar 100%\n")
        line.put(lambda columns: "inner, and far too long for so few columns as there are")
        shown = Screen(40)
        shown.feed(terminal.getvalue())
        assert shown.rows == ["a warning", "two parts", "bar 100%", "inner, and far too long for so few colu"]
        line.drop(text)
    assert sys.stderr is terminal
    assert progress.live_line() is None


def test_without_the_stream_in_between_lines_are_torn() -> None:
    """The control."""
    terminal = Terminal()
    Line(terminal, environ=TERMINAL, clock=Clock()).put(lambda columns: "step 3 of 9")
    terminal.write("a warning\n")
    shown = Screen(80)
    shown.feed(terminal.getvalue())
    assert shown.rows[0] == "step 3 of 9a warning"


def test_a_line_is_not_drawn_more_often_than_anyone_reads() -> None:
    terminal, clock = Terminal(), Clock()
    line = Line(terminal, environ=TERMINAL, clock=clock)
    line.put(lambda columns: "here")
    line.refresh()
    assert terminal.getvalue().count("here") == 1
    clock.now += 1
    line.refresh()
    assert terminal.getvalue().count("here") == 2


def test_elsewhere_progress_is_a_plain_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written, clock = io.StringIO(), Clock()
    monkeypatch.setattr(sys, "stderr", written)
    with Progress("Checking train", 400, "rows", clock=clock) as told:
        for _ in range(40):
            clock.now += 1
            told.advance(10)
    assert written.getvalue() == "Checking train: 300 of 400 rows, 10 a second, 10 s left\n"
    with Progress("Checking train", 400, "rows", shown=False, clock=clock) as untold:
        clock.now += 100
        untold.advance(10)
    assert written.getvalue().count("\n") == 1


FIGURES = {"loss": 1.58134, "learning_rate": 2.8e-3}
RATES = Rates(rows=41.83, tokens=5389.4, seconds_left=200)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (39, "1,010/3,000  loss 1.581  3 min 20 s"),
        (79, "step 1,010 of 3,000  loss 1.581  rate 0.0028  41.8 rows/s  3 min 20 s left"),
        (
            159,
            "[======              ]  step 1,010 of 3,000  loss 1.581  rate 0.0028  41.8 rows/s  5,389 tokens/s  "
            "3 min 20 s left",
        ),
    ],
)
def test_the_line_at_each_width(columns: int, words: str) -> None:
    advance = Advance(step=1010, steps=3000, rows=0, tokens=0)
    assert live_words(advance, FIGURES, RATES, "", columns) == words
    during = live_words(advance, FIGURES, RATES, "evaluating 3 of 16", columns)
    assert "evaluating 3 of 16" in during
    assert len(during) <= columns


def test_plain_lines_have_numbers_and_steps() -> None:
    assert plain_words(1010, 3000, FIGURES, RATES) == (
        "step 1010 of 3000: loss 1.581, learning rate 0.0028, 41.8 rows/s, 5,389 tokens/s, 3 min 20 s left"
    )
    assert plain_words(1, 3000, FIGURES, Rates()) == "step 1 of 3000: loss 1.581, learning rate 0.0028"
    figures = {"eval_loss": 0.5, "eval_perplexity": 1.64872, "eval_runtime": 3.2, "eval_exact_match": 0.75, "epoch": 1}
    figures |= {"eval_model_preparation_time": 0.1, "eval_answers": 40, "eval_start_loss": 2, "eval_anls_low_95": 0.1}
    assert plain_evaluation("step 10", figures) == "evaluated at step 10: loss 0.5, perplexity 1.649, exact match 0.75"
    own = {"eval_samples_right": 0.5, "eval_answers_short": 2, "eval_runtime_words": 3, "eval_memory": 4}
    assert plain_evaluation("step 10", own) == (
        "evaluated at step 10: samples right 0.5, answers short 2, runtime words 3, memory 4"
    )


def test_the_table_grows_by_a_row_and_has_a_new_heading_for_other_figures() -> None:
    table = EvaluationTable()
    figures = {"eval_loss": 0.924, "eval_perplexity": 2.519}
    assert table.lines("10", 1.581, figures, 79) == [
        "  step  train loss       loss  perplexity",
        "    10       1.581      0.924       2.519",
    ]
    assert table.lines("20", 0.9948, figures, 79) == ["    20      0.9948      0.924       2.519"]
    more = table.lines("30", 0.9, {**figures, "eval_anls": 0.5}, 79)
    assert len(more) == 2
    assert more[0].endswith("anls")
    assert table.lines("40", 0.9, {**figures, "eval_anls": 0.5}, 40)[0] == "  step  train loss       loss"


def test_a_loss_that_was_shown_is_not_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `--logging_steps` is more than `--eval_steps`."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    view = TerminalView(line=Line(Terminal(), environ=TERMINAL))
    view._trains = True
    view.evaluated(0, {"eval_loss": 3.0})
    view.step(2, {"loss": 1.5})
    view.evaluated(2, {"eval_loss": 2.0})
    view.evaluated(3, {"eval_loss": 1.75})
    view.step(4, {"loss": 1.25})
    view.evaluated(4, {"eval_loss": 1.5})
    _, *rows = written.getvalue().splitlines()
    assert [row.split() for row in rows] == [
        ["0", "-", "3"],
        ["2", "1.5", "2"],
        ["3", "-", "1.75"],
        ["4", "1.25", "1.5"],
    ]


def test_the_pace_leaves_out_the_first_step_and_evaluations() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 60  # a compiler
    pace.step(Advance(step=1, steps=5, rows=8, tokens=800))
    assert pace.rates() == Rates()
    clock.now += 2
    pace.step(Advance(step=2, steps=5, rows=16, tokens=1600))
    assert pace.rates() == Rates(rows=4, tokens=400, seconds_left=6)
    pace.pause()
    clock.now += 10
    pace.go_on()
    clock.now += 2
    pace.step(Advance(step=3, steps=5, rows=24, tokens=2400))
    assert pace.rates() == Rates(rows=4, tokens=400, seconds_left=14), "evaluations will come again"


@pytest.mark.parametrize(
    ("spell", "value", "text"),
    [
        (spell_figure, 0.59870015, "0.5987"),
        (spell_figure, 1204.4, "1,204"),
        (spell_figure, 2.3e-5, "2.3e-05"),
        (spell_figure, 3.0, "3"),
        (spell_figure, float("inf"), "infinite"),
        (spell_figure, float("nan"), "not a number"),
        (spell_rate, 0.4123, "0.412"),
        (spell_rate, 4812.3, "4,812"),
        (spell_seconds, 8.4, "8 s"),
        (spell_seconds, 200, "3 min 20 s"),
        (spell_seconds, 18120, "5 h 02 min"),
        (spell_seconds, 183600, "2 d 3 h"),
    ],
)
def test_figures_in_words(spell: Callable[[float], str], value: float, text: str) -> None:
    assert spell(value) == text


def test_results_are_rounded_to_six_digits() -> None:
    exact = {"eval_loss": 0.5987001567074423, "count": 12345678, "flos": 388260633600.0, "low": [0.1234567891, 1]}
    assert rounded(exact) == {"eval_loss": 0.5987, "count": 12345678, "flos": 388260633600.0, "low": [0.123457, 1]}
