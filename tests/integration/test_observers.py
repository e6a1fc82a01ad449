"""A run tells its observers of each moment once, in order, and how it ended whatever ended it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_uneven_rows
from support.runs import script_flags
from vlm_lora import pipeline
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sources import parse
from vlm_lora.errors import DataError, EndedEarlyError
from vlm_lora.training.observers import CheckedData, EndReason, RunObserver


class Noting(RunObserver):
    """Notes what it is told; on a step it may raise a signal."""

    def __init__(self, signal_at: int | None = None) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._signal_at = signal_at

    def started(self, run: RunConfig, arguments: Any) -> None:
        self.told.append(("started", arguments.max_steps))

    def data_read(self, checked: CheckedData | None) -> None:
        self.told.append(("data read", checked and (checked.rows, checked.bad)))

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        assert figures["loss"] > 0
        self.told.append(("step", step))
        if step == self._signal_at:
            os.kill(os.getpid(), signal.SIGUSR1)

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        assert figures["eval_perplexity"] > 1
        self.told.append(("evaluated", step))

    def saved(self, step: int, folder: Path) -> None:
        assert (folder / "trainer_state.json").is_file()
        self.told.append(("saved", step))

    def ended(self, reason: EndReason, said: str) -> None:
        self.told.append(("ended", reason, said))


@pytest.fixture
def words(model_folder: Callable[[str], Path], tmp_path: Path) -> list[str]:
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    given = {"do_train": True, "do_eval": True, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    return script_flags(model_folder("gemma3"), data, tmp_path / "out", **given, save_strategy="steps", save_steps=1)


def told(words: list[str], *more: str, noting: Noting | None = None) -> list[tuple[Any, ...]]:
    observer = noting or Noting()
    pipeline.train(parse([*words, *more], environ={}), observers=[observer])
    return observer.told


def test_each_moment_is_told_in_order_and_a_finished_run_says_so(words: list[str]) -> None:
    begin = [("started", 2), ("data read", (6, 0))]
    assert told(words) == [
        *begin,
        *[("step", 1), ("saved", 1), ("step", 2), ("evaluated", 2), ("saved", 2), ("evaluated", 2)],
        ("ended", EndReason.FINISHED, ""),
    ]
    again = told(words, "--resume_from_checkpoint", "true")
    assert again[:-1] == [*begin, ("evaluated", 2)]
    assert again[-1][:2] == ("ended", EndReason.NOTHING_LEFT)
    assert "checkpoint-2 has made 2 of 2 steps" in again[-1][2]


def test_without_the_check_nothing_is_known_of_the_rows(words: list[str]) -> None:
    assert told(words, "--skip_check")[1] == ("data read", None)


def test_a_signal_and_an_error_are_reasons(words: list[str], tmp_path: Path) -> None:
    noting = Noting(signal_at=1)
    with pytest.raises(EndedEarlyError):
        told(words, noting=noting)
    moments = [moment[0] for moment in noting.told]
    assert moments == ["started", "data read", "step", "saved", "step", "saved", "ended"], "no evaluation any more"
    assert noting.told[-1][1] is EndReason.SIGNAL
    (tmp_path / "data" / "train-1.png").write_bytes(b"no image")
    noting = Noting()
    with pytest.raises(DataError):
        told([word.replace(str(tmp_path / "out"), str(tmp_path / "other")) for word in words], noting=noting)
    assert [moment[0] for moment in noting.told] == ["started", "ended"]
    assert noting.told[-1][1] is EndReason.ERROR
    assert "1 of 6 rows cannot be used" in noting.told[-1][2]
