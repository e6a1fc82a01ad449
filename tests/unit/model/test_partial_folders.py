"""Model folders of which a part is missing, or which Git LFS has left as pointers, are refused by the file's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm_lora.errors import ModelError
from vlm_lora.model.folder_faults import adapter_settings, refuse_damage, refuse_missing_weights

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 9876543210\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded(folder: Path) -> Path:
    (folder / "config.json").write_text("{}", encoding="utf-8")
    for number, name in enumerate(SHARDS):
        save_file({f"w{number}": torch.ones(300)}, folder / name)
    places = {f"w{number}": name for number, name in enumerate(SHARDS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    return folder


def look_through(folder: Path) -> None:
    refuse_damage(folder)
    refuse_missing_weights(folder)


def test_a_whole_folder_passes(tmp_path: Path) -> None:
    look_through(sharded(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["config.json", SHARDS[1], "model.safetensors.index.json", "tokenizer.json", "pytorch_model.bin", "merges.txt"],
)
def test_a_pointer_of_git_lfs_is_named(name: str, tmp_path: Path) -> None:
    (sharded(tmp_path) / name).write_text(POINTER, encoding="utf-8")
    with pytest.raises(ModelError, match=rf"{name}: a pointer of Git LFS.*git -C {tmp_path} lfs pull"):
        look_through(tmp_path)


def test_an_adapters_pointers_too(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(POINTER, encoding="utf-8")
    with pytest.raises(ModelError, match=r"adapter_config\.json: a pointer of Git LFS"):
        adapter_settings(tmp_path)


@pytest.mark.parametrize(
    ("removed", "added", "said"),
    [
        ((SHARDS[1],), {}, rf"{SHARDS[1]}: missing, and .*index.json names it"),
        (("model.safetensors.index.json",), {}, rf"model.safetensors.index.json: missing, next to {SHARDS[0]}"),
        (
            (*SHARDS, "model.safetensors.index.json"),
            {},
            r"config.json and no weights \(no model.safetensors, .*bin\). Copy",
        ),
        (
            (*SHARDS, "model.safetensors.index.json"),
            {"model-Q4_K_M.gguf": "x"},
            "what it holds instead is not read: model-Q4_K_M.gguf. Copy",
        ),
        (
            (*SHARDS, "model.safetensors.index.json"),
            {"pytorch_model.bin.index.json": '{"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}'},
            "pytorch_model-00001-of-00001.bin: missing, and .*pytorch_model.bin.index.json names it",
        ),
        (
            (*SHARDS, "model.safetensors.index.json"),
            {"pytorch_model.bin.index.json": "{}"},
            "pytorch_model.bin.index.json: damaged: it has no weight_map",
        ),
    ],
)
def test_what_is_missing_is_named(removed: tuple[str, ...], added: dict[str, str], said: str, tmp_path: Path) -> None:
    sharded(tmp_path)
    for name in removed:
        (tmp_path / name).unlink()
    for name, text in added.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        look_through(tmp_path)
