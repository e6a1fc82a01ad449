"""`vlm-lora quantize`: what the other process is handed, and what becomes of what it says. A stand-in plays it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.rows import write_uneven_rows
from support.runs import run
from vlm_lora import UserError, configure, quantize
from vlm_lora.cli.main import main
from vlm_lora.demo.run import BASE
from vlm_lora.deploy.quantization import environment
from vlm_lora.model.manifest import State, examine

STAND_IN = """\
import json, os, pathlib, shutil, sys
isolated, worker, step, path = sys.argv[1:]
job = json.loads(pathlib.Path(path).read_text())
seen = pathlib.Path(os.environ["STAND_IN_SEES"])
shutil.copyfile(path, seen / f"{step}.json")
for name in [*job["samples"], job["model"] + "/model.safetensors"]:
    shutil.copyfile(name, seen / pathlib.Path(name).name)
print("what llm-compressor says.")
if os.environ.get("STAND_IN_FAILS") == step:
    sys.exit("OutOfMemory: there was none left.")
if step == "compress":
    output = pathlib.Path(job["output"])
    output.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(pathlib.Path(job["model"]) / name, output / name)
    found = {"pairs": [], "versions": {"llmcompressor": "0.14.0.1"}}
else:
    found = {"layers": 14, "largest_error": 0.5, "untouched": 9, "scaled": 0, "deviation": None, "rows": 3}
    found |= {"loss_before": 0.25, "loss_after": 0.5}
if os.environ.get("STAND_IN_REFUSES") == step:
    found = {"refused": "lm_head.weight is not as it was before"}
pathlib.Path(job["result"]).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def adapter(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    data = write_uneven_rows(root / "data", rows=4)
    flags = {"do_train": True, "max_steps": 1, "learning_rate": 1e-1, "validation_fraction": 0}
    run(model_folder("qwen2_5_vl"), data, root / "run", **flags)
    return root / "run"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment whose Python is the stand-in."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    (folder / "seen").mkdir()
    (folder / "stand_in.py").write_text(STAND_IN)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "stand_in.py"} "$@"\n')
    python.chmod(0o755)
    (folder / environment.MARK).write_text(json.dumps({"finished": True, "versions": environment.requirements()}))
    monkeypatch.setenv("STAND_IN_SEES", str(folder / "seen"))
    return folder


def words(model: Path, output: Path, place: Path, **more: object) -> list[str]:
    given = {"scheme": "fp8-dynamic", "output_dir": output, "environment": place, "rows": 3, "use_cpu": True, **more}
    return ["quantize", str(model), *(text for name, value in given.items() for text in (f"--{name}", str(value)))]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_a_run_is_merged_and_handed_over_with_its_own_rows(
    adapter: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "quantized"
    assert main(words(adapter, output, place)) == 0
    said = capsys.readouterr().out
    assert "Perplexity on 3 training rows: 1.2840 before, 1.6487 after." in said
    assert f"14 layers of {adapter}, merged into its base" in said
    seen = place / "seen"
    job: dict[str, Any] = json.loads((seen / "compress.json").read_text())
    assert (job["scheme"], job["awq"], job["language"]) == ("FP8_DYNAMIC", False, ["model.language_model"])
    assert len(job["samples"]) == 3
    sample = load_file(seen / "00000.safetensors")
    assert sample["pixel_values"].numel() > 0
    assert sample["mm_token_type_ids"].any(), "where the image is, which positions depend on"
    assert (sample["labels"] >= 0).any()
    base = load_file(
        Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]) / "model.safetensors"
    )
    merged = load_file(seen / "model.safetensors")
    assert any(not torch.equal(base[name], merged[name]) for name in base), "it was handed the base"
    assert examine(output).state is State.WHOLE
    assert {"README.md", "quantize_report.json", "run_config.yaml", "tokenizer.json"} <= {
        p.name for p in output.iterdir()
    }
    assert left_over(tmp_path) == []
    assert not (tmp_path / "quantized.quantize.log").exists()


@pytest.mark.parametrize(
    ("variable", "step", "said"),
    [
        ("STAND_IN_REFUSES", "prove", "lm_head.weight is not as it was before. Nothing was kept but"),
        ("STAND_IN_FAILS", "compress", "failed at compress (exit code 1): OutOfMemory: there was none left. All of"),
    ],
)
def test_what_goes_wrong_there_is_one_message_and_its_words_are_kept(
    variable: str,
    step: str,
    said: str,
    model_folder: Callable[[str], Path],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, step)
    data = write_uneven_rows(tmp_path / "data", rows=3)
    output = tmp_path / "quantized"
    assert main(words(model_folder("qwen2_5_vl"), output, place, dataset_name=data)) == 1
    assert said in capsys.readouterr().err
    own = configure(model_name_or_path=str(model_folder("qwen2_5_vl")), output_dir=str(output), dataset_name=str(data))
    with pytest.raises(UserError, match=re.escape(said)):
        quantize(own, scheme="fp8-dynamic", rows=3, environment=place)
    assert not output.exists()
    assert left_over(tmp_path) == []
    assert "what llm-compressor says" in (tmp_path / "quantized.quantize.log").read_text()


def test_what_cannot_be_is_refused_before_the_environment_is_asked(
    model_folder: Callable[[str], Path], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "quantized"
    model = model_folder("qwen2_5_vl")
    cases = {
        "self_attn.q_proj has 160 inputs, no multiple of 128, and so have 28 of 28 layers": words(
            BASE, output, tmp_path / "none", scheme="awq"
        ),
        "--scheme awk: allowed are awq, fp8-dynamic": words(model, output, tmp_path / "none", scheme="awk"),
        "--scheme is missing": ["quantize", str(model), "--output_dir", str(output)],
        "quantizes nothing: leave --seed out": ["quantize", "--make_environment", "--seed", "3"],
        "is there already": words(model, place, tmp_path / "none"),
        "there is none. Make it once": words(model, output, tmp_path / "none"),
        "nothing there says on which data it was trained. Name some rows to quantize it with": words(
            model, output, place
        ),
    }
    for said, line in cases.items():
        assert main(line) == 1, said
        assert said in capsys.readouterr().err
    assert list((place / "seen").iterdir()) == []
    assert not output.exists()
