"""Registered models: a run's, by name, asked as its folder is; what is refused, and when. The store is a stand-in."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import vlm_lora
from support.datasets import write_image
from support.registry import stand_in_store
from support.rows import write_uneven_rows
from support.runs import run, script_flags
from vlm_lora.cli.main import main


@pytest.fixture(scope="module")
def trained(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `data`, and the run `out` of them."""
    root = tmp_path_factory.mktemp("registered")
    shutil.copytree(model_folder("gemma3"), root / "base")
    data = write_uneven_rows(root / "data", rows=2, validation=1)
    run(root / "base", data, root / "out", do_train=True, do_eval=True, max_steps=1, report_page=False)
    return root


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


ASK = ["ask", "--prompt", "What?", "--use_cpu", "--max_new_tokens", "8"]


def test_found_and_asked_by_name(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = stand_in_store(tmp_path / "store", monkeypatch)
    assert main(["register", str(trained / "out"), "charts"]) == 0
    said = capsys.readouterr().out
    assert f"as models:/charts/1: an adapter, which needs its base {trained / 'base'}." in said
    assert f"are in sqlite:///{tmp_path / 'share'}/vlm-lora/mlflow.db (run 0)." in said
    assert store.params["dataset_name"] == str(trained / "data")
    assert store.ended == ["FINISHED"]
    named = {name: value for name, value, _ in store.metrics}
    assert named["eval_perplexity"] > 1
    held = {path.name for path in (tmp_path / "store" / "0" / "model").iterdir()}
    assert {"adapter_model.safetensors", "run.json", "all_results.json", "data_report.json", "MANIFEST.json"} <= held
    assert not {"training_args.bin", "RUN_STATE.json"} & held

    image = write_image(tmp_path / "image.png", seed=1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    answers = []
    for name in (str(trained / "out"), "models:/charts/1", "models:/charts/latest", "models:/charts@best"):
        assert main([*ASK, "--image", str(image), "--model_name_or_path", name]) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 1
    shutil.rmtree(tmp_path / "store" / "0" / "model")
    gone = refused([*ASK, "--image", str(image), "--model_name_or_path", "models:/charts/1"], capsys)
    assert "models:/charts/1: registered in sqlite:///" in gone
    assert "but its files are gone" in gone


def test_from_python(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is left as it was, though mlflow is told by it to be quiet."""
    stand_in_store(tmp_path / "store", monkeypatch)
    before = dict(os.environ)
    found = vlm_lora.register(trained / "out", "charts")
    assert (found.model, found.kind, found.base) == ("models:/charts/1", "adapter", str(trained / "base"))
    with pytest.raises(vlm_lora.UserError, match=r"^vlm_lora.register 'a/b': a registered model's name"):
        vlm_lora.register(trained / "out", "a/b")
    assert os.environ == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("models:/charts/7", "models:/charts/7: charts has the versions 1 in sqlite:///"),
        ("models:/other/1", "models:/other/1: no such model in sqlite:///"),
        ("models:/charts@champion", "models:/charts@champion: charts has no alias champion in sqlite:///"),
        ("models:/charts", "models:/charts: a registered model is models:/NAME/VERSION"),
    ],
)
def test_a_name_that_is_not_registered(
    name: str,
    said: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in_store(tmp_path / "store", monkeypatch)
    assert main(["register", str(trained / "out"), "charts"]) == 0
    capsys.readouterr()
    assert refused([*ASK, "--model_name_or_path", name], capsys).startswith(f"error: {said}")


def test_what_cannot_be_registered(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = stand_in_store(tmp_path / "store", monkeypatch)
    assert "a registered model's name has no / : @ or quotes" in refused(["register", str(trained), "a/b"], capsys)
    assert "holds no model" in refused(["register", str(trained), "charts"], capsys)
    gone = tmp_path / "gone"
    shutil.copytree(trained / "out", gone)
    settings = (gone / "adapter_config.json").read_text()
    (gone / "MANIFEST.json").unlink()
    (gone / "adapter_config.json").write_text(settings.replace(str(trained / "base"), str(tmp_path / "no-base")))
    said = refused(["register", str(gone), "charts"], capsys)
    assert f"the base model of this adapter is gone: {tmp_path / 'no-base'} is not there" in said
    assert not store.versions
    words = ["check", "--model_name_or_path", "models:/charts/1", "--dataset_name", str(trained / "data")]
    assert "a registered model is for vlm-lora eval, ask, merge. For check name" in refused(words, capsys)


def test_without_mlflow_it_is_refused_at_the_start(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_lora.config.sections.registered_names.find_spec", lambda name: None)
    words = ["train", *script_flags(trained / "base", trained / "data", tmp_path / "out", output_model_name="charts")]
    for command, begin in (
        (words, "--output_model_name charts: "),
        (["register", str(trained / "out"), "charts"], "vlm-lora register: "),
        ([*ASK, "--model_name_or_path", "models:/charts/1"], "models:/charts/1: "),
    ):
        said = refused(command, capsys)
        assert said.startswith(
            f"error: {begin}the package mlflow is not installed. Type: pip install 'vlm-lora[mlflow]'"
        )
    assert not (tmp_path / "out").exists()


def test_a_training_registers_once_it_has_ended(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the store refuses at the end, nothing is lost, and the command of the message registers it."""
    store = stand_in_store(tmp_path / "store", monkeypatch)

    def full() -> None:
        raise OSError("no room")

    store.refuses = full
    flags: dict[str, object] = {"max_steps": 1, "output_model_name": "charts", "tracking_uri": "http://store:5000"}
    words = ["train", *script_flags(trained / "base", trained / "data", tmp_path / "out", **flags)]
    said = refused(words, capsys)
    assert "error: --output_model_name charts: the store http://store:5000 cannot be used (no room). Nothing" in said
    assert store.ended == ["FAILED"]
    assert '"state": "done"' in (tmp_path / "out" / "RUN_STATE.json").read_text()
    again = re.search(r"To register it again: vlm-lora (.*)$", said, re.M)
    assert again is not None
    store.refuses = lambda: None
    assert main(shlex.split(again[1])) == 0
    assert [one.version for one in store.versions] == ["1"]
    words += ["--overwrite_output_dir", "true"]
    assert main([word if word != "error" else "warning" for word in words]) == 0
    assert "as models:/charts/2: an adapter" in capsys.readouterr().err
