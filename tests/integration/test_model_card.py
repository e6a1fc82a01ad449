"""The card of a trained model: its example runs as it stands, and its figures are those of the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from support.datasets import write_image
from support.rows import write_uneven_rows
from support.runs import run
from vlm_lora.cli.main import main
from vlm_lora.report.card_facts import data_rows, licence_of, score_rows


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gemma3", {"predict_with_generate": True}),
        ("qwen2_5_vl", {"system_prompt": 'Say "yes".'}),
        ("llava", {"peft_method": "none", "skip_check": True}),
    ],
)
def test_the_example_runs_and_answers_as_ask_does(
    family: str,
    more: dict[str, object],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = write_uneven_rows(tmp_path / "data", rows=4, validation=2), tmp_path / "out"
    flags = {"do_train": True, "do_eval": True, "max_steps": 2, "learning_rate": 0.01, "max_new_tokens": 12}
    run(model_folder(family), data, out, **flags, **more)
    card = (out / "README.md").read_text(encoding="utf-8")
    write_image(tmp_path / "image.png", seed=2)
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(code) == 1
    capsys.readouterr()
    exec(compile(code[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    words = ["--image", "image.png", "--prompt", "QUESTION", "--use_cpu", "--max_new_tokens", "12"]
    words += ["--system_prompt", str(more["system_prompt"])] if "system_prompt" in more else []
    assert main(["ask", "--model_name_or_path", "out", *words]) == 0
    assert printed.strip() == capsys.readouterr().out.strip()
    assert printed.strip()

    results = json.loads((out / "all_results.json").read_text())
    assert f"| eval_loss | {results['eval_loss']:.6g} |  |" in card
    assert "is not named in its files here: read it at" in card
    settings = yaml.safe_load(card[4:].partition("\n---\n")[0])
    assert "base_model" not in settings, "a folder of this machine is no model of the Hub"
    assert settings["library_name"] == ("transformers" if "peft_method" in more else "peft")
    if "skip_check" in more:
        assert "so there is no report on them" in card
    else:
        assert re.search(r"^\| train \| 4 \| 0 \| 0 \| \d+ \| \d+ \(at most \d+\) \| [\d.]+% \|$", card, re.M)
    if "predict_with_generate" in more:
        low, high = results["eval_exact_match_interval"]
        assert f"| eval_exact_match | {results['eval_exact_match']:.6g} | {low:.4g} to {high:.4g} |" in card


def test_only_figures_are_scores() -> None:
    metrics = {"eval_x": 0.5, "eval_x_interval": [0.25, 0.75], "eval_groups": {"a": 1}, "eval_rows": 4}
    assert score_rows(metrics) == [("eval_rows", "4", ""), ("eval_x", "0.5", "0.25 to 0.75")]
    assert data_rows({}) == []


@pytest.mark.parametrize(
    ("file", "text", "named", "said"),
    [
        ("README.md", "---\nlicense: gemma\n---\n# A model\n", "gemma", "as its own card names it: `gemma`"),
        ("README.md", "---\nlicense: [\n---\n", None, "is not named in its files here: read it at `base`"),
        ("README.md", "# Ours\nlicense: gemma\n", None, "is not named in its files here"),
        ("LICENSE", "Free.", None, "is its file `LICENSE`"),
    ],
)
def test_the_licence_of_the_base(file: str, text: str, named: str | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / file).write_text(text)
    found, sentence = licence_of(str(tmp_path / "base"))
    assert found == named
    assert said in sentence


def test_the_licence_of_a_hub_model_is_where_its_page_is() -> None:
    assert (
        "[google/gemma-3-4b-it](https://huggingface.co/google/gemma-3-4b-it)" in licence_of("google/gemma-3-4b-it")[1]
    )
