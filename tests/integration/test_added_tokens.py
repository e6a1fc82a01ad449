"""A tokenizer with more tokens than the embeddings have rows is refused before the weights load, by every verb."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from support.rows import write_uneven_rows
from support.tiny import available, build_processor
from support.tiny.configurations import CONFIGURATIONS
from support.tiny.folders import model_class
from vlm_lora.cli.main import main
from vlm_lora.errors import ModelError
from vlm_lora.model.families import family_of
from vlm_lora.model.vocabulary import check_vocabulary, embedding_rows


@pytest.fixture(scope="module")
def widened(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Path:
    """A model folder whose tokenizer got two tokens, one of them special, and whose embeddings did not."""
    folder = tmp_path_factory.mktemp("widened") / "model"
    shutil.copytree(model_folder("qwen2_vl"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<C1>"])
    tokenizer.add_tokens(["<C2>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    write_uneven_rows(folder.parent / "data", rows=2, validation=1)
    return folder


@pytest.mark.parametrize("verb", ["check", "preview", "plan", "train", "eval", "ask"])
def test_every_verb_refuses_it_with_both_numbers(
    verb: str, widened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = AutoConfig.from_pretrained(widened).get_text_config().vocab_size
    data = ["--prompt", "Hi"] if verb == "ask" else ["--dataset_name", str(widened.parent / "data")]
    output = ["--output_dir", str(tmp_path / "out")] if verb in ("train", "eval") else []
    assert main([verb, "--model_name_or_path", str(widened), "--use_cpu", "true", *data, *output]) == 1
    said = capsys.readouterr().err
    assert (
        f"{widened}: its tokenizer (tokenizer.json, tokenizer_config.json) writes ids up to {rows + 1} (<C2>)" in said
    )
    assert f"the model's embeddings have {rows} rows" in said
    assert f"model.resize_token_embeddings({rows + 2})" in said


@pytest.mark.parametrize("name", [name for name in available() if name != "phi3_v"])
def test_no_family_is_refused_as_it_is_published(name: str) -> None:
    """Among them Llama 3.2 Vision, whose embeddings have more rows than its configuration says."""
    tokenizer = build_processor(name).tokenizer
    config = CONFIGURATIONS[name](tokenizer)
    check_vocabulary(config, family_of(config), tokenizer)
    tokenizer.add_tokens([f"<C{number}>" for number in range(9)])
    if config.get_text_config().vocab_size + 8 < len(tokenizer):
        with pytest.raises(ModelError, match="rows, for ids up to"):
            check_vocabulary(config, family_of(config), tokenizer)


@pytest.mark.parametrize(("name", "looks_up"), [("gemma3", False), ("paligemma", False), ("llava", True)])
def test_a_placeholder_without_a_row_is_refused_where_the_model_looks_it_up(name: str, looks_up: bool) -> None:
    """The table of families says which models replace it first; the model itself is asked whether that is so."""
    tokenizer = build_processor(name).tokenizer
    config = CONFIGURATIONS[name](tokenizer)
    rows = embedding_rows(config, family_of(config))
    tokenizer.add_tokens([f"<C{number}>" for number in range(rows + 1 - len(tokenizer))])
    config.image_token_id = rows  # the last token's
    model = model_class(config).from_config(copy.deepcopy(config)).eval()
    ids = torch.tensor([[1, rows]])
    raised: list[type[BaseException]] = []
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, ValueError) as error:
        raised.append(type(error))
    assert (IndexError in raised) is looks_up
    if looks_up:
        with pytest.raises(ModelError, match=f"writes ids up to {rows} "):
            check_vocabulary(config, family_of(config), tokenizer)
    else:
        check_vocabulary(config, family_of(config), tokenizer)
