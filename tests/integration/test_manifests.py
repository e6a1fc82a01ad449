"""Each file of a checkpoint and of a finished folder: missing, empty, half or with a flipped bit, it is named."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from vlm_lora.cli.main import main, run_script
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.loading import load_config
from vlm_lora.model.manifest import MODEL_FILES, NAME, State, Verdict, examine, read_manifest, refuse_changed
from vlm_lora.training.checkpoints import background, choosing, rotation, sealing
from vlm_lora.training.checkpoints.choosing import find_checkpoint
from vlm_lora.training.checkpoints.run_record import read_record
from vlm_lora.training.trainer import VlmTrainerMixin

ADAPTER = "adapter_model.safetensors"
FLAGS: dict[str, object] = {
    "do_train": True,
    "max_steps": 3,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "learning_rate": 1e-2,
    "lora_dropout": 0.1,
}
KINDS = ("missing", "empty", "half", "one bit")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Path:
    """A folder with `data`, the LoRA run `out`, of which checkpoints 2 and 3 are left, and full weights `full`."""
    place = tmp_path_factory.mktemp("manifests")
    data = write_uneven_rows(place / "data", rows=6, validation=2)
    run(model_folder("gemma3"), data, place / "out", **FLAGS)
    run(model_folder("gemma3"), data, place / "full", do_train=True, max_steps=1, peft_method="none")
    return place


def damage(file: Path, kind: str) -> None:
    content = file.read_bytes()
    file.unlink()
    if kind == "one bit":
        middle = len(content) // 2
        content = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    if kind != "missing":
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2]}.get(kind, content))


def damages(folder: Path) -> Iterator[tuple[Path, str]]:
    """Damage each of a folder's files in each way, and put it right again."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        for kind in KINDS:
            damage(file, kind)
            yield file, kind
            file.write_bytes(content)


def refusal(folder: Path) -> str:
    """Return what is said of a folder before it is loaded: of its settings first, then of its weights."""
    for weights in (False, True):
        try:
            refuse_changed(folder, accept=False, weights=weights)
        except ModelError as error:
            return str(error)
    return ""


def test_each_file_of_the_newest_checkpoint(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = Path(shutil.copytree(root / "out", tmp_path / "out"))
    newest, previous = out / "checkpoint-3", out / "checkpoint-2"
    assert find_checkpoint(out, "auto") == str(newest)
    count = 0
    for file, kind in damages(newest):
        caplog.clear()
        with pytest.raises(ConfigError, match=rf"checkpoint-3: .*{file.name}"):
            find_checkpoint(out, str(newest))
        assert find_checkpoint(out, "auto") == str(previous), (file, kind)
        aside = out / "checkpoint-3.damaged"
        (said,) = caplog.messages
        assert said.startswith(f"{newest}: {file.name}: "), said
        assert said.endswith(f"; it is set aside as {aside.name}, and the run is going on from {previous}.")
        assert read_record(out).checkpoints == ("checkpoint-2",)
        # Back, for the next one.
        aside.rename(newest)
        count += 1
    assert count >= 40
    caplog.clear()
    assert find_checkpoint(out, "auto") == str(newest), "all is right again"
    assert caplog.messages == []


def test_each_file_of_an_adapter_and_of_full_weights(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = 0
    for kind, least in (("out", 8), ("full", 8)):
        # Copied elsewhere, as people do, without its checkpoints.
        folder = shutil.copytree(root / kind, tmp_path / kind, ignore=shutil.ignore_patterns("checkpoint-*"))
        manifest = read_manifest(Path(folder) / NAME)
        assert not isinstance(manifest, str)
        covered = set(manifest.files)
        assert {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"} < covered
        assert ({"config.json", "generation_config.json", "model.safetensors"} < covered) == (kind == "full")
        assert ({"adapter_config.json", ADAPTER} < covered) == (kind == "out")
        assert {"run.json", "run_config.yaml"} < covered, "by which a model is measured"
        assert not covered & {"README.md", "all_results.json", "trainer_state.json"}
        assert len(covered) >= least
        for file, how in damages(Path(folder)):
            verdict = examine(Path(folder), only=MODEL_FILES, again=False)
            if file.name == NAME and how == "missing":
                assert verdict.state is State.NONE, "as a folder from the Hub"
            elif file.name in {*covered, NAME}:
                assert verdict.state is State.DAMAGED, (file, how)
                assert str(verdict).startswith(f"{file.name}: ")
                assert file.name in refusal(Path(folder))
                seen += 1
            else:
                assert verdict.state is State.WHOLE, (file, "reports and results are not covered")
    assert seen >= 76
    assert caplog.messages == []


@pytest.mark.parametrize("verb", ["ask", "eval", "train"])
def test_every_verb_says_it_before_it_loads(
    verb: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, name = ("full", "model.safetensors") if verb == "train" else ("out", ADAPTER)
    folder = Path(shutil.copytree(root / kind, tmp_path / kind, ignore=shutil.ignore_patterns("checkpoint-*")))
    damage(folder / name, "one bit")
    image = next((root / "data").glob("*.png"))
    asked = ["--image", str(image), "--prompt", "Hi", "--max_new_tokens", "2"]
    data = ["--dataset_name", str(root / "data"), "--output_dir", str(tmp_path / "new")]
    data += ["--max_steps", "1", "--disable_tqdm", "true", "--save_strategy", "no"] if verb == "train" else []
    words = [verb, "--model_name_or_path", str(folder), "--use_cpu", "true", *(asked if verb == "ask" else data)]
    assert main(words) == 1
    said = capsys.readouterr().err
    message = next(line for line in said.splitlines() if line.startswith("error: "))
    assert f"{folder}: not as its run wrote it (MANIFEST.json): {name}: changed" in message
    assert "Traceback" not in said
    if verb == "ask":
        assert main([*words, "--accept_changed_files"]) == 0
        assert f"--accept_changed_files: {folder}: not as its run wrote it" in capsys.readouterr().err
        (folder / NAME).unlink()
        assert main(words) == 0, "the control: without a manifest the bit goes through"


def test_a_flipped_bit_is_passed_over_and_the_run_ends_as_it_would_have(
    root: Path, tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with the check off the same bit goes through and makes other weights."""
    expected = (root / "out" / ADAPTER).read_bytes()
    ends = {}
    for check in ("on", "off"):
        out = Path(shutil.copytree(root / "out", tmp_path / check))
        shutil.rmtree(out / "checkpoint-3")
        shutil.copytree(root / "out" / "checkpoint-2", out / "checkpoint-3")  # named as the newest is
        shutil.rmtree(out / "checkpoint-2")
        for name in (ADAPTER, "train_results.json", "all_results.json", NAME):
            (out / name).unlink()
        damage(out / "checkpoint-3" / ADAPTER, "one bit")
        with monkeypatch.context() as patch:
            if check == "off":
                patch.setattr(choosing, "examine", lambda *_, **__: Verdict(state=State.NONE))
                record = json.loads((out / "run_files.json").read_text())
                (out / "run_files.json").write_text(json.dumps({**record, "sealed": []}))
            run(model_folder("gemma3"), root / "data", out, **FLAGS, resume_from_checkpoint="auto")
        ends[check] = (out / ADAPTER).read_bytes()
        assert (out / "checkpoint-3.damaged").is_dir() == (check == "on")
    assert ends["on"] == expected, "from the beginning, with one constant command"
    assert ends["off"] != expected


def test_a_large_checkpoint_gets_its_manifest_while_the_training_goes_on(
    root: Path, tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step is under way before the first checkpoint counts; files and rotation are those of small ones."""
    out, steps, second = tmp_path / "out", [0], threading.Event()
    monkeypatch.setattr(background, "LARGE", 0)
    step, prepare = VlmTrainerMixin.compute_loss, sealing.prepare_seal
    seen: list[tuple[str, bool]] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] == 2:
            seen.append(("while the second step is made", choosing.is_whole(out / "checkpoint-1")))
            second.set()
        return step(*args, **kwargs)

    def held(*args: Any) -> Callable[[], None]:
        seal = prepare(*args)

        def later() -> None:
            assert second.wait(60)
            seal()

        return later

    monkeypatch.setattr(VlmTrainerMixin, "compute_loss", counted)
    monkeypatch.setattr(rotation, "prepare_seal", held)
    run(model_folder("gemma3"), root / "data", out, **FLAGS)
    assert seen == [("while the second step is made", False)]
    assert (out / ADAPTER).read_bytes() == (root / "out" / ADAPTER).read_bytes()
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    assert all(examine(out / name).state is State.WHOLE for name in ("checkpoint-2", "checkpoint-3"))
    assert json.loads((out / "RUN_STATE.json").read_text())["checkpoint"] == "checkpoint-3"


def test_records_that_a_longer_training_writes_do_not_spoil_the_weights_that_are_there(
    root: Path, tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on for more steps and is killed: the folder's weights are still those of its manifest."""
    out = Path(shutil.copytree(root / "out", tmp_path / "out"))
    more = {**FLAGS, "max_steps": 4, "resume_from_checkpoint": "auto"}

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VlmTrainerMixin, "compute_loss", killed)
        assert run_script(script_flags(model_folder("gemma3"), root / "data", out, **more)) == 130
    assert '"max_steps": 4' in (out / "run.json").read_text(encoding="utf-8")
    assert examine(out).state is State.WHOLE
    run(model_folder("gemma3"), root / "data", out, **more)
    manifest = read_manifest(out / NAME)
    assert not isinstance(manifest, str)
    assert {"run.json", "run_config.yaml"} < set(manifest.files)


def test_a_damaged_best_checkpoint_is_not_loaded(
    root: Path,
    tmp_path: Path,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 10.0}
    flags = {**FLAGS, **best, "save_total_limit": 5}
    ends: dict[str, tuple[int, str, bool]] = {}

    def after_a_fault(how: str, checkpoint: Path, *args: Any, **kwargs: Any) -> None:
        if how == "gone":
            shutil.rmtree(checkpoint)
        else:
            damage(checkpoint / ADAPTER, "one bit")
        if how != "not looked at":
            choosing.check_best(checkpoint, *args, **kwargs)

    for how in ("one bit", "gone", "not looked at"):
        out = tmp_path / how.replace(" ", "-")
        with monkeypatch.context() as patch:
            patch.setattr("vlm_lora.training.trainer.check_best", partial(after_a_fault, how))
            code = run_script(script_flags(model_folder("gemma3"), root / "data", out, **flags))
        ends[how] = code, capsys.readouterr().err, (out / ADAPTER).is_file()
    assert [(code, there) for code, _, there in ends.values()] == [(1, False), (1, False), (0, True)]
    for how, why in (("one bit", f"is not as it was saved: {ADAPTER}: changed"), ("gone", "is no longer there")):
        assert f"the best checkpoint, {why}" in ends[how][1]
    # What the message says.
    out = tmp_path / "one-bit"
    more = {**flags, "load_best_model_at_end": False, "allow_changed": "load_best_model_at_end"}
    run(model_folder("gemma3"), root / "data", out, **more, resume_from_checkpoint=True)
    assert (out / ADAPTER).read_bytes() == (out / "checkpoint-3" / ADAPTER).read_bytes()


def test_a_folder_that_a_run_did_not_finish(
    root: Path, tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the processor is written, with all weights there: it is not loaded, and the same command ends it."""
    out = tmp_path / "out"
    flags = {**FLAGS, "max_steps": 2, "save_strategy": "no"}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vlm_lora.training.outputs.save_processor", killed)
        assert run_script(script_flags(model_folder("gemma3"), root / "data", out, **flags)) == 130
    assert (out / ADAPTER).is_file()
    with pytest.raises(ModelError, match="was cut short while it did"):
        load_config(ModelConfig(model_name_or_path=str(out)))
    # Nothing was saved to go on from: it begins once more, over what it wrote.
    run(model_folder("gemma3"), root / "data", out, **flags, resume_from_checkpoint="auto")
    assert examine(out).state is State.WHOLE
    # But never over a finished training.
    words = script_flags(model_folder("gemma3"), root / "data", out, **flags, resume_from_checkpoint="auto")
    assert run_script(words) == 1
    assert examine(out).state is State.WHOLE
