"""What servers do with a folder, judged from its files: a table of adapters of different kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlm_lora.cli.main import main
from vlm_lora.errors import ModelError
from vlm_lora.serving.servable import Answer, Verdict, judge, servers

BASES = {
    "qwen": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "gemma": ("gemma3", "Gemma3ForConditionalGeneration"),
    "mistral": ("mistral3", "Mistral3ForConditionalGeneration"),
    "aria": ("aria", "AriaForConditionalGeneration"),
    "own": ("own_vlm", "OwnForConditionalGeneration"),
}
LANGUAGE = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
TOWER = {
    "qwen": "base_model.model.model.visual.blocks.0.attn.qkv.lora_{}.weight",
    "gemma": "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_{}.weight",
    "mistral": "base_model.model.model.vision_tower.transformer.layers.0.attention.q_proj.lora_{}.weight",
}
LIST = {"target_modules": ["q_proj"]}


def adapter(root: Path, base: str, *names: str, known: bool = True, **settings: Any) -> Path:
    """Write an adapter with LoRA on the language model, and on what else is named."""
    model_type, architecture = BASES[base]
    (root / "base").mkdir()
    if known:
        content = {"model_type": model_type, "architectures": [architecture]}
        (root / "base" / "config.json").write_text(json.dumps(content))
    folder = root / "run"
    folder.mkdir()
    given = {"peft_type": "LORA", "base_model_name_or_path": str(root / "base"), "r": 16, "lora_alpha": 32}
    (folder / "adapter_config.json").write_text(json.dumps({**given, **LIST, **settings}))
    tensors = [name.format(side) for name in (LANGUAGE, *names) for side in "AB"]
    save_file({name: np.zeros((1, 1), "float32") for name in tensors}, folder / "adapter_model.safetensors")
    return folder


def verdict(folder: Path, server: str) -> Verdict:
    return next(one for one in judge(folder) if one.server == server)


AS_IT_IS, MERGE, UNKNOWN = Answer.AS_IT_IS, Answer.MERGE, Answer.UNKNOWN
EXPERT = "base_model.model.model.language_model.layers.0.mlp.experts.lora_{}.weight"
ROWS = "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta_{}"
CASES: dict[str, tuple[str, tuple[str, ...], dict[str, Any], Answer, Answer, str]] = {
    "plain": ("qwen", (), {}, AS_IT_IS, AS_IT_IS, ""),
    "gemma": ("gemma", (), {}, AS_IT_IS, AS_IT_IS, ""),
    "rank-stabilised": ("qwen", (), {"use_rslora": True}, AS_IT_IS, AS_IT_IS, ""),
    "drawn from a normal distribution": ("qwen", (), {"init_lora_weights": "gaussian"}, AS_IT_IS, AS_IT_IS, ""),
    "a regular expression": ("qwen", (), {"target_modules": r".*q_proj"}, AS_IT_IS, MERGE, "regular expression"),
    "all-linear": ("qwen", (), {"target_modules": "all-linear"}, AS_IT_IS, AS_IT_IS, ""),
    "DoRA": ("qwen", (), {"use_dora": True}, MERGE, MERGE, "DoRA"),
    "a part saved whole": ("qwen", (), {"modules_to_save": ["merger"]}, MERGE, MERGE, "merger"),
    "new tokens": ("qwen", (ROWS,), {"trainable_token_indices": [7]}, MERGE, MERGE, "new tokens"),
    "bias": ("qwen", (), {"lora_bias": True}, MERGE, AS_IT_IS, "bias"),
    "biases": ("qwen", (), {"bias": "all"}, MERGE, AS_IT_IS, "bias"),
    "PiSSA": ("qwen", (), {"init_lora_weights": "pissa"}, MERGE, AS_IT_IS, "pissa"),
    "rank 513": ("qwen", (), {"r": 513}, MERGE, AS_IT_IS, "513"),
    "one rank of 600": ("qwen", (), {"rank_pattern": {"q_proj": 600}}, MERGE, AS_IT_IS, "600"),
    "tower": ("qwen", (TOWER["qwen"],), {}, AS_IT_IS, MERGE, "outside of the language model"),
    "tower of Gemma": ("gemma", (TOWER["gemma"],), {}, AS_IT_IS, MERGE, "outside of the language model"),
    "tower that vLLM leaves out": ("mistral", (TOWER["mistral"],), {}, MERGE, UNKNOWN, "outside of the language model"),
    "experts": ("qwen", (EXPERT,), {"target_parameters": ["mlp.experts.down_proj"]}, MERGE, MERGE, "experts"),
    "no LoRA there": ("aria", (), {}, MERGE, UNKNOWN, "takes no LoRA"),
    "an architecture of one's own": ("own", (), {}, UNKNOWN, UNKNOWN, "OwnForConditionalGeneration"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapters_verdicts(case: str, tmp_path: Path) -> None:
    base, names, settings, vllm, sglang, why = CASES[case]
    folder = adapter(tmp_path, base, *names, **settings)
    found = {one.server: one for one in judge(folder)}
    assert (found["vLLM"].answer, found["SGLang"].answer) == (vllm, sglang)
    assert found["transformers serve"].answer is MERGE
    reasons = [*found["vLLM"].why, *found["SGLang"].why]
    assert any(why in reason for reason in reasons) if why else reasons == []
    for one in found.values():
        assert bool(one.why) == (one.answer is not AS_IT_IS)
        if one.answer is not AS_IT_IS:
            assert (one.command or "").startswith("vlm-lora merge ")


@pytest.mark.parametrize(("rank", "flag"), [(1, 8), (8, 8), (9, 16), (100, 128), (257, 320), (512, 512)])
def test_the_rank_that_vllm_is_given_is_the_next_it_takes(rank: int, flag: int, tmp_path: Path) -> None:
    command = verdict(adapter(tmp_path, "qwen", r=rank), "vLLM").command or ""
    assert f"--max-lora-rank {flag} " in command
    assert "--enable-tower-connector-lora" not in command
    assert command.endswith(f"--lora-modules run={tmp_path / 'run'}")


def test_a_tower_needs_vllms_flag(tmp_path: Path) -> None:
    folder = adapter(tmp_path, "qwen", TOWER["qwen"])
    assert "--enable-tower-connector-lora" in (verdict(folder, "vLLM").command or "")


def test_a_base_that_is_not_here_is_unknown(tmp_path: Path) -> None:
    found = verdict(adapter(tmp_path, "qwen", known=False), "vLLM")
    assert found.answer is UNKNOWN
    assert "is not here" in found.why[0]


def test_a_whole_model_is_served_by_transformers_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Gemma3ForConditionalGeneration"]}))
    assert [one.answer for one in judge(tmp_path)] == [AS_IT_IS] * 3
    assert verdict(tmp_path, "transformers serve").command == f"transformers serve {tmp_path}"


def test_a_whole_model_that_no_server_knows_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OwnForConditionalGeneration"]}))
    assert [one.answer for one in judge(tmp_path)] == [UNKNOWN] * 3


def test_a_folder_with_a_revisions_mark_is_not_loaded_by_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "tuned@home"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Gemma3ForConditionalGeneration"]}))
    found = verdict(folder, "transformers serve")
    assert (found.answer, found.command) == (Answer.NO, None)
    assert "revision" in found.why[0]


def test_a_folder_that_is_neither_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="neither an adapter"):
        judge(tmp_path)
    assert main(["servable", str(tmp_path)]) == 1
    assert "neither an adapter" in capsys.readouterr().err


def test_each_verdict_names_version_rule_and_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapter(tmp_path, "qwen", use_dora=True)
    assert main(["servable", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    version = servers()[0].version
    assert lines[:3] == [
        f"vLLM {version}: merge first",
        "  because DoRA is refused",
        f"  vlm-lora merge {folder} --output_dir {folder}-merged",
    ]
    assert main(["servable", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["why"] == ["DoRA is refused"]
