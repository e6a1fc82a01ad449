"""MLflow itself, by hand: two runs registered, found and asked by name, compared in their store.

`make check-registry` runs it in an environment of its own (`.venv/mlflow`, the main stack with the extra `mlflow`), so
that the suite's stacks stay without mlflow's two dozen packages. `python tests/check_registry.py FOLDER [URI]` prints
what it found as JSON and ends with 1 where anything is otherwise than it must be. URI is that of a server which holds
nothing yet, such as `http://127.0.0.1:5000` (`mlflow server`, of mlflow whole); by default a file in FOLDER is made.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from support.datasets import draw_chart
from support.rows import write_uneven_rows
from support.tiny import build_model_folder
from vlm_lora.cli.main import main


def said(words: Sequence[str], code: int = 0) -> tuple[str, str]:
    """Run a command; return what it wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        found = main(list(words))
    if found != code:
        raise SystemExit(f"{words}: exit code {found} and not {code}\n{out.getvalue()}\n{err.getvalue()}")
    return out.getvalue(), err.getvalue()


def trained(root: Path, name: str, *more: str) -> str:
    """Train a tiny model into a folder; return what was said."""
    words = ["train", "--model_name_or_path", str(root / "base"), "--dataset_name", str(root / "data"), "--use_cpu"]
    words += ["--output_dir", str(root / name), "--max_steps", "3", "--logging_steps", "1", "--save_strategy", "no"]
    return said([*words, "--log_level", "warning", *more])[1]


def asked(model: str, image: Path) -> str:
    """Return a model's answer."""
    return said(["ask", "--model_name_or_path", model, "--image", str(image), "--prompt", "What?", "--use_cpu"])[0]


def figures(uri: str) -> dict[str, dict[str, Any]]:
    """Return what the store says of each run, as its comparison shows it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("vlm-lora")
    assert experiment is not None
    return {
        str(run.info.run_name): {
            "eval_loss": run.data.metrics.get("eval_loss"),
            "learning_rate": run.data.params.get("learning_rate"),
            "losses": [one.value for one in client.get_metric_history(run.info.run_id, "loss")],
            "status": run.info.status,
        }
        for run in client.search_runs([experiment.experiment_id])
    }


def prepare(root: Path, uri: str | None) -> Path:
    """Make a new folder with a model, rows and an image, and name the store; return the image."""
    (root / "empty").mkdir(parents=True)
    os.environ["XDG_DATA_HOME"] = str(root / "share")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    build_model_folder("gemma3", root / "base")
    write_uneven_rows(root / "data", rows=4, validation=2)
    draw_chart(3)[0].save(root / "image.png")
    return root / "image.png"


def check(root: Path, uri: str | None) -> dict[str, Any]:
    """Do all of it in a new folder, and return what was found."""
    image = prepare(root, uri)
    told = trained(root, "a", "--output_model_name", "charts")
    assert "as models:/charts/1: an adapter, which needs its base " in told, told
    trained(root, "b", "--learning_rate", "0.02")
    second = json.loads(said(["register", str(root / "b"), "charts", "--json"])[0])
    assert (second["version"], second["kind"]) == ("2", "adapter"), second
    assert second["store"] == uri or (uri is None and second["store"].startswith("sqlite:///")), second
    os.chdir(root / "empty")
    answers = {name: asked(name, image) for name in (str(root / "a"), "models:/charts/1", str(root / "b"))}
    by_name = asked("models:/charts/latest", image)
    assert answers["models:/charts/1"] == answers[str(root / "a")]
    assert by_name == answers[str(root / "b")]
    assert by_name != answers[str(root / "a")], "the control: the two runs answer otherwise"
    fetched = list((root / "share" / "vlm-lora").glob("fetched/*/charts-*"))
    assert len(fetched) == (2 if uri else 0), "what a server holds is fetched once"
    runs = check_whole(root, second["store"])
    (root / "base").rename(root / "gone")
    for words in (["register", str(root / "a"), "charts"], ["ask", "--model_name_or_path", "models:/charts/1"]):
        more = ["--image", str(image), "--prompt", "What?", "--use_cpu"] if words[0] == "ask" else []
        told = said([*words, *more], code=1)[1]
        assert str(root / "base") in told, told
        assert "Traceback" not in told, told
    return {"answers": answers, "store": second["store"], "runs": runs}


def check_whole(root: Path, store: str) -> dict[str, Any]:
    """Merge, register and evaluate by name; return what the store says of all runs."""
    said(["merge", "models:/charts/1", "--output_dir", str(root / "merged"), "--rows", "1", "--use_cpu"])
    third = json.loads(said(["register", str(root / "merged"), "charts", "--json"])[0])
    assert (third["kind"], third["base"]) == ("merged model", None), third
    words = ["eval", "--model_name_or_path", "models:/charts/1", "--dataset_name", str(root / "data"), "--use_cpu"]
    again = json.loads(said([*words, "--output_dir", str(root / "evaluated")])[0])
    first = json.loads((root / "a" / "all_results.json").read_text())
    assert abs(again["eval_loss"] - first["eval_loss"]) < 1e-4, (again, first)
    missing = said([*words[:1], "--model_name_or_path", "models:/charts/9", *words[3:]], code=1)[1]
    assert f"charts has the versions 3, 2, 1 in {store}" in missing, missing
    held = figures(store)
    assert {"a", "b", "merged"} == set(held), held
    assert held["a"]["eval_loss"] == first["eval_loss"]
    assert len(held["a"]["losses"]) == 3
    assert held["a"]["learning_rate"] != held["b"]["learning_rate"]
    return held


if __name__ == "__main__":
    found = check(Path(sys.argv[1]).absolute(), sys.argv[2] if len(sys.argv) > 2 else None)
    sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")
