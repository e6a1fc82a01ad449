"""`vlm-lora train --list_checkpoints DIR`: which checkpoints a folder holds."""

from __future__ import annotations

from pathlib import Path

from vlm_lora.report.checkpoints import describe_checkpoints


def list_checkpoints(folder: str) -> None:
    """Print one line per checkpoint, by number."""
    print(describe_checkpoints(Path(folder)))
