"""Rows with and without images in any order on two processes: no hang, equal parameters, the loss of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_mixed_rows, write_uneven_rows
from support.stacks import MAIN, RECORDER, losses_of, on_cpu, recorded, run_words

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ENGINES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "ddp": ({}, {}),
    "fsdp": ({"fsdp": True}, {"RECORDER_FSDP_ON_CPU": "1"}),
    "zero3": ({"deepspeed": "zero3"}, {}),
}
STEPS = 20
"""Half of them with the images on one process, half by turns."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mixed")
    write_mixed_rows(place / "data", steps=STEPS)
    return place


def mixed_run(folder: Path, model: Path, name: str, *, steps: int = STEPS, batch: int = 1, **more: object) -> list[str]:
    return on_cpu(
        model,
        folder / "data",
        folder / name,
        do_train=True,
        do_eval=True,
        max_steps=steps,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
        lora_targets="all",
        learning_rate=1e-4,
        **more,
    )


@pytest.fixture(scope="module")
def single(folder: Path, model_folder: Callable[[str], Path]) -> Any:
    """One process, both rows in one batch: no blank image is needed there."""
    words = mixed_run(folder, model_folder("gemma3"), "single", batch=2)
    return recorded(folder / "single records", [words], python=MAIN, variables={})[0][0]


@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_loss_is_that_of_one_process(
    engine: str, folder: Path, model_folder: Callable[[str], Path], single: Any
) -> None:
    flags, variables = ENGINES[engine]
    words = mixed_run(folder, model_folder("gemma3"), engine, **flags)
    ranks = recorded(folder / f"{engine} records", [words], python=MAIN, launcher=TORCHRUN, variables=variables)
    records = [records[0] for records in ranks]
    assert [record["world_size"] for record in records] == [2, 2]
    assert [len(record["steps"]) for record in records] == [STEPS, STEPS]
    assert records[0]["parameters"] == records[1]["parameters"]
    assert losses_of(records) == pytest.approx(losses_of([single]), rel=1e-4)
    assert records[0]["perplexity"] == pytest.approx(single["perplexity"], rel=1e-4)


@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("engine", ENGINES)
def test_without_the_blank_image_the_same_run_fails(
    engine: str, folder: Path, model_folder: Callable[[str], Path]
) -> None:
    """The control: left alone it hangs under DDP, so torch is asked to compare what the processes do."""
    flags, variables = ENGINES[engine]
    words = mixed_run(folder, model_folder("gemma3"), f"{engine} control", steps=4, **flags)
    runs = folder / f"{engine} control.json"
    runs.write_text(json.dumps([words]), encoding="utf-8")
    done = run_words(
        [*TORCHRUN, RECORDER, folder / f"{engine} report.json", runs],
        python=MAIN,
        variables={**variables, "RECORDER_WITHOUT_BLANKS": "1", "TORCH_DISTRIBUTED_DEBUG": "DETAIL"},
    )
    assert done.returncode != 0
    assert not (folder / f"{engine} control" / "adapter_model.safetensors").exists()


@pytest.mark.xdist_group("engines")
def test_uneven_rows(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    """7 and 12 rows on two processes: equal steps, each row once an epoch, each evaluated once."""
    folders = {rows: write_uneven_rows(tmp_path / f"{rows} rows", rows=rows, validation=19 - rows) for rows in (7, 12)}
    runs = [
        on_cpu(
            model_folder("gemma3"),
            data,
            tmp_path / f"out {rows}",
            do_train=True,
            do_eval=True,
            num_train_epochs=2,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
        )
        for rows, data in folders.items()
    ]
    ranks = recorded(tmp_path / "records", runs, python=MAIN, launcher=TORCHRUN, variables={})
    alone = recorded(
        tmp_path / "alone", [[*run[:5], f"{run[5]} alone", *run[6:]] for run in runs], python=MAIN, variables={}
    )
    for number, (rows, steps) in enumerate({7: 2, 12: 3}.items()):
        records = [records[number] for records in ranks]
        assert [record["world_size"] for record in records] == [2, 2]
        assert [len(record["steps"]) for record in records] == [2 * steps, 2 * steps]
        rows_of_one_epoch = sorted(
            count for rank in records for batch in rank["supervised"][:steps] for count in batch if count
        )
        single = alone[0][number]
        per_epoch = len(single["steps"]) // 2
        expected = sorted(count for batch in single["supervised"][:per_epoch] for count in batch if count)
        assert rows_of_one_epoch == expected
        assert len(expected) == rows
        evaluated = sorted(
            count for rank in records for batch in rank["supervised"][2 * steps :] for count in batch if count
        )
        assert len(evaluated) == 19 - rows
        assert records[0]["perplexity"] == pytest.approx(single["perplexity"], rel=1e-2)
