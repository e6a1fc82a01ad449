"""Runs in a SageMaker container: hyperparameters and channels become flags, `vlm-lora launch train` does the rest.

SageMaker puts its settings into files under /opt/ml; in Amazon's own images a toolkit repeats them as SM_* variables,
which win. The run writes to /opt/ml/checkpoints, which SageMaker copies to S3 as it goes and back on a restart; the
first machine copies the results to the model's folder at the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BASE = Path(os.environ.get("VLM_LORA_SAGEMAKER_BASE", "/opt/ml"))

CHANNELS = {
    "train": "dataset_name",
    "training": "dataset_name",
    "validation": "validation_name",
    "model": "model_name_or_path",
}
"""Which setting a channel is."""

MESSAGE = re.compile(r"(?:^|\])((?:error: |internal error|The run ended with exit code).*)")
"""How messages of a run begin; a progress bar may stand before one."""

INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
"""A container has several networks, and the first one found may lead nowhere."""

LONGEST_REASON = 1024
"""Characters that SageMaker shows of a failure."""


def read(name: str) -> dict[str, Any]:
    """Return one of SageMaker's files; empty where it is not there."""
    path = BASE / "input" / "config" / name
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def settings(environ: Mapping[str, str]) -> dict[str, list[str]]:
    """Return hyperparameters and channels as keys and words of `vlm-lora train`."""
    given = json.loads(environ["SM_HPS"]) if "SM_HPS" in environ else read("hyperparameters.json")
    found = {key: words(value) for key, value in given.items() if not key.startswith("sagemaker_")}
    for channel, key in CHANNELS.items():
        folder = Path(environ.get(f"SM_CHANNEL_{channel.upper()}", BASE / "input" / "data" / channel))
        if not folder.is_dir():
            continue
        if key in found:
            raise ValueError(f"the channel {channel} and {key} ({' '.join(found[key])}) are one setting; leave one out")
        found[key] = [str(folder)]
    for file in found.get("config", []):
        if not Path(file).is_file():
            raise ValueError(
                f"--config {file}: there is no such file in the container, which has the image's own files and the "
                "channels' data only; make its keys hyperparameters, or name it by its path here, such as "
                f"{BASE / 'input' / 'data' / 'train' / Path(file).name}"
            )
    if "output_dir" in found:
        raise ValueError("output_dir is SageMaker's business; leave it out")
    return found


def words(value: Any) -> list[str]:
    """Return a hyperparameter's words: SageMaker passes texts, the SDK JSON, `start.py` JSON lists for several."""
    if isinstance(value, str) and value[:1] in ("[", '"'):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:  # a regular expression can begin so
            return [value]
    if isinstance(value, list):
        return [str(item) for item in value]
    text = value if isinstance(value, str) else json.dumps(value)
    return [] if text == "true" else [text]


def machines(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which `vlm-lora launch` knows the job's machines, and NCCL and gloo their network."""
    resources = read("resourceconfig.json")
    found: dict[str, str] = {}
    if "SM_HOSTS" not in environ and resources:
        found = {"SM_HOSTS": json.dumps(resources["hosts"]), "SM_CURRENT_HOST": resources["current_host"]}
    interface = environ.get("SM_NETWORK_INTERFACE_NAME") or resources.get("network_interface_name")
    if interface:
        found |= {name: interface for name in INTERFACES if name not in environ}
    return found


def run(command: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """Run the command; return its exit code and the last line that names an error. A signal to stop is passed on."""
    child = subprocess.Popen(command, env=dict(environ), stderr=subprocess.PIPE, text=True, errors="replace")
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    reason = ""
    for line in child.stderr or ():
        sys.stderr.write(line)
        sys.stderr.flush()
        said = MESSAGE.search(line)
        if said is not None:
            reason = said[1].strip()
    code = child.wait()
    return (128 - code if code < 0 else code), reason


def keep_results(output: Path, environ: Mapping[str, str]) -> None:
    """Copy everything but the checkpoints to the folder that SageMaker makes the model from."""
    model = Path(environ.get("SM_MODEL_DIR", BASE / "model"))
    shutil.copytree(output, model, ignore=shutil.ignore_patterns("checkpoint-*"), dirs_exist_ok=True)


def fail(code: int, reason: str) -> int:
    """Tell SageMaker why, and return the exit code."""
    folder = BASE / "output"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failure").write_text(reason[:LONGEST_REASON], encoding="utf-8")
    return code


def main() -> int:
    """Run the training job of this machine."""
    output = BASE / "checkpoints"
    output.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, **machines(os.environ)}
    try:
        given = settings(environ)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return fail(1, f"error: {error}")
    given["output_dir"] = [str(output)]
    if any(output.glob("checkpoint-*/trainer_state.json")):  # written last: without it a save was cut short
        given["resume_from_checkpoint"] = ["true"]
    flags = [word for key, texts in given.items() for word in (f"--{key}", *texts)]
    code, reason = run(["vlm-lora", "launch", "train", *flags], environ)
    if code:
        return fail(code, reason or f"vlm-lora launch ended with exit code {code}")
    hosts = json.loads(environ.get("SM_HOSTS", "[]"))
    if len(hosts) < 2 or environ["SM_CURRENT_HOST"] == min(hosts, key=lambda host: (len(host), host)):
        keep_results(output, environ)
    return 0


if __name__ == "__main__":
    sys.exit(main())
