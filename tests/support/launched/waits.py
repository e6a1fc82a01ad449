"""What launchers start in tests of their own end: a rank that says which process it is, and waits. Imports no torch.

`waits.py FOLDER` writes FOLDER/pid<N> for rank N: its number and that of the process that started it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from vlm_lora.cli.setup import rank

if __name__ == "__main__":
    Path(sys.argv[1], f"pid{rank()}").write_text(f"{os.getpid()} {os.getppid()}", encoding="utf-8")
    time.sleep(600)
