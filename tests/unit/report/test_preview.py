"""The preview decodes what the row holds, folded but not changed."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from support.rows import write_uneven_rows
from vlm_lora import pipeline
from vlm_lora.config.sources import parse
from vlm_lora.report.preview import decode_folded, row_report, runs


class Letters:
    """A tokenizer of one letter a token, of which `b` is one of a model's own."""

    added_tokens_decoder: ClassVar = {1: "b"}

    def decode(self, ids: list[int], **kwargs: object) -> str:
        return "".join(chr(97 + token_id) for token_id in ids)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([0, 1, 2], "abc"),
        ([0, 1, 1, 1, 2], "abbbc"),
        ([0, 1, 1, 1, 1, 2], "ab×4c"),
        ([-1] * 5, "[-1]×5"),
        ([2] * 6, "cccccc"),  # a text's own
    ],
)
def test_repeats_are_counted(ids: list[int], text: str) -> None:
    assert decode_folded(ids, 0, len(ids), Letters()) == text


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "phi3_v"])
def test_report_says_what_is_supervised(model_type: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=3)
    words = ["--model_name_or_path", str(model_folder(model_type)), "--dataset_name", str(data), "--use_cpu"]
    run = parse([*words, "--trust_remote_code", str(model_type == "phi3_v")], environ={})
    for one in pipeline.preview(run, rows=3).rows:
        row = one.row
        report = row_report(row, one.tokenizer)
        stretches = [(start, end) for start, end, supervised in runs(row) if supervised]
        assert [(part["start"], part["end"]) for part in report["supervised"]] == stretches
        assert len(report["supervised"]) == 1
        assert report["supervised_tokens"] == stretches[0][1] - stretches[0][0]
        assert "What is in image" not in report["supervised"][0]["text"]
