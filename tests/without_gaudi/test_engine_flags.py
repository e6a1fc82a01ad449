"""What DeepSpeed does with flags that its engine reads in its own way, and evaluation alone on each engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import logged
from support.stacks import MAIN, RECORDER, on_cpu, recorded, run_words
from vlm_lora.launch.launching import free_port
from vlm_lora.model.manifest import NAME, Manifest, read_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=6, validation=3)


def outcome(folder: Path, words: list[str], *launcher: str) -> tuple[int, str]:
    """Run one list of flags; return its exit code and what it said."""
    folder.mkdir()
    (folder / "runs.json").write_text(json.dumps([words]), encoding="utf-8")
    call: list[str | Path] = [*launcher, RECORDER, folder / "report.json", folder / "runs.json"]
    done = run_words(call, python=MAIN, variables={"DS_ACCELERATOR": "cpu"})
    return done.returncode, done.stderr


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_parts_have_their_rates(engine: str, model_folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    """With LoRA no weight goes without decay, and DeepSpeed keeps no group without weights."""
    flags: dict[str, object] = {
        "deepspeed": engine,
        "do_train": True,
        "lora_targets": "all",
        "learning_rate": 1e-4,
        "vision_learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
    }
    out, model = tmp_path / "out", model_folder("llava")
    saving = {**flags, "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    changes = {"learning_rate": 2e-4, "weight_decay": 0.5, "allow_changed": "learning_rate,weight_decay"}
    again = {**flags, **changes, "max_steps": 3, "resume_from_checkpoint": "true"}
    first, second = recorded(
        tmp_path / "records",
        [on_cpu(model, data, out, **saving), on_cpu(model, data, out, **again)],
        python=MAIN,
        variables={},
    )[0]
    assert first["wrapped"] == second["wrapped"] == "DeepSpeedEngine"
    manifest = read_manifest(out / "checkpoint-2" / NAME)
    assert isinstance(manifest, Manifest)
    assert any(name.startswith("global_step2/") and name.endswith("optim_states.pt") for name in manifest.files)
    # What was changed and allowed acts in the engine's optimizer, too.
    assert logged(out, "learning_rate") == [1e-4, 1e-4, 2e-4]
    assert logged(out, "learning_rate_vision") == [1e-5] * 3
    other = on_cpu(model, data, out, **{**again, "max_steps": 4, "vision_learning_rate": 2e-5})
    code, said = outcome(tmp_path / "other", other)
    assert code == 1, said
    assert "--vision_learning_rate 1e-05 in the checkpoint, 2e-05 now" in said


def test_evaluation_alone(model_folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    """ZeRO-3 shards the weights there too; the others are left out, and the processes share the rows out."""
    model = model_folder("gemma3")

    def words(name: str, **flags: object) -> list[str]:
        return on_cpu(model, data, tmp_path / name, do_eval=True, **flags)

    sharded = words("zero3", deepspeed="zero3", predict_with_generate=True, max_new_tokens=2)
    one = recorded(tmp_path / "one", [words("plain"), sharded], python=MAIN, variables={})
    two = recorded(
        tmp_path / "two",
        [words("fsdp", fsdp=True), words("zero2", deepspeed="zero2"), words("two zero3", deepspeed="zero3")],
        python=MAIN,
        launcher=["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
        variables={"RECORDER_FSDP_ON_CPU": "1"},
    )
    engines = [[record["wrapped"] for record in rank] for rank in (*one, *two)]
    plain = engines[0][0]
    assert plain not in ("DeepSpeedEngine", "DistributedDataParallel")
    assert engines == [[plain, "DeepSpeedEngine"], *[[plain, plain, "DeepSpeedEngine"]] * 2]
    assert [record["world_size"] for rank in (*one, *two) for record in rank] == [1] * 2 + [2] * 6
    found = [record["perplexity"] for rank in (*one, *two) for record in rank]
    assert found == [pytest.approx(found[0], rel=1e-5)] * 8
    assert (tmp_path / "zero3" / "predictions.jsonl").exists()


def test_a_file_with_numbers_of_its_own(model_folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    """What nobody typed is the file's; the recorder's run fails where the two differ."""
    file = tmp_path / "zero.json"
    numbers = {"train_micro_batch_size_per_gpu": 3, "gradient_clipping": 0.5, "zero_optimization": {"stage": 1}}

    def words(name: str, settings: dict[str, object], **flags: object) -> list[str]:
        path = file.with_stem(name)
        path.write_text(json.dumps(settings), encoding="utf-8")
        given = {"do_train": True, "deepspeed": path, "gradient_accumulation_steps": 2, "max_steps": 1, **flags}
        return on_cpu(model_folder("gemma3"), data, tmp_path / f"{name}_out", **given)

    taken = recorded(tmp_path / "records", [words("taken", numbers)], python=MAIN, variables={})[0][0]
    assert taken["wrapped"] == "DeepSpeedEngine"
    assert [len(counts) for counts in taken["supervised"]] == [3, 3]
    typed = (tmp_path / "taken_out" / "run_config.yaml").read_text(encoding="utf-8")
    assert "per_device_train_batch_size: 3" in typed
    assert "max_grad_norm: 0.5" in typed
    code, said = outcome(tmp_path / "differs", words("differs", numbers, max_grad_norm=2.0))
    assert code == 1, said
    assert 'error: The DeepSpeed configuration and the flags differ: "gradient_clipping" 0.5 there, --max_grad' in said
    schedule = {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 9, "warmup_num_steps": "auto"}}}
    code, said = outcome(tmp_path / "late", words("late", {**numbers, **schedule}))
    assert code == 1, said
    assert "scheduler.params.total_num_steps=9" in said


def test_a_file_of_accelerates_launcher(model_folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    numbers = {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 1, "gradient_clipping": 0.5}
    file.write_text(json.dumps({**numbers, "zero_optimization": {"stage": 2}}), encoding="utf-8")

    def launcher() -> list[str]:
        own = ["--use_deepspeed", "--deepspeed_config_file", str(file), "--main_process_port", str(free_port())]
        return ["-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", *own]

    def words(name: str, **flags: object) -> list[str]:
        return on_cpu(model_folder("gemma3"), data, tmp_path / name, do_train=True, max_steps=1, **flags)

    variables = {"DS_ACCELERATOR": "cpu"}
    ranks = recorded(tmp_path / "taken", [words("out")], python=MAIN, launcher=launcher(), variables=variables)
    assert [record["wrapped"] for rank in ranks for record in rank] == ["DeepSpeedEngine"] * 2
    assert [len(counts) for rank in ranks for counts in rank[0]["supervised"]] == [3, 3]
    _, said = outcome(tmp_path / "differs", words("typed", max_grad_norm=2), *launcher())
    assert '"gradient_clipping" 0.5 there, --max_grad_norm 2.0 here' in said, said
    assert "internal error" not in said
