"""Fine-tune vision-language models, LoRA first, on NVIDIA GPUs, Intel Gaudi and CPUs.

The verbs of the command line as functions, for programs and notebooks:

    from vlm_lora import configure, train
    figures = train(configure(model_name_or_path="google/gemma-3-4b-it", dataset_name="data/train.jsonl",
                              output_dir="runs/first", num_train_epochs=1))

Settings have the names of the flags. What a user can fix is raised as `UserError`. Nothing here ends the process,
sets up logging, or leaves signals and environment otherwise than it found them; importing this imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora.config.version import __version__ as __version__

if TYPE_CHECKING:
    from vlm_lora.config.run_config import RunConfig
    from vlm_lora.data.conversation import ImageSource
    from vlm_lora.deploy.merge_report import MergeReport
    from vlm_lora.deploy.push import Pushed
    from vlm_lora.deploy.quantization.request import QuantizeReport
    from vlm_lora.deploy.registry.register import Registered
    from vlm_lora.errors import UserError
    from vlm_lora.memory.request import PlanReport, PlanRequest
    from vlm_lora.preflight.figures import DataReport
    from vlm_lora.report.preview import ShownRow
    from vlm_lora.training.feeding.ahead import KeptAhead


__all__ = [
    "RunConfig",
    "UserError",
    "ask",
    "cache",
    "check",
    "configure",
    "evaluate",
    "merge",
    "plan",
    "preview",
    "push",
    "quantize",
    "register",
    "train",
]


def configure(**settings: Any) -> RunConfig:
    """Return the run with these settings, which have the names of the flags; other tools' names are understood.

    Raises:
        UserError: a setting of ours that cannot be used. The trainer's are judged when the run is opened.
    """
    from vlm_lora.config.sources import from_settings

    return from_settings(settings, environ=os.environ)


def train(run: RunConfig) -> dict[str, Any]:
    """Train, evaluate on held-out rows, and write adapter and results to `output_dir`.

    Args:
        run: needs `model_name_or_path`, `dataset_name` and `output_dir`. `do_eval=False` leaves out the evaluation.

    Returns:
        The figures of `all_results.json`: `train_loss`, `eval_perplexity`, ... (seconds, bytes and rows by their
        names there).

    Raises:
        UserError: what was given, what is allowed, what to write instead.
    """
    from vlm_lora.backend import called
    from vlm_lora.config.early import check_early
    from vlm_lora.config.values import is_true

    trains = is_true(run.raw.get("do_train", True))
    check_early(run, "train", trains=trains, needed=("model_name_or_path", "dataset_name", "output_dir"))
    with called(run):
        from vlm_lora import pipeline

        return pipeline.train(_with_defaults(run, do_train=True, do_eval=True))


def evaluate(run: RunConfig, *, predictions_from: str | Path | None = None) -> dict[str, Any]:
    """Measure perplexity on held-out rows, and scores of answers with `predict_with_generate=True`.

    Args:
        run: needs `model_name_or_path` (a model or an adapter's folder) and `dataset_name`. Without `output_dir` the
            results go to `eval_results/MODEL-DATA`.
        predictions_from: a file of answers that another program made; then no model is loaded or needed, and these
            answers are scored.

    Returns:
        The figures of `eval_results.json`.

    Raises:
        UserError: as `train`.
    """
    from vlm_lora.backend import called
    from vlm_lora.config.early import check_early

    if predictions_from is not None:
        from vlm_lora.evaluation.elsewhere import score_elsewhere

        check_early(run, "eval", trains=False)
        return score_elsewhere(run, Path(predictions_from).expanduser())
    check_early(run, "eval", trains=False, needed=("model_name_or_path", "dataset_name"))
    with called(run):
        from vlm_lora import pipeline
        from vlm_lora.deploy.registry.found import with_registered

        return pipeline.train(_with_defaults(with_registered(run), do_eval=True).replaced(do_train=False))


def ask(run: RunConfig, prompt: str, images: Sequence[ImageSource] = ()) -> str:
    """Return a model's answer to one question.

    Args:
        run: needs `model_name_or_path`, a model or an adapter's folder.
        prompt: the question.
        images: paths, encoded bytes, or PIL images, in the order in which the model sees them.

    Raises:
        UserError: as `train`.
    """
    from vlm_lora.backend import called
    from vlm_lora.config.early import check_early

    check_early(run, "ask", trains=False, needed=("model_name_or_path",))
    with called(run):
        from vlm_lora import pipeline
        from vlm_lora.deploy.registry.found import with_registered

        return pipeline.ask(_with_defaults(with_registered(run), output_dir="unused"), images=images, prompt=prompt)


def check(run: RunConfig, *, workers: int | None = None) -> DataReport:
    """Read every row once, as `train` would, and report what the rows are and which are bad; no weights are loaded.

    Args:
        run: needs `model_name_or_path` and `dataset_name`.
        workers: processes that read; by rows and cores if None.

    Raises:
        UserError: nothing can be read at all. Bad rows are in the report.
    """
    from vlm_lora.backend import called
    from vlm_lora.config.early import check_early

    check_early(run, "check", needed=("model_name_or_path", "dataset_name"))
    with called(run):
        from vlm_lora import pipeline

        return pipeline.check(run, workers=workers, show_progress=False)


def cache(run: RunConfig) -> KeptAhead:
    """Prepare images and take a frozen vision tower's features of them, as `train` with these settings reads them.

    Args:
        run: needs `model_name_or_path` and `dataset_name`; give it all settings of the training.

    Returns:
        Rows, images, how many features were made and found, and bytes before and after.

    Raises:
        UserError: as `train`, or nothing can be kept.
    """
    from vlm_lora.backend import called
    from vlm_lora.config.early import check_early

    check_early(run, "cache", needed=("model_name_or_path", "dataset_name"))
    with called(run):
        from vlm_lora import pipeline

        return pipeline.cache(_with_defaults(run, do_train=True, do_eval=True))


def merge(run: RunConfig, *, rows: int = 4, max_shard_size: str = "5GB") -> MergeReport:
    """Merge an adapter into its base and write the whole model to `output_dir`, proven to say the same.

    Args:
        run: needs `model_name_or_path` (the adapter's folder) and `output_dir` (a new one). `dataset_name` for other
            rows than those of the adapter's training.
        rows: how many rows adapter and merged model both answer; 0 for none.
        max_shard_size: of one file of weights.

    Returns:
        What was merged, and how far logits and answers lie apart.

    Raises:
        UserError: there is nothing to merge, or the merged model is not the adapter's.
    """
    from vlm_lora.backend import called
    from vlm_lora.config.early import check_early

    check_early(run, "merge", trains=False, needed=("model_name_or_path", "output_dir"))
    with called(run):
        from vlm_lora.deploy.merge import merge as merged
        from vlm_lora.deploy.merge_report import MergeRequest
        from vlm_lora.deploy.registry.found import with_registered

        return merged(with_registered(run), MergeRequest(rows=rows, max_shard_size=max_shard_size))


def quantize(run: RunConfig, *, scheme: str, rows: int = 128, environment: Path | None = None) -> QuantizeReport:
    """Quantize a run or a whole model by llm-compressor, and write the folder to `output_dir`, proven next to it.

    Args:
        run: needs `model_name_or_path` (a folder) and `output_dir` (a new one). `dataset_name` for other rows than
            those of its training.
        scheme: `awq` or `fp8-dynamic`.
        rows: how many rows AWQ finds its scales from.
        environment: where llm-compressor is installed; None: where `vlm-lora quantize --make_environment` makes it.

    Returns:
        What was quantized, how far weights lie from what they were, and the loss before and after.

    Raises:
        UserError: it cannot be quantized so, or what was written is not the model.
    """
    from vlm_lora.backend import called
    from vlm_lora.config.early import check_early
    from vlm_lora.deploy.quantization.request import QuantizeRequest

    request = QuantizeRequest(scheme=scheme, rows=rows, environment=environment)
    check_early(run, "quantize", trains=False, needed=("model_name_or_path", "output_dir"))
    with called(run):
        from vlm_lora.deploy.quantization.quantize import quantize as quantized

        return quantized(run, request)


def push(
    folder: str | Path,
    name: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    with_rows: bool = False,
    message: str | None = None,
) -> Pushed:
    """Push a run's folder, one of its checkpoints, or a whole model to the Hub, in one commit or not at all.

    Args:
        folder: with a model or an adapter; no trainer's state of it is pushed.
        name: `OWNER/NAME` of the repository, which is made where it is not there.
        token: that may write there; None for what `HF_TOKEN` or `hf auth login` says.
        private: of a new repository; None for its owner's default.
        revision: a branch, made where it is not there; None for `main`.
        with_rows: push the files that hold rows of the data, too.
        message: of the commit.

    Returns:
        Which files were pushed, where they are now, and what stayed here.

    Raises:
        UserError: there is no whole model in the folder, or the Hub does not take it.
    """
    from vlm_lora.deploy.push import push as pushed
    from vlm_lora.training.hub_access import Repository

    repository = Repository(
        name=name,
        token=token,
        private=private,
        revision=revision,
        asked_by="vlm_lora.push",
        token_flag="token=",
        name_flag="name",
    )
    return pushed(Path(folder).expanduser(), repository, with_rows=with_rows, message=message)


def register(folder: str | Path, name: str, *, tracking_uri: str | None = None) -> Registered:
    """Register a run's folder, one of its checkpoints, or a whole model in MLflow's registry.

    Args:
        folder: with a model or an adapter; its settings, figures, data report and page are registered with it.
        name: of the registered model, of which this becomes the next version.
        tracking_uri: the store, a server or `sqlite:///FILE`; None for `MLFLOW_TRACKING_URI`, else the user's own file.

    Returns:
        The version, and the name by which `ask`, `evaluate` and `merge` take it.

    Raises:
        UserError: there is no whole model in the folder, its base is gone, mlflow is not installed, or the store
            refuses.
    """
    from vlm_lora.backend import left_as_found
    from vlm_lora.deploy.registry.register import register as registered

    with left_as_found():
        return registered(Path(folder).expanduser(), name, tracking_uri, asked_by="vlm_lora.register")


def preview(run: RunConfig, *, rows: int = 3) -> list[ShownRow]:
    """Return the first rows as the model will see them: tokens, labels, images.

    Args:
        run: needs `model_name_or_path` and `dataset_name`.
        rows: how many.

    Raises:
        UserError: as `train`.
    """
    from vlm_lora.backend import called
    from vlm_lora.config.early import check_early

    check_early(run, "preview", needed=("model_name_or_path", "dataset_name"))
    with called(run):
        from vlm_lora import pipeline

        return list(pipeline.preview(run, rows=rows).rows)


def plan(
    run: RunConfig, request: PlanRequest | None = None, *, announce: Callable[[str], object] | None = None
) -> PlanReport:
    """Predict the memory of a training run on each device, from the model's configuration and a sample of the data.

    Args:
        run: needs `model_name_or_path`; with `dataset_name` the longest of a sample of rows is planned for.
        request: devices, processes and what to assume without data; this machine's device if None.
        announce: called with one line before each simulated step.

    Returns:
        Per device the bytes by what they are for, and what to change where they do not fit.

    Raises:
        UserError: as `train`.
    """
    from vlm_lora.backend import called
    from vlm_lora.config.early import check_early

    check_early(run, "plan", needed=("model_name_or_path",))
    with called(run):
        from vlm_lora import pipeline
        from vlm_lora.memory.request import PlanRequest

        return pipeline.plan(run, request or PlanRequest(), announce or (lambda line: None))


def __getattr__(name: str) -> Any:
    """Return the two classes, whose modules are imported when they are asked for."""
    if name == "RunConfig":
        from vlm_lora.config.run_config import RunConfig

        return RunConfig
    if name == "UserError":
        from vlm_lora.errors import UserError

        return UserError
    raise AttributeError(f"module 'vlm_lora' has no attribute {name!r}")


def _with_defaults(run: RunConfig, **defaults: Any) -> RunConfig:
    raw: Mapping[str, Any] = {**defaults, **run.raw}
    return run.replaced(**raw)
