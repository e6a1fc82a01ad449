"""Folders of which a test has changed files on purpose: their manifest then says what is there now."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from vlm_lora.training.checkpoints.sealing import seal_checkpoint

ONE = SimpleNamespace(process_index=0, world_size=1, save_on_each_node=False, should_save=True, ddp_timeout=20)
"""The training arguments of a single process, as far as saving reads them."""


def seal_again(folder: Path) -> None:
    """Write a folder's manifest anew, where it has one."""
    if (folder / "MANIFEST.json").exists():
        (folder / "MANIFEST.json").unlink()
        seal_checkpoint(folder, ONE)
