"""Perplexity depends on model and data, not on how evaluation is batched."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.rows import write_uneven_rows
from support.runs import capture_trainer, run


def perplexity(model: Path, data: Path, output: Path, batch: int) -> dict[str, Any]:
    # The plain loop takes the trainer's batches: features that another test kept would stand there instead of pixels.
    return run(model, data, output, do_eval=True, per_device_eval_batch_size=batch, cache_vision_features="off")


@pytest.mark.parametrize("model_type", ["gemma3", "qwen2_5_vl", "llava"])
def test_same_at_every_batch_size_and_equal_to_a_plain_loop(
    model_type: str, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=11)
    trainers = capture_trainer(monkeypatch)
    figures = [
        perplexity(model_folder(model_type), data, tmp_path / str(batch), batch)["eval_perplexity"]
        for batch in (1, 2, 5, 10)
    ]
    plain, mean_of_means = plain_loops(trainers[0])
    for figure in figures:
        assert figure == pytest.approx(plain, rel=1e-5)
    assert mean_of_means != pytest.approx(plain, rel=1e-3)


def plain_loops(trainer: Any) -> tuple[float, float]:
    """Return perplexity by a hand-written loop, and what averaging the rows' means would have given."""
    total, tokens, means = 0.0, 0, []
    for index in range(len(trainer.eval_dataset)):
        batch = trainer.data_collator([trainer.eval_dataset[index]])
        labels = batch.pop("labels")[0]
        batch.pop("supervised_positions")
        with torch.no_grad():
            scores = torch.log_softmax(trainer.model(**batch).logits[0].double(), dim=-1)
        nll = [-scores[i - 1, labels[i]].item() for i in range(1, len(labels)) if labels[i] != -100]
        total += sum(nll)
        tokens += len(nll)
        means.append(sum(nll) / len(nll))
    return math.exp(total / tokens), math.exp(sum(means) / len(means))
