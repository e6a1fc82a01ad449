"""One global batch gives one update, however it is split into micro-batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.rows import write_uneven_rows
from support.runs import capture_trainer, logged, run
from vlm_lora.training import trainer as training

SHAPES = ("gemma3", "qwen2_5_vl", "llava")
SPLITS = ((8, 1), (2, 4), (1, 8))


def first_step(model: Path, data: Path, folder: Path, batch: int, accumulation: int) -> tuple[float, float]:
    """Train one step and return its loss and gradient norm."""
    output = folder / f"{batch}x{accumulation}"
    results = run(
        model,
        data,
        output,
        do_train=True,
        max_steps=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=1e9,
    )
    return results["train_loss"], logged(output, "grad_norm")[0]


@pytest.mark.parametrize("model_type", SHAPES)
def test_split_does_not_change_loss_or_gradient(
    model_type: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=8, validation=2)
    figures = [first_step(model_folder(model_type), data, tmp_path, *split) for split in SPLITS]
    for loss, norm in figures[1:]:
        assert loss == pytest.approx(figures[0][0], rel=1e-5)
        assert norm == pytest.approx(figures[0][1], rel=1e-5)


def test_mean_of_means_would_change_them(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what peers do, the mean of each micro-batch divided by the accumulation steps, differs."""
    data = write_uneven_rows(tmp_path / "data", rows=8, validation=2)
    accumulation = {"steps": 1}

    def mean_of_means(
        head: object, outputs: object, targets: torch.Tensor, num_items_in_batch: object = None
    ) -> torch.Tensor:
        losses = head.losses(outputs.logits, targets)  # type: ignore[attr-defined]
        outputs.row_losses = losses.detach().sum(dim=1)  # type: ignore[attr-defined]
        return losses.sum() / targets.ne(-100).sum() / accumulation["steps"]

    monkeypatch.setattr(training, "supervised_loss", mean_of_means)
    figures = []
    for batch, steps in SPLITS:
        accumulation["steps"] = steps
        figures.append(first_step(model_folder("gemma3"), data, tmp_path, batch, steps))
    for loss, norm in figures[1:]:
        assert loss != pytest.approx(figures[0][0], rel=1e-3)
        assert norm != pytest.approx(figures[0][1], rel=1e-3)


@pytest.mark.parametrize("model_type", SHAPES)
def test_supervised_rows_equal_full_logits(
    model_type: str, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head on supervised positions gives the loss and the gradients of the head on all positions."""
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    trainers = capture_trainer(monkeypatch)
    run(
        model_folder(model_type),
        data,
        tmp_path / "out",
        do_train=True,
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        cache_vision_features="off",  # the plain pass below has its pixels
    )
    trainer = trainers[0]
    batch = next(iter(trainer.get_train_dataloader()))
    count = batch["labels"].ne(-100).sum()
    trainer.model.zero_grad()
    compact = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    compact.backward()
    gradients = gradients_of(trainer.model)
    trainer.model.zero_grad()
    full = full_logits_loss(trainer.model, batch)
    full.backward()
    assert compact.item() == pytest.approx(full.item(), rel=1e-6)
    for name, expected in gradients_of(trainer.model).items():
        # Of the whole tensor: other orders of summing leave single elements near 0 with few right digits.
        assert torch.linalg.vector_norm(gradients[name] - expected) <= 1e-5 * torch.linalg.vector_norm(expected), name
    shifted = dict(batch, labels=batch["labels"].roll(1, dims=1))
    assert full_logits_loss(trainer.model, shifted).item() != pytest.approx(full.item(), rel=1e-3)


def full_logits_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The textbook loss: all logits, shifted by one."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "supervised_positions")}
    logits = model(**inputs).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return total / labels.ne(-100).sum()


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
