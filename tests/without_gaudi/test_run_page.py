"""The page of a run holds the numbers of its files, the images of its rows, and nothing that runs or is fetched."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.made_runs import STEPS, made_images, make_run, prediction, write
from support.rows import write_uneven_rows
from support.runs import script_flags
from vlm_lora import pipeline
from vlm_lora.cli.main import main
from vlm_lora.config.sources import parse
from vlm_lora.report.run_page import at_end, page, stored_images
from vlm_lora.report.run_page.curves import MOST_POINTS, charts_of, thinned
from vlm_lora.report.run_page.drawing import draw
from vlm_lora.report.run_page.folder import read_run
from vlm_lora.report.run_page.page import MARK, MOST_BYTES, Ending, render_run
from vlm_lora.training.checkpoints.run_record import RECORD, read_record
from vlm_lora.training.observers import EndReason

HOSTILE = "</dd><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\u202e"


def shown_images(text: str) -> list[Image.Image]:
    found = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def order(text: str) -> list[int]:
    return [int(number) for number in re.findall(r'class="card prediction" data-number="(\d+)"', text)]


def test_the_worst_answers_stand_first_each_with_its_image(tmp_path: Path) -> None:
    images = made_images(tmp_path / "images", 9)
    run = make_run(tmp_path / "run", [prediction(number, image) for number, image in enumerate(images)])
    text = render_run(read_run(run))
    # The least score first; the right ones last, those with the larger loss first.
    assert order(text) == [1, 2, 4, 5, 7, 8, 6, 3, 0]
    assert [image.getpixel((9, 9)) for image in shown_images(text)] == [
        Image.open(images[number]).getpixel((9, 9)) for number in order(text)
    ]
    assert text.count("something else") == 6
    assert "data.jsonl:2" in text


def test_zeros_alone_lie_on_an_axis_that_means_something() -> None:
    (zeros,) = charts_of([{"step": step, "data_wait": 0.0} for step in (1, 2, 3)])
    assert ticks(zeros) == [0, 0.25, 0.5, 0.75, 1]
    (small,) = charts_of([{"step": 1, "eval_anls": 0.0}, {"step": 2, "eval_anls": 0.01}])
    assert max(ticks(small)) == 0.01, "the control"


def ticks(chart: Any) -> list[float]:
    """Return the numbers at a chart's axis of values, which have a point."""
    return [float(text) for text in re.findall(r">(\d+\.\d+)</text>", draw(chart))]


def test_boxes_are_drawn_on_their_own_image_and_at_most_fifty_answers_shown(tmp_path: Path) -> None:
    first, second = made_images(tmp_path / "images", 2)
    box = {"bbox": [4, 5, 24, 35], "label": "cat", "image_id": 1}
    point = {"point": [7.5, 8], "label": HOSTILE, "image_id": 1}
    boxed = prediction(1, first, images=[str(first), str(second)], boxes=[point], expected_boxes=[box])
    text = render_run(read_run(make_run(tmp_path / "run", [boxed, *(prediction(n, first) for n in range(2, 80))])))
    rects = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)">', text)
    assert rects == [("expected", "4.0", "5.0", "20.0", "30.0"), ("generated", "7.5", "8.0", "0.0", "0.0")]
    drawings = re.findall(r'<div class="drawn">(?:(?!</div>).)*?<svg viewBox="0 0 64 48"', text, re.DOTALL)
    assert len(drawings) == 1, "the second image alone"
    assert len(order(text)) == 50
    assert "50 of 79" in text


@pytest.mark.parametrize("place", ["prompt", "generated", "source", "settings", "image", "results"])
def test_text_stays_text(place: str, tmp_path: Path) -> None:
    image = made_images(tmp_path / "images", 1)[0]
    row = prediction(1, HOSTILE if place == "image" else image)
    row |= {place: HOSTILE} if place in row else {}
    settings = {"model_name_or_path": HOSTILE} if place == "settings" else {}
    results = {f"eval_{HOSTILE}": 0.5} if place == "results" else {}
    text = render_run(read_run(make_run(tmp_path / "run", [row], settings=settings, results=results)))
    assert "alert(1)" in text
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "\u202e" not in text
    assert "49" not in re.findall(r"[^\d.](49)[^\d.]", text)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[str], Path]:
    """Writes data whose rows hold their images, and returns the file."""

    def write_data(kind: str) -> Path:
        encoded = [path.read_bytes() for path in made_images(tmp_path / "images", 3)]
        path = tmp_path / f"data.{kind}"
        if kind == "parquet":
            column = [{"bytes": one, "path": None} for one in encoded]
            pq.write_table(pa.table({"image": column, "question": ["?"] * 3, "answer": ["a"] * 3}), path)
        else:
            rows = [{"image": base64.b64encode(one).decode(), "question": "?", "answer": "a"} for one in encoded]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_data


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_images_inside_a_data_file_are_found(kind: str, stored: Callable[[str], Path], tmp_path: Path) -> None:
    data = stored(kind)
    named = prediction(1, f"{data}:2#0", source=f"{data} row 2")
    older = {key: prediction(4, "")[key] for key in ("generated", "accepted", "exact")} | {"source": f"{data} row 1"}
    gone = prediction(7, f"{data}:9#0", source=f"{data} row 9")
    text = render_run(read_run(make_run(tmp_path / "run", [named, older, gone])))
    colours = {image.getpixel((9, 9)) for image in shown_images(text)}
    assert colours == {(40, 90, 160), (80, 90, 160)}, "rows 1 and 2, and no image of row 9"
    assert f"{data} has no row 9 now" in text


def test_a_missing_image_is_named_and_an_address_never_fetched(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    rows = [prediction(1, "gone.png"), prediction(2, "https://x.example/y.png"), prediction(4, broken)]
    text = render_run(read_run(make_run(tmp_path / "run", rows)))
    assert shown_images(text) == []
    for said in ("gone.png: there is no such file now", "a page fetches nothing", "broken.png"):
        assert said in text
    assert 'src="http' not in text


def test_a_page_made_elsewhere_finds_relative_paths_from_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_images(tmp_path / "data", 2)
    (tmp_path / "data" / "rows.jsonl").write_text("", encoding="utf-8")
    rows = [prediction(number, f"data/{number}.png", source="data/rows.jsonl row 1") for number in (0, 1)]
    run = make_run(tmp_path / "run", rows)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = render_run(read_run(run))
    assert shown_images(text) == []
    assert "file:///" not in text
    write(run / "run.json", {"directory": str(tmp_path), "versions": {"torch": "2.9"}})
    text = render_run(read_run(run))
    assert len(shown_images(text)) == 2
    assert f'href="{(tmp_path / "data" / "rows.jsonl").as_uri()}"' in text
    assert "torch 2.9" in text


def test_without_images_none_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = made_images(tmp_path / "images", 1)[0]
    run = make_run(tmp_path / "run", [prediction(1, image)])
    assert len(shown_images(render_run(read_run(run)))) == 1, "the control"
    monkeypatch.setattr(stored_images, "load_image", None)
    assert main(["report", str(run), "--report_images", "false"]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    assert shown_images(text) == []
    assert "data:image" not in text


def test_a_page_has_at_most_twenty_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = made_images(tmp_path / "images", 1)[0]
    many = [{"loss": (step * 7919 % 1000) / 7, "step": step, "learning_rate": 0.1} for step in range(30_000)]
    run = make_run(tmp_path / "run", [prediction(n, image, generated="x" * 400_000) for n in range(60)], log=many)
    text = render_run(read_run(run))
    assert len(text.encode()) < MOST_BYTES / 20
    assert "more characters" in text
    one = len(re.findall(r"data:image/[^\"]+", text)[0])
    monkeypatch.setattr(page, "ROOM", 3 * one)
    full = render_run(read_run(run))
    assert len(shown_images(full)) == 3
    assert full.count("the page is full") == 47
    monkeypatch.setattr(page, "MOST_BYTES", 1000)
    assert shown_images(render_run(read_run(run))) == []


def test_a_long_curve_keeps_its_peaks(tmp_path: Path) -> None:
    log = [{"loss": 100.0 if step == 7777 else 1.0, "step": step} for step in range(20_000)]
    [chart] = charts_of(log)
    steps, values = thinned(chart.lines[0])
    assert len(steps) <= MOST_POINTS + 2
    assert (7777, 100.0) in zip(steps, values, strict=True)
    assert steps == sorted(steps)


def test_a_chart_is_the_same_bytes_each_time_and_has_no_address_in_it(tmp_path: Path) -> None:
    log = read_run(make_run(tmp_path / "run")).log
    charts = charts_of(log)
    assert [chart.title for chart in charts] == [
        "loss",
        "learning rate",
        "gradient norm",
        "exact match",
        "waiting and padding, %",
    ]
    drawn = [draw(chart) for chart in charts]
    assert drawn == [draw(chart) for chart in charts]
    assert drawn != [draw(chart) for chart in charts_of(log[:-1])], "the control"
    ids = [name for one in drawn for name in re.findall(r'\bid="([^"]+)"', one)]
    assert len(ids) == len(set(ids))
    assert {url for one in drawn for url in re.findall(r'"(http[^"]+)"', one)} == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_broken_and_missing_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [prediction(1, "gone.png")])
    (run / "eval_results.json").write_text('{"eval_loss": ', encoding="utf-8")
    with (run / "predictions.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"source": \n[1]\n{}\n')
    (run / "run.json").unlink()
    text = render_run(read_run(run))
    assert "eval_results.json cannot be read" in text
    assert text.count("is no JSON object; it is left out") == 2
    assert order(text) == [3, 0], "an empty record is a wrong answer without a score"
    assert (run / "eval_results.json").is_file(), "reading moves nothing"


def test_a_cut_short_run_is_read_from_its_last_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (10, 20):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        log = [{"loss": 1.0 / n, "step": n} for n in range(1, step + 1)]
        write(run / f"checkpoint-{step}/trainer_state.json", {"global_step": step, "max_steps": 40, "log_history": log})
    assert "not finished: 20 of 40 steps are saved" in render_run(read_run(run))
    known = read_run(run, [{"loss": 9.0, "step": 20}, {"loss": 0.25, "step": 21}])
    assert [entry["step"] for entry in known.log] == list(range(1, 22))
    assert known.log[19]["loss"] == 1 / 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{empty}"], "holds no run"),
        (["{empty}/none"], "no such folder"),
        ([], "the following arguments are required: RUN"),
        (["{run}", "--output", "{notes}"], "is no page of vlm-lora"),
        (["{run}", "--output", "{empty}"], "is a folder"),
        (["{run}", "--report_images", "some"], "--report_images some: must be true or false"),
        (["{run}", "--outptu", "x"], "unrecognized arguments: --outptu x"),
    ],
)
def test_what_cannot_be_is_said(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, notes = tmp_path / "empty", tmp_path / "notes.html"
    empty.mkdir()
    notes.write_text("<html>mine</html>", encoding="utf-8")
    places = {"run": make_run(tmp_path / "run"), "empty": empty, "notes": notes}
    assert main(["report", *(word.format(**places) for word in words)]) == 1
    assert said in capsys.readouterr().err
    assert notes.read_text(encoding="utf-8") == "<html>mine</html>"


def test_without_what_draws_the_verb_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["report", str(make_run(tmp_path / "run"))]) == 1
    assert 'pip install "vlm-lora[report]"' in capsys.readouterr().err


def test_the_page_is_put_on_record_as_the_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write(run / RECORD, {"files": ["eval_results.json"]})
    assert main(["report", str(run)]) == 0
    assert main(["report", str(run)]) == 0, "a page of ours is replaced"
    assert read_record(run).files == ("eval_results.json", "report.html")
    assert MARK in (run / "report.html").read_bytes()
    assert main(["report", str(run), "--output", str(tmp_path / "new" / "other.html")]) == 0
    assert read_record(run).files == ("eval_results.json", "report.html")


def test_a_run_writes_its_page_however_it_ends(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []
    write_page = at_end.write_own_page

    def noting(folder: Path, output: Path, **how: Any) -> None:
        write_page(folder, output, **how)
        made.append((how["ending"], [entry["step"] for entry in how["more"]]))

    monkeypatch.setattr(at_end, "write_own_page", noting)
    data, out = write_uneven_rows(tmp_path / "data", rows=4, validation=2), tmp_path / "out"
    given = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_page": True,
        "predict_with_generate": True,
    }
    given |= {"max_new_tokens": 3}
    words = script_flags(model_folder("gemma3"), data, out, **given, do_train=True, do_eval=True)
    pipeline.train(parse(words, environ={}))
    assert made == [(None, [1, 2, 2])]
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "finished: 2 of 2 steps" in text
    assert len(shown_images(text)) == 2
    assert "report.html" in read_record(out).files
    pipeline.train(parse([*words, "--resume_from_checkpoint", "true"], environ={}))
    assert made[1][0].good
    (out / "report.html").write_text("mine", encoding="utf-8")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more paper\nand more")

    monkeypatch.setattr(pipeline, "write_model_card", fail)
    with pytest.raises(RuntimeError):
        pipeline.train(parse([*words, "--overwrite_output_dir", "true"], environ={}))
    assert made[2][0] == Ending(good=False, said="failed: no more paper")
    assert "failed: no more paper" in (out / "report.html").read_text(encoding="utf-8"), "the old page was on record"


def test_a_page_that_cannot_be_made_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run")
    observer = at_end.RunPage()
    words = ["--model_name_or_path", "m", "--dataset_name", "d"]
    arguments = type("Arguments", (), {"process_index": 0, "output_dir": str(run)})()
    observer.started(parse(words, environ={}), arguments)
    (run / "report.html").write_text("mine", encoding="utf-8")
    observer.ended(EndReason.FINISHED, "")
    assert (run / "report.html").read_text(encoding="utf-8") == "mine"
    assert f"To try again: vlm-lora report {run}" in caplog.text
    (run / "report.html").unlink()
    with caplog.at_level("INFO", "vlm_lora"):
        monkeypatch.setattr(at_end, "can_draw", lambda: False)
        observer.ended(EndReason.FINISHED, "")
    assert f'To see this run on a page: pip install "vlm-lora[report]", then vlm-lora report {run}' in caplog.text
    monkeypatch.undo()
    other = at_end.RunPage()
    other.started(parse([*words, "--report_page", "false"], environ={}), arguments)
    other.ended(EndReason.FINISHED, "")
    assert not (run / "report.html").exists()
    observer.ended(EndReason.ERROR, "KeyboardInterrupt")
    assert '<span class="chip bad">interrupted</span>' in (run / "report.html").read_text(encoding="utf-8")


def test_scores_by_task_stand_in_a_table(tmp_path: Path) -> None:
    by_task = {"count": {"rows": 3, "exact_match": 0.625}, HOSTILE: {"rows": 2, "exact_match": 0.1}}
    text = render_run(read_run(make_run(tmp_path / "run", results={"eval_by_task": by_task})))
    assert "<h3>By task</h3>" in text
    assert re.search(r'<td class="t">count</td><td class="n">3</td><td class="n">0.625</td>', text)
    assert "<script" not in text


def test_every_figure_of_an_evaluation_is_there(tmp_path: Path) -> None:
    text = render_run(read_run(make_run(tmp_path / "run")))
    found = re.findall(r'data-name="eval_loss" data-value="([^"]+)"', text)
    assert [float(one) for one in found if one] == [2.0 / 41, *(2.0 / (1 + step) for step in range(10, STEPS + 1, 10))]
    assert 'class="evaluation best"' in text
    assert "0.25 to 0.75" in text
    assert "images a row: 1, all 12 alike" in text
    changed = re.findall(r'<tr class="setting"><td class="mono">(\w+)</td><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)<', text)
    assert ("lora_rank", "8", "16") in changed
    assert ("learning_rate", "0.001", "0.0001") in changed
    assert not [name for name, *_ in changed if name in ("lora_alpha", "report_to", "weight_decay")]
    tops = re.findall(r'<td class="n top" data-name="(\w+)" data-value="([^"]+)"', text)
    assert tops == [("eval_loss", str(2.0 / (1 + STEPS))), ("eval_exact_match", str(STEPS / 80))]
