"""What launchers start in tests of `--push_to_hub`: one rank of a run, whose Hub is the one at the first argument.

`pushes.py ADDRESS FLAG ...`: the process that it is forked from has read its variables for no Hub already.
"""

from __future__ import annotations

import sys

import huggingface_hub
from huggingface_hub import constants

from vlm_lora.cli.main import run_script

if __name__ == "__main__":
    constants.HF_HUB_OFFLINE = False
    constants.ENDPOINT = huggingface_hub.hf_api.api.endpoint = sys.argv[1]
    sys.exit(run_script(sys.argv[2:]))
