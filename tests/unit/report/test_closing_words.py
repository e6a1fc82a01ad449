"""What the end of a run says of its best checkpoint, and of steps that were skipped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_lora.config.sources import parse
from vlm_lora.report.terminal.summary import Seen, closing_lines

SAID = "are the last step's (--load_best_model_at_end saves the best)."


@pytest.mark.parametrize(("best", "loads", "said"), [(3, False, True), (3, True, False), (6, False, False)])
def test_weights_that_are_not_the_best_ones_are_said(best: int, loads: bool, said: bool, tmp_path: Path) -> None:
    state = {"global_step": 6, "best_metric": 0.5, "best_model_checkpoint": str(tmp_path / f"checkpoint-{best}")}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    arguments = SimpleNamespace(
        output_dir=str(tmp_path), do_train=True, load_best_model_at_end=loads, metric_for_best_model="eval_anls"
    )
    run = parse(["--model_name_or_path", "base", "--dataset_name", "my.csv"], environ={})
    lines = closing_lines(run, arguments, {}, Seen())
    assert any(f"checkpoint-{best}, by anls 0.5" in line for line in lines)
    assert any(line.endswith(SAID) for line in lines) is said


@pytest.mark.parametrize(("count", "said"), [(0, []), (1, ["1 step of them"]), (1200, ["1,200 steps of them"])])
def test_skipped_steps_are_said(count: int, said: list[str], tmp_path: Path) -> None:
    arguments = SimpleNamespace(output_dir=str(tmp_path), do_train=True, metric_for_best_model=None)
    run = parse(["--model_name_or_path", "base", "--dataset_name", "my.csv"], environ={})
    lines = closing_lines(run, arguments, {"train_skipped_steps": count}, Seen())
    found = [line.partition(" skipped: ")[0] for line in lines if " skipped: NaN or infinite loss or gradient" in line]
    assert found == said


@pytest.mark.parametrize(("rows", "words"), [(1, "1 validation row"), (1204, "1,204 validation rows")])
def test_one_row_is_no_rows(rows: int, words: str, tmp_path: Path) -> None:
    arguments = SimpleNamespace(output_dir=str(tmp_path), do_train=False)
    run = parse(["--model_name_or_path", "base", "--dataset_name", "my.csv"], environ={})
    lines = closing_lines(run, arguments, {"eval_loss": 0.5, "eval_samples": rows}, Seen())
    assert f"On {words}: loss 0.5." in lines
