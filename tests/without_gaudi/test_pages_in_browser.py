"""Our pages in a real browser: images come from the page itself, nothing from outside, and colours are the labels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.browser import Browser, running_browser
from support.made_runs import made_images, make_run, prediction
from support.rows import write_uneven_rows
from support.runs import script_flags
from vlm_lora import pipeline
from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.batching.masks import decode_between
from vlm_lora.cli.main import main
from vlm_lora.config.sources import parse
from vlm_lora.report.pages.rendering import in_words, number
from vlm_lora.report.preview import visible

pytestmark = pytest.mark.xdist_group("browser")  # one browser

ROWS = 3
HOSTILE = "</span><script>document.title='run'</script><img src=https://x.example/y> &lt;b&gt; \x1b[31m\u202e"

IMAGES = "Array.from(document.images, one => [one.src.slice(0, 11), one.complete, one.naturalWidth])"
STRETCHES = """Array.from(document.querySelectorAll('section'), section => Array.from(
    section.querySelectorAll('span[data-start]'),
    one => [one.className, Number(one.dataset.start), Number(one.dataset.end), one.textContent,
            getComputedStyle(one).backgroundColor]))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("browser") / "profile") as started:
        yield started


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_uneven_rows(tmp_path / "data", rows=ROWS)
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[1] |= {"question": HOSTILE, "answer": HOSTILE}
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def faults(browser: Browser, page: Path, expected: list[Any]) -> list[str]:
    """Open a page and return what is wrong with its images, colours and requests.

    `expected` holds, for each row, the supervised positions and the text of each supervised stretch.
    """
    browser.open(page)
    found = []
    pictures = browser.evaluate(IMAGES)
    if len(pictures) != len(expected):
        found.append(f"{len(pictures)} images")
    found += [f"image {one}" for one in pictures if one[0] != "data:image/" or not one[1] or one[2] == 0]
    shown = browser.evaluate(STRETCHES)
    coloured = [[one for one in row if one[4] != "rgba(0, 0, 0, 0)"] for row in shown]
    seen = [
        [
            [place for _, start, end, *_ in row for place in range(start, end)],
            [text for _, _, _, text, _ in row],
        ]
        for row in coloured
    ]
    if seen != expected:
        found.append(f"colours {seen}")
    if any((one[0] == "supervised") != (one in row) for all_, row in zip(shown, coloured, strict=True) for one in all_):
        found.append("classes")
    outside = [url for url in browser.requests if not url.startswith(("data:", page.resolve().as_uri()))]
    return found + [f"request {url}" for url in outside]


def expected_rows(model: Path, data: Path) -> list[Any]:
    """Return what `faults` compares with, from ids and labels as the collator gets them."""
    words = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--use_cpu"]
    rows: list[Any] = []
    for one in pipeline.preview(parse(words, environ={}), rows=ROWS).rows:
        row, tokenizer = one.row, one.tokenizer
        ids, supervised = row.input_ids.tolist(), row.labels.ne(IGNORE_INDEX).nonzero().flatten().tolist()
        assert supervised == list(range(supervised[0], supervised[-1] + 1))
        rows.append([supervised, [visible(decode_between(ids, supervised[0], supervised[-1] + 1, tokenizer))]])
    return rows


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_the_preview_page(browser: Browser, family: str, model_folder: Callable[[str], Path], data: Path) -> None:
    model, page = model_folder(family), data / "preview.html"
    words = ["preview", "--model_name_or_path", str(model), "--dataset_name", str(data), "--use_cpu"]
    assert main([*words, "--rows", str(ROWS), "--html", str(page)]) == 0
    assert faults(browser, page, expected_rows(model, data)) == []
    assert browser.evaluate("document.title") == f"{data} as {model} sees it"
    assert HOSTILE.split("\x1b")[0] in browser.evaluate("document.body.innerText")


def test_the_dry_run_page(browser: Browser, model_folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    model = model_folder("gemma3")
    flags = script_flags(model, data, tmp_path / "out", validation_fraction=0)
    assert main(["train", *flags, "--dry_run", "--dry_run_generate", "--dry_run_max_new_tokens", "3"]) == 0
    page = tmp_path / "out" / "dry_run.html"
    assert faults(browser, page, expected_rows(model, data)) == []
    losses = browser.evaluate("Array.from(document.querySelectorAll('.loss'), one => Number(one.textContent))")
    assert len(losses) == ROWS
    assert all(loss > 0 for loss in losses)
    accepted = browser.evaluate("Array.from(document.querySelectorAll('.accepted'), one => one.textContent)")
    assert accepted[1] == visible(HOSTILE)


def test_the_data_report_page(browser: Browser, model_folder: Callable[[str], Path], data: Path) -> None:
    """A bad row's reason quotes the row; histograms are drawn and say what the JSON says."""
    with (data / "train.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"image": f"{HOSTILE}.png", "question": HOSTILE, "answer": "red"}) + "\n")
    page, words = data / "report.html", ["--model_name_or_path", str(model_folder("gemma3")), "--use_cpu"]
    flags = ["--dataset_name", str(data), "--validation_fraction", "0", "--do_eval", "false", "--html", str(page)]
    assert main(["check", *words, *flags]) == 1
    browser.open(page)
    assert [url for url in browser.requests if not url.startswith(("data:", page.resolve().as_uri()))] == []
    assert all(one[2] > 0 for one in browser.evaluate(IMAGES)), "of the longest rows and the largest images"
    assert browser.evaluate("document.title") == f"Data report: {data}", "no script has changed it"
    bad = browser.evaluate("Array.from(document.querySelectorAll('.bad-row'), one => one.innerText)")
    assert len(bad) == 1
    assert "<script>document.title='run'</script>" in bad[0]
    sizes = "one => [one.getBoundingClientRect().width, one.getBoundingClientRect().height]"
    bars = browser.evaluate(f"Array.from(document.querySelectorAll('svg rect'), {sizes})")
    assert bars
    assert all(width > 0 for width, _ in bars)
    assert any(height > 0 for _, height in bars)


DATA_VALUES = """Array.from(document.querySelectorAll('[data-name][data-value]'),
    one => [one.dataset.name, one.dataset.value, (one.querySelector('b') || one).innerText])"""
SEEN = """Array.from(document.querySelectorAll('.charts svg'),
    one => [one.getBoundingClientRect().width, one.querySelectorAll('path').length,
            getComputedStyle(one.querySelector('text')).fill])"""


def outside(browser: Browser, page: Path) -> list[str]:
    """Return what a page asked for that is not in it, and which of its images were not drawn."""
    urls = [url for url in browser.requests if not url.startswith(("data:", page.resolve().as_uri()))]
    return urls + [str(one) for one in browser.evaluate(IMAGES) if one[0] != "data:image/" or one[2] == 0]


def test_the_page_of_a_run(browser: Browser, tmp_path: Path) -> None:
    """Its images load, its numbers are those of the files, and it asks for nothing from outside."""
    images = made_images(tmp_path / "images", 6)
    rows = [prediction(at, image, generated=HOSTILE, prompt=HOSTILE) for at, image in enumerate(images)]
    run = make_run(tmp_path / "run", rows, settings={"model_name_or_path": HOSTILE})
    assert main(["report", str(run)]) == 0
    page = run / "report.html"
    browser.open(page)
    assert outside(browser, page) == []
    assert len(browser.evaluate(IMAGES)) == 6
    assert browser.evaluate("document.title") == "run", "no script has changed it"
    shown = browser.evaluate(DATA_VALUES)
    results = {**json.loads((run / "eval_results.json").read_text("utf-8")), "train_runtime": 75.0}
    state = json.loads((run / "trainer_state.json").read_text("utf-8"))
    tiles = {name: text for name, value, text in shown if name in results and float(value) == results[name]}
    assert tiles["train_runtime"] == in_words(75.0, "train_runtime") == "1 min 15 s"
    for name in ("eval_loss", "eval_exact_match"):
        logged = [entry[name] for entry in state["log_history"] if name in entry]
        cells = browser.evaluate(
            f"Array.from(document.querySelectorAll('.evaluation [data-name={name}]'), one => one.innerText)"
        )
        assert cells == [number(value) for value in logged]
        assert name in tiles
    charts = browser.evaluate(SEEN)
    assert len(charts) == 5 + 5, "of the log, and histograms of the data"
    assert all(width > 100 and paths > 1 for width, paths, _ in charts[:5])
    dims = {fill for *_, fill in charts}
    assert len(dims) == 1
    assert dims != {"rgb(0, 0, 0)"}, "text has the page's own colour"
    kept = page.read_text(encoding="utf-8")
    page.write_text(fetching(broken_image(kept)), encoding="utf-8")
    browser.open(page)
    assert len(outside(browser, page)) == 2, "the control"


def test_the_page_of_two_runs(browser: Browser, tmp_path: Path) -> None:
    images = made_images(tmp_path / "images", 4)
    first, second = (
        make_run(tmp_path / name, [prediction(at, image, exact=exact) for at, image in enumerate(images)])
        for name, exact in (("one", False), ("two", True))
    )
    page = tmp_path / "compare.html"
    assert main(["compare", str(first), str(second), "--output", str(page)]) == 0
    browser.open(page)
    assert outside(browser, page) == []
    tests = browser.evaluate(
        "Array.from(document.querySelectorAll('tr.test'), one => [one.dataset.name, one.cells[5].innerText])"
    )
    assert dict(tests)["exact_match"] == "0.125", "four rows of four: twice one in sixteen"
    strokes = browser.evaluate(
        "Array.from(document.querySelector('.charts svg').querySelectorAll('[style*=\"--s\"]'),"
        " one => getComputedStyle(one).stroke)"
    )
    assert len(set(strokes)) == 2, "each run has a colour"


def broken_image(page: str) -> str:
    return re.sub(r"(data:image/\w+;base64,)[^\"]{40}", r"\1" + "A" * 40, page, count=1)


def image_from_outside(page: str) -> str:
    return re.sub(r"data:image/[^\"]*", "https://x.example/y.png", page, count=1)


def shifted(page: str) -> str:
    return re.sub(r'class="supervised" data-start="(\d+)"', 'class="supervised" data-start="0"', page, count=1)


def uncoloured(page: str) -> str:
    return page.replace('class="supervised"', 'class="context"', 1)


def other_text(page: str) -> str:
    return re.sub(r'(class="supervised"[^>]*>)', r"\1x", page, count=1)


def fetching(page: str) -> str:
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", page)
    return without_policy.replace("</body>", "<script src='https://x.example/y.js'></script></body>")


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (broken_image, "image ['data:image/', True, 0]"),
        (image_from_outside, "image ['https://x.e"),
        (shifted, "colours"),
        (uncoloured, "colours"),
        (other_text, "colours"),
        (fetching, "request https://x.example/y.js"),
    ],
)
def test_a_spoilt_page_is_noticed(
    browser: Browser,
    spoil: Callable[[str], str],
    fault: str,
    model_folder: Callable[[str], Path],
    data: Path,
) -> None:
    model, page = model_folder("gemma3"), data / "preview.html"
    words = ["preview", "--model_name_or_path", str(model), "--dataset_name", str(data), "--use_cpu"]
    assert main([*words, "--rows", str(ROWS), "--html", str(page)]) == 0
    whole = page.read_text(encoding="utf-8")
    expected = expected_rows(model, data)
    assert faults(browser, page, expected) == []
    assert spoil(whole) != whole
    page.write_text(spoil(whole), encoding="utf-8")
    assert any(found.startswith(fault) for found in faults(browser, page, expected))
