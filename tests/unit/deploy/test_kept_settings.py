"""A merged model's config.json is its base's, with what merging has changed and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.deploy.configuration import keep_settings


class Loaded:
    """A configuration as transformers has loaded it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def to_json_string(self, *, use_diff: bool) -> str:
        assert not use_diff
        return json.dumps(self.settings)


WRITTEN = {"model_type": "own", "saved": "as transformers writes it"}
OLD = {"vocab_size": 10, "rope_theta": 1e6, "rope_scaling": {"type": "mrope"}, "torch_dtype": "bfloat16"}
NESTED: dict[str, Any] = {"text_config": {"vocab_size": 10, "torch_dtype": "bfloat16"}, "torch_dtype": "bfloat16"}


def text(size: int, **more: Any) -> Loaded:
    return Loaded(text_config={"vocab_size": size, "rope_parameters": {"rope_theta": 1e6}, "dtype": "float32"}, **more)


@pytest.mark.parametrize(
    ("base", "merged", "dtype", "kept"),
    [
        (OLD, text(10), "bfloat16", OLD),
        (OLD, text(12), "bfloat16", {**OLD, "vocab_size": 12}),
        (NESTED, text(12), "bfloat16", {**NESTED, "text_config": {**NESTED["text_config"], "vocab_size": 12}}),
        (NESTED, text(10), "float32", {"text_config": {"vocab_size": 10}, "torch_dtype": "float32"}),
        (NESTED, text(10, tied=True), "bfloat16", {**NESTED, "tied": True}),
        # What has no place in the base's file, or comes with code of its own, is left to transformers.
        (OLD, Loaded(text_config={"layers": 3}), "bfloat16", None),
        ({**OLD, "auto_map": {}}, text(12), "bfloat16", None),
        (None, text(10), "bfloat16", None),
    ],
)
def test_what_merging_changed_stands_in_the_bases_settings(
    base: dict[str, Any] | None, merged: Loaded, dtype: str, kept: dict[str, Any] | None, tmp_path: Path
) -> None:
    file, source = tmp_path / "config.json", tmp_path / "base.json"
    file.write_text(json.dumps(WRITTEN), encoding="utf-8")
    if base is not None:
        source.write_text(json.dumps(base), encoding="utf-8")
    assert keep_settings(file, source, text(10), merged, dtype) == (kept is not None)
    assert json.loads(file.read_text(encoding="utf-8")) == (WRITTEN if kept is None else kept)
