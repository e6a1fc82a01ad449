"""Which machines a launcher finds, and Slurm's short forms."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lora.errors import ConfigError
from vlm_lora.launch.hostlists import expand_counts, expand_hosts
from vlm_lora.launch.machines import Machines, machines

STEP = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "n[09-10],m1",
    "SLURM_JOB_NODELIST": "n[01-40]",
}
SAGEMAKER = {"SM_HOSTS": '["algo-10", "algo-2", "algo-1"]', "SM_CURRENT_HOST": "algo-10", "SM_NUM_GPUS": "8"}
KUBEFLOW = {
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
    "PET_NPROC_PER_NODE": "4",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Machines()),
        (STEP, ("Slurm", 3, 2, "n09", None)),
        (SAGEMAKER, ("SageMaker", 3, 2, "algo-1", 8)),
        (
            {"SM_RESOURCE_CONFIG": '{"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}'},
            ("SageMaker", 2, 1, "algo-1", None),
        ),
        ({"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1"}, ("SageMaker", 1, 0, "127.0.0.1", None)),
        (KUBEFLOW, ("Kubeflow", 2, 1, "job-node-0-0.job", 4)),
        ({**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}, Machines()),
    ],
)
def test_what_a_cluster_says(environ: Mapping[str, str], expected: Any) -> None:
    seen = machines(environ)
    if isinstance(expected, Machines):
        assert seen == expected
    else:
        assert (seen.source, seen.count, seen.rank, seen.master_addr, seen.processes) == expected
        assert (seen.master_port is None) == (seen.count == 1), "on one machine a free port is taken"


def test_flags_win_over_the_cluster() -> None:
    assert machines(STEP, count=1) == Machines()
    seen = machines(STEP, count=3, master_addr="10.0.0.9")
    assert (seen.rank, seen.master_addr) == (2, "10.0.0.9")
    seen = machines(STEP, count=2, rank=0, master_addr="a")
    assert (seen.count, seen.rank, seen.master_addr) == (2, 0, "a")
    assert machines({"MASTER_ADDR": "b", "MASTER_PORT": "7"}, count=2, rank=1).master_port == 7


@pytest.mark.parametrize(
    ("environ", "typed", "named"),
    [
        ({}, {"count": 2}, "--node_rank is missing"),
        ({}, {"count": 2, "rank": 0}, "--master_addr is missing"),
        ({}, {"rank": 1}, "--nnodes N"),
        ({}, {"count": 0}, "1 or more"),
        ({}, {"count": 2, "rank": 2, "master_addr": "a"}, "numbered 0 to 1"),
        (STEP, {"count": 2}, "--node_rank is missing"),
        # In a batch script without srun the other machines would never come.
        ({"SLURM_JOB_NUM_NODES": "2"}, {}, "srun --ntasks-per-node=1 vlm-lora launch"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "24"}, {}, "24 launchers on 3 machines"),
        ({**STEP, "SLURM_STEP_NODELIST": "n[1-"}, {}, "is not a Slurm host list"),
        ({**SAGEMAKER, "SM_CURRENT_HOST": "algo-3"}, {}, "SM_CURRENT_HOST=algo-3"),
        ({"SM_HOSTS": "algo-1"}, {}, "JSON"),
        ({"PET_NNODES": "2"}, {}, "PET_NODE_RANK"),
    ],
)
def test_what_is_missing_or_wrong(environ: Mapping[str, str], typed: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        machines(environ, **typed)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a,b.example.org", ["a", "b.example.org"]),
        ("node[001-003,7]", ["node001", "node002", "node003", "node7"]),
        ("node[098-101]", ["node098", "node099", "node100", "node101"]),
        ("r[1-2]n[01-02],x-9", ["r1n01", "r1n02", "r2n01", "r2n02", "x-9"]),
        ("gpu[8]-ib", ["gpu8-ib"]),
    ],
)
def test_host_lists(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", "a,", "a[1-2", "a[2-1]", "a[x]", "a]1[", "a[1,,2]", "a,,b"])
def test_what_is_no_host_list(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a Slurm host list"):
        expand_hosts(text)


@given(st.integers(0, 500), st.integers(0, 40), st.integers(1, 4))
def test_a_range_has_all_its_machines_in_order(low: int, more: int, width: int) -> None:
    text = f"n[{low:0{width}d}-{low + more:0{width}d}]"
    assert [int(host[1:]) for host in expand_hosts(text)] == list(range(low, low + more + 1))


def test_counts() -> None:
    assert expand_counts("8(x2),4") == [8, 8, 4]
    assert expand_counts("") == []
    with pytest.raises(ConfigError, match="8x2"):
        expand_counts("8x2")
