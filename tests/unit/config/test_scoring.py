"""Settings of scores: what they bring with them, what contradicts them, and all that is missing said at once."""

from __future__ import annotations

from typing import Any

import pytest

from vlm_lora.config.early import check_early
from vlm_lora.config.scoring import less_is_better, needs_answers
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
        ({"metrics": ["cer", "./mine.py"]}, True),
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


def test_an_unknown_figure_is_refused_with_the_nearest() -> None:
    said = refusal(metric_for_best_model="eval_anlss")
    assert "--metric_for_best_model eval_anlss" in said
    assert "Did you mean 'anls'?" in said
    assert "perplexity" in said
    # A metric of one's own may have any figure.
    check_early(from_settings({"metric_for_best_model": "eval_mine", "metrics": "./mine.py"}, environ={}), "train")


def test_the_best_checkpoint_needs_evaluations() -> None:
    assert "--load_best_model_at_end needs also: --eval_strategy" in refusal(load_best_model_at_end=True)
    check_early(from_settings({"load_best_model_at_end": True, "eval_strategy": "steps"}, environ={}), "train")
    check_early(from_settings({"load_best_model_at_end": False}, environ={}), "train")


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
