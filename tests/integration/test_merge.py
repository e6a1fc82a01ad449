"""`vlm-lora merge`: the whole model says what base and adapter say, and a merge that went wrong is caught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.rows import write_uneven_rows
from support.runs import run
from vlm_lora.cli.main import main
from vlm_lora.deploy import folding
from vlm_lora.deploy import merge as merging
from vlm_lora.model.manifest import State, examine

TRAINED = {
    "do_train": True,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "lora_targets": "all",
    "validation_fraction": 0,
}
"""Two steps so large that an adapter forgotten changes every answer's logits."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=4)


@pytest.fixture(scope="module")
def adapter(model_folder: Callable[[str], Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on every part of a tiny Qwen2.5-VL."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    run(model_folder("qwen2_5_vl"), data, folder, **TRAINED)
    return folder


def words(adapter: Path, output: Path, **more: object) -> list[str]:
    given = {"output_dir": output, "use_cpu": True, "max_new_tokens": 6, **more}
    return ["merge", str(adapter), *(text for name, value in given.items() for text in (f"--{name}", str(value)))]


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / merging.REPORT).read_text(encoding="utf-8"))
    return report


@pytest.mark.parametrize(
    ("name", "more", "bound"),
    [
        ("qwen2_5_vl", {}, 1e-4),  # its random tower makes hundreds of a rounding error
        ("gemma3", {"use_dora": True}, 1e-5),
        ("llava", {"use_rslora": True, "lora_targets": "language"}, 1e-5),
        ("llava", {"lora_init": "pissa", "lora_targets": "language"}, 1e-5),
        ("llava", {"lora_init": "olora", "lora_targets": "language"}, 1e-4),  # what it began with is taken off again
        ("gemma3n", {"lora_targets": "language"}, 1e-5),  # its tower is timm's, and puts functions into settings
    ],
)
def test_a_merged_model_says_what_its_adapter_says(
    name: str, more: dict[str, Any], bound: float, model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    run(model_folder(name), data, tmp_path / "run", **{**TRAINED, **more})
    assert main(words(tmp_path / "run", tmp_path / "merged")) == 0
    report = report_of(tmp_path / "merged")
    assert report["proof"]["rows"] == report["proof"]["equal_answers"] == 4
    assert report["proof"]["largest_logit_difference"] < bound * report["proof"]["largest_logit"]
    assert report["largest_change"] > 1e-3
    assert report["layers_computed_twice"] == len(report["layers"])
    assert examine(tmp_path / "merged").state is State.WHOLE
    assert not list(tmp_path.glob(".*"))
    # Plain transformers loads it, with every weight in its place, and what changed are the layers with an adapter.
    base, merged = (load_file(path / "model.safetensors") for path in (model_folder(name), tmp_path / "merged"))
    assert base.keys() == merged.keys()
    changed = [key for key in base if not torch.equal(base[key], merged[key])]
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert len(changed) == sum(bool(tensor.any()) for name, tensor in adapter.items() if ".lora_B" in name) > 0


@pytest.mark.parametrize("more", [{"new_tokens": "<part>\n<whole>\n"}, {"train_fully": "projector"}])
def test_new_tokens_and_parts_that_were_trained_whole_are_in_it(
    more: dict[str, Any], model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    """In LLaVA, whose head is not tied: both tables grow."""
    if "new_tokens" in more:
        more = {"new_tokens": tmp_path / "tokens.txt"}
        more["new_tokens"].write_text("<part>\n<whole>\n", encoding="utf-8")
    run(model_folder("llava"), data, tmp_path / "run", **{**TRAINED, "lora_targets": "language", **more})
    assert main(words(tmp_path / "run", tmp_path / "merged")) == 0
    assert report_of(tmp_path / "merged")["proof"]["equal_answers"] == 4
    base, merged = (load_file(path / "model.safetensors") for path in (model_folder("llava"), tmp_path / "merged"))
    changed = {key for key in base if base[key].shape != merged[key].shape or not torch.equal(base[key], merged[key])}
    wanted = ("embed_tokens", "lm_head") if "new_tokens" in more else ("multi_modal_projector",)
    assert all(any(word in key for key in changed) for word in wanted)


def test_what_was_merged_is_not_merged_again(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(adapter, tmp_path / "merged"), "--rows", "1"]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 equal" in said
    assert f"vlm-lora ask --model_name_or_path {tmp_path / 'merged'}" in said
    assert main(words(adapter, tmp_path / "merged")) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(words(tmp_path / "merged", tmp_path / "again")) == 1
    assert "nothing to merge" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def forget_a_tower(model: Any) -> None:
    for name, tensor in model.state_dict().items():
        if "visual" in name and name.endswith("weight"):
            tensor.copy_(tensor * 0.5)


def scale_one(model: Any) -> None:
    name = next(name for name in model.state_dict() if "language" in name and name.endswith("down_proj.weight"))
    model.state_dict()[name].mul_(1.5)


@pytest.mark.parametrize("broken", [forget_a_tower, scale_one])
def test_a_wrong_fold_is_caught_by_what_it_says(
    broken: Callable[[Any], None],
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrongly(model: Any) -> Any:
        plain, folded = folding.fold(model)
        broken(plain)
        return plain, folded

    monkeypatch.setattr(merging, "fold", wrongly)
    assert main(words(adapter, tmp_path / "merged")) == 1
    assert "The merged model is not the adapter's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_is_scaled_wrongly_is_named(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft.tuners.lora.layer import Linear

    delta = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: delta(self, name) * 1.01)
    assert main([*words(adapter, tmp_path / "merged"), "--rows", "0"]) == 1
    assert "its merged weight is off by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_is_lost_on_the_disk_is_named(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = merging._write

    def losing(model: Any, preprocessing: Any, part: Path, *rest: Any) -> Any:
        hashes = write(model, preprocessing, part, *rest)
        tensors = load_file(part / "model.safetensors")
        tensors[sorted(tensors)[0]] += 1
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        return hashes

    monkeypatch.setattr(merging, "_write", losing)
    assert main([*words(adapter, tmp_path / "merged"), "--rows", "0"]) == 1
    assert "1 of" in (said := capsys.readouterr().err)
    assert "do not come back" in said


def test_a_bf16_base_stays_bf16(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The adapter itself stays float32: what is rounded is the sum."""
    base = Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    shutil.copytree(base, tmp_path / "base")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "base" / "MANIFEST.json").unlink(missing_ok=True)
    shutil.copytree(adapter, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "base")})
    )
    assert main([*words(tmp_path / "adapter", tmp_path / "merged"), "--accept_changed_files", "true"]) == 0
    report = report_of(tmp_path / "merged")
    assert report["dtype"] == "bfloat16"
    assert report["proof"]["largest_logit_difference"] > 1e-3
    kept = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}


def test_without_rows_it_says_what_to_name(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, bare / name)
    assert main(words(bare, tmp_path / "merged")) == 1
    assert "--rows 0" in capsys.readouterr().err
