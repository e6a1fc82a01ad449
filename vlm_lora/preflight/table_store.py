"""Row tables, kept by everything that they depend on.

A key is made of the data files (path, size, time; or the fingerprint of `datasets`), the rows chosen of them,
what their columns were taken as, which draws of them were looked at, the sizes that images are brought to, the data
and length settings, the processor's own content (tokenizer, chat template, image settings) and the versions of the
packages. Image files next to the data are compared by the reader, row by row. A file says its key and begins with a
hash of itself; one that is not as it was written is said, and the rows are read again. Nothing here can make a run
fail: what cannot be read or written is said and done without.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from vlm_lora.batching.canvases import Size
from vlm_lora.batching.row_table import RowTable, open_row_table
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.version import __version__, version_of
from vlm_lora.config.whole_files import replacing
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.formats.arrow_files import HeldOpen
from vlm_lora.data.ocr.task_sampling import Span
from vlm_lora.session import Preprocessing

logger = logging.getLogger(__name__)

FORMAT = 7
"""Changes with the layout of the files, and with what is read of a row."""

KEPT, KEPT_BYTES = 50, 2 * 2**30
"""Tables that are kept, the newest: at most so many, of at most so many bytes together."""

IRRELEVANT = frozenset({"skip_check", "on_bad_sample", "max_bad_fraction", "max_train_samples", "max_eval_samples"})
"""Data settings that change no row: what is done about bad ones, and limits, which the chosen rows show."""


class TableStore:
    """Row tables of one model and one configuration.

    Args:
        folder: where they lie.
        run: the resolved configuration.
        preprocessing: the processor and what was made of it.
    """

    def __init__(self, folder: Path, run: RunConfig, preprocessing: Preprocessing) -> None:
        self._folder = folder
        settings = {name: value for name, value in asdict(run.data).items() if name not in IRRELEVANT}
        self._common = {
            "format": FORMAT,
            "versions": [__version__, *(version_of(name) for name in ("transformers", "tokenizers", "pillow"))],
            "data": settings,
            "files_of_settings": _stamps(_files_named(settings.values())),
            "batching": {"longest": preprocessing.longest, "on_overflow": run.batching.on_overflow},
            "boxes": asdict(preprocessing.boxes),
            "eos": sorted(preprocessing.eos_token_ids),
            "processor": processor_content(preprocessing.processor),
        }

    def key(self, rows: ConversationDataset, span: Span, canvases: Sequence[Size] = ()) -> str | None:
        """Return the name of these rows' table, or None where nothing tells whether the rows have changed."""
        files = _files_of(rows)
        if files is None:
            return None
        content = {
            **self._common,
            "files": files,
            "rows": [len(rows), blake2b(np.asarray(rows.positions, dtype="<i8").tobytes(), digest_size=16).hexdigest()],
            "schema": asdict(rows.schema),
            "drawn": span.key if rows.varies else "",
            "canvases": list(canvases),
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def has(self, key: str | None) -> bool:
        """Say whether a table is kept under a key."""
        return key is not None and self._path(key).is_file()

    def load(self, key: str) -> RowTable | None:
        """Return the table kept under a key, or None."""
        path = self._path(key)
        try:
            return open_row_table(path, key=key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be used (%s): the rows are read again.", path, error)
            return None

    def store(self, key: str, table: RowTable) -> None:
        """Keep a table under a key; whole or not at all."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as stream:
                table.write(stream, key=key)
            _remove_oldest(path.parent)
        except OSError as error:
            logger.warning("This check could not be kept in %s (%s); the next one reads every row again.", path, error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.rows"


def _remove_oldest(folder: Path) -> None:
    """Remove all but the newest files; another process may do so at the same time."""
    total = 0
    files = [(file, file.stat()) for file in folder.iterdir() if file.is_file()]
    for place, (file, status) in enumerate(sorted(files, key=lambda each: -each[1].st_mtime_ns)):
        total += status.st_size
        if place and (place >= KEPT or total > KEPT_BYTES):
            file.unlink(missing_ok=True)


def processor_content(processor: Any) -> str:
    """Return a hash of everything in a processor that could change a row, wherever it was loaded from."""
    tokenizer = processor.tokenizer
    parts: list[str] = [
        json.dumps(getattr(processor, "chat_template", None), sort_keys=True, default=str),
        json.dumps(tokenizer.chat_template, sort_keys=True, default=str),
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        tokenizer.backend_tokenizer.to_str(),
        processor.image_processor.to_json_string(),
        json.dumps({name: value for name, value in vars(processor).items() if _is_plain(value)}, sort_keys=True),
    ]
    for part in (processor, tokenizer, processor.image_processor):
        owner = type(part)
        parts.append(f"{owner.__module__}.{owner.__qualname__}")
        if not owner.__module__.startswith("transformers."):
            # Code that came with the model: its text is the only version it has.
            source = inspect.getsourcefile(owner)
            parts.append(Path(source).read_text(encoding="utf-8") if source else "")
    return blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool | None)


def _files_named(values: Iterable[Any]) -> list[Path]:
    """Return the files among settings; most settings are no paths, and a long prompt cannot even be one."""
    texts = (os.path.expanduser(value) for value in values if isinstance(value, str))  # noqa: PTH111
    return [Path(text) for text in texts if os.path.isfile(text)]  # noqa: PTH113


def _files_of(rows: ConversationDataset) -> list[Any] | None:
    """Return what tells whether the stored rows have changed, or None where nothing does."""
    held = [table for table in rows.rows.tables if isinstance(table, HeldOpen)]
    known: list[Any] = [[table.fingerprint, *_stamps(table.files)] for table in held]
    named = [Path(name) for name in rows.rows.files]
    if not held and not all(path.is_file() for path in named):
        return None
    return [*known, *_stamps(path for path in named if path.is_file())]


def _stamps(paths: Iterable[Path]) -> list[Mapping[str, Any]]:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> Mapping[str, Any]:
    status = path.stat()
    return {"path": str(path.resolve()), "size": status.st_size, "time": status.st_mtime_ns}
