"""The page of the data report: complete, self-contained, and deaf to what the rows say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.datasets import write_image, write_jsonl
from vlm_lora.cli.main import main
from vlm_lora.preflight.figures import Distribution
from vlm_lora.report.pages.histograms import HEIGHT, bars

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Elements(HTMLParser):
    """Every start tag with its attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(text: str) -> Elements:
    elements = Elements()
    elements.feed(text)
    return elements


@pytest.fixture
def page(model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The page of 40 rows, 30 of them bad, with hostile text in column, file name, role and image name."""
    folder = tmp_path / f"data {HOSTILE.replace('/', '|')}"
    write_image(folder / "0.png", seed=0)
    answer = {"role": "assistant", "content": "a"}
    good = {"<b>image": "0.png", "messages": [{"role": "user", "content": HOSTILE}, answer]}
    role: dict[str, Any] = {**good, "messages": [{"role": HOSTILE, "content": "x"}]}
    longer = [{**good, "messages": [{"role": "user", "content": f"{HOSTILE}{' x' * n}"}, answer]} for n in range(10)]
    rows = [*longer, *[role] * 15, *[{**good, "<b>image": f"{HOSTILE}.png"}] * 15]
    write_jsonl(folder / "train.jsonl", rows)
    flags = ["--model_name_or_path", str(model_folder("gemma3")), "--dataset_name", str(folder), "--use_cpu"]
    target = tmp_path / "page.html"
    columns = ["--image_column", "<b>image", "--validation_fraction", "0", "--do_eval", "false"]
    assert main(["check", *flags, *columns, "--html", str(target)]) == 1
    capsys.readouterr()
    return target.read_text(encoding="utf-8")


def test_hostile_text_stays_text(page: str) -> None:
    elements = parse(page)
    assert {tag for tag, _ in elements.tags}.isdisjoint({"script", "iframe", "object", "link"})
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert {str(given["src"])[:11] for tag, given in elements.tags if tag == "img"} == {"data:image/"}
    assert len([tag for tag, _ in elements.tags if tag == "b"]) == 10, "of five longest rows and five largest images"
    assert "unknown role '<script>alert(1)</script>" in elements.text
    assert "column '<b>image'" in elements.text


def test_the_parser_sees_what_is_forbidden() -> None:
    elements = parse(HOSTILE)
    assert [tag for tag, _ in elements.tags] == ["script", "img"]


def test_nothing_is_fetched(page: str) -> None:
    elements = parse(page)
    addresses = [
        str(value) for _, attributes in elements.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert [one for one in addresses if not one.startswith(("data:image/", "file:///", "#"))] == []
    assert "url(" not in page
    assert "@import" not in page
    policy = next(attributes["content"] for tag, attributes in elements.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_all_bad_rows_are_listed(page: str) -> None:
    found = re.findall(r'<tr class="bad-row" data-row="(\d+)"><td>train</td>', page)
    assert [int(row) for row in found] == list(range(10, 40))
    assert "Rows count from 0." in page


def test_histograms_have_axes_and_one_value_is_a_line(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 1, "the questions alone differ"
    assert len(re.findall(r'<p class="same">[a-z ]+: \d+, all 10 alike</p>', page)) == 5
    texts = [text.text for text in ET.fromstring(drawings[0]).iter("text")]
    assert texts[1:3] == ["0", "rows"]
    assert texts[-1] == "tokens a row"
    for drawing in drawings:
        labels = [title.text or "" for title in ET.fromstring(drawing).iter("title")]
        assert sum(int(label.rsplit(" ", 1)[1]) for label in labels) == 10


@pytest.mark.parametrize("values", [[5], [0, 0, 0], [1, 2, 3, 1000], list(range(41)), [7, 8]])
def test_bars_count_every_value_once(values: list[int]) -> None:
    figures = Distribution.of(np.array(values))
    assert sum(figures.counts) == len(values) == figures.count
    assert figures.edges[0] == min(values)
    assert figures.edges[-1] > max(values)
    assert figures.edges[-2] <= max(values)
    drawn = bars(asdict(figures))
    assert max(bar.height for bar in drawn) == HEIGHT
    assert [bar.y + bar.height for bar in drawn] == pytest.approx([HEIGHT] * len(drawn))


def test_rows_are_named_by_file_and_line_that_can_be_opened(page: str) -> None:
    links = re.findall(r'<a class="mono" href="(file:///[^"]+)">([^<]*train\.jsonl:(\d+))</a> row (\d+)', page)
    assert len(links) >= 40
    assert all(int(line) == int(row) + 1 for *_, line, row in links)


def test_no_values() -> None:
    figures = Distribution.of(np.array([], dtype=np.int64))
    assert (figures.count, figures.most, figures.counts, bars(asdict(figures))) == (0, 0, (), [])
