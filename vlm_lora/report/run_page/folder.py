"""What lies in a run's folder, read as it is: any file may be missing, old, or broken."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_lora.config.files import read_mapping
from vlm_lora.config.scoring import is_score, less_is_better
from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.run_record import numbered_checkpoints

STATE = "trainer_state.json"
PREDICTIONS = "predictions.jsonl"
SETTINGS = ("run_config.yaml", "eval_config.yaml")
RECORDS = ("run.json", "eval_run.json")
"""Of a training, and of a run that measured alone."""
RUN_FILES = (STATE, *SETTINGS, "all_results.json", "eval_results.json", PREDICTIONS, *RECORDS, "data_report.json")
"""A folder with any of these is a run's."""

_ROW = re.compile(r"(?P<file>.*?) row (?P<row>\d+)(?: \((?:key (?P<key>.*?))?(?:, )?(?:line (?P<line>\d+))?\))?")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row of `predictions.jsonl`."""

    number: int
    """Its place in the file, counting from 0."""
    source: str
    generated: str
    accepted: tuple[str, ...]
    exact: bool | None
    prompt: str | None
    """None where an earlier version wrote the file."""
    images: tuple[str, ...]
    """As the row names them."""
    scores: Mapping[str, float]
    loss: float | None
    """Mean nats of a supervised token; None where it is not known."""
    boxes: Sequence[Mapping[str, Any]]
    expected_boxes: Sequence[Mapping[str, Any]]

    @property
    def place(self) -> tuple[str, int | None]:
        """File (or data set) and row of it that the row came from; no row where the source names none."""
        match = _ROW.fullmatch(self.source)
        return (match["file"], int(match["row"])) if match else (self.source, None)

    @property
    def line(self) -> int | None:
        """Line of the file that the row begins in, counting from 1; None where it is of no text file."""
        match = _ROW.fullmatch(self.source)
        return int(match["line"]) if match and match["line"] else None

    @property
    def badness(self) -> float:
        """How far from right the answer is: 0 where all its scores are the best there are, 1 where all are the worst.

        Scores without an upper end, such as error rates, count as 1 from there on. A row without any counts by exact
        match.
        """
        away = [value if less_is_better(name) else 1 - value for name, value in self.scores.items()]
        if not away:
            return 0.0 if self.exact else 1.0
        return sum(min(max(one, 0.0), 1.0) for one in away) / len(away)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What a run left behind."""

    path: Path
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`run_config.yaml`; of an evaluation `eval_config.yaml`."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """`trainer_state.json` without its log, of the folder or of its last checkpoint."""
    log: Sequence[Mapping[str, Any]] = ()
    """What was logged, in order."""
    results: Mapping[str, Any] = field(default_factory=dict)
    data_report: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    """`run.json`; of an evaluation `eval_run.json`."""
    predictions: Sequence[Prediction] = ()
    faults: Sequence[str] = ()
    """What could not be read."""

    @property
    def best(self) -> str | None:
        """Name of the best checkpoint, where one was chosen."""
        named = self.state.get("best_model_checkpoint")
        return Path(str(named)).name if named else None

    @property
    def effective(self) -> Mapping[str, Any]:
        """The settings, with the defaults of the trainer as far as `run.json` has them."""
        known = self.identity.get("settings")
        return {**(known if isinstance(known, Mapping) else {}), **self.settings}

    @property
    def directory(self) -> Path:
        """Where the run was started, which its relative paths begin at; the folder of now where that is not known."""
        named = self.identity.get("directory")
        return Path(named) if isinstance(named, str) else Path()

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """What was logged of each evaluation, in order."""
        return [entry for entry in self.log if any(key.startswith("eval_") for key in entry)]

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the run's results by name, without what is no score."""
        return {name: float(value) for name, value in self.results.items() if is_score(name) and is_figure(value)}


def is_figure(value: Any) -> bool:
    """Say whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_run(path: Path, more: Sequence[Mapping[str, Any]] = ()) -> RunFolder:
    """Read a run's folder.

    Args:
        path: the run's `--output_dir`.
        more: what was logged, where the run knows of more than it has written.

    Raises:
        ConfigError: there is no such folder, or no file of a run in it.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder. Name the --output_dir of a run.")
    if not holds_run(path) and not more:
        raise ConfigError(
            f"{path} holds no run: none of {', '.join(RUN_FILES)} is there. Name the --output_dir of one."
        )
    faults: list[str] = []
    checkpoints = _checkpoints(path)
    states = [_object(folder / STATE, faults) for folder in [*checkpoints, path]]
    state = max(states, key=lambda one: (_steps(one), len(_logged(one))), default={})
    log = _logged(state)
    return RunFolder(
        path=path,
        name=path.resolve().name,
        settings=_settings(path, faults),
        state={key: value for key, value in state.items() if key != "log_history"},
        log=[*log, *(entry for entry in more if _steps({"global_step": entry.get("step")}) > _last_step(log))],
        results={**_object(path / "all_results.json", faults), **_object(path / "eval_results.json", faults)},
        data_report=_object(path / "data_report.json", faults),
        identity=next((found for name in RECORDS if (found := _object(path / name, faults))), {}),
        predictions=_predictions(path / PREDICTIONS, faults),
        faults=tuple(faults),
    )


def holds_run(path: Path) -> bool:
    """Say whether a folder holds files of a run, or a checkpoint."""
    return bool(_checkpoints(path)) or any((path / name).is_file() for name in RUN_FILES)


def _checkpoints(path: Path) -> list[Path]:
    return [folder for _, folder in numbered_checkpoints(path) if folder.is_dir()]


def _steps(state: Mapping[str, Any]) -> int:
    step = state.get("global_step")
    return int(step) if step is not None and is_figure(step) else -1


def _logged(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [entry for entry in _listed(state.get("log_history")) if isinstance(entry, Mapping)]


def _last_step(log: Sequence[Mapping[str, Any]]) -> int:
    return max((_steps({"global_step": entry.get("step")}) for entry in log), default=-1)


def _object(path: Path, faults: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file; empty where it is missing or broken, which is noted."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        faults.append(f"{path} cannot be read ({error}), so what it says is missing here.")
        return {}
    if isinstance(found, dict):
        return found
    faults.append(f"{path} holds no JSON object, so what it says is missing here.")
    return {}


def _settings(path: Path, faults: list[str]) -> Mapping[str, Any]:
    for name in SETTINGS:
        if (path / name).is_file():
            try:
                return read_mapping(path / name)
            except (ConfigError, RecursionError) as error:
                faults.append(f"{path / name}: {error}" if isinstance(error, RecursionError) else str(error))
    return {}


def _predictions(path: Path, faults: list[str]) -> list[Prediction]:
    found: list[Prediction] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return found
    except (OSError, ValueError) as error:
        faults.append(f"{path} cannot be read ({error}).")
        return found
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            found.append(_prediction(number, record))
        else:
            faults.append(f"{path} line {number + 1} is no JSON object; it is left out.")
    return found


def _prediction(number: int, record: Mapping[str, Any]) -> Prediction:
    exact, loss, prompt = record.get("exact"), record.get("loss"), record.get("prompt")
    scores = record.get("scores")
    return Prediction(
        number=number,
        source=str(record.get("source", f"row {number}")),
        generated=str(record.get("generated", "")),
        accepted=tuple(map(str, _listed(record.get("accepted")))),
        exact=exact if isinstance(exact, bool) else None,
        prompt=None if prompt is None else str(prompt),
        images=tuple(map(str, _listed(record.get("images")))),
        scores={str(name): float(value) for name, value in scores.items() if is_figure(value)}
        if isinstance(scores, Mapping)
        else {},
        loss=float(loss) if loss is not None and is_figure(loss) else None,
        boxes=[box for box in _listed(record.get("boxes")) if isinstance(box, Mapping)],
        expected_boxes=[box for box in _listed(record.get("expected_boxes")) if isinstance(box, Mapping)],
    )


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ([] if value is None else [value])
