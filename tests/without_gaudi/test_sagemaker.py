"""SageMaker: the request, checked by botocore's own model of the service, and what runs in the container."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from botocore.session import get_session
from botocore.stub import Stubber

from support.rows import write_uneven_rows
from support.warm import programs

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launchers" / "sagemaker"
GOLDEN = ROOT / "tests" / "golden" / "sagemaker_request.json"
JOB = [
    *("--name", "scans-1", "--region", "eu-west-1", "--role", "arn:aws:iam::123456789012:role/train"),
    *("--image", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/vlm-lora:cuda", "--output", "s3://bucket/runs"),
    *("--train", "s3://bucket/data", "--instance_count", "2", "--spot"),
]
RUN = [
    *("--model_name_or_path", "Qwen/Qwen2.5-VL-7B-Instruct", "--peft_method", "none", "--learning_rate=1e-5"),
    *("--gradient_checkpointing", "--lora_targets", "a", "b"),
]


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sagemaker_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


start: Any = load("start")


def request_for(*job: str, run: list[str] = RUN) -> dict[str, Any]:
    request: dict[str, Any] = start.training_job(*start.parse([*JOB, *job, "--", *run]))
    return request


def test_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    """UPDATE_DOCS=1 writes the file again."""
    assert start.main([*JOB, "--dry_run", "--", *RUN]) == 0
    shown = capsys.readouterr().out
    if os.environ.get("UPDATE_DOCS"):
        GOLDEN.write_text(shown, encoding="utf-8")
    assert shown == GOLDEN.read_text(encoding="utf-8")


def test_the_service_takes_it() -> None:
    client = get_session().create_client("sagemaker", region_name="eu-west-1")
    request = request_for("--validation", "s3://bucket/held", "--model", "s3://bucket/model")
    with Stubber(client) as stub:
        stub.add_response("create_training_job", {"TrainingJobArn": "arn:aws:sagemaker:::job"}, request)
        assert client.create_training_job(**request)["TrainingJobArn"].startswith("arn:")
    start.check(client, request)
    with pytest.raises(SystemExit, match="InstanceTyp"):
        start.check(client, {**request, "ResourceConfig": {"InstanceTyp": "ml.p4d.24xlarge", "VolumeSizeInGB": 1}})


@pytest.mark.parametrize(
    ("kind", "run", "file"),
    [
        ("ml.p4d.24xlarge", RUN, "zero3_offload.json"),
        ("ml.p4de.24xlarge", RUN, "zero3.json"),
        ("ml.p5.48xlarge", RUN, "zero3.json"),
        ("ml.p4d.24xlarge", [*RUN, "--deepspeed", "mine.json"], "mine.json"),
        ("ml.p4d.24xlarge", ["--learning_rate", "1e-4"], None),
    ],
)
def test_full_weights_go_to_the_host_where_gpus_are_small(kind: str, run: list[str], file: str | None) -> None:
    given = request_for("--instance_type", kind, run=run)["HyperParameters"]
    chosen = given.get("deepspeed")
    assert (chosen and Path(chosen).name) == file
    if file and file != "mine.json":
        assert (ROOT / "launchers" / "deepspeed" / file).is_file()
        assert given["bf16"] == "true"


def test_every_instance_is_known_to_the_service() -> None:
    client = get_session().create_client("sagemaker", region_name="eu-west-1")
    shape = client.meta.service_model.operation_model("CreateTrainingJob").input_shape
    assert set(start.INSTANCES) <= set(shape.members["ResourceConfig"].members["InstanceType"].enum)


@pytest.mark.parametrize("name", ["scans_1", "-scans", "scans-", "a" * 64, "", "scans.1", "scans\n", "größe"])
def test_names_that_the_service_refuses(name: str) -> None:
    """botocore does not look at patterns: the service would, once everything has been uploaded."""
    with pytest.raises(SystemExit, match="SageMaker allows 1 to 63 letters"):
        start.parse([*JOB, f"--name={name}"])


@pytest.mark.parametrize("name", ["a", "scans--1", "9", "a" * 63])
def test_names_that_the_service_takes(name: str) -> None:
    assert start.parse([*JOB, f"--name={name}"])[0].name == name


def test_the_names_pattern_is_the_services() -> None:
    client = get_session().create_client("sagemaker", region_name="eu-west-1")
    shape = client.meta.service_model.operation_model("CreateTrainingJob").input_shape
    assert shape.members["TrainingJobName"].metadata["max"] == 63
    assert client.meta.service_model._service_description["shapes"]["TrainingJobName"]["pattern"] == start.JOB_NAME


@pytest.mark.parametrize("words", [["--config", "run.yaml"], [f"--config={FOLDER / 'start.py'}"]])
def test_a_file_that_the_container_does_not_get(words: list[str]) -> None:
    with pytest.raises(
        SystemExit, match=r"(run\.yaml|start\.py): the run is in a container, .*--config /opt/ml/input/data/train/FILE"
    ):
        request_for(run=words)
    for file in ("/opt/ml/input/data/train/run.yaml", "/of/an/image/of/yours/run.yaml"):
        assert request_for(run=["--config", file])["HyperParameters"]["config"] == file


def container(base: Path, hyperparameters: dict[str, Any], host: str = "algo-1") -> None:
    """Lay out what SageMaker puts into a container."""
    config = base / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    resources = {"current_host": host, "hosts": ["algo-1", "algo-2"], "network_interface_name": "eth0"}
    (config / "resourceconfig.json").write_text(json.dumps(resources))
    (base / "input" / "data" / "train").mkdir(parents=True)
    (base / "model").mkdir()


def enter(base: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(base / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SM_")}
    return subprocess.run(
        [sys.executable, str(FOLDER / "entry.py")],
        env={**kept, "PATH": path, "VLM_LORA_SAGEMAKER_BASE": str(base), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def stand_in(base: Path, code: int) -> None:
    """A `vlm-lora` that writes down how it was called and leaves results behind."""
    (base / "bin").mkdir()
    script = base / "bin" / "vlm-lora"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "seen = {n: v for n, v in os.environ.items() if n.startswith(('SM_', 'NCCL', 'GLOO'))}\n"
        "seen['argv'] = sys.argv[1:]\n"
        f"json.dump(seen, open({str(base / 'seen.json')!r}, 'w'))\n"
        f"out = {str(base / 'checkpoints')!r}\n"
        "open(out + '/all_results.json', 'w').write('{}')\n"
        f"print('error: --lora_rank 0: must be 1 or more', file=sys.stderr)\n"
        f"sys.exit({code})\n"
    )
    script.chmod(0o755)


@pytest.mark.parametrize("host", ["algo-1", "algo-2"])
def test_a_containers_flags_and_machines(host: str, tmp_path: Path) -> None:
    given = start.hyperparameters(RUN, start.INSTANCES["ml.p4d.24xlarge"])
    container(tmp_path, {**given, "seed": '"7"', "lora_targets": "[qv]_proj", "sagemaker_region": "x"}, host)
    stand_in(tmp_path, 0)
    (tmp_path / "checkpoints" / "checkpoint-10").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-10" / "trainer_state.json").touch()
    done = enter(tmp_path)
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    assert seen["argv"] == [
        *("launch", "train", "--model_name_or_path", "Qwen/Qwen2.5-VL-7B-Instruct", "--peft_method", "none"),
        *("--learning_rate", "1e-5", "--gradient_checkpointing", "--lora_targets", "[qv]_proj"),
        *("--deepspeed", "/opt/vlm-lora/launchers/deepspeed/zero3_offload.json", "--bf16", "--seed", "7"),
        *("--dataset_name", str(tmp_path / "input/data/train"), "--output_dir", str(tmp_path / "checkpoints")),
        *("--resume_from_checkpoint", "true"),
    ]
    assert json.loads(seen["SM_HOSTS"]) == ["algo-1", "algo-2"]
    assert (seen["SM_CURRENT_HOST"], seen["NCCL_SOCKET_IFNAME"], seen["GLOO_SOCKET_IFNAME"]) == (host, "eth0", "eth0")
    kept = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert kept == (["all_results.json"] if host == "algo-1" else []), "one machine keeps the results, no checkpoints"
    assert not (tmp_path / "output" / "failure").exists()


def test_variables_of_amazons_images_win(tmp_path: Path) -> None:
    container(tmp_path, {"seed": "1"})
    stand_in(tmp_path, 0)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    variables = {"SM_HPS": '{"seed": 2, "bf16": true}', "SM_CHANNEL_TRAIN": str(folder), "SM_HOSTS": '["algo-1"]'}
    network = {"SM_NETWORK_INTERFACE_NAME": "ens5", "NCCL_SOCKET_IFNAME": "typed"}
    done = enter(tmp_path, SM_CURRENT_HOST="algo-1", SM_MODEL_DIR=str(tmp_path / "kept"), **variables, **network)
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    assert (seen["NCCL_SOCKET_IFNAME"], seen["GLOO_SOCKET_IFNAME"]) == ("typed", "ens5")
    words = seen["argv"]
    assert words[2:8] == ["--seed", "2", "--bf16", "--dataset_name", str(folder), "--output_dir"]
    assert (tmp_path / "kept" / "all_results.json").exists()


def test_a_failure_is_told_to_sagemaker(tmp_path: Path) -> None:
    container(tmp_path, {"lora_rank": "0"})
    stand_in(tmp_path, 7)
    done = enter(tmp_path)
    assert done.returncode == 7
    assert (tmp_path / "output" / "failure").read_text() == "error: --lora_rank 0: must be 1 or more"
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"dataset_name": "x"}, "the channel train and dataset_name (x)"),
        ({"output_dir": "x"}, "SageMaker's business"),
        ({"config": "runs/run.yaml"}, "--config runs/run.yaml: there is no such file in the container"),
    ],
)
def test_settings_that_sagemaker_makes(given: dict[str, str], named: str, tmp_path: Path) -> None:
    container(tmp_path, given)
    stand_in(tmp_path, 0)
    assert enter(tmp_path).returncode == 1
    assert named in (tmp_path / "output" / "failure").read_text()
    assert not (tmp_path / "seen.json").exists()


def test_a_real_run_in_a_container(model_folder: Any, tmp_path: Path) -> None:
    """One machine, nothing stood in for: the adapter is where SageMaker makes the model from."""
    flags = {
        "config": str(tmp_path / "input" / "data" / "train" / "run.yaml"),
        "use_cpu": "true",
        "save_strategy": "no",
        "dataloader_num_workers": "0",
        "do_eval": "false",
        "log_level": "info",
    }
    container(tmp_path, {**flags, "model_name_or_path": str(model_folder("gemma3"))})
    (tmp_path / "input" / "config" / "resourceconfig.json").unlink()
    (tmp_path / "input" / "data" / "train").rmdir()
    write_uneven_rows(tmp_path / "input" / "data" / "train", rows=4, validation=2)
    (tmp_path / "input" / "data" / "train" / "run.yaml").write_text("max_steps: 1\noutput_dir: elsewhere\n")
    warm = os.pathsep.join([str(programs(Path(sys.executable))), os.environ["PATH"]])
    done = enter(tmp_path, PATH=warm)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "adapter_model.safetensors").stat().st_size > 1000
    assert "Started by torchrun: process 0 of 1" in done.stderr
