"""Whatever is wrong with the settings is one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_lora.config.early import DATA, MODEL, OUTPUT, check_early
from vlm_lora.config.sources import parse
from vlm_lora.errors import ConfigError, DataError, Refusals, SeveralError, UserError


def refused(*words: str) -> UserError:
    gathered = Refusals()
    run = parse(words, environ={}, refused=gathered)
    with pytest.raises(UserError) as caught:
        check_early(run, "train", (MODEL, DATA, OUTPUT), refused=gathered)
    return caught.value


def test_each_kind_of_mistake_is_a_line() -> None:
    error = refused(
        *("--lora_rnak", "3", "--lora_rank", "0", "--lora_dropout", "2", "--validation_fraction", "half"),
        *("--max_steps", "many", "--packing", "true", "--streaming", "true", "--no_lora_alpha", "---"),
        *("--model_name_or_path", "./nowhere", "--output_dir", "out", "--seed", "1", "--seed", "2"),
    )
    assert isinstance(error, SeveralError)
    beginnings = [
        *("--no_lora_alpha: --lora_alpha is not a switch", "---: not a flag"),
        "--validation_fraction half: must be a number",
        "--seed 1 and --seed 2 contradict each other",
        *("--lora_rank 0: must be 1 or more", "--lora_dropout 2.0: must be at least 0"),
        *("--lora_rnak is not a known key. Did you mean 'lora_rank'?", "--max_steps many: must be a whole number"),
        *("--packing true does not go with --streaming true", "./nowhere: no such folder"),
        "--dataset_name is missing",
    ]
    said = [str(part) for part in error.parts]
    assert [text for text, beginning in zip(said, beginnings, strict=True) if not text.startswith(beginning)] == []
    assert "--streaming true needs --max_steps" not in str(error), "it was given, and refused for another reason"
    assert str(error).startswith("11 things are wrong with the settings:\n  --no_lora_alpha: ")


def test_one_mistake_is_said_as_it_is() -> None:
    there = ("--model_name_or_path", "google/gemma-3-4b-it", "--dataset_name", "some/rows", "--output_dir", "out")
    alone = refused(*there, "--lora_rank", "0")
    assert str(alone) == "--lora_rank 0: must be 1 or more, for example 16."
    assert type(refused(*there[:2], *there[4:], "--dataset_name", "rows.jsonl")) is DataError
    gathered = Refusals()
    check_early(parse(there, environ={}, refused=gathered), "train", (MODEL, DATA, OUTPUT), refused=gathered)


def test_what_is_refused_is_not_missing_as_well() -> None:
    error = refused("--model_name_or_path", "", "--dataset_name", "some/rows", "--output_dir", "out")
    assert str(error) == "--model_name_or_path '': is empty. Give a value, or leave the key out."


def test_files_tell_of_all_their_keys_and_a_file_that_cannot_be_read_of_nothing_more(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lora_rank: two\nmodel: {a: 1}\nuse_dora: perhaps\n", encoding="utf-8")
    with pytest.raises(SeveralError) as caught:
        parse(["--config", str(file)], environ={})
    assert [str(part).partition(" ")[0] for part in caught.value.parts] == ["lora_rank:", f"{file}:", "use_dora:"]
    with pytest.raises(ConfigError, match="no such configuration file"):
        parse(["--config", str(tmp_path / "other.yaml"), "--seed", "1"], environ={})
