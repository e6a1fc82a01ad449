"""The help names every setting with its docstring, and the names of other tools."""

from dataclasses import fields

import pytest

from vlm_lora.cli.help import COMMON_KEYS, WIDTH, field_docs, help_text
from vlm_lora.cli.main import OWN_FLAGS, main
from vlm_lora.config.aliases import describe_aliases
from vlm_lora.config.fields import own_fields
from vlm_lora.config.resolution import resolve
from vlm_lora.config.sources import parse


def test_every_setting_is_listed_with_its_docstring_and_default() -> None:
    text = help_text("train")
    flat = " ".join(text.split())
    for name in own_fields():
        assert f"  --{name} (" in text
    missing = [key for key, doc in field_docs().items() if doc not in flat]
    assert missing == []
    assert "--lora_rank (a whole number; default 16)" in text
    assert "vlm-lora train --help_all" in flat


def test_every_setting_has_a_docstring() -> None:
    assert {name for _, name in field_docs()} == set(own_fields())


def test_every_alias_is_listed() -> None:
    text = help_text("eval")
    assert [alias for alias, _, _ in describe_aliases() if f"--{alias} " not in text] == []


def test_help_all_lists_every_key_of_the_class() -> None:
    from transformers import TrainingArguments

    text = help_text("train", everything=True)
    names = {item.name for item in fields(TrainingArguments) if item.init} - set(own_fields())
    listed = [name for name in names if f"--{name} (" in text]
    assert sorted(names - set(listed)) == []
    assert "--weight_decay (" not in help_text("train")


def test_the_named_keys_exist() -> None:
    from transformers import TrainingArguments

    known = set(TrainingArguments.__dataclass_fields__)
    assert set(COMMON_KEYS) - known <= {"warmup_ratio"}
    assert len(resolve(parse(["--warmup_ratio", "0.1"], environ={}), TrainingArguments)[1]) == 1


OWN = {
    "ask": ("image", "prompt"),
    "preview": {"rows", "json", "html"},
    "check": {"json", "html", "workers"},
    "plan": ("device", "world_size", "rows", "images", "image_size", "answer_tokens", "json"),
}


@pytest.mark.parametrize("verb", OWN)
def test_a_verbs_own_flags_come_first_with_one_line_each(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    before, heading, rest = capsys.readouterr().out.partition(f"Of {verb} alone")
    own = rest.partition("\n\n")[0].splitlines()[1:]
    assert heading
    assert "  --model_name_or_path (" in rest
    assert "  --" not in before
    assert {line.split()[0] for line in own} == {f"--{name}" for name in OWN[verb]}
    assert all(len(line) <= WIDTH and len(line.split()) > 2 for line in own)


def test_the_other_verbs_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(OWN) == set(OWN_FLAGS)
    assert main(["train", "--help"]) == 0
    assert "alone (no keys" not in capsys.readouterr().out
