"""Head and loss in chunks against all logits at once: CPU time, peak memory, loss and gradients.

    python benchmarks/head_loss.py [--rows 4] [--answer 300] [--columns 262144] [--hidden 640] [--rounds 5] [--json]

A head of `columns` x `hidden` and nothing else. Times are CPU seconds of one forward and backward pass, in turns within
one process; peaks are those of resident memory above what was resident before, each in a process of its own. A trained
head's gradient, as large as its weight, is in its peak on both sides. Loss and gradients are compared before anything
is timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from vlm_lora.model.objective import SupervisedHead  # noqa: E402

SHORT = 8
"""Supervised tokens of a short answer."""
WAYS = ("frozen", "trained")
MIB = 2**20


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
        self._targets = torch.randint(size.columns, shape, generator=generator)
        self._positions = torch.arange(size.answer).expand(shape).contiguous()

    def run(self, *, chunked: bool) -> torch.Tensor:
        """Take the step and return its loss."""
        self.hidden.grad = self.model.head.weight.grad = None
        if chunked:
            with self._head.on(self._positions, self._targets, self._positions.numel()):
                output = self.model(self.hidden)
            loss = self._head.losses(output, self._targets).sum()
        else:
            logits = self.model(self.hidden)
            loss = functional.cross_entropy(logits.float().flatten(0, 1), self._targets.flatten(), reduction="sum")
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
        SystemExit: they are not equal, or a control is.
    """
    step = Step(size, trained=trained)
    plain, expected = step.run(chunked=False), step.gradients()
    chunked, found = step.run(chunked=True), step.gradients()
    pairs = [(chunked, plain), *zip(found, expected, strict=True)]
    largest = max(float((one - other).norm() / other.norm()) for one, other in pairs)
    step._targets = step._targets.roll(1)
    control = abs(float(step.run(chunked=True) / plain) - 1)
    if largest > 1e-6 or control < 1e-4:
        raise SystemExit(f"Not equal: {largest:.2g} relative; with other targets {control:.2g}.")
    return largest


def time_ratio(size: Size, rounds: int, *, trained: bool) -> dict[str, float]:
    """Return the CPU time of a chunked step over that of an unchunked one: median and quartiles of rounds in turns."""
    step = Step(size, trained=trained)
    ratios, plain = [], []
    for number in range(rounds + 1):
        seconds = {}
        for chunked in (False, True):
            start = time.process_time()
            step.run(chunked=chunked)
            seconds[chunked] = time.process_time() - start
        if number:  # the first round warms up
            ratios.append(seconds[True] / seconds[False])
            plain.append(seconds[False])
    low, middle, high = statistics.quantiles(ratios, n=4) if rounds > 1 else [ratios[0]] * 3
    return {"median": middle, "low": low, "high": high, "unchunked_seconds": statistics.median(plain)}


def peak(size: Size, *, trained: bool, chunked: bool) -> float:
    """Return the MiB that one step adds to this process's resident memory at most; call it once in a process."""
    step = Step(size, trained=trained)
    before = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    step.run(chunked=chunked)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / MIB


def peak_elsewhere(size: Size, *, trained: bool, chunked: bool) -> float:
    """Return `peak` of a process of its own."""
    words = [f"--{name}={value}" for name, value in asdict(size).items()]
    words += ["--peak", "trained" if trained else "frozen", "chunked" if chunked else "whole"]
    command = [sys.executable, __file__, *words]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Return everything that is measured, by way."""
    found: dict[str, Any] = {"size": asdict(size), "threads": torch.get_num_threads()}
    short = Size(rows=size.rows, answer=SHORT, columns=size.columns, hidden=size.hidden)
    for way in WAYS:
        trained = way == "trained"
        found[way] = {
            "largest_difference": difference(size, trained=trained),
            "time_ratio": time_ratio(size, rounds, trained=trained),
            "short_time_ratio": time_ratio(short, 3 * rounds, trained=trained),
            "peak_mib": peak_elsewhere(size, trained=trained, chunked=True),
            "unchunked_peak_mib": peak_elsewhere(size, trained=trained, chunked=False),
        }
    return found


def table(found: dict[str, Any]) -> str:
    """Return the figures as a table in Markdown."""
    lines = [
        "| Head | Peak, MiB | All logits at once | CPU time, ratio | Short answers | Difference |",
        "|---|" * 1 + "---|" * 5,
    ]
    for way in WAYS:
        each = found[way]
        times = [f"{each[key]['median']:.2f} [{each[key]['low']:.2f}, {each[key]['high']:.2f}]" for key in _TIMES]
        lines.append(
            f"| {way} | {each['peak_mib']:,.0f} | {each['unchunked_peak_mib']:,.0f} | {' | '.join(times)} | "
            f"{each['largest_difference']:.1e} |"
        )
    return "\n".join(lines)


_TIMES = ("time_ratio", "short_time_ratio")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    words = parser.parse_args()
    size = Size(**{name: getattr(words, name) for name in asdict(Size())})
    torch.set_num_threads(1)
    if words.peak:
        print(peak(size, trained=words.peak[0] == "trained", chunked=words.peak[1] == "chunked"))
        return
    found = measure(size, words.rounds)
    print(json.dumps(found, indent=2) if words.json else table(found))


if __name__ == "__main__":
    main()
