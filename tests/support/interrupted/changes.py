"""Dying at a change of a run's files: which of them there are, counted, and a kill at one of them."""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

KINDS = ("change", "results", "manifests", "caches", "export")
"""`change` is every one in the output folder, `export` what of it is loaded as the trained model."""

RESULTS = ("_results.json", "predictions.jsonl", "README.md", "run_files.json", "trainer_state.json", "run.json")
EXPORT = ("adapter_", "model", "tokenizer", "processor", "preprocessor", "chat_template", "config", "generation_")


class Changes:
    """Counts the changes of a run's files in this process, and kills it at one of them.

    Args:
        folder: the output folder.
        cache: where the run keeps its caches.
        die_at: the number of the change to die at; None dies at none.
        kind: one of `KINDS`.

    A file is counted as soon as it is opened for writing, when it is empty; one that torch or safetensors save, when
    half of it is there; whatever is renamed or removed, before that.
    """

    def __init__(self, folder: Path, cache: Path, *, die_at: int | None = None, kind: str = "change") -> None:
        self.counts = dict.fromkeys(KINDS, 0)
        self._folder, self._cache = str(folder), str(cache)
        self._die_at, self._kind = die_at, kind

    def watch(self) -> None:
        """Begin; it never ends in this process."""
        import safetensors.torch as _tensors
        import torch

        tensors: Any = _tensors
        opened, saved, serialized = io.open, torch.save, tensors.serialize_file

        def open_watched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            stream = opened(file, mode, *args, **kwargs)
            if set(mode) & set("wax+"):
                self._changed(file)
            return stream

        def save_watched(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            saved(value, file, *args, **kwargs)
            self._changed(file, cut=True)

        def serialize_watched(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            serialized(content, file, *args, **kwargs)
            self._changed(file, cut=True)

        modules: tuple[Any, ...] = (builtins, io, torch)
        for module in modules[:2]:
            module.open = open_watched
        modules[2].save = save_watched
        tensors.serialize_file = serialize_watched
        sys.addaudithook(self._audit)

    def kinds_of(self, name: str) -> list[str]:
        """Return the kinds that a file is of, by its path."""
        if name.startswith(self._cache):
            return ["caches"]
        if not name.startswith(self._folder):
            return []
        # A file's own name, though it is written beside its place under another one.
        kinds, last, inside = ["change"], Path(name).name.removeprefix("."), "checkpoint-" in name
        if "MANIFEST" in last:
            kinds.append("manifests")
        elif any(part in last for part in RESULTS) and not inside:
            kinds.append("results")
        elif last.startswith(EXPORT) and not inside:
            kinds.append("export")
        return kinds

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            self._changed(arguments[0])

    def _changed(self, file: Any, *, cut: bool = False) -> None:
        name = os.fsdecode(file) if isinstance(file, (str, bytes, os.PathLike)) else ""
        kinds = self.kinds_of(name)
        for kind in kinds:
            self.counts[kind] += 1
        if self._kind in kinds and self._die_at == self.counts[self._kind]:
            if cut:
                os.truncate(name, Path(name).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
