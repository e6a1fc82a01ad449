"""What the record of a run holds, and what a difference between two of them is called."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlm_lora.batching.row_table import RowRecord, RowTable, RowTableBuilder
from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.changed_settings import (
    Change,
    differences,
    refuse,
    surrounding_changes,
    with_places_settled,
)
from vlm_lora.training.checkpoints.setting_kinds import Kind
from vlm_lora.training.identity import rows
from vlm_lora.training.identity.contents import BLOCK, content_of, fingerprint
from vlm_lora.training.identity.record import RunIdentity, read_identity, write_identity
from vlm_lora.training.identity.rows import compare_rows
from vlm_lora.training.identity.secrets import masked, masked_values, masked_words
from vlm_lora.training.identity.surroundings import environment, git_state
from vlm_lora.training.identity.versions import split_changes

SECRET = "hf_abcdefghijklmnopqrst"  # of the Hub's form, and nobody's


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--hub_token", "x1", "--seed", "7"], ["--hub_token", "***", "--seed", "7"]),
        (["--token=x1"], ["--token=***"]),
        (["--environment.WANDB_API_KEY", "x1"], ["--environment.WANDB_API_KEY", "***"]),
        (
            ["--environment", '{"WANDB_API_KEY": "x1", "A": "b"}'],
            ["--environment", '{"WANDB_API_KEY": "***", "A": "b"}'],
        ),
        (["--dataset_name", "https://me:x1@host/a.jsonl"], ["--dataset_name", "https://***@host/a.jsonl"]),
        (["--dataset_name", "https://h/a?x=1&sig=x1&y=2"], ["--dataset_name", "https://h/a?x=1&sig=***&y=2"]),
        (["--run_name", SECRET], ["--run_name", "***"]),
        # Controls: these are no secrets.
        (["--max_new_tokens", "64", "--ignore_keys", "a"], ["--max_new_tokens", "64", "--ignore_keys", "a"]),
        (["--default_prompt", "Which key: a or b?"], ["--default_prompt", "Which key: a or b?"]),
        (["--image_column", "me@home"], ["--image_column", "me@home"]),
    ],
)
def test_a_command_is_kept_without_secrets(words: list[str], kept: list[str]) -> None:
    assert masked_words(words) == kept


def test_settings_are_kept_without_secrets() -> None:
    values = {"token": "x1", "seed": 7, "deep": {"api_key": "x1", "list": [f"a {SECRET}"]}, "max_new_tokens": 64}
    assert masked_values(values) == {
        "token": "***",
        "seed": 7,
        "deep": {"api_key": "***", "list": ["a ***"]},
        "max_new_tokens": 64,
    }
    assert masked("plain text, no secret: https://host/a?b=c") == "plain text, no secret: https://host/a?b=c"


def test_variables_are_kept_by_name() -> None:
    given = {"HF_HOME": "/data", "HF_TOKEN": "x1", "HOME": "/root", "PYTORCH_ALLOC_CONF": "a", "VLM_LORA_KEY": "x1"}
    assert environment(given) == {"HF_HOME": "/data", "PYTORCH_ALLOC_CONF": "a"}


def test_the_state_of_a_folder_in_git(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "code.py").write_text("a = 1\n")
    for words in (["init", "-q"], ["add", "code.py"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "untracked").write_text("a")
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "code.py").write_text("a = 2\n")
    dirty = git_state(tmp_path)
    assert dirty is not None
    assert dirty == {**clean, "dirty": True, "changes": dirty["changes"]}
    (tmp_path / "code.py").write_text("a = 3\n")
    assert git_state(tmp_path) != dirty


def test_small_files_are_compared_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1, "b": 2}')
    first = fingerprint(file)
    file.write_text('{\n  "b": 2,\n  "a": 1\n}')
    assert fingerprint(file) == first, "another version's spaces"
    file.write_text('{"a": 1, "b": 3}')
    assert fingerprint(file) != first
    file = tmp_path / "a.jinja"
    file.write_text("a b")
    first = fingerprint(file)
    file.write_text("a  b")
    assert fingerprint(file) != first, "a template's spaces are tokens"


def test_of_a_large_file_each_tensor_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {f"layer {number}": torch.arange(30_000.0) + number for number in range(4)}
    save_file(tensors, file)
    first = fingerprint(file, whole=1000)
    assert "sampled_sha256" in first
    seen = set()
    for name, tensor in tensors.items():
        save_file({**tensors, name: tensor * 1.001}, file)
        seen.add(fingerprint(file, whole=1000)["sampled_sha256"])
    save_file({f"{name}!": tensor for name, tensor in tensors.items()}, file)
    seen.add(fingerprint(file, whole=1000)["sampled_sha256"])
    assert len(seen) == 5
    assert first["sampled_sha256"] not in seen
    changed = tensors["layer 2"].clone()
    changed[BLOCK // 4 + 1] += 1
    save_file({**tensors, "layer 2": changed}, file)
    assert fingerprint(file, whole=1000) == first, "the control, and what the module says of a single bit"
    assert fingerprint(file) != fingerprint(file, whole=1000)


def test_versions_by_how_much_they_differ() -> None:
    before = {"torch": "2.9.0+cpu", "transformers": "5.1.0", "peft": "0.18.0", "python": "3.12.1", "deepspeed": "0.17"}
    now = {"torch": "2.9.1", "transformers": "5.2.0", "peft": "1.0", "python": "3.13.0"}
    larger, smaller = split_changes(before, now)
    assert larger == {"transformers": ("5.1.0", "5.2.0"), "peft": ("0.18.0", "1.0")}
    assert smaller == {
        "torch": ("2.9.0+cpu", "2.9.1"),
        "python": ("3.12.1", "3.13.0"),
        "deepspeed": ("0.17", "not installed"),
    }
    assert split_changes(now, now) == ({}, {})


def table(*texts: str) -> RowTable:
    builder = RowTableBuilder(name="train", layout="messages")
    for number, text in enumerate(texts):
        builder.add(RowRecord(number=number, content=blake2b(text.encode(), digest_size=16).digest()))
    return builder.table()


def described(*texts: str, **changes: Any) -> dict[str, Any]:
    found = {"rows": len(texts), "files": [], **rows._hashes(table(*texts)), **changes}
    loaded: dict[str, Any] = json.loads(json.dumps(found))
    return loaded


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    found = compare_rows({"train": before}, {"train": now}, lambda name, row: f"{name}.jsonl row {row}", then="then")
    return found[0].text if found else ""


def test_a_row_that_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"row {number}" for number in range(9)]
    before = described(*texts)
    assert difference(before, described(*texts)) == ""
    other = [*texts[:4], "else", *texts[5:]]
    assert difference(before, described(*other)) == "train: train.jsonl row 4 of 9 says something else"
    other[7] = "else, too"
    assert difference(before, described(*other)) == ("train: train.jsonl row 4 and 1 other row of 9 say something else")
    assert difference(before, described(*texts[::-1])) == "train: the same 9 rows in another order"
    assert difference(before, described(*texts[:3], *texts[4:])) == (
        "train: 9 rows then, 8 now; the first that differs is train.jsonl row 3"
    )
    assert difference(before, described(*texts, "one more")) == "train: 9 rows then, 10 now; the first 9 are the same"
    monkeypatch.setattr(rows, "MARKS", 3)
    large = described(*texts)
    assert len(rows._read(large["marks"])) == 3
    assert difference(large, described(*texts)) == ""
    assert difference(large, described(*texts[:4], "else", *texts[5:])) == (
        "train: a row from train.jsonl row 3 to train.jsonl row 5 says something else"
    )
    found = compare_rows({"train": before}, {"validation": before}, lambda name, row: "", then="then")
    assert [(change.text, change.trained) for change in found] == [("train: then alone", True)], (
        "rows to measure on come and go with --do_eval"
    )


def test_rows_that_were_not_read_are_known_by_their_files() -> None:
    unread = {"rows": None, "hash": None, "marks": None, "files": [{"path": "/a/x.jsonl", "bytes": 7, "sha256": "1"}]}
    moved = {**unread, "files": [{"path": "/b/x.jsonl", "bytes": 7, "sha256": "1"}]}
    assert difference(unread, moved) == ""
    other = {**unread, "files": [{"path": "/b/x.jsonl", "bytes": 7, "sha256": "2"}]}
    assert difference(unread, other) == "train: the file /b/x.jsonl has another content"
    assert difference(described("a"), {**unread, "rows": 2}) == "train: 1 row then, 2 now"


def test_rows_at_another_place_must_be_known_to_be_the_same() -> None:
    """What cannot be compared is no difference in one place, and one where the place differs."""
    unread = {"rows": None, "hash": None, "marks": None, "files": [{"path": "/a/x.jsonl", "bytes": 7, "sha256": "1"}]}
    renamed = {**unread, "files": [{"path": "/b/y.jsonl", "bytes": 7, "sha256": "1"}]}
    other = {**unread, "files": [{"path": "/b/y.jsonl", "bytes": 7, "sha256": "2"}]}
    read = {**described("a"), "files": [{"path": "/b/y.jsonl", "bytes": 7}]}
    many = {**unread, "files": [{"path": "/a/x.jsonl", "bytes": 7, "sha256": "1"}] * rows.FILES}

    def difference(old: Any, new: Any, *, moved: bool) -> str:
        found = compare_rows({"train": old}, {"train": new}, lambda name, row: "", then="then", moved=moved)
        return "".join(change.text for change in found)

    assert difference(read, read, moved=True) == difference(unread, renamed, moved=True) == ""
    assert difference(unread, other, moved=False) == ""
    assert difference(unread, other, moved=True) == "train: the files have another content"
    assert difference(unread, read, moved=False) == ""
    assert "is not known, because not both runs read them" in difference(unread, read, moved=True)
    assert "not all are compared" in difference(many, many, moved=True)


def identity(**changes: Any) -> RunIdentity:
    base = {"name": "base", "files": {"model.safetensors": {"bytes": 8, "sha256": "1" * 64}}}
    return RunIdentity(**{"settings": {}, "versions": {"torch": "2.9.0"}, "base_model": base, **changes})


def test_what_a_run_stands_on_is_refused_by_name(tmp_path: Path) -> None:
    other = {"name": "base", "files": {"model.safetensors": {"bytes": 8, "sha256": "2" * 64}, "new.json": {"bytes": 1}}}
    changes = surrounding_changes(identity(), identity(base_model=other, versions={"torch": "2.10.1"}))
    assert {change.name: change.kind for change in changes} == {
        "versions": Kind.CHANGES_RESULT,
        "base_model_files": Kind.NEVER,
    }
    with pytest.raises(ConfigError) as refused:
        refuse(tmp_path, changes, frozenset())
    text = str(refused.value)
    assert f"--resume_from_checkpoint {tmp_path}: this differs from its run:\n" in text
    assert "  version of torch: 2.9.0 in the checkpoint, 2.10.1 now\n" in text
    assert (
        "  base model: model.safetensors: 8 bytes, SHA-256 111111111111 in the checkpoint, 8 bytes, SHA-256 "
        "222222222222 now (cannot be allowed)\n" in text
    )
    assert "  base model: new.json: not there in the checkpoint" in text
    assert "put them back as they were" in text
    assert "--allow_changed versions" in text
    with pytest.raises(ConfigError):
        refuse(tmp_path, changes, frozenset({"versions"}))
    refuse(tmp_path, changes[:1], frozenset({"versions"}))
    assert surrounding_changes(identity(), identity(base_model={"name": "org/hub", "revision": "a"})) == []
    hub = [identity(base_model={"name": "org/hub", "revision": name}) for name in "ab"]
    assert [change.kind for change in surrounding_changes(*hub)] == [Kind.NEVER]


def place(name: str, **others: Any) -> Change:
    return Change(**{"name": name, "saved": "/a", "now": "/b", "kind": Kind.NEVER, **others})


def test_another_place_is_free_where_the_same_lies_there() -> None:
    base, data = place("model_name_or_path"), place("dataset_name")
    before = identity(data={"train": described("a")})
    (free,) = with_places_settled([base], before, identity())
    assert (free.kind, free.why) == (Kind.FREE, "the files are the same")
    otherwise = {"name": "base", "files": {"model.safetensors": {"bytes": 8, "sha256": "2" * 64}}}
    for now in (identity(base_model=otherwise), identity(adapter=otherwise), identity(base_model={"name": "org/a"})):
        assert with_places_settled([base], before, now) == [base]
    (waits,) = with_places_settled([data], before, identity())
    assert waits.kind is Kind.FREE
    assert waits.waits_for_rows
    assert with_places_settled([data], identity(), identity()) == [data], "a record that knows no rows"
    added = place("image_root", saved=None, kind=Kind.CHANGES_RESULT)
    assert with_places_settled([added], before, identity()) == [added]
    named = place("image_root", kind=Kind.CHANGES_RESULT)
    assert with_places_settled([named], before, identity(), allowed=frozenset({"image_root"})) == [named]
    reads = place("system_prompt", kind=Kind.CHANGES_RESULT)
    assert with_places_settled([data, reads], before, identity(), allowed=frozenset({"system_prompt"})) == [
        replace(data, why="together with --system_prompt, by which the rows read otherwise, nobody knows if they are "
        "the same"),
        reads,
    ]  # fmt: skip


def test_a_file_that_a_setting_names_is_known_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1, "y": 2}', encoding="utf-8")
    (tmp_path / "b.json").write_text('{"y": 2,  "x": 1}', encoding="utf-8")
    (tmp_path / "c.json").write_text('{"x": 3}', encoding="utf-8")
    same, other = content_of(tmp_path / "a.json"), content_of(tmp_path / "c.json")
    assert content_of(tmp_path / "b.json") == same != other
    assert content_of(tmp_path) not in (None, same, other)
    assert content_of(tmp_path / "none") is None

    def settings(path: str, mark: str | None) -> dict[str, Any]:
        return {"task_file": path, "file_contents": None if mark is None else {"task_file": mark}}

    def found(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[Kind, list[str]]]:
        return [(change.kind, change.lines()) for change in differences(old, new, defaults={})]

    assert found(settings("/a", "1"), settings("/a", "1")) == []
    assert found(settings("/a", "1"), settings("/b", "1")) == [
        (Kind.FREE, ["--task_file /a in the checkpoint, /b now"])
    ]
    edited = ["--task_file /a (SHA-256 1) in the checkpoint, /a (SHA-256 2) now"]
    assert found(settings("/a", "1"), settings("/a", "2")) == [(Kind.CHANGES_RESULT, edited)]
    assert found(settings("/a", None), settings("/a", "2")) == [], "a record from before contents were kept"
    assert found(settings("/a", None), settings("/b", "2"))[0][0] is Kind.CHANGES_RESULT


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = identity(data={"train": described("a")}, seeds={"seed": 1}, continues={"checkpoint": "a"})
    write_identity(tmp_path, written)
    assert read_identity(tmp_path) == written
    assert read_identity(tmp_path / "none") is None
    (tmp_path / "run.json").rename(tmp_path / "run_settings.json")
    assert read_identity(tmp_path) == written, "by its former name"
