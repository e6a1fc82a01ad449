"""The command line of accelerate's launcher, its flags checked before anything starts."""

from __future__ import annotations

import sys
from argparse import Action
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlm_lora.errors import ConfigError, nearest
from vlm_lora.launch.launching import Launch, LaunchRequest, free_port
from vlm_lora.launch.machines import LOOPBACK, PORT

ENTRY = "-m", "vlm_lora_torch.accelerated"

ENGINES = ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu", "cpu", "config_file", "mpirun_hostfile")
"""Keys that say how the processes work together; without any, they are plain data parallel."""

FSDP = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": False,
}
"""What FSDP gets where neither flags nor file say otherwise: `launchers/accelerate/fsdp2.yaml`."""

NOT_KEYS = ("help", "module", "no_python", "training_script")
"""Parts of a command line that are not settings."""


def accelerate_launch(request: LaunchRequest, command: Sequence[str], *, devices: int) -> Launch:
    """Return the launch by accelerate's launcher.

    Args:
        request: what was asked for; `accelerate_launch_args` are accelerate's own flags.
        command: script and arguments.
        devices: GPUs of this machine; 0 for the CPU.

    Raises:
        ConfigError: a key or value that accelerate does not have, or an engine that would not be what runs.
    """
    given = dict(request.accelerate_launch_args)
    if request.config_file is not None:
        _agree(given, "config_file", str(request.config_file), "--config_file")
    actions = _actions()
    for key, value in given.items():
        _check(key, value, actions)
    if any(key.startswith("fsdp_") for key in given):
        given.setdefault("use_fsdp", True)
    file = _read_file(given.get("config_file"))
    machines = _settle_machines(given, file, request)
    processes = _settle_processes(given, file, request, machines=machines, devices=devices)
    if not devices:
        _refuse_what_needs_a_gpu(given, file, processes)
    if _engine(given, file) == "FSDP":
        _settle_fsdp(given, file)
    if machines > 1 and _engine(given, file) == "DEEPSPEED":
        _settle_deepspeed(given, file, request)
    if not any(given.get(key) for key in ENGINES) and processes > 1:
        given["multi_gpu"] = True
    if "config_file" not in given:
        given = {"num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no", **given}
    flags = [word for key, value in given.items() for word in _words(key, value, actions[key])]
    return Launch(argv=(sys.executable, "-u", *ENTRY, *flags, "--", *command))


def _settle_machines(given: dict[str, Any], file: Mapping[str, Any], request: LaunchRequest) -> int:
    """Settle machines and meeting place: what was set, else `accelerate_launch_args`, else the file."""
    if request.nnodes > 1:
        _agree(given, "num_machines", request.nnodes, "--nnodes")
        given |= {"machine_rank": request.node_rank, "main_process_ip": request.master_addr}
    elif request.master_addr != LOOPBACK:
        given["main_process_ip"] = request.master_addr
    machines = _count("num_machines", given, file) or 1
    port = request.master_port or _count("main_process_port", given, file)
    # A port that is free here may be taken on another machine, and each would choose its own.
    given["main_process_port"] = port or (PORT if machines > 1 else free_port())
    missing = [key for key in ("machine_rank", "main_process_ip") if _named(key, given, file) is None]
    if machines > 1 and missing:
        raise ConfigError(
            f"num_machines {machines}: {' and '.join(missing)} are not there. Type on each machine: "
            f"--nnodes {machines} --node_rank K --master_addr FIRST."
        )
    return machines


def _settle_processes(
    given: dict[str, Any], file: Mapping[str, Any], request: LaunchRequest, *, machines: int, devices: int
) -> int:
    """Settle how many processes all machines start together, and return it."""
    of_file, alone = _count("num_processes", {}, file), _count("num_machines", {}, file) or 1
    if request.world_size is not None:
        of_args = _count("num_processes", given, {}) or 0
        instead = f"--world_size {of_args // machines}" if of_args and of_args % machines == 0 else ""
        _agree(given, "num_processes", request.world_size * machines, "--world_size", instead)
    elif given.get("num_processes") is not None:
        if request.nnodes > 1 and "num_machines" not in request.accelerate_launch_args:
            raise ConfigError(
                f"accelerate_launch_args: num_processes {given['num_processes']} with --nnodes {request.nnodes}: on "
                "each machine, or on all together? Leave it out and type --world_size N (on each), or write "
                "num_machines next to it (all together)."
            )
    elif of_file is None:
        given["num_processes"] = max(devices, 1) * machines
    elif machines != alone:
        given["num_processes"] = of_file * machines // alone
    processes = _count("num_processes", given, file) or 1
    if processes % machines:
        raise ConfigError(f"num_processes {processes} on {machines} machines: each must start the same number.")
    if 0 < devices * machines < processes:
        in_args = "num_processes" in request.accelerate_launch_args
        raise ConfigError(
            f"num_processes {processes} on {machines} machines: this machine has {devices} GPUs. Type "
            f"--world_size {devices} before the verb"
            f"{', and leave num_processes out of accelerate_launch_args' if in_args else ''}."
        )
    return processes


def _settle_fsdp(given: dict[str, Any], file: Mapping[str, Any]) -> None:
    """Choose FSDP2, and what it needs to shard layer by layer; accelerate's own defaults are those of FSDP1."""
    content = file.get("fsdp_config") or {}
    named = {key if key.startswith("fsdp_") else f"fsdp_{key}": value for key, value in content.items()}
    version = _named("fsdp_version", given, named)
    if version is not None and str(version) != "2":
        raise ConfigError(f"fsdp_version: {version} is no longer maintained by transformers: write fsdp_version: 2.")
    defaults: dict[str, Any] = dict(FSDP)
    if _named("fsdp_min_num_params", given, named) is not None:
        del defaults["fsdp_auto_wrap_policy"]  # layers are chosen by size
    for key, value in defaults.items():
        if _named(key, given, named) is None:
            given[key] = value


def _settle_deepspeed(given: dict[str, Any], file: Mapping[str, Any], request: LaunchRequest) -> None:
    """Let each machine start its own processes: accelerate's default logs in to the machines of a hostfile."""
    content = file.get("deepspeed_config") or {}
    launcher = _named("deepspeed_multinode_launcher", given, content)
    if launcher is None:
        given["deepspeed_multinode_launcher"] = "standard"
    elif request.nnodes > 1 and launcher != "standard":
        raise ConfigError(
            f"--nnodes {request.nnodes} starts this machine's processes by itself; deepspeed_multinode_launcher: "
            f"{launcher} takes the machines from a hostfile. Write standard, or leave it out."
        )


def _engine(given: Mapping[str, Any], file: Mapping[str, Any]) -> str:
    """Return what works together, as accelerate decides it: flags win over the file."""
    flags = {"use_deepspeed": "DEEPSPEED", "use_fsdp": "FSDP"}
    typed = [name for key, name in flags.items() if given.get(key)]
    if typed or any(given.get(key) for key in ("multi_gpu", "tpu", "use_megatron_lm")):
        return typed[0] if typed else ""
    return str(file.get("distributed_type", ""))


def _named(key: str, given: Mapping[str, Any], file: Mapping[str, Any]) -> Any:
    """Return a key's value from the flags, else from the file; None where neither names it."""
    return file.get(key) if given.get(key) is None else given[key]


def _count(key: str, given: Mapping[str, Any], file: Mapping[str, Any]) -> int | None:
    """Return a key as a whole number; None where nothing names it, or the file leaves it open (-1)."""
    value = _named(key, given, file)
    if value is None or str(value) == "-1":
        return None
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise ConfigError(f"accelerate's {key}: {value} must be a whole number, 1 or more; or leave it out.")
    return int(value)


def _agree(given: dict[str, Any], key: str, value: Any, flag: str, instead: str | None = None) -> None:
    """Settle a key that can be typed in two places; `instead` is the flag that would agree, if there is one."""
    if str(given.setdefault(key, value)) != str(value):
        choice = f"{flag} {given[key]}" if instead is None else instead
        raise ConfigError(
            f"{flag} makes it {key}: {value}, and accelerate_launch_args say {key}: {given[key]}. "
            f"{f'Type {choice}, or leave' if choice else 'Leave'} {key} out of accelerate_launch_args."
        )


def _actions() -> dict[str, Action]:
    """Return accelerate's flags by their keys."""
    from accelerate.commands.launch import launch_command_parser

    options = launch_command_parser()._option_string_actions
    named = {option[2:].replace("-", "_"): action for option, action in options.items() if option.startswith("--")}
    return {key: action for key, action in named.items() if key not in NOT_KEYS}


def _check(key: str, value: Any, actions: Mapping[str, Action]) -> None:
    if key not in actions:
        hint = nearest(key, actions) or " `accelerate launch --help` lists them."
        raise ConfigError(f"accelerate_launch_args: {key} is not a flag of accelerate launch.{hint}")
    if actions[key].nargs == 0 and not isinstance(value, bool):
        raise ConfigError(f"accelerate_launch_args: {key}: {value!r} must be true or false.")
    if isinstance(value, Mapping):
        raise ConfigError(f"accelerate_launch_args: {key}: must be a text, a number, true or false.")
    choices = actions[key].choices
    if choices and value is not None and str(value) not in map(str, choices):
        raise ConfigError(f"accelerate_launch_args: {key}: {value} is none of {', '.join(map(str, choices))}.")


def _words(key: str, value: Any, action: Action) -> list[str]:
    """Return a key as accelerate's parser reads it."""
    if action.nargs == 0:
        return [f"--{key}"] if value else []
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{key}", str(value).lower()]
    return [f"--{key}", ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)]


def _read_file(path: Any) -> Mapping[str, Any]:
    """Return the content of accelerate's configuration file, read by accelerate."""
    if path is None:
        return {}
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        content: dict[str, Any] = load_config_from_file(str(path)).to_dict()
        # accelerate fills in one machine, number 0: that is not what the file says.
        named = yaml.safe_load(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config_file {path}: accelerate cannot read it: {error}") from error
    return {key: value for key, value in content.items() if key in named}


def _refuse_what_needs_a_gpu(given: Mapping[str, Any], file: Mapping[str, Any], processes: int) -> None:
    """Refuse what accelerate would silently turn into something else on a CPU."""
    if _engine(given, file) == "FSDP":
        raise ConfigError(
            "FSDP needs GPUs, and there are none: accelerate would run plain data parallel. Leave it out."
        )
    if given.get("cpu") and processes > 1 and not given.get("mpirun_hostfile"):
        raise ConfigError(
            f"accelerate_launch_args: cpu with num_processes {processes} starts one process. Leave cpu out."
        )
