"""--enable_thinking: prompts for thoughts or none, in training, ask, eval and a plain reload alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_image, write_jsonl
from support.mask_cases import trl_template
from support.runs import script_flags
from vlm_lora.cli.main import main, run_script
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.loading import load_processor
from vlm_lora.model.processor.thinking import reads_thinking
from vlm_lora.training.outputs import save_processor

OPEN, CLOSED = "<think>\n", "<think>\n\n</think>\n\n"
CALL = {"type": "function", "function": {"name": "zoom", "arguments": '{"x": 3}'}}
ASKED = {"role": "user", "content": "<image>What is it?"}
TRIED: list[dict[str, Any]] = [
    {"messages": [ASKED, {"role": "assistant", "content": "A kite.", "reasoning_content": "It has a tail."}]},
    {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
    {"messages": [ASKED, {"role": "assistant", "content": "zoom(3)"}], "tools": json.dumps([CALL])},
]
"""Thoughts, a call alone, and tools of which a plain answer makes nothing."""


@pytest.fixture(scope="module")
def thinking_folder(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of Qwen2-VL's with Qwen3.5's chat template, which thinks unless told otherwise."""
    folder = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(model_folder("qwen2_vl"), folder)
    (folder / "chat_template.jinja").write_text(trl_template("qwen3_5_think"), encoding="utf-8")
    return folder


def rows_of(folder: Path, rows: list[dict[str, Any]]) -> Path:
    write_image(folder / "a.png", seed=1, size=(64, 48))
    return write_jsonl(folder / "rows.jsonl", [{**row, "images": ["a.png"]} for row in rows])


def prompt_of(processor: Any, **given: Any) -> str:
    asked = [{"role": "user", "content": "q?"}]
    text: str = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **given)
    return text.split("assistant\n")[-1]


def test_prompts_are_as_asked_and_a_plain_reload_prompts_the_same(thinking_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    for wanted, prompt in ((None, OPEN), (True, OPEN), (False, CLOSED)):
        processor = load_processor(ModelConfig(model_name_or_path=str(thinking_folder), enable_thinking=wanted))
        assert prompt_of(processor) == prompt
        save_processor(processor, tmp_path / str(wanted))
        loaded = AutoProcessor.from_pretrained(tmp_path / str(wanted))
        assert prompt_of(loaded) == prompt_of(loaded.tokenizer) == prompt
        assert prompt_of(loaded, enable_thinking=False) == CLOSED, "what a caller says wins"
        assert prompt_of(loaded, enable_thinking=True) == OPEN
    shutil.copy(thinking_folder / "config.json", tmp_path / "False")
    again = load_processor(ModelConfig(model_name_or_path=str(tmp_path / "False"), enable_thinking=True))
    assert prompt_of(again) == OPEN
    assert again.chat_template.count("if enable_thinking is defined else") == 1


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_a_template_that_does_not_read_it_refuses_it(name: str, model_folder: Callable[[str], Path]) -> None:
    place = str(model_folder(name))
    with pytest.raises(ConfigError, match=r"--enable_thinking false: this model's chat template does not read"):
        load_processor(ModelConfig(model_name_or_path=place, enable_thinking=False))
    assert load_processor(ModelConfig(model_name_or_path=place)), "the control"


def test_a_comment_reads_nothing() -> None:
    assert reads_thinking("{% if enable_thinking %}x{% endif %}")
    assert not reads_thinking("{#- enable_thinking is\n not read -#}{{ messages }}")


def test_training_ask_and_eval_prompt_alike(
    thinking_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    data, adapter = rows_of(tmp_path / "data", TRIED[1:]), tmp_path / "adapter"
    flags = {"validation_name": data, "enable_thinking": False, "log_level": "warning", "max_new_tokens": 2}
    trained = {"do_train": True, "max_steps": 1}
    assert run_script(script_flags(thinking_folder, data, adapter, **{**flags, **trained})) == 0
    assert "enable_thinking: false" in (adapter / "run_config.yaml").read_text(encoding="utf-8")
    assert prompt_of(load_processor(ModelConfig(model_name_or_path=str(adapter)))) == CLOSED
    capsys.readouterr()
    question = ["--model_name_or_path", str(adapter), "--image", str(tmp_path / "data" / "a.png"), "--prompt", "What?"]
    assert main(["ask", *question, "--use_cpu", "--max_new_tokens", "2"]) == 0
    assert "was trained with" not in capsys.readouterr().err, "the control"
    assert main(["ask", *question, "--use_cpu", "--max_new_tokens", "2", "--enable_thinking", "true"]) == 0
    said = capsys.readouterr().err
    assert "--enable_thinking true: " in said
    assert "adapter was trained with --enable_thinking false" in said


def check(model: Path, data: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    flags = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--use_cpu", "--validation_fraction", "0"]
    code = main(["check", *flags, "--do_eval", "false", "--json", *words])
    printed = capsys.readouterr()
    report: dict[str, Any] = json.loads(printed.out)
    return code, report


def test_rows_that_cannot_keep_the_prompt_are_counted(
    thinking_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = rows_of(tmp_path, [*TRIED, *TRIED[:1]])
    code, report = check(thinking_folder, data, capsys)
    assert (code, report["bad_rows"]) == (0, 0), "all of them as the template thinks"
    code, report = check(thinking_folder, data, capsys, "--enable_thinking", "false")
    assert (code, report["bad_rows_by_kind"]) == (1, {"thinking": 2})
    assert [row["row"] for row in report["bad"]] == [0, 3]
    assert "the prompt leaves no room for them" in report["bad"][0]["reason"]
    assert "--enable_thinking" in report["bad"][0]["cure"]


def test_a_template_that_knows_neither_thoughts_nor_tools_passes_nothing_over(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = check(model_folder("qwen2_vl"), rows_of(tmp_path, TRIED), capsys)
    assert (code, report["bad_rows"]) == (1, 3)
    reasons = [row["reason"] for row in report["bad"]]
    assert "has thoughts beside an answer's text" in reasons[0]
    assert "does not write calls of tools" in reasons[1]
    assert "leaves out 'zoom' of the row's tools" in reasons[2]
