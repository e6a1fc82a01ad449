"""Training that is told to end again and again, and started again by the same command until it is done.

`python tests/signal_runs.py FOLDER --signals 20 --ranks 2` sends so many of each of SIGTERM, SIGUSR1 and SIGINT at
random moments, prints a report as JSON, and ends with 1 if a start failed or was not ended as it should be, if a
process outlived it, or if a finished run differs from one that nobody told anything; `--help` lists which runs there
are. A signal goes to all ranks or to one, as chance has it, and with `--launcher` to the launcher.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

# First: it sets what torch and pyarrow read.
from support.interrupted.forks import Start  # isort: skip
from support import warm
from support.interrupted.kinds import Kind, add_arguments, finish, prepare, state_of
from support.interrupted.launched import LAUNCHERS, Launched

KINDS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STEPS = 30
EARLY = 1 / 8
"""Share of the signals that may come at any moment of a start; the others wait for its first step."""
FAULTS = 5
"""After so many it is given up."""


def tell(started: Start | Launched, number: int, kind: Kind, saved: int) -> int:
    """Send a signal at a random moment; return the step under way, 0 before the first.

    Args:
        started: what is told.
        number: the signal.
        kind: what it runs.
        saved: the step that it goes on from.
    """
    chance = kind.chance
    if chance.random() > EARLY:
        step = chance.randint(min(saved + 1, STEPS), STEPS)
        # A launched run counts from its own first step.
        started.wait_for_step(step - saved if isinstance(started, Launched) else step)
        time.sleep(chance.uniform(0, 0.2))
    else:
        time.sleep(chance.uniform(0, 1.5 * kind.begins))
    begun = started.step()
    alone = [chance.randrange(kind.chosen.ranks)] if chance.random() < 0.3 else []
    started.tell(number, alone, pause=lambda: chance.uniform(0, 0.02))
    return begun


def saved_step(output: Path) -> int:
    """Return the step that a run was ended after by a signal; 0 for none."""
    return int(str(state_of(output).get("checkpoint")).rpartition("-")[2].removesuffix("None") or 0)


def fault_of(output: Path, codes: list[int], number: int, begun: int, *, exact: bool) -> str:
    """Return what is wrong with how a run ended that was told; empty where nothing is.

    Args:
        output: its folder.
        codes: the exit codes of its ranks, or its launcher's.
        number: what it was told.
        begun: in which step; 0 for before the first.
        exact: say so where it saved a later step than it had to; else `begun` is no more than a lower limit.
    """
    state = state_of(output)
    if 75 in codes:
        saved = saved_step(output)
        if state.get("state") != "preempted" or set(codes) != {75}:
            return f"{codes}, {state}"
        # One step begins between the look and the signal; ranks agree on the one after it.
        late = exact and begun and saved > begun + 1 + (len(codes) > 1)
        return f"saved {saved}, told in {begun}" if late else ""
    # Before the first step, and in the evaluation after the last one, which no checkpoint holds.
    if {128 + number, -number} & set(codes) and (begun in (0, STEPS) or not exact):
        return "" if state.get("state") in (None, "preempted", "running") else f"{codes}, {state}"
    return f"{codes}, told in step {begun}, {state}"


def signal_runs(kind: Kind, signals: int, launcher: str | None, *, cold: bool) -> dict[str, Any]:
    """Run whole, then told; return what happened."""
    chosen, chance = kind.chosen, kind.chance
    report: dict[str, Any] = {"seed": chosen.seed, "signals": Counter(), "codes": Counter()}
    report |= {"told_in_steps": [], "starts": 0, "finished": 0, "faults": []}
    kind.run_whole()
    left = [number for number in KINDS for _ in range(signals)]
    chance.shuffle(left)
    number = 0
    while left or (chosen.folder / f"run-{number}").exists():
        output = chosen.folder / f"run-{number}"
        report["starts"] += 1
        kind.note(report)
        place = chosen.folder / f"start-{report['starts']}"
        started = Launched(kind.words(output), launcher, place, cold=cold) if launcher else kind.start(output)
        told = left[-1] if left else None
        begun = tell(started, told, kind, saved_step(output)) if told else 0
        if isinstance(started, Start) and started.first_end() not in (0, 75):
            started.tell(signal.SIGTERM)  # as a launcher does: the others may wait for it
        codes = started.wait()
        report["codes"][str(codes)] += 1
        report["faults"] += started.orphans()
        if any(codes):
            fault = fault_of(output, codes, told, begun, exact=not launcher) if told else f"nobody told it: {codes}"
            if fault:
                report["faults"].append(f"{told!r}: {fault}: {started.said()[-1500:]}")
        else:
            report["faults"] += kind.differences(output)
            report["finished"] += 1
            number += 1
        if len(report["faults"]) > FAULTS:
            break
        if told and any(codes):
            report["signals"][told.name] += 1
            report["told_in_steps"].append(begun)
            left.pop()
    return report


def main(argv: list[str]) -> int:
    """Make model and data, and tell."""
    asked = argparse.ArgumentParser()
    add_arguments(asked)
    asked.add_argument("--signals", type=int, default=4, help="of each kind")
    asked.add_argument("--launcher", choices=LAUNCHERS, help="start the ranks by it")
    asked.add_argument("--cold", action="store_true", help="with --launcher: no process is forked from a warm one")
    chosen = asked.parse_args(argv)
    os.environ.setdefault(warm.FOLDER, str(chosen.folder))  # pytest has its own
    # A shell that starts this in the background has it ignore Ctrl-C, and all that it starts; it is pressed here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind = prepare(
        chosen, rows=8, max_steps=STEPS, save_strategy="no", eval_strategy="steps", eval_steps=2, log_level="info"
    )
    try:
        return finish(signal_runs(kind, chosen.signals, chosen.launcher, cold=chosen.cold), sys.stdout.write)
    finally:
        warm.let_go()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
