"""Files for clusters, as far as they can be checked without one: schemas, linters, stand-ins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
MANIFESTS = sorted((ROOT / "launchers" / "kubernetes").glob("*.yaml"))
DOCKERFILES = sorted((ROOT / "launchers" / "docker").glob("*.Dockerfile"))
KUBERNETES = "1.33"
DEVICES = {"cuda": "nvidia.com/gpu", "gaudi": "habana.ai/gaudi"}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    service, job = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return service, job


def container(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


def check(words: list[str | Path], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **variables},
    )


def test_there_are_files_to_check() -> None:
    assert [path.stem for path in MANIFESTS] == ["cuda", "gaudi"]
    assert [path.stem for path in DOCKERFILES] == ["cuda", "gaudi"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_the_schema_and_their_parts_fit_together(path: Path) -> None:
    service, job = read(path)
    for document in (service, job):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    count = job["spec"]["completions"]
    environment = {entry["name"]: entry["value"] for entry in container(job)["env"]}
    assert job["spec"]["parallelism"] == count == int(environment["MACHINES"])
    assert job["spec"]["template"]["metadata"]["labels"].items() >= service["spec"]["selector"].items()
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    # An indexed Job's pods are called after it and their number.
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert f"--master_addr {first} --master_port {service['spec']['ports'][0]['port']}" in container(job)["args"][0]
    assert container(job)["resources"]["limits"][DEVICES[path.stem]] == 8


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_that_fail_are_started_again(path: Path) -> None:
    """What Kubernetes asks for next to the schema: limits by index need an indexed Job, and policies new pods."""
    _, job = read(path)
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["backoffLimitPerIndex"] > 0
    assert spec["maxFailedIndexes"] == 0
    assert "backoffLimit" not in spec, "it would count the pods of all machines together"
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["Ignore"]


def test_the_schema_refuses_what_is_wrong() -> None:
    _, job = read(MANIFESTS[0])
    job["spec"]["paralelism"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="paralelism"):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_pods_command(path: Path, resumes: bool, tmp_path: Path) -> None:
    stand_in = tmp_path / "vlm-lora"
    stand_in.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nexit 7\n')
    stand_in.chmod(0o755)
    (tmp_path / "checkpoint-5").mkdir()
    if resumes:
        (tmp_path / "checkpoint-5" / "trainer_state.json").touch()
    _, job = read(path)
    (script,) = container(job)["args"]
    variables = {"MACHINES": "2", "JOB_COMPLETION_INDEX": "1", "OUTPUT_DIR": str(tmp_path)}
    done = check(["bash", "-c", script], PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **variables)
    assert done.returncode == 7, done.stderr
    words = done.stdout.split()
    own = ["--backend", "gaudi", "--world_size", "8"] if path.stem == "gaudi" else []
    assert words == [
        *("launch", *own, "--nnodes", "2", "--node_rank", "1"),
        *("--master_addr", "vlm-lora-0.vlm-lora", "--master_port", "29500"),
        *("train", "--config", "/data/run.yaml", "--output_dir", str(tmp_path)),
        *(("--resume_from_checkpoint", "true") if resumes else ()),
    ]
    snippet = tmp_path / "pod.sh"
    snippet.write_text(f"#!/bin/bash\n{script}")
    checked = check([PROGRAMS / "shellcheck", snippet])
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfiles(path: Path) -> None:
    """hadolint parses them, and what is copied is there."""
    done = check([PROGRAMS / "hadolint", path])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"vlm_lora", "backends", "launchers", "examples", "pyproject.toml"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    text = path.read_text(encoding="utf-8")
    requirements = re.search(r"-r (requirements\S+)", text) or re.search(r"ARG REQUIREMENTS=(\S+)", text)
    assert requirements is not None
    assert {requirements[1], *re.findall(r"requirements-\S+\.txt", text)} <= set(sources)


def test_hadolint_refuses_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM debian:12\nRUN cd /tmp && pip install torch\nCOPPY a b\n")
    assert check([PROGRAMS / "hadolint", wrong]).returncode != 0
