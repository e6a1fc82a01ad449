"""The evaluation before the first step is among the results, its scores too."""

from __future__ import annotations

from vlm_lora.evaluation.measuring import figures_at_start


def test_losses_and_scores_are_taken_over() -> None:
    first = {"eval_loss": 2.0, "eval_perplexity": 7.4, "eval_supervised_tokens": 40, "eval_answers": 8}
    scores = {"eval_exact_match": 0.25, "eval_my_figure": 3.0}
    others = {"eval_runtime": 1.0, "eval_samples_per_second": 8.0, "epoch": 0, "step": 0, "perplexity": 1.0}
    log = [
        {"step": 0, "loss": 9.0},
        {**first, **scores, **others},
        {"step": 2, "eval_loss": 1.0, "eval_perplexity": 2.7},
    ]
    assert figures_at_start(log) == {
        name.replace("eval_", "eval_start_"): value for name, value in (first | scores).items()
    }
    assert figures_at_start(log[2:]) == {}, "the control: no evaluation was before the first step"
