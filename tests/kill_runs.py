"""Training that is killed again and again, and started again by the same command until it is done.

`python tests/kill_runs.py FOLDER --kills 30` prints a report as JSON and ends with 1 if a start was refused or failed,
or if a finished run differs from one that nobody killed; `--help` lists which runs there are. A sixth of the kills each
comes at a random moment, at a random change of the output folder, and while results, manifests, caches and the trained
model are written. The seed, which the report names, decides where. At the end comes the control, for runs with dropout
in one process: killed in its last step, and the generators' state taken out of what it goes on from, such a run has to
end with other weights.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

# First: it sets what torch and pyarrow read.
from support.interrupted.forks import Start, in_fork  # isort: skip
from support.interrupted.changes import KINDS as CHANGES
from support.interrupted.changes import Changes
from support.interrupted.kinds import Kind, add_arguments, finish, prepare

STEPS = 3
KINDS = ("moment", *CHANGES)
FAULTS = 5
"""After so many it is given up."""


class Watch:
    """Watches the changes of one rank, and kills it at one of them."""

    def __init__(self, changes: Changes, *, rank: int = 0) -> None:
        self._changes, self._rank = changes, rank

    def __call__(self, rank: int) -> None:
        """Begin, in the rank that it is for."""
        if rank == self._rank:
            self._changes.watch()

    @property
    def counts(self) -> dict[str, int]:
        """How many changes of each kind were seen."""
        return self._changes.counts


def end(started: Start, chance: random.Random, at: float | None) -> list[int]:
    """Kill a rank at a moment, or wait until one has died at a change or all have ended; return their exit codes.

    The other ranks are killed with it or a little later, as by a launcher: without it, they must save nothing.
    """
    ranks = len(started.pids)
    if at is not None:
        time.sleep(at)
        started.tell(signal.SIGKILL, [chance.randrange(ranks)])
    if ranks > 1 and started.first_end() == -signal.SIGKILL:
        time.sleep(chance.choice((0.0, chance.uniform(0, 0.3))))
        started.tell(signal.SIGKILL)
    return started.wait()


def control(kind: Kind) -> dict[str, Any]:
    """Kill a run in its last step and spoil what it goes on from; return what to report: whether that was seen."""
    if kind.chosen.ranks > 1 or "lora_dropout" not in kind.settings:
        return {"control": "none for such runs"}
    output = kind.chosen.folder / "control"
    started = kind.start(output)
    started.wait_for_step(STEPS)
    started.tell(signal.SIGKILL)
    codes = started.wait()
    in_fork(partial(spoil, output))
    codes += kind.start(output).wait()
    if codes == [-signal.SIGKILL, 0] and kind.differences(output) == [f"{output.name} ended with other weights"]:
        return {"control": "other weights, as it must be"}
    return {"faults": [f"the control: {codes}, {kind.differences(output)}"]}


def spoil(output: Path) -> None:
    """Take the generators' state out of the newest whole checkpoint, and seal that again."""
    from support.sealed import seal_again
    from vlm_lora.model.manifest import State, examine

    for folder in sorted(output.glob("checkpoint-*"), reverse=True):
        if examine(folder).state is State.WHOLE:
            (folder / "rng_state.pth").unlink()
            seal_again(folder)
            return


def kill_runs(kind: Kind, kills: int) -> dict[str, Any]:
    """Run whole, then killed; return what happened."""
    chosen, chance = kind.chosen, kind.chance
    report: dict[str, Any] = {"seed": chosen.seed, "kills": dict.fromkeys(KINDS, 0)}
    report |= {"starts": 0, "finished": 0, "faults": []}
    counts = kind.run_whole(lambda output, cache: Watch(Changes(output, cache)))
    # Few enough for most starts to come to it, also those that have a step left or none.
    most = {each: max(1, counts[each] // (STEPS if each in ("change", "manifests") else 1)) for each in CHANGES}
    number = 0
    while sum(report["kills"].values()) < kills or (chosen.folder / f"run-{number}").exists():
        output, cache = chosen.folder / f"run-{number}", chosen.folder / f"cache-{number}"
        made = sum(report["kills"].values())
        sort = KINDS[made % len(KINDS)] if made < kills else ""
        watch, at = None, None
        if sort == "moment":
            at = chance.uniform(0, kind.seconds)
        elif sort:
            # Most files are rank 0's.
            rank = 0 if sort != "change" or chance.random() < 0.8 else chance.randrange(chosen.ranks)
            watch = Watch(Changes(output, cache, die_at=chance.randint(1, most[sort]), kind=sort), rank=rank)
        started = kind.start(output, cache=cache, watch=watch)
        codes = end(started, chance, at)
        report["starts"] += 1
        report["faults"] += started.orphans()
        kind.note(report)
        if -signal.SIGKILL in codes:
            report["kills"][sort] += 1
            continue
        if any(codes):
            report["faults"].append(f"start {report['starts']} in {output.name}: {codes}: {started.said()[-1500:]}")
        else:
            report["faults"] += kind.differences(output)
            report["finished"] += 1
        if len(report["faults"]) > FAULTS:
            break
        number += 1
    return report if report["faults"] else {**report, **control(kind)}


def main(argv: list[str]) -> int:
    """Make model and data, and kill."""
    asked = argparse.ArgumentParser()
    add_arguments(asked)
    asked.add_argument("--kills", type=int, default=30)
    chosen = asked.parse_args(argv)
    kind = prepare(
        chosen,
        rows=6,
        predict_with_generate=True,
        max_new_tokens=1,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        **({} if chosen.method == "streaming" else {"image_cache": "on"}),
    )
    return finish(kill_runs(kind, chosen.kills), sys.stdout.write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
