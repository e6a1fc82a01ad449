"""Bad rows on one and two processes: left out before rows are divided, or all of them named and no step taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import script_flags
from support.stacks import MAIN, RECORDER, losses_of, recorded, run_words
from vlm_lora.cli.main import run_script

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
BAD = {"train": (5, 17), "validation": (11,)}
"""5 % of 40 and of 20 rows."""


def write_data(folder: Path) -> tuple[Path, Path]:
    """Write rows with broken images, and the same rows without them."""
    data = write_uneven_rows(folder / "data", rows=40, validation=20)
    good = write_uneven_rows(folder / "good", rows=40, validation=20)
    for split, rows in BAD.items():
        lines = (good / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        kept = [line for row, line in enumerate(lines) if row not in rows]
        (good / f"{split}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
        for row in rows:
            (data / f"{split}-{row}.png").write_text("no image", encoding="utf-8")
    return data, good


def test_skipped_rows_leave_every_process_the_same_number_of_steps(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data, good = write_data(tmp_path)
    model = model_folder("gemma3")
    flags = {"do_train": True, "do_eval": True, "num_train_epochs": 1, "max_bad_fraction": 0.1}
    # What grouping would save is another share in batches of 2 than in batches of 4.
    order = {"train_sampling_strategy": "random"}
    skip = {"on_bad_sample": "skip", **flags, **order}
    one = [
        script_flags(model, data, tmp_path / "one", **skip, per_device_train_batch_size=4),
        script_flags(model, good, tmp_path / "clean", **flags, **order, per_device_train_batch_size=4),
    ]
    two = [script_flags(model, data, tmp_path / "two", **skip, per_device_train_batch_size=2, ddp_backend="gloo")]
    [[alone, clean]] = recorded(tmp_path / "records1", one, python=MAIN, variables={})
    ranks = recorded(tmp_path / "records2", two, python=MAIN, launcher=TORCHRUN, variables={})
    both = [rank[0] for rank in ranks]

    assert [rank["world_size"] for rank in both] == [2, 2]
    assert [len(rank["steps"]) for rank in (alone, *both)] == [10, 10, 10], "38 rows by 4"
    assert alone["digests"] == clean["digests"], "the rows that are left, in the order they always have"
    assert losses_of(both) == pytest.approx(losses_of([alone]), rel=1e-5)
    assert both[0]["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-5)
    expected = [(split, str(data / f"{split}.jsonl"), row) for split, rows in BAD.items() for row in rows]
    for name in ("one", "two"):
        text = (tmp_path / name / "quarantine.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        assert [(line["split"], line["file"], line["row"]) for line in lines] == expected
        assert all("not a readable image" in line["reason"] for line in lines)
    assert not (tmp_path / "clean" / "quarantine.jsonl").exists()


def test_both_processes_stop_before_the_first_step(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data, _ = write_data(tmp_path)
    flags = script_flags(
        model_folder("gemma3"), data, tmp_path / "out", do_train=True, do_eval=True, ddp_backend="gloo"
    )
    runs = tmp_path / "runs.json"
    runs.write_text(json.dumps([flags]), encoding="utf-8")
    done = run_words([*TORCHRUN, RECORDER, tmp_path / "report.json", runs], python=MAIN, variables={})
    assert done.returncode == 1
    assert "internal error" not in done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert messages == ["error: 3 of 60 rows cannot be used:"] * len(messages)
    assert messages, done.stderr
    for split, rows in BAD.items():
        for row in rows:
            assert f"{split}.jsonl row {row} (line {row + 1}): " in done.stderr
    report = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    assert [(row["split"], row["row"]) for row in report["bad"]] == [
        (split, row) for split, rows in BAD.items() for row in rows
    ]
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_too_many_bad_rows_stop_the_run(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = write_data(tmp_path)
    model = model_folder("gemma3")
    flags = {"do_train": True, "on_bad_sample": "skip", "max_steps": 1, "per_device_train_batch_size": 1}
    assert run_script(script_flags(model, data, tmp_path / "out", **flags, max_bad_fraction=0.049)) == 1
    error = capsys.readouterr().err
    assert "train: 2 of 40 rows are bad (5.00%), more than --max_bad_fraction 0.049 allows" in error
    assert "or type a --max_bad_fraction of 0.05 or more" in error
    assert run_script(script_flags(model, data, tmp_path / "fits", **flags, max_bad_fraction=0.05)) == 0
