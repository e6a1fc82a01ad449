"""The page escapes everything, shows what the model sees, and stands alone."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from support.mask_cases import IMAGE, conversation, encoder_of, processor_of
from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.batching.masks import decode_between
from vlm_lora.report.page import render_page
from vlm_lora.report.pages.pictures import SIDE
from vlm_lora.report.preview import ShownRow, visible

HOSTILE = "</span><script>alert(1)</script><img src=http://x.example/y onerror=alert(2)>&lt;{{ 7*7 }}\x1b[31m\u202eend"


class Elements(HTMLParser):
    """Collects tags, and each stretch with its class, positions and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stretches: list[tuple[str, int, int, str]] = []
        self._open: tuple[str, int, int] | None = None
        self._text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "span" and "data-start" in given:
            self._open = (str(given["class"]), int(str(given["data-start"])), int(str(given["data-end"])))
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self._open is not None:
            self.stretches.append((*self._open, self._text))
            self._open = None


def shown(family: str, question: str, answer: str, image: Image.Image | None = None) -> ShownRow:
    row = conversation((("user", (IMAGE, question)), ("assistant", (answer,))), image=image)
    encoded = encoder_of(family).encode(row, keep_images=True)
    return ShownRow(row=encoded, tokenizer=processor_of(family).tokenizer)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", "llava"])
@pytest.mark.parametrize(("question", "answer"), [("What?", "a bus"), (HOSTILE, HOSTILE), ("aaaaaaaa", "xxxxxxxx")])
def test_the_coloured_tokens_are_the_labels(family: str, question: str, answer: str) -> None:
    one = shown(family, question, answer)
    page = Elements(render_page([one], title="t"))
    coloured = [(start, end, text) for kind, start, end, text in page.stretches if kind == "supervised"]
    supervised = one.row.labels.ne(IGNORE_INDEX).nonzero().flatten().tolist()
    assert [place for start, end, _ in coloured for place in range(start, end)] == supervised
    ids = one.row.input_ids.tolist()
    for start, end, text in coloured:
        assert text == visible(decode_between(ids, start, end, one.tokenizer))
    assert [end for _, _, end, _ in page.stretches[:-1]] == [start for _, start, _, _ in page.stretches[1:]]
    assert page.stretches[-1][2] == len(ids)


def test_hostile_text_stays_text_and_nothing_comes_from_outside() -> None:
    one = shown("qwen2_5_vl", HOSTILE, HOSTILE)
    answered = ShownRow(row=one.row, tokenizer=one.tokenizer, loss=1.25, generated=HOSTILE, accepted=(HOSTILE,))
    page = render_page([answered], title=HOSTILE)
    tags = Elements(page).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "iframe", "link", "object", "base", "form"})
    assert not [name for _, given in tags for name in given if name.startswith("on")]
    sources = [given["src"] for _, given in tags if "src" in given]
    assert len(sources) == 1
    assert str(sources[0]).startswith("data:image/")
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "{{ 7*7 }}" in page
    assert "default-src 'none'" in page


def test_images_are_scaled_and_the_rest_is_said() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1400, 3), dtype=np.uint8)
    one = shown("gemma3", "What?", "noise", Image.fromarray(noise))
    page = render_page([one], title="t")
    uri = next(str(given["src"]) for tag, given in Elements(page).tags if tag == "img")
    with Image.open(BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
        assert picture.size == (SIDE, round(900 * SIDE / 1400))
    assert "1400x900 pixels" in page
    assert re.search(r'pixel_values</td><td class="mono">\(1, 3, \d+, \d+\)', page)
    assert 'class="loss"' not in page
    without = render_page([one], title="t", images=False)
    assert "data:image" not in without
    assert "1400x900 pixels, kept out of this page" in without


def test_what_would_not_be_seen_is_written_out() -> None:
    assert visible("a\tb\nc\x00\x1b\x7f\x85\u202e\ud800") == "a\tb\nc␀␛␡[U+0085][U+202E][U+D800]"
    assert visible("é中😀\u200d") == "é中😀\u200d"
