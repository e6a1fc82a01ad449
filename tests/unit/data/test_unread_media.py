"""Sound and video next to a row's text make a bad row; names, numbers and flags under such columns do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.read_back import read_back
from vlm_lora.data.conversations.unread import refuse_media
from vlm_lora.errors import DataError

ASKED: dict[str, Any] = {"image": "0.png", "question": "What?", "answer": "A bar."}
NAMES = ["v_0001", False, True, 3, 0.5, ["v_0001", None], {"id": "v_1", "fps": 25}, "mp4", "a.txt"]
NOTHING = [None, "", [], [None], [{"path": None}], {"bytes": None, "path": None}]
MEDIA: list[Any] = [
    *["a.mp4", "clips/A.WAV", "https://x.org/v?id=3", "s3://b/v", "data:video/mp4;base64,AAAA", " a.mp3 "],
    *[[None, "a.webm"], {"bytes": b"x", "path": None}, {"path": "v_0001"}, {"url": "v"}, [{"array": [0.5]}]],
    *[b"x", bytearray(b"x"), memoryview(b"x")],
]


@pytest.mark.parametrize("column", ["video", "videos", "audio", "Audios"])
@pytest.mark.parametrize("value", NAMES + NOTHING)
def test_names_and_numbers_are_columns_like_any_other(column: str, value: Any, tmp_path: Path) -> None:
    if value not in [*NOTHING, False, {"id": "v_1", "fps": 25}]:
        with pytest.raises(DataError, match=f"has the column '{column}' .*type --ignore_columns {column}$"):
            read_back([{**ASKED, column: value}], tmp_path)
    found = read_back([{**ASKED, column: value}], tmp_path, ignore_columns=(column,))
    assert found.told == [[["<0.png>", "What?"], ["A bar."]]]
    assert f"not used: '{column}'" in found.schema.explain()


@pytest.mark.parametrize("value", NAMES)
@pytest.mark.parametrize("asked", ["What is in <video>?", "<audio>\nWhat?", [{"content": [{"text": "<video>"}]}]])
def test_a_text_that_speaks_of_a_medium_makes_any_value_one(value: Any, asked: Any) -> None:
    row = {"question": asked, "answer": "a", "video": value}
    with pytest.raises(DataError, match=r"The column 'video' holds .*; sound and video are not read"):
        refuse_media(row, ["question", "answer"])
    refuse_media({**row, "question": "What is a <div>?"}, ["question", "answer"])
    refuse_media(row, ["answer"])
    for nothing in NOTHING:
        refuse_media({**row, "video": nothing}, ["question", "answer"])


@pytest.mark.parametrize("value", MEDIA)
def test_media_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="The column 'audio' holds"):
        refuse_media({**ASKED, "audio": value}, ["question", "answer"])
    refuse_media({**ASKED, "sound": value}, ["question", "answer"])
    refuse_media({**ASKED, "audio": value}, ["question", "audio"])
