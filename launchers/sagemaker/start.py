"""Start a SageMaker training job: `python start.py --region R --role ARN ... -- --model_name_or_path MODEL ...`.

What follows `--` are the flags of `vlm-lora train`. Needs botocore (`pip install boto3`) and the account's credentials;
`--dry_run` prints the request, checked against the service's own model, and contacts nobody.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAUNCHERS = "/opt/vlm-lora/launchers"
"""Where `launchers/docker/cuda.Dockerfile` puts this folder's parent."""

CHECKPOINTS = "/opt/ml/checkpoints"

IN_CONTAINER = ("/opt/ml/", "/opt/vlm-lora/")
"""What SageMaker mounts, and what the image holds."""

JOB_NAME = "[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"
"""The service's pattern, which botocore knows and does not check."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One kind of machine."""

    gpus: int
    memory: int
    """GiB of one GPU."""


INSTANCES = {
    "ml.p4d.24xlarge": Instance(gpus=8, memory=40),
    "ml.p4de.24xlarge": Instance(gpus=8, memory=80),
    "ml.p5.48xlarge": Instance(gpus=8, memory=80),
    "ml.p5e.48xlarge": Instance(gpus=8, memory=141),
    "ml.p5en.48xlarge": Instance(gpus=8, memory=141),
}

OFFLOAD_BELOW = 80
"""GiB of a GPU below which optimizer and parameters of full-weight tuning go to the host's memory."""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the words into the job's flags and the run's."""
    words = list(argv)
    place = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="start.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--name", required=True, help="the job's name, new in this account and region")
    parser.add_argument("--region", required=True)
    parser.add_argument("--role", required=True, help="ARN of the role that the job runs as")
    parser.add_argument("--image", required=True, help="the image built from launchers/docker/cuda.Dockerfile")
    parser.add_argument("--output", required=True, help="s3://BUCKET/PREFIX for results and checkpoints")
    parser.add_argument("--train", required=True, help="s3://BUCKET/PREFIX of the training data")
    parser.add_argument("--validation", help="s3://BUCKET/PREFIX of separate validation data")
    parser.add_argument("--model", help="s3://BUCKET/PREFIX of the model, instead of --model_name_or_path")
    parser.add_argument("--instance_type", default="ml.p4d.24xlarge", choices=sorted(INSTANCES))
    parser.add_argument("--instance_count", type=int, default=1)
    parser.add_argument("--volume_gb", type=int, default=500)
    parser.add_argument("--max_hours", type=int, default=24)
    parser.add_argument("--spot", action="store_true", help="spot capacity; goes on from the last checkpoint")
    parser.add_argument("--dry_run", action="store_true", help="print the request and stop")
    job = parser.parse_args(words[:place])
    if not re.fullmatch(JOB_NAME, job.name):
        raise SystemExit(
            f"error: --name {job.name}: SageMaker allows 1 to 63 letters (a-z, A-Z), digits and hyphens, a letter or "
            "digit first and last, such as --name scans-1."
        )
    return job, words[place + 1 :]


def hyperparameters(flags: Sequence[str], instance: Instance) -> dict[str, str]:
    """Return the run's flags as SageMaker's texts, several words as a JSON list; choose ZeRO for full weights."""
    given: dict[str, list[str]] = {}
    name = ""
    for word in flags:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = [value] if equals else []
        elif name:
            given[name].append(word)
        else:
            raise SystemExit(
                f"error: {word}: what follows `--` are flags of vlm-lora train, such as --learning_rate 1e-5."
            )
    for file in given.get("config", []):
        if not file.startswith(IN_CONTAINER) and (Path(file).exists() or not Path(file).is_absolute()):
            raise SystemExit(
                f"error: --config {file}: the run is in a container, which does not get this machine's files. Type its "
                "keys as flags after `--`; or put it next to the data of --train, and type "
                "--config /opt/ml/input/data/train/FILE."
            )
    if given.get("peft_method") == ["none"] and "deepspeed" not in given:
        given["deepspeed"] = [f"{LAUNCHERS}/deepspeed/{zero_file(instance)}"]
        given.setdefault("bf16", ["true"])
    return {
        key: words[0] if len(words) == 1 else json.dumps(words) if words else "true" for key, words in given.items()
    }


def zero_file(instance: Instance) -> str:
    """Return the ZeRO-3 configuration that fits the GPUs' memory."""
    return "zero3_offload.json" if instance.memory < OFFLOAD_BELOW else "zero3.json"


def training_job(job: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    """Return the request of CreateTrainingJob."""
    channels = {"train": job.train, "validation": job.validation, "model": job.model}
    seconds = job.max_hours * 3600
    waiting = {"MaxWaitTimeInSeconds": 2 * seconds} if job.spot else {}
    return {
        "TrainingJobName": job.name,
        "RoleArn": job.role,
        "AlgorithmSpecification": {
            "TrainingImage": job.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", f"{LAUNCHERS}/sagemaker/entry.py"],
        },
        "HyperParameters": hyperparameters(flags, INSTANCES[job.instance_type]),
        "InputDataConfig": [
            {
                "ChannelName": name,
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": uri,
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
            for name, uri in channels.items()
            if uri
        ],
        "OutputDataConfig": {"S3OutputPath": job.output},
        "CheckpointConfig": {"S3Uri": f"{job.output.rstrip('/')}/{job.name}/checkpoints", "LocalPath": CHECKPOINTS},
        "ResourceConfig": {
            "InstanceType": job.instance_type,
            "InstanceCount": job.instance_count,
            "VolumeSizeInGB": job.volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds, **waiting},
        "EnableManagedSpotTraining": job.spot,
    }


def check(client: Any, request: dict[str, Any]) -> None:
    """Stop where the request does not fit the service's own model."""
    from botocore.validate import ParamValidator

    shape = client.meta.service_model.operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise SystemExit(f"error: {report.generate_report()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Create the job and print its ARN, or print the request."""
    job, flags = parse(sys.argv[1:] if argv is None else argv)
    from botocore.session import get_session

    client = get_session().create_client("sagemaker", region_name=job.region)
    request = training_job(job, flags)
    check(client, request)
    if job.dry_run:
        sys.stdout.write(json.dumps(request, indent=2) + "\n")
        return 0
    sys.stdout.write(client.create_training_job(**request)["TrainingJobArn"] + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
