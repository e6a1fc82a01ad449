"""What a run does about bad rows: when it stops, what it says, and what is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_jsonl
from vlm_lora.config.run_config import DataConfig
from vlm_lora.config.whole_files import write_whole
from vlm_lora.data.dataset import ConversationDataset, load_splits
from vlm_lora.errors import DataError
from vlm_lora.preflight.faults import TOO_LONG
from vlm_lora.preflight.figures import DataReport, FaultyRow
from vlm_lora.preflight.policy import divide, faulty_rows, judge, leave_out, read_report, write_report


def faulty(row: int, split: str = "train") -> FaultyRow:
    return FaultyRow(
        split=split, index=row, file=f"{split}.jsonl", row=row, kind="row", reason=f"reason {row}.", cure="Cure."
    )


def refusal(
    bad: list[FaultyRow],
    rows: dict[str, int],
    *,
    shown: int = 10,
    dropped: Sequence[FaultyRow] = (),
    **settings: object,
) -> str:
    """Return the message, or nothing where the run may go on."""
    config = DataConfig(**settings)  # type: ignore[arg-type]
    try:
        judge(bad, rows, config, where="report.json", shown=shown, dropped=dropped)
    except DataError as error:
        return str(error)
    return ""


class Countable(FaultyRow):
    """A row that counts how often it is compared with another."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Countable.compared += 1
        return super().__eq__(other)

    __hash__ = FaultyRow.__hash__


def test_dropped_rows_are_parted_from_bad_ones_in_one_pass() -> None:
    found = [Countable(**{**asdict(faulty(row)), "kind": TOO_LONG if row % 3 else "row"}) for row in range(300)]
    dropped, bad = divide(found, "drop")
    assert [row.index for row in dropped] == [row for row in range(300) if row % 3]
    assert [row.index for row in bad] == list(range(0, 300, 3))
    assert divide(found, "error") == ([], found)
    # The comparison just above is the control: it compares each row once or not at all, a search would each with all.
    assert Countable.compared <= 300


def test_the_quarantine_lists_bad_rows_and_no_dropped_ones(tmp_path: Path) -> None:
    found = (faulty(1), FaultyRow(**{**asdict(faulty(2)), "kind": TOO_LONG}), faulty(3))
    report = DataReport(model="m", data="d", longest=9, image_size="", splits={}, leaked=0, leaks=(), bad=found)
    listed: dict[str, list[int]] = {}
    for policy in ("drop", "error"):
        write_report(tmp_path / policy, report, DataConfig(on_bad_sample="skip"), on_overflow=policy)
        lines = (tmp_path / policy / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
        listed[policy] = [json.loads(line)["row"] for line in lines]
        assert [row.index for row in faulty_rows(read_report(tmp_path / policy))] == [1, 2, 3], "the report lists all"
    assert listed == {"drop": [1, 3], "error": [1, 2, 3]}
    write_report(tmp_path / "stop", report, DataConfig(), on_overflow="drop")
    assert not (tmp_path / "stop" / "quarantine.jsonl").exists()


def texts(rows: ConversationDataset) -> list[str]:
    return [rows[index].turns[0].text for index in range(len(rows))]


def test_no_bad_row() -> None:
    assert refusal([], {"train": 5}) == ""


def test_first_ten_are_named() -> None:
    said = refusal([faulty(row) for row in range(12)], {"train": 100, "validation": 20})
    assert said.startswith("12 of 120 rows cannot be used:\n  train.jsonl row 0: reason 0.\n")
    assert "row 9: reason 9." in said
    assert "row 10" not in said
    assert "\n  and 2 more\nreport.json lists all of them" in said
    assert "--on_bad_sample skip" in said


def test_one_is_one_line() -> None:
    assert refusal([faulty(3)], {"train": 9}) == ("1 of 9 rows cannot be used: train.jsonl row 3: reason 3. Cure.")
    several = refusal([faulty(3), faulty(4)], {"train": 9}, shown=1)
    assert several == "2 of 9 rows cannot be used, the first: train.jsonl row 3: reason 3. Cure."


@pytest.mark.parametrize(
    ("bad", "fraction", "stops"), [(1, 0.01, False), (2, 0.01, True), (2, 0.02, False), (1, 0, True)]
)
def test_fraction_is_of_each_split(bad: int, fraction: float, stops: bool) -> None:
    found = [faulty(row, "validation") for row in range(bad)]
    said = refusal(found, {"train": 1000, "validation": 100}, on_bad_sample="skip", max_bad_fraction=fraction)
    assert bool(said) == stops
    assert not stops or said.startswith(f"validation: {bad} of 100 rows are bad")


def test_split_without_a_good_row_stops_at_any_fraction() -> None:
    found = [faulty(row, "validation") for row in range(3)]
    said = refusal(found, {"train": 9, "validation": 3}, on_bad_sample="skip", max_bad_fraction=1.0)
    assert said.startswith("validation: all 3 rows are bad")


def test_split_that_bad_rows_and_dropped_ones_leave_empty_stops() -> None:
    settings: dict[str, Any] = {"on_bad_sample": "skip", "max_bad_fraction": 0.5}
    found, long = [faulty(0)], [faulty(row) for row in (1, 2)]
    said = refusal(found, {"train": 3}, dropped=long, **settings)
    assert said.startswith("train: all 3 rows are bad or too long (2, which --on_overflow drop leaves out), the first")
    assert refusal(found, {"train": 4}, dropped=long, **settings) == "", "the control: one row is left"


def test_rows_are_left_out_and_none_moves_up(tmp_path: Path) -> None:
    rows = [{"question": f"{row}", "answer": "red"} for row in range(40)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    config = DataConfig(dataset_name=str(tmp_path), validation_fraction=0.25)
    splits = load_splits(config, need_train=True, need_validation=True)
    assert isinstance(splits.train, ConversationDataset)
    assert isinstance(splits.validation, ConversationDataset)
    before = {"train": texts(splits.train), "validation": texts(splits.validation)}
    left = leave_out(splits, [faulty(2), faulty(29), faulty(0, "validation")], tmp_path)
    assert isinstance(left.train, ConversationDataset)
    assert isinstance(left.validation, ConversationDataset)
    assert texts(left.train) == [text for row, text in enumerate(before["train"]) if row not in (2, 29)]
    assert texts(left.validation) == before["validation"][1:]
    assert [str(left.train.source(row).row) for row in range(len(left.train))] == texts(left.train)
    assert texts(splits.train) == before["train"], "the splits that were given stay as they are"


def test_nothing_bad_changes_nothing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"question": "a", "answer": "b"}] * 3)
    splits = load_splits(
        DataConfig(dataset_name=str(tmp_path), validation_fraction=0), need_train=True, need_validation=False
    )
    assert leave_out(splits, [], tmp_path) is splits


def test_process_that_waited_for_a_report_that_never_came(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was not written: the first process of this machine stopped"):
        read_report(tmp_path)


def test_files_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_whole(path, json.dumps({"a": 1}))
    write_whole(path, json.dumps({"a": 2}))
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
