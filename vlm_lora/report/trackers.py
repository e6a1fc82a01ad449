"""Sample answers with their images, for the trackers of `--report_to`; figures reach them by the trainer's log."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_lora.config.run_config import RunConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.loading_errors import first_line
from vlm_lora.report.run_page.answers import shortened, worst_first
from vlm_lora.report.run_page.folder import Prediction, RunFolder, read_run
from vlm_lora.report.run_page.stored_images import StoredImages
from vlm_lora.training.observers import EndReason, RunObserver

logger = logging.getLogger(__name__)

MOST = 8
"""Answers that are sent: the worst, as on the page of the run."""
SIDE = 448
"""Largest side of an image in pixels."""
COLUMNS = ("image", "row", "prompt", "expected", "generated", "scores")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer as a tracker shows it."""

    row: str
    """Where the row came from."""
    prompt: str
    expected: str
    generated: str
    scores: str
    image: Image.Image | None
    """The row's first image; None where it has none, it is gone, or `--report_images false`."""

    def texts(self) -> list[str]:
        """Return all but the image, in the order of `COLUMNS`."""
        return [self.row, self.prompt, self.expected, self.generated, self.scores]

    def in_words(self) -> str:
        """Return the texts in lines, as a caption."""
        return "\n\n".join(f"{name}: {text}" for name, text in zip(COLUMNS[1:], self.texts(), strict=True))


def samples_of(folder: RunFolder, *, images: bool) -> list[Sample]:
    """Return a run's worst answers, with the first image of each as far as it is found."""
    stored = StoredImages(folder.effective, folder.directory) if images else None
    return [_sample(row, stored) for row in worst_first(folder.predictions)[:MOST]]


def _sample(row: Prediction, stored: StoredImages | None) -> Sample:
    found = stored.of(row.images, *row.place) if stored is not None else []
    image = next((one.image for one in found if one.image is not None), None)
    if image is not None:
        image = image.convert("RGB")
        image.thumbnail((SIDE, SIDE))
    return Sample(
        row=row.source,
        prompt=shortened(row.prompt or ""),
        expected=shortened(" | ".join(row.accepted)),
        generated=shortened(row.generated),
        scores=", ".join(f"{name} {value:.4g}" for name, value in row.scores.items()),
        image=image,
    )


class Trackers(RunObserver):
    """Sends samples at the end of a run, on its first process; what cannot be sent ends no run.

    MLflow's run is opened here, too: one that the trainer's callback opens ends with the training, and the evaluation
    behind it would go to another.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._folder = Path()
        self._images = True
        self._step = 0
        self._opened = False

    def started(self, run: RunConfig, arguments: Any) -> None:
        """Note which trackers there are."""
        if arguments.process_index != 0:
            return
        self._names = tuple(name for name in arguments.report_to or () if name != "none")
        self._folder, self._images = Path(arguments.output_dir), run.reporting.report_images
        if "mlflow" in self._names:
            self._opened = _open_mlflow(arguments.run_name or self._folder.absolute().name)

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Note how far the run has come."""
        self._step = step

    def ended(self, reason: EndReason, said: str) -> None:
        """Send the samples of a run that has evaluated at its end."""
        try:
            if reason in (EndReason.FINISHED, EndReason.STOPPED_EARLY, EndReason.NOTHING_LEFT):
                self._send()
        finally:
            if self._opened:
                import mlflow

                mlflow.end_run("FAILED" if reason is EndReason.ERROR else "FINISHED")

    def _send(self) -> None:
        senders = {name: SENDERS[name] for name in self._names if name in SENDERS}
        if not senders or not (self._folder / "predictions.jsonl").is_file():
            return
        samples = samples_of(read_run(self._folder), images=self._images)
        for name, send in senders.items():
            try:
                send(samples, self._step, self._folder)
            except Exception as error:  # the run itself is done, and its results are written
                logger.warning("--report_to %s: samples were not sent (%s: %s).", name, type(error).__name__, error)


def _open_mlflow(name: str) -> bool:
    """Open a run of MLflow's unless one is open; say whether it was opened here.

    Raises:
        ConfigError: the store does not take it.
    """
    import mlflow

    if mlflow.active_run() is not None:
        return False
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    try:
        if experiment:
            mlflow.set_experiment(experiment)
        mlflow.start_run(run_name=name)
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy"):
            raise
        raise ConfigError(
            f"--report_to mlflow: the store does not take a run ({first_line(error)}). Set MLFLOW_TRACKING_URI to one "
            "that does, or leave mlflow out."
        ) from error
    return True


def _to_tensorboard(samples: Sequence[Sample], step: int, folder: Path) -> None:
    """Write a run called `samples` beside those of the figures."""
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    root = os.environ.get("TENSORBOARD_LOGGING_DIR")
    place = (Path(root).expanduser() if root else folder / "runs") / "samples"
    with SummaryWriter(log_dir=str(place)) as writer:
        for number, sample in enumerate(samples):
            writer.add_text(f"samples/{number}", sample.in_words(), step)
            if sample.image is not None:
                writer.add_image(f"samples/{number}", np.asarray(sample.image), step, dataformats="HWC")


def _to_wandb(samples: Sequence[Sample], step: int, folder: Path) -> None:
    import wandb

    rows = [[None if one.image is None else wandb.Image(one.image), *one.texts()] for one in samples]
    wandb.log({"samples": wandb.Table(columns=list(COLUMNS), data=rows)})


def _to_mlflow(samples: Sequence[Sample], step: int, folder: Path) -> None:
    import mlflow

    for number, sample in enumerate(samples):
        mlflow.log_text(sample.in_words(), f"samples/{number}.txt")
        if sample.image is not None:
            mlflow.log_image(sample.image, f"samples/{number}.png")


def _to_swanlab(samples: Sequence[Sample], step: int, folder: Path) -> None:
    import swanlab

    shown = [swanlab.Image(one.image, caption=one.in_words()) for one in samples if one.image is not None]
    texts = [swanlab.Text(one.in_words()) for one in samples]
    swanlab.log({"samples/texts": texts, **({"samples/images": shown} if shown else {})})


SENDERS: Mapping[str, Callable[[Sequence[Sample], int, Path], None]] = {
    "mlflow": _to_mlflow,
    "swanlab": _to_swanlab,
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
}
"""How samples are sent, by tracker; the others of `--report_to` get figures alone."""
