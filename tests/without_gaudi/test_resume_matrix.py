"""What becomes of each kind of change where a run goes on: free and noted, to be allowed by name, or never."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from support.runs import script_flags, whole_run
from support.sealed import seal_again
from vlm_lora.cli.main import run_script
from vlm_lora.errors import UserError

ADAPTER = "adapter_model.safetensors"
FLAGS: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
    "lora_rank": 4,
    "log_level": "info",
}
PASSED = "all that is compared was let through"
NEW_RUN = "A new run may begin with a checkpoint's weights"


def nothing(root: Path) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something that is otherwise when a run goes on."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], Mapping[str, Any]] = nothing
    """Changes what lies in the folder, and returns further flags."""
    name: str = ""
    """What `--allow_changed` calls it, where it may be allowed."""
    said: str
    """What the log or the refusal says of it."""
    reads: bool = False
    """Whether that is known once the rows are read."""


def flag(name: str, value: Any, *, now: Any = None, **others: Any) -> Case:
    return Case(flags={name: value, **others}, name=name, said=f"--{name} ~ in the checkpoint, {now or value}~ now")


def in_json(root: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((root / file).read_text(encoding="utf-8"))
    change(content)
    (root / file).write_text(json.dumps(content), encoding="utf-8")


def of_json(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Mapping[str, Any]]:
    def prepare(root: Path) -> Mapping[str, Any]:
        in_json(root, file, change)
        return {}

    return prepare


def rows_otherwise(root: Path, split: str, change: Callable[[list[str]], list[str]]) -> Mapping[str, Any]:
    file = root / "data" / f"{split}.jsonl"
    file.write_text("".join(change(file.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    return {}


def one_answer(lines: list[str]) -> list[str]:
    return [*lines[:-1], json.dumps({**json.loads(lines[-1]), "answer": "another"}) + "\n"]


def other_weights(root: Path) -> Mapping[str, Any]:
    file = root / "base" / "model.safetensors"
    weights = load_file(file)
    weights[min(weights)].view(-1)[0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    return {}


def other_template(root: Path) -> Mapping[str, Any]:
    (root / "base" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    return {}


def moved(*names: str) -> Callable[[Path], Mapping[str, Any]]:
    flags = {"base": "model_name_or_path", "data": "dataset_name"}

    def prepare(root: Path) -> Mapping[str, Any]:
        (root / "elsewhere").mkdir()
        for name in names:
            (root / name).rename(root / "elsewhere" / name)
        return {flags[name]: root / "elsewhere" / name for name in names}

    return prepare


def moved_and_changed(root: Path) -> Mapping[str, Any]:
    rows_otherwise(root, "train", one_answer)
    return moved("data")(root)


def other_version(changed: str) -> Callable[[Path], Mapping[str, Any]]:
    """The checkpoint's run had another `minor` or `patch` version of torch."""

    def prepare(root: Path) -> Mapping[str, Any]:
        def change(content: dict[str, Any]) -> None:
            major, minor, *_ = content["versions"]["torch"].split(".")
            content["versions"]["torch"] = f"{major}.999.0" if changed == "minor" else f"{major}.{minor}.999"

        in_json(root, "out/checkpoint-2/run.json", change)
        seal_again(root / "out" / "checkpoint-2")
        return {}

    return prepare


FREE: dict[str, Case] = {
    "nothing": Case(said=""),
    "batch at one global batch": flag("per_device_train_batch_size", 1, gradient_accumulation_steps=2),
    "workers": flag("dataloader_num_workers", 1),
    "logging": flag("logging_steps", 3),
    "saving": flag("save_steps", 1),
    "checkpoints kept": flag("save_total_limit", 1),
    "evaluation": flag("eval_strategy", "epoch"),
    "batch of an evaluation": flag("per_device_eval_batch_size", 1),
    "metrics": flag("metrics", "exact_match", now='["exact_match"]'),
    "more steps": flag("max_steps", 6),
    "more epochs": flag("num_train_epochs", 9),
    "a patch version": Case(prepare=other_version("patch"), said="version of torch: ~.999 in the checkpoint"),
    "the base at another path": Case(
        prepare=moved("base"), said="--model_name_or_path ~/base in the checkpoint, ~/elsewhere/base now (the files are"
    ),
    "the data at another path": Case(
        reads=True,
        prepare=moved("data"),
        said="with the same rows to train on: --dataset_name ~ in the checkpoint, ~/elsewhere",
    ),
    "both at another path": Case(
        reads=True, prepare=moved("base", "data"), said="with the same rows to train on: --dataset_name"
    ),
    "a row to measure on": Case(
        reads=True,
        prepare=lambda root: rows_otherwise(root, "validation", one_answer),
        said="Rows changed since the checkpoint's run: validation: ~ says something else",
    ),
}
"""Goes on, and the log names it."""

ALLOWED: dict[str, Case] = {
    "learning rate": flag("learning_rate", 0.02),
    "weight decay": flag("weight_decay", 0.5),
    "schedule": flag("lr_scheduler_type", "cosine"),
    "warmup": flag("warmup_steps", 3),
    "beta": flag("adam_beta2", 0.9),
    "epsilon": flag("adam_epsilon", 0.001),
    "clipping": flag("max_grad_norm", 0.01),
    "dropout": flag("lora_dropout", 0.5),
    "noise": flag("neftune_noise_alpha", 5.0),
    "seed": flag("seed", 7),
    "data's seed": flag("data_seed", 7),
    "seed of the split": flag("split_seed", 7),
    "batch": Case(
        flags={"per_device_train_batch_size": 4},
        name="global_batch_size",
        said="rows of one step (~) 2 in the checkpoint, 4 now",
    ),
    "accumulation": Case(
        flags={"gradient_accumulation_steps": 2},
        name="gradient_accumulation_steps",
        said="rows of one step (~) 2 in the checkpoint, 4 now",
    ),
    "precision": flag("dtype", "bfloat16"),
    "attention": flag("attn_implementation", "eager"),
    "system prompt": flag("system_prompt", "Be brief."),
    "image limit": flag("max_image_pixels", 1000000),
    "length limit": flag("max_length", 200),
    "what becomes of long rows": flag("on_overflow", "drop"),
    "packing": flag("packing", "true"),
    "sampling strategy": flag("train_sampling_strategy", "group_by_length"),
    "activation checkpointing": flag("gradient_checkpointing", "true"),
    "a minor version": Case(
        prepare=other_version("minor"), name="versions", said="version of torch: ~ in the checkpoint"
    ),
}
"""Refused unless `--allow_changed` names it."""

NEVER: dict[str, Case] = {
    "a row": Case(
        reads=True, prepare=lambda root: rows_otherwise(root, "train", one_answer), said="train: ~ says something else"
    ),
    "order of rows": Case(
        reads=True,
        prepare=lambda root: rows_otherwise(root, "train", lambda lines: lines[::-1]),
        said="train: the same 8 rows in another order",
    ),
    "fewer rows": flag("max_train_samples", 4),
    "other data": Case(
        reads=True,
        prepare=moved_and_changed,
        said="--dataset_name ~ in the checkpoint, ~/elsewhere/data now\n  train: ~",
    ),
    "weights of the base": Case(prepare=other_weights, said="base model: model.safetensors: ~ now (cannot be allowed)"),
    "template": Case(
        prepare=other_template,
        said="base model: chat_template.jinja: ~ now (cannot be allowed)",
    ),
    "generation settings": Case(
        prepare=of_json("base/generation_config.json", lambda content: content.update(top_k=7)),
        said="base model: generation_config.json: ~ now (cannot be allowed)",
    ),
    "smallest image": flag("min_pixels", 3136),
    "largest image": flag("max_pixels", 12544),
    "image backend": flag("image_backend", "pil"),
    "method": flag("peft_method", "none"),
    "rank": flag("lora_rank", 8),
    "alpha": flag("lora_alpha", 8),
    "targets": flag("lora_targets", "q_proj"),
    "rank-stabilised scale": flag("use_rslora", "true"),
    "optimizer": Case(flags={"optim": "sgd"}, said="--optim ~ in the checkpoint, sgd now (cannot be allowed)"),
}
"""Refused, with the way to a new run from these weights."""


@pytest.fixture(scope="module")
def whole(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `data` and the run `out` of four steps. Copy it before changing it."""
    return whole_run(tmp_path_factory.mktemp("whole"), model_folder("qwen2_5_vl"), **FLAGS)


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """All of it at another place, the run as if it had ended after two steps there."""
    root = tmp_path / "copy"
    shutil.copytree(whole, root)
    shutil.rmtree(root / "out" / "checkpoint-4")
    (root / "out" / ADAPTER).unlink()
    record = root / "out" / "checkpoint-2" / "run.json"
    record.write_text(record.read_text(encoding="utf-8").replace(str(whole), str(root)), encoding="utf-8")
    seal_again(record.parent)
    return root


def go_on(root: Path, case: Case, **more: Any) -> int:
    places = {"model_name_or_path": root / "base", "dataset_name": root / "data"}
    flags = {**FLAGS, **places, "resume_from_checkpoint": "true", **case.flags, **case.prepare(root), **more}
    return run_script(script_flags(root / "base", root / "data", root / "out", **flags))


def check_said(case: Case, text: str) -> None:
    """The parts of `case.said` between `~` stand in a text one after another."""
    rest = text
    for part in case.said.split("~"):
        assert part in rest, (part, text)
        rest = rest[rest.index(part) + len(part) :]


@pytest.fixture(autouse=True)
def ends_early(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a case end where all of it is compared: before the folder is taken, or the model loaded."""

    def end(*arguments: Any, **others: Any) -> None:
        raise UserError(PASSED)

    case = request.node.callspec.params.get("case")
    if case is not None:
        monkeypatch.setattr(f"vlm_lora.pipeline.{'load_for_run' if case.reads else 'claim_folder'}", end)


@pytest.mark.parametrize("case", FREE.values(), ids=FREE)
def test_free(case: Case, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go_on(stopped, case) == 1
    said = capsys.readouterr().err
    assert f"error: {PASSED}\n" in said
    check_said(case, said)
    assert case.said or "in the checkpoint" not in said


@pytest.mark.parametrize("case", ALLOWED.values(), ids=ALLOWED)
def test_to_be_allowed(case: Case, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go_on(stopped, case, allow_changed="adam_beta1") == 1
    said = capsys.readouterr().err
    assert PASSED not in said
    check_said(case, said)
    assert NEW_RUN not in said
    assert go_on(stopped, replace(case, prepare=nothing), allow_changed=case.name) == 1
    said = capsys.readouterr().err
    assert f"error: {PASSED}\n" in said
    check_said(case, said)


@pytest.mark.parametrize("case", NEVER.values(), ids=NEVER)
def test_never(case: Case, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # What may be allowed and has nothing to do with it opens no door.
    assert go_on(stopped, case, allow_changed="dtype") == 1
    said = capsys.readouterr().err
    assert PASSED not in said
    check_said(case, said)
    assert NEW_RUN in said
    if case.name:
        assert go_on(stopped, replace(case, prepare=nothing), allow_changed=case.name) == 1
        assert f"--allow_changed {case.name}: --{case.name} cannot be changed" in capsys.readouterr().err


USED = ("dropout", "beta", "seed", "batch")


@pytest.mark.parametrize("name", [*USED, "both at another path"])
def test_what_is_allowed_is_used_and_what_is_free_changes_nothing(name: str, whole: Path, stopped: Path) -> None:
    case = ALLOWED[name] if name in USED else FREE[name]
    assert go_on(stopped, case, **({"allow_changed": case.name} if name in USED else {})) == 0
    same = (stopped / "out" / ADAPTER).read_bytes() == (whole / "out" / ADAPTER).read_bytes()
    assert same is (name not in USED)
