"""What launchers leave in the environment of a process, and what is refused."""

from collections.abc import Mapping

import pytest

from vlm_lora.errors import ConfigError
from vlm_lora.launch.placement import found

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "3",
    "LOCAL_WORLD_SIZE": "8",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29511",
}
DEEPSPEED = {
    **{name: TORCHRUN[name] for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")},
    "RANK": "9",
    "LOCAL_RANK": "1",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    "LOCAL_SIZE": "8",
}
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "a"}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "Started by you: one process."),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "Started by accelerate launch: one process."),
        ({"WORLD_SIZE": "1", "RANK": "0"}, "Started by you: one process."),
        # A batch script runs once, whatever its job holds; only srun starts several.
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, "Started by you: one process."),
        (
            TORCHRUN,
            "Started by torchrun: process 3 of 16, process 3 of 8 on machine 0 of 2, meeting at 10.0.0.1:29511.",
        ),
        (
            {**TORCHRUN, "ACCELERATE_MIXED_PRECISION": "no"},
            "Started by accelerate launch: process 3 of 16, process 3 of 8 on machine 0 of 2, "
            "meeting at 10.0.0.1:29511.",
        ),
        # torchrun, once on each machine, under srun and under mpirun: its own numbers count.
        ({**SRUN, **TORCHRUN}, "Started by torchrun: process 3 of 16"),
        ({**OPEN_MPI, **TORCHRUN}, "Started by torchrun: process 3 of 16"),
        (DEEPSPEED, "Started by DeepSpeed's launcher: process 9 of 16, process 1 of 8 on machine 1 of 2"),
        (SRUN, "Started by srun: process 9 of 16, process 1 of 8 on machine 1 of 2, meeting at gpu07:2"),
        ({**SRUN, "PMI_SIZE": "16", "PMI_RANK": "9"}, "Started by srun: process 9 of 16"),
        (OPEN_MPI, "Started by mpirun (Open MPI): process 2 of 4, process 2 of 4 on machine 0 of 1"),
        (
            HYDRA,
            "Started by mpirun (MPICH, Intel MPI): process 3 of 4, process 1 of 2 on machine 1 of 2, meeting at a:",
        ),
        # Kubeflow's PyTorchJob and people's own scripts set torch's variables and nothing else.
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "b", "MASTER_PORT": "1"},
            "Started by the environment (torch's variables): process 1 of 2, meeting at b:1.",
        ),
    ],
)
def test_what_is_said(environ: Mapping[str, str], said: str) -> None:
    assert str(found(environ)).startswith(said)


@pytest.mark.parametrize("environ", [{}, {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}])
def test_one_process_gets_no_variables(environ: Mapping[str, str]) -> None:
    """With them, torch would wait for a process group."""
    assert found(environ).variables == {}


def test_variables_for_torch_under_srun() -> None:
    variables = found(SRUN).variables
    port = int(variables.pop("MASTER_PORT"))
    assert 20_000 <= port < 30_000
    assert variables == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "gpu07",
    }
    assert found({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).variables["MASTER_PORT"] == str(port)
    assert found({**SRUN, "SLURM_JOB_ID": "4712"}).variables["MASTER_PORT"] != str(port)


def test_what_was_exported_for_torch_is_kept_and_found_again() -> None:
    exported = {"MASTER_ADDR": "10.1.1.1", "MASTER_PORT": "12345", "WORLD_SIZE": "16"}
    once = found({**SRUN, **exported}).variables
    assert once.items() >= exported.items()
    assert found({**SRUN, **once}).variables == once


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"WORLD_SIZE": "2"}, "lacks RANK and LOCAL_RANK and MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "1"}, "lacks WORLD_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "lacks LOCAL_RANK"),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "1"},
            "WORLD_SIZE=2, LOCAL_RANK=1, MASTER_PORT=1, but lacks MASTER_ADDR",
        ),
        ({"LOCAL_RANK": "0"}, "lacks RANK"),
        ({**TORCHRUN, "RANK": "16"}, "RANK=16 and WORLD_SIZE=16"),
        ({**TORCHRUN, "LOCAL_RANK": "8"}, "LOCAL_RANK=8"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE=many: must be a whole number"),
        ({**SRUN, "RANK": "0"}, "SLURM_PROCID=9 and RANK=0 contradict"),
        ({**OPEN_MPI, "WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=4 and WORLD_SIZE=2 contradict"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, "MASTER_ADDR is missing: set it"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "MPI_LOCALRANKID is missing"),
        ({"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "algo-2"}, "SageMaker started this on 2 machines"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "a"}, "vlm-lora launch train"),
    ],
)
def test_half_set_and_contradictory(environ: Mapping[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        found(environ)
