"""Which metrics are chosen for which data, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_chartqa_folder, write_image, write_jsonl
from vlm_lora.batching.boxes.writing import Region
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import ConfigError
from vlm_lora.metrics.choice import choose
from vlm_lora.metrics.facts import DataFacts, SetFacts, facts_of, facts_of_answers
from vlm_lora.metrics.scored import Answered
from vlm_lora.metrics.table import METRICS

NOTHING = DataFacts()


def facts_for(path: Path, **settings: Any) -> DataFacts:
    config = DataConfig(dataset_name=str(path), validation_fraction=0.5, **settings)
    return facts_of(load_splits(config, need_train=True, need_validation=True).validation)


def rows_of(folder: Path, **columns: Any) -> Path:
    write_image(folder / "0.png", seed=0, size=(100, 80))
    return write_jsonl(folder / "rows.jsonl", [{"image": "0.png", **columns}] * 4)


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "plain": ({"question": "What?", "answer": "A cat."}, "token_f1", "answers are texts, and nothing says of which"),
    "several": ({"question": "What?", "answers": ["cat", "a cat"]}, "token_f1", "rows have up to 2 accepted answers"),
    "chartqa": ({"query": "What?", "label": ["12"]}, "relaxed_accuracy", "the columns are ChartQA's (query, label)"),
    "docvqa": (
        {"question": "What?", "answers": ["12"], "questionId": 7},
        "anls",
        "the columns are DocVQA's (question, answers, questionid)",
    ),
    "docvqa of many answers": (
        {"question": "What?", "answers": ["12", "12.0"] * 5, "docId": 7, "ucsf_document_id": "x"},
        "anls",
        "the columns are DocVQA's (question, answers, docid, ucsf_document_id)",
    ),
    "vqa": (
        {"question": "What?", "answers": ["cat"] * 10, "question_id": 7},
        "vqa_accuracy",
        "rows have the answers of up to 10 annotators",
    ),
    "json": ({"question": "What?", "answer": '{"total": 3}'}, "json", "the answers are JSON"),
    "boxes": ({"objects": {"bbox": [[1, 2, 30, 40]], "category": ["cat"]}}, "boxes", "the answers have boxes"),
}


@pytest.mark.parametrize("case", CASES)
def test_auto_goes_by_the_data(case: str, tmp_path: Path) -> None:
    columns, chosen, why = CASES[case]
    scorer = choose([], facts_for(rows_of(tmp_path, **columns)))
    assert scorer.reasons[0] == "exact_match: always"
    assert scorer.reasons[1].startswith(f"{chosen}: {why}")
    assert scorer.names == ("exact_match", *METRICS[chosen].figures)


def test_auto_for_pages_and_calls(tmp_path: Path) -> None:
    page = {
        "text": {"lines": [{"text": "one", "bbox": [1, 2, 30, 40]}], "text": "one"},
        "image": {"width": 9, "height": 9},
    }
    pages = rows_of(tmp_path, ocr=page)
    assert {"ocr_cer", "cer"} < set(choose(["auto"], facts_for(pages)).names)
    found = choose(["auto"], facts_for(pages, output_types=("box",))).names
    assert "box_f1" in found
    assert "cer" not in found
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    chat = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    (tmp_path / "calls").mkdir()
    facts = facts_for(write_jsonl(tmp_path / "calls" / "rows.jsonl", [{"messages": chat}] * 4))
    assert choose(["auto"], facts).reasons[1] == "json: the answers are calls of tools"


def test_auto_for_several_data_sets_takes_what_suits_each(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    charts = write_chartqa_folder(tmp_path / "charts", train=4, val=2, test=0, seed=0)
    texts = rows_of(tmp_path / "a", question="What?", answer="A cat.")
    scorer = choose(["auto"], facts_for(Path(f"{charts} + {texts}")))
    assert scorer.names == ("exact_match", "relaxed_accuracy", "token_f1")
    assert all("(" in reason for reason in scorer.reasons[1:]), "each says for which data set"


def test_facts_of_answers_alone() -> None:
    box = Region(numbers=(0, 0, 9, 9), label=None, image=0)
    plain = Answered(row="r", generated="x", accepted=("x",))
    boxed = Answered(row="r", generated="[]", accepted=("[]",), boxes=(box,), expected_boxes=(box,))
    assert choose([], facts_of_answers([plain])).names == ("exact_match", "token_f1")
    assert "box_f1" in choose([], facts_of_answers([boxed])).names
    assert choose([], facts_of_answers([])).names == ("exact_match", "token_f1")


def test_what_is_asked_is_taken_and_exact_match_with_it() -> None:
    scorer = choose(["cer, eval_box_f1", "ROUGE-L".lower(), "cer"], NOTHING)
    assert scorer.names == ("exact_match", "cer", "box_precision", "box_recall", "box_f1", "rouge_l")
    assert scorer.greater_is_better("eval_rouge_l")
    assert not scorer.greater_is_better("cer")
    with pytest.raises(KeyError):
        scorer.greater_is_better("eval_loss")
    assert choose(["auto", "wer"], NOTHING).names == ("exact_match", "token_f1", "wer")


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def score(\n", encoding="utf-8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    facts = DataFacts(sets=(SetFacts(name="val", layout="question_answer", accepted=(1, 1)),))
    asked = ["anlz", "cer", "boxes", "vqa_accuracy", str(tmp_path / "broken.py"), "./gone.py"]
    with pytest.raises(ConfigError) as error:
        choose(asked, facts)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("--metrics anlz: there is no such metric. Did you mean 'anls'? There are exact_match, ")
    assert lines[1] == '--metrics cer: it needs jiwer, not installed here. Type pip install "vlm-lora[metrics]"'
    assert lines[2].startswith("--metrics boxes: no answer of the data has boxes that vlm-lora reads")
    assert lines[3].startswith("--metrics vqa_accuracy: it compares annotators")
    assert "broken.py, line 1: SyntaxError" in lines[4]
    assert lines[5].startswith("--metrics ./gone.py: a metric of yours is a Python file, and /")
    assert len(lines) == 6


def test_auto_names_what_it_would_have_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = DataFacts(sets=(SetFacts(name="val", layout="page", page_text=True),))
    assert "ocr_cer" in choose(["auto"], facts).names
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scorer = choose(["auto"], facts)
    assert scorer.names == ("exact_match",)
    assert scorer.left_out == scorer.reasons[1:]
    assert choose(["auto"], DataFacts(sets=())).left_out == ()
    assert scorer.reasons[1:] == (
        "left out: ocr_page: rows are OCR pages whose text is asked for; it needs jiwer, not installed here. Type pip "
        'install "vlm-lora[metrics]"',
        "left out: cer: rows are OCR pages whose text is asked for; it needs jiwer, not installed here. Type pip "
        'install "vlm-lora[metrics]"',
    )
