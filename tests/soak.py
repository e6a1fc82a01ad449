"""One run that everything happens to, one after another, until it ends: kills, signals, full disks and flipped bits.

`python tests/soak.py FOLDER --minutes 30 --seed 1` prints a report as JSON and ends with 1 if a start ended as it
should not, if a flipped bit of a checkpoint was not found, or if the weights at the end are not those of the run that
nothing happened to; `--help` lists which runs there are. The less of the time is left for the steps that are left, the
later in a start something happens to it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# First: it sets what torch and pyarrow read.
from support.interrupted.forks import Start  # isort: skip
from support.interrupted.kinds import Kind, add_arguments, finish, prepare, state_of
from vlm_lora.model.manifest import NAME, State, examine

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EVENTS = ("kill", "signal", "full disk", "flipped bit")
FAULTS = 5
"""After so many it is given up."""

KEPT = 3
"""Checkpoints: with one of them damaged, the run goes on from the one before."""

SAVED = 4
"""A checkpoint every so many steps."""

STEPS_A_MINUTE = 60
"""Of the time asked for: about as many as starts that are ended soon get on by on an idle machine."""


@dataclass(kw_only=True)
class Soak:
    """The run, what has happened to it, and what was wrong with how it took that."""

    kind: Kind
    output: Path
    cache: Path
    report: dict[str, Any]
    awaited: Path | None = None
    """The file that a bit was flipped in, until a start has found it."""

    def once(self, event: str, after: int) -> bool:
        """Start the run and let something happen to it so many steps later; return whether it has ended by itself."""
        chance, done = self.kind.chance, newest(self.output)
        started = self.kind.start(self.output, cache=self.cache)
        if event:
            # Also at its very start, before it says what it has.
            started.wait_for_step(done + after if after else 0)
            time.sleep(chance.uniform(0, 0.3 if after else self.kind.begins))
            number = SIGNALS[chance.randrange(len(SIGNALS))] if event == "signal" else signal.SIGKILL
            if event == "full disk":
                budget = int(chance.choice((0, chance.uniform(0, 1), chance.uniform(0, 2))) * self.largest())
                limit(started, budget)
                # Where all files are smaller, it is fuller a little later.
                started.wait_for_step(started.step() + 2 * SAVED)
                limit(started, 0)
            else:
                started.tell(number)
        trained = started.step() > 0
        codes = started.wait()
        self.report["starts"] += 1
        self.report["faults"] += [*started.orphans(), *self.unseen(started.said(), trained=trained)]
        self.kind.note(self.report)
        if not any(codes):
            return True
        self.report["happened"][event or "nothing"] += 1
        if fault := self.fault_of(event, codes, started):
            self.report["faults"].append(f"{event}: {fault}: {started.said()[-2000:]}")
        if event == "flipped bit":
            self.flip()
        return False

    def fault_of(self, event: str, codes: list[int], started: Start) -> str:
        """Return what is wrong with how a start ended; empty where nothing is."""
        code, state, said = codes[0], state_of(self.output).get("state"), started.said()
        right = {
            "kill": code == -signal.SIGKILL,
            "flipped bit": code == -signal.SIGKILL,
            "full disk": code == 1 and said.count("error: ") == 1,
            "signal": (code == 75 and state == "preempted") or code in [128 + number for number in SIGNALS],
        }
        if not right.get(event):
            return f"{codes}, {state}"
        return "a traceback" if "Traceback" in said else ""

    def largest(self) -> int:
        """Return the size of the largest file of a checkpoint."""
        return max(path.stat().st_size for path in self.kind.whole.glob("checkpoint-*/*"))

    def flip(self) -> None:
        """Flip a bit of what the run would go on from, or of a cache; the file's time stays, as when a disk does it."""
        chance = self.kind.chance
        files = [path for path in self.cache.rglob("*") if path.is_file()]
        if self.awaited is None and chance.random() < 0.7:
            folders = sorted(self.output.glob("checkpoint-*[0-9]"), key=step_of, reverse=True)
            whole = [folder for folder in folders if examine(folder).state is State.WHOLE]
            names = json.loads((whole[0] / NAME).read_bytes())["files"] if whole else ()
            files = [whole[0] / name for name in names]
        files = sorted(path for path in files if path.stat().st_size)
        if files:
            path = chance.choice(files)
            stat, content = path.stat(), bytearray(path.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            self.report["flipped"].append(str(path.relative_to(self.kind.chosen.folder)))
            if path.is_relative_to(self.output):
                self.awaited = path

    def unseen(self, said: str, *, trained: bool) -> list[str]:
        """Return what is wrong with how a start took a flipped bit: set aside, and named if it was not killed then."""
        path = self.awaited
        if path is None or not path.parent.with_name(f"{path.parent.name}.damaged").exists():
            return []
        self.awaited = None
        self.report["found"] += 1
        shutil.rmtree(path.parent.with_name(f"{path.parent.name}.damaged"))
        return [] if path.name in said or not trained else [f"{path} was set aside, and not named: {said[-2000:]}"]


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def newest(output: Path) -> int:
    """Return the step of the newest folder of a checkpoint, whole or not; 0 for none."""
    return max([0, *map(step_of, output.glob("checkpoint-*[0-9]"))])


def limit(started: Start, budget: int) -> None:
    """Let files of more than so many bytes be cut off there in a process that runs (prlimit(2), RLIMIT_FSIZE)."""
    for rank, pid in enumerate(started.pids):
        if started.runs(rank):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (budget, resource.RLIM_INFINITY))


def soak(kind: Kind, minutes: float, steps: int) -> dict[str, Any]:
    """Run whole, then through everything; return what happened."""
    chosen, chance = kind.chosen, kind.chance
    report: dict[str, Any] = {"seed": chosen.seed, "steps": steps, "minutes": 0.0, "happened": Counter()}
    report |= {"flipped": [], "found": 0, "starts": 0, "faults": []}
    kind.run_whole(again=False)
    soaking = Soak(kind=kind, output=chosen.folder / "run", cache=chosen.folder / "run-cache", report=report)
    begun, events = time.monotonic(), list[str]()
    while len(report["faults"]) <= FAULTS:
        spent = time.monotonic() - begun
        left = 60 * minutes - spent
        events = events or chance.sample(EVENTS, len(EVENTS))
        event = events.pop() if left > 0 else ""
        # What is left of the steps, spread over the starts that there is time for.
        starts = max(1.0, left * max(1, report["starts"]) / max(spent, kind.begins))
        mean = max(0, steps - newest(soaking.output)) / starts
        if soaking.once(event, round(chance.uniform(0, 2 * mean))):
            break
    report["minutes"] = round((time.monotonic() - begun) / 60, 1)
    report["faults"] += kind.differences(soaking.output) if len(report["faults"]) <= FAULTS else []
    report["faults"] += [f"{soaking.awaited} was never found"] if soaking.awaited else []
    return report


def main(argv: list[str]) -> int:
    """Make model and data, and begin."""
    asked = argparse.ArgumentParser()
    add_arguments(asked)
    asked.add_argument("--minutes", type=float, default=30.0)
    chosen = asked.parse_args(argv)
    steps = max(20, round(STEPS_A_MINUTE * chosen.minutes))
    kind = prepare(
        chosen,
        rows=8,
        max_steps=steps,
        save_strategy="steps",
        save_steps=SAVED,
        eval_strategy="steps",
        eval_steps=8,
        save_total_limit=KEPT,
        log_level="warning",
        **({} if chosen.method == "streaming" else {"image_cache": "on"}),
    )
    return finish(soak(kind, chosen.minutes, steps), sys.stdout.write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
