"""Start a script on several Gaudi cards: `python gaudi_spawn.py --world_size 8 --use_mpi run_lora_vlm.py ...`."""

import sys

from vlm_lora.cli.main import run_launcher
from vlm_lora_hpu.roads import road

if __name__ == "__main__":
    sys.exit(run_launcher("gaudi_spawn.py", backend=road()))
