"""Head and loss in chunks against all logits at once: CPU time, peak memory, loss and gradients.

    python -m benchmarks.head_loss [--rows 4] [--answer 300] [--columns 262144] [--hidden 640] [--rounds 5]

A head of `columns` x `hidden` and nothing else. Times are CPU seconds of one forward and backward pass, in turns within
one process; peaks are those of resident memory above what was resident before, each in a process of its own. A trained
head's gradient, as large as its weight, is in its peak on both sides. Loss and gradients are compared before anything
is timed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

from benchmarks import ROOT
from benchmarks.compare import UnequalLossError
from benchmarks.figures import Figure, spread
from vlm_lora.model.objective import SupervisedHead

SHORT = 8
"""Supervised tokens of a short answer."""
MIB = 2**20
MOST_MIB, MOST_SHORT = 450, 1.03
MOST_TIME = {"frozen": 1.1, "trained": 1.6}
"""The goals; of the memory, a trained head's own gradient not counted."""
MOST_OFF = 1.5e-6
"""Sums over 262,144 columns in fp32: the hidden states' gradients are 7.5e-7 (all at once) and 6.5e-7 (in chunks) from
those in float64, and 1e-6 from one another."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured."""

    rows: int = 4
    answer: int = 300
    columns: int = 262_144
    hidden: int = 640


class Head(nn.Module):
    """A model that is nothing but its head."""

    def __init__(self, size: Size, *, trained: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(size.hidden, size.columns, bias=False)
        self.head.weight.requires_grad_(trained)
        text = SimpleNamespace()
        self.config = SimpleNamespace(model_type="gemma3", get_text_config=lambda: text)

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the head makes of hidden states `(B, T, H)`."""
        return self.head(hidden)  # type: ignore[no-any-return]


class Step:
    """One forward and backward pass, either way."""

    def __init__(self, size: Size, *, trained: bool) -> None:
        self.model = Head(size, trained=trained)
        self._head = SupervisedHead(self.model)
        generator = torch.Generator().manual_seed(1)
        shape = (size.rows, size.answer)
        self.hidden = torch.randn(*shape, size.hidden, generator=generator).requires_grad_()
        self.targets = torch.randint(size.columns, shape, generator=generator)
        self._positions = torch.arange(size.answer).expand(shape).contiguous()

    def run(self, *, chunked: bool) -> torch.Tensor:
        """Take the step and return its loss."""
        self.hidden.grad = self.model.head.weight.grad = None
        if chunked:
            with self._head.on(self._positions, self.targets, self._positions.numel()):
                output = self.model(self.hidden)
            loss = self._head.losses(output, self.targets).sum()
        else:
            logits = self.model(self.hidden)
            loss = functional.cross_entropy(logits.float().flatten(0, 1), self.targets.flatten(), reduction="sum")
            del logits
        loss = loss / self._positions.numel()
        loss.backward()
        return loss.detach()

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradients of the last step."""
        found = (self.hidden.grad, self.model.head.weight.grad)
        return [gradient.clone() for gradient in found if gradient is not None]


def difference(size: Size, *, trained: bool) -> float:
    """Return the largest relative difference of loss and gradients (their norms) between the two ways.

    Raises:
        UnequalLossError: it is more than `MOST_OFF`, or other targets make none.
    """
    step = Step(size, trained=trained)
    plain, expected = step.run(chunked=False), step.gradients()
    chunked, found = step.run(chunked=True), step.gradients()
    pairs = [(chunked, plain), *zip(found, expected, strict=True)]
    largest = max(float((one - other).norm() / other.norm()) for one, other in pairs)
    few = Step(replace(size, answer=min(size.answer, SHORT)), trained=trained)
    right = few.run(chunked=False)
    few.targets = few.targets.roll(1)
    control = abs(float(few.run(chunked=True) / right) - 1)
    if largest > MOST_OFF or control < 1e-5:
        raise UnequalLossError(f"Head and loss in chunks: {largest:.2g} off; with other targets {control:.2g}.")
    return largest


def time_ratios(size: Size, rounds: int, *, trained: bool, warm: bool = False) -> list[float]:
    """Return the CPU time of a chunked step over that of an unchunked one, for each of the rounds, taken in turns.

    Args:
        size: of the steps.
        rounds: how many.
        trained: whether the head is.
        warm: this process has taken such steps before; else one more round warms up.
    """
    step = Step(size, trained=trained)
    ratios = []
    for _ in range(rounds + (not warm)):
        seconds = {}
        for chunked in (False, True):
            start = time.process_time()
            step.run(chunked=chunked)
            seconds[chunked] = time.process_time() - start
        ratios.append(seconds[True] / seconds[False])
    return ratios[-rounds:]


def peak(size: Size, *, trained: bool, chunked: bool) -> float:
    """Return the MiB that one step adds to this process's resident memory at most; call it once in a process."""
    step = Step(size, trained=trained)
    before = _status("VmRSS")
    step.run(chunked=chunked)
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """Return a figure of this process in MiB; getrusage's peak would begin with that of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def peak_elsewhere(size: Size, *, trained: bool, chunked: bool) -> float:
    """Return `peak` of a process of its own."""
    words = [f"--{name}={value}" for name, value in asdict(size).items()]
    words += ["--peak", "trained" if trained else "frozen", "chunked" if chunked else "whole"]
    command = [sys.executable, "-m", "benchmarks.head_loss", *words]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def figures_of(size: Size, rounds: int) -> list[Figure]:
    """Return the figures of one size.

    Raises:
        UnequalLossError: the two ways do not give one loss and one gradient.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    shape = f"{size.rows} x {size.answer} tokens, {size.columns:,} x {size.hidden}"
    for way, most in MOST_TIME.items():
        trained = way == "trained"
        off = difference(size, trained=trained)
        long = time_ratios(size, rounds, trained=trained, warm=True)
        gradient = size.columns * size.hidden * 4 / MIB if trained else 0
        chunked, whole = (peak_elsewhere(size, trained=trained, chunked=each) - gradient for each in (True, False))
        note = f"{shape}; all logits at once {whole:,.0f} MiB; loss and gradients {off:.1e} off"
        short = time_ratios(replace(size, answer=SHORT), 3 * rounds, trained=trained)
        found += [
            Figure(
                name=f"{way} head: peak of head and loss{' above its gradient' if trained else ''}",
                value=chunked,
                goal=MOST_MIB,
                unit="MiB",
                note=note,
            ),
            spread(f"{way} head: chunks / all at once", long, goal=most),
            spread(f"{way} head: the same, answers of {SHORT} tokens", short, goal=MOST_SHORT),
        ]
    torch.set_num_threads(threads)
    return found


def figures(place: Path, rounds: int) -> list[Figure]:
    """Return the figures as `python -m benchmarks` wants them, of a narrower head; `place` is not needed."""
    return figures_of(replace(Size(), hidden=128), min(rounds, 3))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    words = parser.parse_args()
    size = Size(**{name: getattr(words, name) for name in asdict(Size())})
    if words.peak:
        torch.set_num_threads(1)
        print(peak(size, trained=words.peak[0] == "trained", chunked=words.peak[1] == "chunked"))
        return
    for figure in figures_of(size, words.rounds):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
