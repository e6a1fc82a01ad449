"""Settings of scores: what they bring with them, what contradicts them, and all that is missing said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlm_lora.config.early import check_early
from vlm_lora.config.scoring import is_score, is_taken, less_is_better, needs_answers
from vlm_lora.config.sources import from_settings, parse
from vlm_lora.errors import ConfigError


def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_early(from_settings(settings, environ={}), "train")
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "answers"),
    [
        ({}, False),
        ({"metric_for_best_model": "eval_perplexity"}, False),
        ({"metric_for_best_model": "loss"}, False),
        ({"metric_for_best_model": "eval_anls"}, True),
        ({"metric_for_best_model": "anls"}, True),
        ({"metrics": "auto"}, True),
        ({"metrics": ["cer", "wer"]}, True),
        ({"predict_with_generate": True}, True),
    ],
)
def test_scores_bring_the_answers_that_they_need(settings: dict[str, Any], answers: bool) -> None:
    run = from_settings(settings, environ={})
    assert run.generation.predict_with_generate is answers
    check_early(run, "train")


def test_metrics_are_words_or_commas() -> None:
    for words in (["anls", "cer"], ["anls,cer"], ["anls,", "cer", "anls"]):
        assert parse(["--metrics", *words], environ={}).scoring.asked == ("anls", "cer")
    assert parse([], environ={}).scoring.asked == ("auto",)
    for words in ([","], [" , ", ""]):
        with pytest.raises(ConfigError, match=r"--metrics .*: names no metric. Type auto, or names such as anls"):
            parse(["--metrics", *words], environ={})


def test_unknown_metrics_are_said_with_everything_else(tmp_path: Path) -> None:
    said = refusal(metrics="anlss,./none.py,cer", metric_for_best_model="werr", model_name_or_path="/no/model")
    for part in ("--metrics anlss: there is no such metric. Did you mean 'anls'?", "--metrics ./none.py: a metric of "):
        assert part in said
    assert "/no/model: no such folder" in said
    assert "--metrics cer" not in said
    own = tmp_path / "mine.py"
    own.write_text("", encoding="utf-8")
    check_early(from_settings({"metrics": ["eval_json-valid", "ocr_cer", "boxes", str(own)]}, environ={}), "train")


@pytest.mark.parametrize(
    "name", ["samples", "rows", "runtime", "samples_per_second", "start_loss", "by_task", "anls_low_95", "perplexity"]
)
def test_names_that_results_have_for_something_else(name: str) -> None:
    assert is_taken(name)
    assert not is_score(f"eval_{name}")
    assert is_score(f"eval_my_{name.removesuffix('_low_95')}")
    assert not is_score(f"my_{name}"), "the control"


def test_scores_without_answers_are_refused() -> None:
    for settings in ({"metrics": "anls"}, {"metric_for_best_model": "eval_anls"}):
        with pytest.raises(ConfigError, match="--predict_with_generate false generates none"):
            from_settings({**settings, "predict_with_generate": False}, environ={})


def test_the_direction_is_known() -> None:
    assert [
        name for name in ("eval_cer", "wer", "ocr_cer", "eval_loss", "perplexity") if not less_is_better(name)
    ] == []
    assert [name for name in ("eval_anls", "exact_match", "ocr_f1", None) if less_is_better(name)] == []
    assert needs_answers("eval_cer")
    assert not needs_answers(None)
    assert "of anls more is better" in refusal(metric_for_best_model="eval_anls", greater_is_better=False)
    assert "of cer less is better" in refusal(metric_for_best_model="cer", greater_is_better=True)
    check_early(from_settings({"metric_for_best_model": "cer", "greater_is_better": False}, environ={}), "train")


def test_an_unknown_figure_is_refused_with_the_nearest(tmp_path: Path) -> None:
    said = refusal(metric_for_best_model="eval_anlss")
    assert "--metric_for_best_model eval_anlss" in said
    assert "Did you mean 'anls'?" in said
    assert "perplexity" in said
    # A metric of one's own may have any figure.
    own = tmp_path / "mine.py"
    own.write_text("", encoding="utf-8")
    check_early(from_settings({"metric_for_best_model": "eval_mine", "metrics": str(own)}, environ={}), "train")


def test_the_best_checkpoint_needs_evaluations() -> None:
    assert "--load_best_model_at_end needs also: --eval_strategy" in refusal(load_best_model_at_end=True)
    check_early(from_settings({"load_best_model_at_end": True, "eval_strategy": "steps"}, environ={}), "train")
    check_early(from_settings({"load_best_model_at_end": False}, environ={}), "train")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_strategy": "epoch"}, "Here they are epoch and steps."),
        ({"eval_strategy": "epoch", "save_strategy": "no"}, "Here they are epoch and no."),
        (
            {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 4},
            "multiple of --eval_steps. Type --save_steps 3.",
        ),
        ({"eval_strategy": "steps", "eval_steps": 7}, "--eval_steps 7 and --save_steps 500"),
        ({"eval_strategy": "steps", "logging_steps": 7}, "--eval_steps 7 and --save_steps 500"),
        ({"eval_strategy": "steps", "eval_steps": 0.2, "save_steps": 100}, "--eval_steps 0.2 and --save_steps 100"),
        ({"save_strategy": "best"}, "--save_strategy best needs also: --eval_strategy"),
    ],
)
def test_the_best_of_checkpoints_that_are_not_evaluated_is_refused_in_our_words(
    settings: dict[str, Any], said: str
) -> None:
    assert said in refusal(load_best_model_at_end=True, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_strategy": "epoch", "save_strategy": "best"},
        {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 9},
        {"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3},
    ],
)
def test_the_best_of_checkpoints_that_are_evaluated(settings: dict[str, Any]) -> None:
    check_early(from_settings({"load_best_model_at_end": True, **settings}, environ={}), "train")


def test_what_stopping_early_needs_is_said_at_once() -> None:
    said = refusal(early_stopping_patience=2, greater_is_better=True, metric_for_best_model="wer")
    assert "of wer less is better" in said
    assert "--eval_strategy steps" in said
    said = refusal(early_stopping_patience=2)
    assert "--eval_strategy steps" in said
    assert "--metric_for_best_model" in said
    assert "--early_stopping_patience: add it" in refusal(early_stopping_threshold=0.1)
    enough = {"early_stopping_patience": 2, "eval_strategy": "steps", "metric_for_best_model": "eval_loss"}
    check_early(from_settings(enough, environ={}), "train")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("eval_generate_samples", -1),
        ("generation_batch_size", 0),
        ("early_stopping_patience", 0),
        ("early_stopping_threshold", -0.5),
        ("early_stopping_threshold", "inf"),
    ],
)
def test_values_out_of_range(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{setting} {value}"):
        from_settings({setting: value}, environ={})
