"""The help names every setting with its docstring, and the names of other tools."""

from dataclasses import fields

import pytest

from vlm_lora.backend import installed
from vlm_lora.cli.help import FIRST, PURPOSES, USES, WIDTH, field_docs, help_text, trainer_fields
from vlm_lora.cli.main import OWN_FLAGS, VERBS, main
from vlm_lora.config.aliases import describe_aliases
from vlm_lora.config.fields import own_fields
from vlm_lora.training.arguments import DEFAULT_ARGUMENTS


def test_the_twenty_that_people_change_come_first_with_meaning_and_default() -> None:
    text = help_text("train")
    first = text.partition("Changed most\n")[2].partition("\n\n")[0]
    flags = [line.split()[0] for line in first.splitlines() if line.startswith("  --")]
    assert flags == [f"--{name}" for name in FIRST]
    assert len(FIRST) == 20
    flat = " ".join(first.split())
    assert "--num_train_epochs How often the training rows are gone through (3.0)" in flat
    assert "--per_device_train_batch_size Rows of one step on each device (8)" in flat
    assert "(0.0001 with LoRA, else 5e-05)" in flat
    assert "--lora_rank Rank r of the LoRA matrices (16)" in flat
    assert "--lr_scheduler_type" in text.partition("Other settings")[2]


def test_every_setting_is_named_and_explained_on_request() -> None:
    text, everything = help_text("train"), help_text("train", everything=True)
    flat = " ".join(everything.split())
    names = [*own_fields(), *trainer_fields()]
    assert [name for name in names if f"--{name} " not in f"{text} ".replace("\n", " ")] == []
    assert [name for name in names if f"  --{name} (" not in everything] == []
    assert [key for key, doc in field_docs().items() if doc not in flat] == []
    assert "--lora_rank (a whole number; default 16)" in everything
    assert "--weight_decay (a number; default 0.0)" in everything
    assert len(text) < 0.4 * len(everything)


def test_every_setting_has_a_docstring() -> None:
    assert {name for _, name in field_docs()} == set(own_fields())


def test_other_tools_names_are_in_help_all() -> None:
    text = help_text("eval", everything=True)
    assert [alias for alias, _, _ in describe_aliases() if f"--{alias} " not in text] == []
    assert "--lora_r " not in help_text("eval")


def test_a_verb_shows_what_it_uses() -> None:
    assert "--lora_rank" not in help_text("ask")
    assert "--system_prompt" in help_text("ask")
    assert "--learning_rate" not in help_text("check")
    assert "--dataset_name" in help_text("check")
    assert "--" not in help_text("doctor")
    assert set(USES) == set(PURPOSES) == set(VERBS) - {"shard", "launch"}


def test_defaults_of_the_trainer_are_those_of_its_class() -> None:
    usable = [backend for backend in installed().values() if backend.probe().usable]
    declared = {item.name: item for backend in usable for item in fields(backend.arguments_class()) if item.init}
    for name, (_, default, _) in trainer_fields().items():
        if default is not None and name in declared and name not in DEFAULT_ARGUMENTS:
            expected = declared[name].default
            assert default == getattr(expected, "value", expected), name
    assert trainer_fields()["report_to"][1] == "none", "the project's own default"


OWN = {
    "train": ("json",),
    "eval": ("json", "predictions_from"),
    "ask": {
        *("image", "prompt", "file", "output", "inputs"),
        *("do_sample", "temperature", "top_p", "top_k", "num_beams"),
    },
    "merge": ("rows", "max_shard_size", "json"),
    "quantize": ("scheme", "rows", "max_shard_size", "environment", "make_environment", "json"),
    "servable": ("FOLDER", "json"),
    "push": ("FOLDER", "REPO", "token", "private", "revision", "commit_message", "with_rows", "json"),
    "register": ("FOLDER", "NAME", "tracking_uri", "json"),
    "preview": {"rows", "json", "html"},
    "check": {"json", "html", "workers"},
    "cache": ("list", "clear"),
    "demo": ("output_dir",),
    "report": ("RUN", "output", "report_images"),
    "runs": ("DIR", "json"),
    "compare": ("RUN", "output", "report_images"),
    "plan": ("device", "world_size", "rows", "images", "assumed_size", "answer_tokens", "json"),
}


@pytest.mark.parametrize("verb", OWN)
def test_a_verbs_own_flags_come_first_with_one_line_each(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    before, heading, rest = capsys.readouterr().out.partition(f"Of {verb} alone")
    own = rest.partition("\n\n")[0].splitlines()[1:]
    assert heading
    assert ("  --model_name_or_path " in rest) == (
        verb not in ("demo", "report", "runs", "compare", "servable", "push", "register")
    )
    assert "  --" not in before
    assert {line.split()[0] for line in own} == {name if name.isupper() else f"--{name}" for name in OWN[verb]}
    assert all(len(line) <= WIDTH and len(line.split()) > 2 for line in own)


def test_the_other_verbs_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(OWN) == set(OWN_FLAGS)
    assert main(["doctor", "--help"]) == 0
    assert "alone (no keys" not in capsys.readouterr().out
