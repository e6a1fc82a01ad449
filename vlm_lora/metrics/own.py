"""A user's own metric: a Python file that `--metrics` names.

1. A file with `score(generated, accepted)`, which gives a number for a row, or a dictionary of numbers; the figures are
   means over rows.
2. A file with one metric class of `evaluate`, whose `compute` gives the figures of all rows together.

`greater_is_better = False` (or a dictionary by figure) in the file says which way is better; without it greater is. The
file runs when it is named by this setting, and is tried on a row that is made up before anything is trained.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_lora.config.scoring import metric_file, unknown_metric
from vlm_lora.errors import ConfigError
from vlm_lora.metrics.loading import load_module
from vlm_lora.metrics.measures import Found
from vlm_lora.metrics.scored import Answered, bare_name
from vlm_lora.metrics.statistics import Combine, Sums, ratio

MADE_UP = Answered(row="a made-up row", generated="4 apples", accepted=("four apples", "4 apples"))
_DIRECTION = "greater_is_better"


def own_metric(asked: str) -> OwnFunction | OwnModule:
    """Load a user's metric and try it.

    Args:
        asked: the file's path, as it was set.

    Raises:
        ConfigError: there is no such file, it has neither form, or it fails; names the line.
    """
    flag = f"--metrics {asked}"
    path = metric_file(asked)
    if (problem := unknown_metric(asked)) is not None:
        raise ConfigError(problem)
    module = _run(path, flag)
    if callable(getattr(module, "score", None)):
        return OwnFunction(path, flag, module.score, getattr(module, _DIRECTION, None))
    if _has_class(module):
        loaded = _guarded(lambda: load_module(path), path, flag, "loading it")
        return OwnModule(path, flag, loaded, getattr(module, _DIRECTION, None))
    raise ConfigError(
        f"{flag}: it has neither a function score(generated, accepted) nor a metric class of evaluate. Write def "
        "score(generated: str, accepted: list[str]) -> float, which scores one row."
    )


class OwnFunction:
    """A `score(generated, accepted)` of the user's, averaged over rows. Raises as `own_metric` does."""

    left_out: tuple[str, ...] = ()
    """What it gives and is no figure: all are numbers, or refused."""

    def __init__(self, path: Path, flag: str, score: Callable[..., Any], direction: Any) -> None:
        self._path, self._flag, self._score = path, flag, score
        self._names = tuple(self._values(MADE_UP))
        self.figures: Mapping[str, bool] = _directions(self._names, direction, flag)

    def combine(self, sums: Sums) -> Mapping[str, NDArray[np.float64]]:
        """Return the means over rows."""
        return {name: ratio(sums[..., place], sums[..., -1]) for place, name in enumerate(self._names)}

    def measure(self, answers: Sequence[Answered]) -> Found:
        """Score each row."""
        rows = [self._of_row(answer) for answer in answers]
        sums = np.array([(*row.values(), 1.0) for row in rows])
        figures = self.combine(sums.sum(axis=0))
        return Found(figures={name: float(value) for name, value in figures.items()}, rows=rows, sums=sums)

    def _of_row(self, answer: Answered) -> dict[str, float]:
        values = self._values(answer)
        if values.keys() != set(self._names):
            raise ConfigError(
                f"{self._flag}: for {answer.row} it gives the figures {', '.join(sorted(values)) or 'none'}, and for "
                f"{MADE_UP.row} {', '.join(self._names)}. Give the same for every row."
            )
        return {name: values[name] for name in self._names}

    def _values(self, answer: Answered) -> dict[str, float]:
        given = _guarded(
            lambda: self._score(answer.generated, list(answer.accepted)), self._path, self._flag, answer.row
        )
        named = given if isinstance(given, Mapping) else {self._path.stem: given}
        return _checked(named, self._flag, answer.row)


class OwnModule:
    """A metric class of the user's for `evaluate`. Raises as `own_metric` does."""

    combine: Combine | None = None
    left_out: tuple[str, ...] = ()
    """What it gives and is no number, as a list of precisions."""

    def __init__(self, path: Path, flag: str, loaded: Any, direction: Any) -> None:
        self._path, self._flag, self._loaded = path, flag, loaded
        self._names = tuple(self.measure([MADE_UP, MADE_UP]).figures)
        self.figures: Mapping[str, bool] = _directions(self._names, direction, flag)

    def measure(self, answers: Sequence[Answered]) -> Found:
        """Return the figures of all rows; references are lists of texts, or texts where its features say so."""
        accepted: list[Any] = [list(answer.accepted) for answer in answers]
        if _takes_one_text(self._loaded):
            accepted = [texts[0] for texts in accepted]
        generated = [answer.generated for answer in answers]
        where = answers[0].row if len(answers) == 1 else f"{len(answers)} rows from {answers[0].row} on"
        given = _guarded(
            lambda: self._loaded.compute(predictions=generated, references=accepted), self._path, self._flag, where
        )
        if not isinstance(given, Mapping):
            raise ConfigError(f"{self._flag}: its compute gives {given!r}, and must give a dictionary of figures.")
        plain = {name: value for name, value in given.items() if isinstance(value, numbers.Real | np.bool_)}
        self.left_out = tuple(str(name) for name in given if name not in plain)
        return Found(figures=_checked(plain, self._flag, where))


def _takes_one_text(loaded: Any) -> bool:
    """Tell whether a module's references are texts, not lists of texts."""
    features = loaded.features
    one = features[0] if isinstance(features, list) else features
    return getattr(one.get("references"), "dtype", None) == "string"


def _run(path: Path, flag: str) -> ModuleType:
    name = f"own_metric_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    sys.modules[name] = module  # where dataclasses and pickle look for what a module defines
    _guarded(lambda: loader.exec_module(module), path, flag, "loading it")
    return module


def _has_class(module: ModuleType) -> bool:
    import evaluate

    return any(
        isinstance(held, type) and issubclass(held, evaluate.EvaluationModule) and held.__module__ == module.__name__
        for held in vars(module).values()
    )


def _guarded(call: Callable[[], Any], path: Path, flag: str, where: str) -> Any:
    """Run what the user wrote; its error becomes one message with file and line.

    Args:
        call: runs it.
        path: the user's file.
        flag: as it was set.
        where: what it is run for.

    Raises:
        ConfigError: it raises anything, or exits.
    """
    try:
        return call()
    except (Exception, SystemExit) as error:
        line = _line_of(error, path)
        at = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{flag}: {at}: {type(error).__name__}: {error} ({where})") from error


def _line_of(error: BaseException, path: Path) -> int | None:
    """Return the last line of the user's file that an error passed through; `evaluate` runs a copy of the file."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).name == path.name:
        return error.lineno
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == path.name
    ]
    return lines[-1] if lines else None


def _checked(values: Mapping[Any, Any], flag: str, where: str) -> dict[str, float]:
    """Return figures as plain numbers.

    Raises:
        ConfigError: there are none, or one is no finite number.
    """
    found = {}
    for name, value in values.items():
        if not isinstance(value, numbers.Real | np.bool_) or not _is_finite(value):
            raise ConfigError(f"{flag}: '{name}' is {repr(value)[:80]} for {where}, and must be a finite number.")
        found[bare_name(str(name))] = float(value)
    if not found:
        raise ConfigError(f"{flag}: it gives no figure for {where}.")
    return found


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def _directions(names: Sequence[str], given: Any, flag: str) -> dict[str, bool]:
    """Return for each figure whether greater is better.

    Raises:
        ConfigError: what the file says is neither true, false nor that by figure.
    """
    if given is None:
        return dict.fromkeys(names, True)
    if isinstance(given, bool):
        return dict.fromkeys(names, given)
    said = {bare_name(str(name)): better for name, better in given.items()} if isinstance(given, Mapping) else {}
    if said.keys() != set(names) or not all(isinstance(better, bool) for better in said.values()):
        raise ConfigError(
            f"{flag}: {_DIRECTION} is {given!r}. Write True or False, or a dictionary with one of them for each of "
            f"its figures: {', '.join(names)}."
        )
    return {name: said[name] for name in names}
