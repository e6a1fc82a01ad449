"""A saved tokenizer names its special tokens in a way that both stacks read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoProcessor

from vlm_lora.training.outputs import save_processor


@pytest.mark.parametrize("name", ["idefics3", "mistral3", "llava_onevision"])
def test_special_tokens_come_back_and_stand_in_no_list_that_is_a_table_in_the_older_stack(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    processor = AutoProcessor.from_pretrained(model_folder(name))
    save_processor(processor, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert isinstance(settings.get("extra_special_tokens", {}), dict)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert sorted(again.tokenizer.all_special_tokens) == sorted(processor.tokenizer.all_special_tokens)
    assert again.tokenizer("<image>").input_ids == processor.tokenizer("<image>").input_ids
