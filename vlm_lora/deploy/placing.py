"""The last step of a folder of whole weights: sealed by a manifest, and only then under its own name."""

from __future__ import annotations

from pathlib import Path

from vlm_lora.model.manifest import MODEL_FILES, Manifest, entries_of, write_manifest


def seal_and_place(part: Path, output: Path) -> None:
    """Seal a folder that is complete, and give it its name.

    Args:
        part: where it was written, on the same file system.
        output: its name; what is there already was refused before, unless it is an empty folder.
    """
    covered = [path for path in part.iterdir() if path.is_file() and any(path.match(name) for name in MODEL_FILES)]
    write_manifest(part, Manifest(files=entries_of(part, covered)))
    if output.is_dir():
        output.rmdir()
    part.rename(output)
