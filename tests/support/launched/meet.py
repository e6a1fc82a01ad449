"""What launchers start in tests: one rank that meets the others over gloo and does what its first argument says.

`meet.py MODE FOLDER ...` writes FOLDER/rank<N>.json: its arguments and what all ranks together counted. MODE is one of
    count     sum the ranks, exit 0
    fail      rank 1 says an error and exits with 7, while the others wait for it in a collective
    killed    rank 1 is killed, while the others wait
    ended     sum the ranks, exit 75
    signal    wait for SIGUSR1, say so in FOLDER/signal<N>, exit 0
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from vlm_lora.launch.placement import found


def main() -> int:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    placement = found(os.environ)
    os.environ.update(placement.variables)
    if mode == "signal":
        signal.signal(signal.SIGUSR1, lambda *_: leave(folder / f"signal{placement.rank}"))
    dist.init_process_group("gloo")
    total = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(total)
    record = {
        "argv": sys.argv[3:],
        "pid": os.getpid(),
        "total": total.item(),
        "world_size": dist.get_world_size(),
        "placement": str(placement),
        "engine": {name: text for name, text in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))},
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(record), encoding="utf-8")
    dist.barrier()
    if mode in ("count", "ended"):
        dist.destroy_process_group()  # without it a rank may abort because the other has gone
        return 75 if mode == "ended" else 0
    if mode == "signal":
        (folder / f"ready{dist.get_rank()}").touch()
        time.sleep(600)
    if dist.get_rank() == 1 and mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if dist.get_rank() == 1:
        sys.stderr.write("error: rank 1 has had enough\n")
        sys.stderr.flush()
        os._exit(7)
    dist.all_reduce(total)
    time.sleep(600)  # where the collective noticed nothing
    return 0


def leave(mark: Path) -> None:
    mark.touch()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
