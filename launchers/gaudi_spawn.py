"""Start a script on several Gaudi cards: `python gaudi_spawn.py --world_size 8 --use_mpi run_lora_vlm.py ...`."""

import sys

from vlm_lora.cli.main import run_launcher

if __name__ == "__main__":
    sys.exit(run_launcher("gaudi_spawn.py", backend="habana"))
