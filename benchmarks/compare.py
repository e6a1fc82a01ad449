"""Contenders side by side: equal first loss before any timing, then rounds in which each takes its turn."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.contenders import EPOCH, Contender, Job, StepFigures, StopTrainingError, Turns, run

TOLERANCE = 1e-4
"""Of first losses, relative: the same rows, labels and weights differ by rounding alone (about 1e-6 in float32)."""


class UnequalLossError(Exception):
    """Contenders do not train the same: nothing may be timed."""


class ContenderError(Exception):
    """A contender's process has failed."""


class OutOfTimeError(Exception):
    """A budget is used up."""


Left = Callable[[], float]
"""Returns the seconds that are left."""


def unlimited() -> float:
    """Return how much time is left where there is no budget."""
    return math.inf


def require_equal_losses(losses: Mapping[str, float], tolerance: float = TOLERANCE) -> None:
    """Refuse a comparison whose contenders see another loss on the same first batch.

    Args:
        losses: the first step's, by contender.
        tolerance: relative to the first one.

    Raises:
        UnequalLossError: names both and says their losses.
    """
    first, *others = losses.items()
    for name, loss in others:
        if not abs(loss - first[1]) <= tolerance * abs(first[1]):
            raise UnequalLossError(
                f"{name} starts at a loss of {loss:.6f}, {first[0]} at {first[1]:.6f}: they do not train the same, so "
                "their times say nothing."
            )


def require_equal_counts(counts: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a comparison whose contenders count other tokens, which a loss of random models may hide.

    Args:
        counts: of the first step or epoch, by contender.

    Raises:
        UnequalLossError: names both and says their counts.
    """
    first, *others = counts.items()
    for name, count in others:
        if count != first[1]:
            raise UnequalLossError(
                f"{name} has {count} tokens (supervised, and computed where rows are the same), {first[0]} {first[1]}: "
                "they do not train the same, so their times say nothing."
            )


def _work(pipe: Connection, contender: Contender, job: Job, *, peak: bool) -> None:
    """Train a contender in this process, as the pipe says; send its peak of memory at the end where that is wanted."""

    def next_turn(done: list[StepFigures]) -> int:
        pipe.send([asdict(step) for step in done])
        wanted: int = pipe.recv()
        return wanted

    _be_quiet()
    found: list[int] = []

    def measured(trainer: Any, train: Callable[[], Any]) -> None:
        found.append(_peak(trainer, train))
        raise StopTrainingError

    try:
        around = measured if peak else None
        run(contender, job, Turns(next_turn, synchronizer(job.device), around, memory_of(job.device)))
        if peak:
            pipe.send(found[0])
    except BaseException:
        pipe.send(traceback.format_exc())
    pipe.close()


def _peak(trainer: Any, train: Callable[[], Any]) -> int:
    """Train; return the most bytes that were allocated at once, weights among them."""
    import torch

    from support.peaks import highest_on_cpu, storage_bytes

    def until_stopped() -> None:
        with suppress(StopTrainingError):
            train()

    if next(trainer.model.parameters()).is_cuda:
        torch.cuda.reset_peak_memory_stats()
        until_stopped()
        return torch.cuda.max_memory_allocated()
    return storage_bytes([*trainer.model.parameters(), *trainer.model.buffers()]) + highest_on_cpu(until_stopped)


def synchronizer(device: str) -> Any:
    """Return what waits for a device to have finished."""
    if device != "cuda":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def memory_of(device: str) -> Callable[[], int]:
    """Return what tells the most bytes that a device has given to this process."""
    if device != "cuda":
        return lambda: 0
    import torch

    return torch.cuda.max_memory_allocated


def processes(device: str) -> Any:
    """Return how processes are started: forked from one that has imported everything, or, for CUDA, each anew.

    A library that looks for GPUs while it is imported would leave CUDA useless in what is forked later.
    """
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.preloaded"])
    return context


def in_own_process(
    call: Callable[..., Any], *args: Any, device: str = "cpu", left: Left = unlimited, **kwargs: Any
) -> Any:
    """Return what a function returns in a process of its own; its arguments and its answer are pickled.

    Raises:
        ContenderError: it failed.
        OutOfTimeError: no time was left for it.
    """
    context = processes(device)
    here, there = context.Pipe()
    process = context.Process(target=_call, args=(there, call, args, kwargs))
    with _no_main():
        process.start()
    there.close()
    try:
        failed, answer = _received(here, left)
    except EOFError:
        failed, answer = True, f"its process ended (exit code {process.exitcode})"
    except OutOfTimeError:
        process.kill()
        raise
    process.join()
    if failed:
        raise ContenderError(f"{call.__name__}: {answer}")
    return answer


def _received(pipe: Connection, left: Left) -> Any:
    seconds = left()
    if math.isfinite(seconds) and not pipe.poll(max(0.0, seconds)):
        raise OutOfTimeError
    return pipe.recv()


def _call(pipe: Connection, call: Callable[..., Any], args: Any, kwargs: Any) -> None:
    _be_quiet()
    try:
        pipe.send((False, call(*args, **kwargs)))
    except BaseException:
        pipe.send((True, traceback.format_exc()))


def _be_quiet() -> None:
    """What contenders and libraries print is no part of the table; BENCHMARKS_SHOW=1 shows it."""
    if not os.environ.get("BENCHMARKS_SHOW"):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)


class Worker:
    """A contender's process.

    Args:
        contender: who.
        job: what it trains.
        peak: whether its memory is measured, which makes it slower.
        left: the seconds that it may take.
    """

    def __init__(self, contender: Contender, job: Job, *, peak: bool = False, left: Left = unlimited) -> None:
        self.name = contender.name
        self._left = left
        self._began = time.perf_counter()
        context = processes(job.device)
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there, contender, job), kwargs={"peak": peak})
        with _no_main():
            self._process.start()
        there.close()

    def wait(self) -> list[StepFigures]:
        """Return the steps of the turn when they are done.

        Raises:
            ContenderError: the process failed; the message has its traceback.
        """
        return [StepFigures(**step) for step in self._answer()]

    def peak(self) -> int:
        """End it; return the most bytes it had at once."""
        self._pipe.send(0)
        return int(self._answer())

    def _answer(self) -> Any:
        try:
            answer = _received(self._pipe, self._left)
        except EOFError:
            raise ContenderError(f"{self.name}: its process ended (exit code {self._process.exitcode})") from None
        if isinstance(answer, str):
            raise ContenderError(f"{self.name}: {answer}")
        return answer

    def start(self) -> float:
        """Take the first step; return the seconds since the process was started."""
        self.first = self.take(1)[0]
        return time.perf_counter() - self._began

    def take(self, steps: int) -> list[StepFigures]:
        """Let it take steps, or the rest of the epoch with `EPOCH`, and return their figures."""
        self._pipe.send(steps)
        return self.wait()

    def end(self) -> None:
        """Let it end; kill it where it does not."""
        if self._left() <= 0:
            self._process.kill()
        if self._process.is_alive():
            try:
                self._pipe.send(0)
            except OSError:
                self._process.kill()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def _no_main() -> Iterator[None]:
    """A new process imports the parent's main module: `python -m benchmarks` need not be imported again."""
    with _ONE_AT_A_TIME:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = sys.modules[__name__]
        try:
            yield
        finally:
            sys.modules["__main__"] = main


_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def started(
    contenders: Sequence[Contender], job: Job, *, together: bool = False, left: Left = unlimited
) -> Iterator[list[Worker]]:
    """Start contenders, each up to before its first step: one after the other, or all at once.

    Raises:
        ContenderError: one failed.
        OutOfTimeError: no time was left.
    """
    workers: list[Worker] = []
    try:
        for contender in contenders:
            workers.append(Worker(contender, job, left=left))
            if not together:
                workers[-1].wait()
        if together:
            for worker in workers:
                worker.wait()
        yield workers
    finally:
        for worker in workers:
            worker.end()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rounds of several contenders."""

    losses: Mapping[str, float]
    """Of the first step, or of the first epoch."""
    rounds: Mapping[str, Sequence[Sequence[StepFigures]]]
    """By contender, the steps of each round."""
    first: Mapping[str, Sequence[StepFigures]] = field(default_factory=dict)
    """By contender, the steps of the first epoch, which is not timed."""
    startup: Mapping[str, float] = field(default_factory=dict)
    """Seconds on the clock until the first step was done, imports left out."""

    def costs(self, name: str, *, fetching: bool = False, wall: bool = False) -> list[float]:
        """Return a contender's seconds in each round.

        Args:
            name: of the contender.
            fetching: include the CPU time of fetching batches.
            wall: seconds on the clock instead of CPU time.
        """
        return [
            sum(step.wall if wall else step.cpu + (step.fetching if fetching else 0.0) for step in steps)
            for steps in self.rounds[name]
        ]

    def ratios(self, name: str, against: str, *, fetching: bool = False, wall: bool = False) -> list[float]:
        """Return how many times the cost of another a contender's is, round by round."""
        ours, theirs = (self.costs(each, fetching=fetching, wall=wall) for each in (name, against))
        return [mine / other for mine, other in zip(ours, theirs, strict=True)]

    def tokens(self, name: str) -> int:
        """Return the tokens that a contender computed in all epochs, or rounds; how many depends on the draw."""
        return sum(step.tokens for steps in (*self.rounds[name], self.first.get(name, ())) for step in steps)


def compare(
    contenders: Sequence[Contender],
    job: Job,
    *,
    rounds: int,
    steps: int,
    together: bool = False,
    tolerance: float = TOLERANCE,
    left: Left = unlimited,
) -> Comparison:
    """Let contenders take turns, A B C A B C.

    Args:
        contenders: by order.
        job: what they train.
        rounds: how many turns each has.
        steps: of each turn.
        together: start them all at once.
        tolerance: of first losses, relative.
        left: the seconds that all of it may take; rounds end before they are used up.

    Raises:
        UnequalLossError: the first steps have different losses; nothing was timed.
        ContenderError: one failed.
        OutOfTimeError: not even three rounds were done.
    """
    with started(contenders, job, together=together, left=left) as workers:
        startup = {worker.name: worker.start() for worker in workers}
        losses = {worker.name: worker.first.loss for worker in workers}
        require_equal_losses(losses, tolerance)
        require_equal_counts({worker.name: (worker.first.supervised, worker.first.tokens) for worker in workers})
        for contender, worker in zip(contenders, workers, strict=True):
            if contender.warm_steps:
                worker.take(contender.warm_steps)
        found: dict[str, list[list[StepFigures]]] = {worker.name: [] for worker in workers}
        for number in range(rounds):
            began = time.monotonic()
            for worker in workers:
                found[worker.name].append(worker.take(steps))
            if number + 1 >= LEAST_ROUNDS and left() < 2 * (time.monotonic() - began):
                break
    return Comparison(losses=losses, rounds=found, startup=startup)


LEAST_ROUNDS = 3


def compare_epochs(contenders: Sequence[Contender], job: Job, *, rounds: int) -> Comparison:
    """Let contenders take turns of whole epochs; their batches may be of other rows each.

    Give them a learning rate of 0: then the first epoch has one loss per supervised token, whatever the order.

    Raises:
        UnequalLossError: first epochs have different losses; nothing was timed.
        ContenderError: one failed.
    """
    with started(contenders, job) as workers:
        first = {worker.name: worker.take(EPOCH) for worker in workers}
        losses = {name: mean_loss(steps) for name, steps in first.items()}
        require_equal_losses(losses)
        require_equal_counts({name: (sum(step.supervised for step in steps),) for name, steps in first.items()})
        found: dict[str, list[list[StepFigures]]] = {worker.name: [] for worker in workers}
        for _ in range(rounds):
            for worker in workers:
                found[worker.name].append(worker.take(EPOCH))
    return Comparison(losses=losses, rounds=found, first=first)


def mean_loss(steps: Sequence[StepFigures]) -> float:
    """Return the loss per supervised token of several steps."""
    return sum(step.loss * step.supervised for step in steps) / sum(step.supervised for step in steps)


def measure_peak(contender: Contender, job: Job, *, steps: int = 2) -> tuple[float, int]:
    """Return a contender's first loss and the most bytes it has at once in its first steps, in a process of its own.

    Raises:
        ContenderError: it failed.
    """
    worker = Worker(contender, job, peak=True)
    try:
        worker.wait()
        loss = worker.take(1)[0].loss
        if steps > 1:
            worker.take(steps - 1)
        return loss, worker.peak()
    finally:
        worker.end()
