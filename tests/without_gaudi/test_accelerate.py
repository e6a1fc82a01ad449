"""accelerate's configuration files and flags: those of this repository, and those in a run's own configuration."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from support.rows import write_uneven_rows
from support.warm import warmed
from vlm_lora.errors import ConfigError
from vlm_lora.launch.launching import LaunchRequest, free_port
from vlm_lora_cuda.backend import check_own_gpu
from vlm_lora_cuda.launcher import visible_devices
from vlm_lora_torch.accelerate_flags import accelerate_launch

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "launchers" / "accelerate").glob("*.yaml"))
MEET = ROOT / "tests" / "support" / "launched" / "meet.py"
PROGRAMS = Path(sys.executable).parent
ACCELERATE: tuple[str | Path, ...] = (sys.executable, "-m", "accelerate.commands.accelerate_cli")


def run(words: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        warmed(words),
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def flags(request: LaunchRequest, *, devices: int) -> list[str]:
    argv = list(accelerate_launch(request, ["run.py"], devices=devices).argv)
    return argv[4 : argv.index("--")]


def asked(args: Mapping[str, Any], **more: Any) -> LaunchRequest:
    return LaunchRequest(use_accelerate=True, accelerate_launch_args=args, master_port=29511, **more)


def test_the_files() -> None:
    assert [path.stem for path in FILES] == ["ddp", "fsdp2", "multi_node", "zero2", "zero3"]
    for path in FILES:
        config = load_config_from_file(str(path))
        assert isinstance(config, ClusterConfig)
        assert config.num_processes == 8 * config.num_machines


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("ddp", {"ACCELERATE_USE_FSDP": None, "ACCELERATE_USE_DEEPSPEED": None}),
        ("fsdp2", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}),
        ("zero2", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
        ("zero3", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
    ],
)
def test_accelerate_launches_with_a_file(name: str, variables: dict[str, str | None], tmp_path: Path) -> None:
    """`accelerate launch` itself, two processes on the CPU; what each file asks for reaches the script."""
    file = ROOT / "launchers" / "accelerate" / f"{name}.yaml"
    own = ["--num_processes", "2", "--main_process_port", str(free_port())]
    done = run([*ACCELERATE, "launch", "--config_file", file, *own, MEET, "count", tmp_path])
    assert done.returncode == 0, done.stderr
    ranks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(tmp_path.glob("rank*.json"))]
    assert [(rank["world_size"], rank["total"]) for rank in ranks] == [(2, 3.0), (2, 3.0)]
    assert {name: ranks[0]["engine"].get(name) for name in variables} == variables
    assert ranks[0]["placement"].startswith("Started by accelerate launch: process 0 of 2")


def test_two_machines_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    content = yaml.safe_load((ROOT / "launchers" / "accelerate" / "multi_node.yaml").read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**content, "num_processes": 2, "main_process_port": free_port()}))
    command: list[str | Path] = [*ACCELERATE, "launch", "--config_file", file, "--main_process_ip", "127.0.0.1"]
    started = [
        subprocess.Popen(
            warmed([*command, "--machine_rank", rank, MEET, "count", tmp_path]),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("1", "0")
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors
    assert len(list(tmp_path.glob("rank*.json"))) == 2


def test_accelerates_trap_is_there(tmp_path: Path) -> None:
    """`--cpu --num_processes 2` runs one process, which cannot know; the log says so, and the page warns."""
    done = run([*ACCELERATE, "launch", "--cpu", "--num_processes", "2", MEET, "count", tmp_path])
    assert "MASTER_ADDR" in done.stderr or "RANK" in done.stderr, "alone, it has nobody to meet"
    assert list(tmp_path.glob("rank*.json")) == []


def test_flags_from_a_configuration() -> None:
    args = {
        "fsdp_transformer_layer_cls_to_wrap": "GraniteDecoderLayer",
        "fsdp_sharding_strategy": "FULL_SHARD",
        "fsdp_use_orig_params": True,
        "mixed_precision": "bf16",
        "main_process_port": 1234,
        "debug": False,
    }
    words = flags(asked(args), devices=8)
    pairs = dict(itertools.pairwise(words))
    assert pairs["--fsdp_transformer_layer_cls_to_wrap"] == "GraniteDecoderLayer"
    assert pairs["--fsdp_use_orig_params"] == "true"
    assert (pairs["--num_processes"], pairs["--mixed_precision"], pairs["--main_process_port"]) == (
        "8",
        "bf16",
        "29511",
    )
    assert "--use_fsdp" in words, "an fsdp_ key means FSDP"
    assert "--multi_gpu" not in words
    assert "--debug" not in words
    plain = flags(asked({"num_processes": 2}), devices=8)
    assert plain[plain.index("--num_processes") + 1] == "2"
    assert "--multi_gpu" in plain
    assert "--multi_gpu" not in flags(asked({}), devices=1)
    file = ROOT / "launchers" / "accelerate" / "ddp.yaml"
    assert "--num_processes" not in flags(asked({}, config_file=file), devices=8), "the file's own number counts"
    several = flags(asked({}, nnodes=2, node_rank=1, master_addr="a", world_size=4), devices=8)
    pairs = dict(itertools.pairwise(several))
    assert (pairs["--num_processes"], pairs["--num_machines"], pairs["--machine_rank"]) == ("8", "2", "1")
    assert pairs["--main_process_ip"] == "a"


def given(words: list[str], name: str) -> str | None:
    return dict(itertools.pairwise(words)).get(f"--{name}")


def test_fsdp_is_fsdp2_layer_by_layer() -> None:
    """accelerate's own defaults are FSDP1, one unit for the whole model, and the model on rank 0 only."""
    file = yaml.safe_load((ROOT / "launchers" / "accelerate" / "fsdp2.yaml").read_text(encoding="utf-8"))["fsdp_config"]
    words = flags(asked({"num_processes": 8, "fsdp_transformer_layer_cls_to_wrap": "X"}), devices=8)
    for key in ("version", "auto_wrap_policy", "state_dict_type", "cpu_ram_efficient_loading"):
        assert given(words, f"fsdp_{key}") == str(file[f"fsdp_{key}"]).replace("False", "false")
    own = flags(asked({"fsdp_version": 2, "fsdp_min_num_params": 10, "fsdp_offload_params": True}), devices=8)
    assert given(own, "fsdp_auto_wrap_policy") is None
    assert "--fsdp_version" not in flags(asked({"num_processes": 8}), devices=8)
    of_file = flags(asked({}, config_file=ROOT / "launchers" / "accelerate" / "fsdp2.yaml"), devices=8)
    assert [word for word in of_file if word.startswith("--fsdp")] == [], "the file says it all"


@pytest.mark.parametrize("named", [None, "1"])
def test_a_files_fsdp(named: str | None, tmp_path: Path) -> None:
    content = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": named} if named else {}}
    file = tmp_path / "fsdp.yaml"
    file.write_text(yaml.safe_dump(content))
    if named is None:
        assert given(flags(asked({}, config_file=file), devices=8), "fsdp_version") == "2"
    else:
        with pytest.raises(ConfigError, match="write fsdp_version: 2"):
            flags(asked({}, config_file=file), devices=8)


def test_deepspeed_on_several_machines_starts_on_each(tmp_path: Path) -> None:
    """accelerate's default, pdsh, would start a run of its own on each machine."""
    file = ROOT / "launchers" / "accelerate" / "zero3.yaml"
    more: dict[str, Any] = {"nnodes": 2, "node_rank": 1, "master_addr": "first"}
    words = flags(asked({}, config_file=file, **more), devices=8)
    assert given(words, "deepspeed_multinode_launcher") == "standard"
    assert given(flags(asked({"use_deepspeed": True}, **more), devices=8), "deepspeed_multinode_launcher") == "standard"
    assert given(flags(asked({}, config_file=file), devices=8), "deepspeed_multinode_launcher") is None
    for other in ("pdsh", "nossh"):
        with pytest.raises(ConfigError, match=f"launcher: {other} takes the machines from a hostfile. Write standard"):
            flags(asked({"use_deepspeed": True, "deepspeed_multinode_launcher": other}, **more), devices=8)
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    arguments = launch_command_parser().parse_args([*words, "run.py"])
    arguments = _validate_launch_command(arguments)[0]
    arguments.deepspeed_fields_from_accelerate_config = ""  # which launch_command sets in between
    command, _ = prepare_deepspeed_cmd_env(arguments)
    assert command is None, "no program that logs in to machines"
    assert (arguments.nproc_per_node, arguments.nnodes, arguments.node_rank) == ("8", "2", 1)
    assert arguments.rdzv_endpoint == "first:29511"


def test_machines_port_and_counts_of_a_file(tmp_path: Path) -> None:
    """Typed, else accelerate_launch_args, else the file."""
    file = ROOT / "launchers" / "accelerate" / "multi_node.yaml"
    two = tmp_path / "two.yaml"
    two.write_text(file.read_text() + "machine_rank: 1\nmain_process_ip: first\n")

    def words(args: Mapping[str, Any], *, devices: int = 8, **more: Any) -> list[str]:
        return flags(LaunchRequest(use_accelerate=True, accelerate_launch_args=args, **more), devices=devices)

    place = {"machine_rank": 1, "main_process_ip": "first", "num_machines": 2}
    typed: dict[str, Any] = {"nnodes": 2, "node_rank": 1, "master_addr": "other"}
    assert given(words({}, config_file=two), "main_process_port") == "29500"
    assert given(words(place), "main_process_port") == "29500", "a free one would differ between machines"
    assert given(words(place), "num_processes") == "16"
    assert given(words({**place, "main_process_port": 7}, config_file=two), "main_process_port") == "7"
    assert given(words({"main_process_port": 7}, config_file=two, master_port=8), "main_process_port") == "8"
    assert given(words(place, **typed), "main_process_ip") == "other"
    assert given(words({}, config_file=two), "num_processes") is None, "the file's 16 are those of both"
    assert given(words({}, config_file=two, **(typed | {"nnodes": 4})), "num_processes") == "32"
    one = ROOT / "launchers" / "accelerate" / "fsdp2.yaml"
    assert given(words({}, config_file=one, **typed), "num_processes") == "16", "8 on each machine"
    assert given(words({}, config_file=one, world_size=4, **typed), "num_processes") == "8"
    for args, more, named in (
        ({}, {"config_file": file}, "machine_rank and main_process_ip .*--nnodes 2 --node_rank K --master_addr"),
        ({"num_processes": 8}, typed, "on each machine, or on all together"),
        ({**place, "num_processes": 9}, {}, "each must start the same number"),
        ({}, {"config_file": one, "devices": 4}, r"has 4 GPUs. Type --world_size 4 before the verb\.$"),
    ):
        with pytest.raises(ConfigError, match=named):
            words(args, **more)
    two.write_text("distributed_type: MULTI_GPU\nnum_processes: auto\n")
    with pytest.raises(ConfigError, match="num_processes: auto must be a whole number"):
        words({}, config_file=two)


@pytest.mark.parametrize(
    ("args", "more", "devices", "named"),
    [
        ({"num_proceses": 2}, {}, 8, "Did you mean 'num_processes'"),
        ({"training_script": "x"}, {}, 8, "training_script is not a flag"),
        ({"mixed_precision": "fp12"}, {}, 8, "fp12 is none of"),
        ({"use_fsdp": "yes"}, {}, 8, "must be true or false"),
        ({"fsdp_config": {"a": 1}}, {}, 8, "fsdp_config is not a flag"),
        (
            {"num_processes": 2},
            {"world_size": 4},
            8,
            "makes it num_processes: 4, .* Type --world_size 2, or leave num_proc",
        ),
        ({"num_processes": "auto"}, {"world_size": 4}, 8, "num_processes: auto must be a whole number"),
        (
            {"config_file": "a.yaml"},
            {"config_file": "b.yaml"},
            8,
            "Type --config_file a.yaml, or leave config_file out",
        ),
        ({"num_processes": 9}, {}, 8, "this machine has 8 GPUs.*leave num_processes out"),
        ({"num_processes": "auto"}, {}, 8, "num_processes: auto must be a whole number"),
        ({"num_processes": 0}, {}, 8, "num_processes: 0 must be a whole number"),
        ({"use_fsdp": True, "fsdp_version": 1}, {}, 8, "write fsdp_version: 2"),
        ({"use_fsdp": True}, {}, 0, "FSDP needs GPUs"),
        ({"fsdp_offload_params": True}, {}, 0, "FSDP needs GPUs"),
        ({"cpu": True, "num_processes": 2}, {}, 0, "starts one process"),
    ],
)
def test_flags_that_cannot_be_used(args: dict[str, Any], more: dict[str, Any], devices: int, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        flags(asked(args, **more), devices=devices)


def test_a_run_by_its_configuration_file(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """`vlm-lora launch train --config FILE`: two processes, because the file says so."""
    write_uneven_rows(tmp_path / "data", rows=4)
    content = {
        "model_name_or_path": str(model_folder("gemma3")),
        "training_data_path": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"),
        "accelerate_launch_args": {"num_processes": 2},
        "use_cpu": True,
        "max_steps": 1,
        "do_eval": False,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "log_level": "info",
    }
    file = tmp_path / "run.json"
    file.write_text(json.dumps(content))
    done = run([PROGRAMS / "vlm-lora", "launch", "--backend", "cpu", "train", "--config", file])
    assert done.returncode == 0, done.stderr
    assert "Started by accelerate launch: process 0 of 2, process 0 of 2 on machine 0 of 1" in done.stderr
    assert "have no effect" not in done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    alone = run([PROGRAMS / "vlm-lora", "train", "--config", file, "--output_dir", tmp_path / "alone"])
    assert alone.returncode == 0, alone.stderr
    assert "Started by you: one process." in alone.stderr
    assert "vlm-lora launch train --config FILE" in alone.stderr
    file.write_text(json.dumps({**content, "accelerate_launch_args": {"num_proceses": 2}}))
    wrong = run([PROGRAMS / "vlm-lora", "launch", "--backend", "cpu", "train", "--config", file])
    assert wrong.returncode == 1
    assert wrong.stderr.count("error: ") == 1
    assert "Did you mean 'num_processes'" in wrong.stderr


def test_visible_devices() -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "2, 3"}) == [2, 3]
    assert visible_devices({}) == []
    with pytest.raises(ConfigError, match="by number only"):
        visible_devices({"CUDA_VISIBLE_DEVICES": "GPU-8932f937"})


@pytest.mark.parametrize(("local_rank", "devices"), [("7", 8), ("3", 0), ("", 1), ("0", 1)])
def test_a_process_with_a_gpu_of_its_own_or_none_at_all(local_rank: str, devices: int) -> None:
    check_own_gpu({"LOCAL_RANK": local_rank}, devices=devices)


def test_a_process_without_a_gpu_of_its_own() -> None:
    """What `srun --gpus-per-task=1` leaves each process with."""
    with pytest.raises(ConfigError, match=r"process 3 of its machine .* sees 1 GPUs.* --gpus-per-node=8"):
        check_own_gpu({"LOCAL_RANK": "3"}, devices=1)
