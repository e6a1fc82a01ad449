"""`vlm-lora train --list_checkpoints DIR`: which checkpoints a folder holds."""

from __future__ import annotations

from pathlib import Path

from vlm_lora.report.checkpoints import describe_checkpoints


def list_checkpoints(folder: str) -> None:
    """Print a table of the checkpoints, by number, and which is best."""
    print(describe_checkpoints(Path(folder)))
