"""The command line of accelerate's launcher, its flags checked before anything starts."""

from __future__ import annotations

import sys
from argparse import Action
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_lora.errors import ConfigError, nearest
from vlm_lora.launching import Launch, LaunchRequest, meeting_port

ENTRY = "-m", "vlm_lora_cuda.accelerated"

ENGINES = ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu", "cpu", "config_file", "mpirun_hostfile")
"""Keys that say how the processes work together; without any, they are plain data parallel."""

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
    if request.world_size is not None:
        _agree(given, "num_processes", request.world_size * request.nnodes, "--world_size")
    elif file.get("num_processes", -1) == -1:
        given.setdefault("num_processes", max(devices, 1) * request.nnodes)
    if request.nnodes > 1:
        _agree(given, "num_machines", request.nnodes, "--nnodes")
        given = {"machine_rank": request.node_rank, "main_process_ip": request.master_addr, **given}
    processes = int(given.get("num_processes") or file["num_processes"])
    machines = int(given.get("num_machines") or file.get("num_machines") or 1)
    if 0 < devices * machines < processes:
        raise ConfigError(f"num_processes {processes} on {machines} machines: this machine has {devices} GPUs.")
    if not devices:
        _refuse_what_needs_a_gpu(given, file, processes)
    if not any(given.get(key) for key in ENGINES) and processes > 1:
        given["multi_gpu"] = True
    if "config_file" not in given:
        given = {"num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no", **given}
    given.setdefault("main_process_port", meeting_port(request))
    flags = [word for key, value in given.items() for word in _words(key, value, actions[key])]
    return Launch(argv=(sys.executable, "-u", *ENTRY, *flags, "--", *command))


def _agree(given: dict[str, Any], key: str, value: Any, flag: str) -> None:
    """Settle a key that can be typed in two places."""
    if str(given.setdefault(key, value)) != str(value):
        raise ConfigError(
            f"{flag} makes it {key}: {value}, and accelerate_launch_args say {key}: {given[key]}. Leave one out."
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
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"--config_file {path}: accelerate cannot read it: {error}") from error
    return content


def _refuse_what_needs_a_gpu(given: Mapping[str, Any], file: Mapping[str, Any], processes: int) -> None:
    """Refuse what accelerate would silently turn into something else on a CPU."""
    if given.get("use_fsdp") or file.get("distributed_type") == "FSDP":
        raise ConfigError(
            "FSDP needs GPUs, and there are none: accelerate would run plain data parallel. Leave it out."
        )
    if given.get("cpu") and processes > 1 and not given.get("mpirun_hostfile"):
        raise ConfigError(
            f"accelerate_launch_args: cpu with num_processes {processes} starts one process. Leave cpu out."
        )
