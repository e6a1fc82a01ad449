"""Each rule on cases whose values were worked out by hand from the rule's source."""

from __future__ import annotations

from typing import Any

import pytest

from vlm_lora.metrics.rules import bleu, box_map, boxes, error_rates, json_fields, ocr_page
from vlm_lora.metrics.rules.anls import anls
from vlm_lora.metrics.rules.exact_match import exact_match
from vlm_lora.metrics.rules.relaxed_accuracy import relaxed_accuracy
from vlm_lora.metrics.rules.rouge_l import rouge_l
from vlm_lora.metrics.rules.token_f1 import token_f1
from vlm_lora.metrics.rules.vqa_accuracy import normalized, vqa_accuracy

TEN = ["yes"] * 7 + ["no", "No.", "maybe"]


def box(*numbers: float, label: str = "", image: int = 0) -> dict[str, Any]:
    return {"bbox": list(numbers), "label": label, "image_id": image}


@pytest.mark.parametrize(
    ("generated", "accepted", "value"),
    [
        ("red", ["red"], 1),
        ("<think>blue?</think> red\n", [" red"], 1),
        ("Red", ["red"], 0),
        ("red", ["blue", "red"], 1),
        ("", [""], 1),
        ("", ["red"], 0),
        ("e\u0301", ["\u00e9"], 0),  # the same letter to a reader, other characters
    ],
)
def test_exact_match(generated: str, accepted: list[str], value: float) -> None:
    assert exact_match(generated, accepted) == value


@pytest.mark.parametrize(
    ("generated", "expected", "value"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("0.95", "1", 0),  # 1 - 0.95 is 0.050000000000000044 to a computer, and pix2struct does not round
        ("95", "100", 1),
        ("5%", "0.05", 1),
        ("5", "5%", 0),
        ("5%%", "5%", 1),  # all percent signs at the end go, one hundredth is taken
        ("1,541", "1541", 0),  # a comma is no number to float()
        ("1,541", "1,541", 1),
        ("1_000", "1000", 1),  # float() takes Python's underscores
        ("0", "0.0", 0),  # nothing is near zero: texts are compared
        ("0", "0", 1),
        ("-100", "100", 0),
        ("nan", "nan", 0),  # no number is near nan, itself included
        ("inf", "inf", 0),  # inf - inf is nan
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("%", "%", 1),
        ("", "", 1),
        ("", "7", 0),
        ("\u0663", "3", 1),  # float() reads Arabic digits
        ("\u00c9t\u00e9", "\u00e9t\u00e9", 1),
    ],
)
def test_relaxed_accuracy(generated: str, expected: str, value: float) -> None:
    assert relaxed_accuracy(generated, [expected]) == value
    assert relaxed_accuracy(generated, ["?", expected]) == value, "the best accepted answer counts"


@pytest.mark.parametrize(
    ("generated", "accepted", "value"),
    [
        ("abcd", ["abcd"], 1),
        ("abxx", ["abcd"], 0),  # 2 of 4 differ: 0.5 is not below the threshold
        ("abcx", ["abcd"], 0.75),
        ("abc", ["abcde"], 0.6),
        ("ABCD", ["abcd"], 1),
        (" abcd ", ["abcd"], 1),
        ("ab cd", ["abcd"], 0.8),  # a blank within counts
        ("kitten", ["sitting", "mitten"], 5 / 6),
        ("", ["abcd"], 0),
        ("abcd", [""], 0),
        ("", [""], 1),
        ("\u00fcber", ["uber"], 0.75),
        ("\U0001f600a", ["\U0001f600b"], 0),
    ],
)
def test_anls(generated: str, accepted: list[str], value: float) -> None:
    assert anls(generated, accepted) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("generated", "accepted", "value"),
    [
        ("The cat!", ["a cat"], 1),
        ("the black cat", ["a cat"], 2 / 3),  # precision 1/2, recall 1
        ("cat cat", ["cat"], 2 / 3),  # a word counts as often as both have it
        ("dog", ["cat"], 0),
        ("the", ["an"], 1),  # no words on either side
        ("the", ["cat"], 0),
        ("", [""], 1),
        ("dog", ["cat", "big dog"], 2 / 3),
        ("it's", ["its"], 1),
        ("\u732b", ["\u732b"], 1),
    ],
)
def test_token_f1(generated: str, accepted: list[str], value: float) -> None:
    assert token_f1(generated, accepted) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The two dogs", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("hello, world", "hello world"),
        ("a/b", "b"),  # the slash becomes a blank, and "a" is an article
        ("black/white", "black white"),
        ("1,000", "1000"),  # a comma between digits: all marks go without a blank
        ("1,000/x", "1000x"),
        ("3.5", "3.5"),
        ("end.", "end"),
        ("a.m.", "am"),
        ("x. 5", "x 5"),
        ("." * 33, "."),  # 32 periods go at most: VQAEval's slip
        ("somebody'd", "somebodyd"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("", ""),
        ("\u732b\uff01", "\u732b\uff01"),  # marks of other scripts stay
    ],
)
def test_vqa_normalization(text: str, normal: str) -> None:
    assert normalized(text) == normal


@pytest.mark.parametrize(
    ("generated", "accepted", "value"),
    [
        ("Yes!", TEN, 1),
        ("no", TEN, (8 * 2 / 3 + 2 * 1 / 3) / 10),  # two say no: eight see 2 others, two see 1
        ("maybe", TEN, (9 * 1 / 3) / 10),
        ("perhaps", TEN, 0),
        ("yes", ["yes"] * 10, 1),
        ("Yes", ["yes"] * 10, 0),  # all say the same: nothing is normalized
        ("yes\n", ["yes"] * 10, 1),
        ("yes", ["yes"], 0),  # nobody else
        ("yes", ["yes"] * 3, 2 / 3),
        ("yes", ["yes"] * 4, 1),
        ("", [], 0),
        ("", ["", "", "", ""], 1),
    ],
)
def test_vqa_accuracy(generated: str, accepted: list[str], value: float) -> None:
    assert vqa_accuracy(generated, accepted) == pytest.approx(value, abs=1e-12)


def test_error_rates() -> None:
    edits = error_rates.character_edits
    assert edits("kitten", "sitting") == (3, 7)
    assert edits("", "abc") == (3, 3)
    assert edits("abc", "") == (3, 0)
    assert error_rates.word_edits("the  cat", "the cat sat") == (1, 3)
    assert error_rates.word_edits("the\ncat", "the cat") == (2, 2), "a single line break parts no words to jiwer"
    assert error_rates.fewest_edits(edits, "abc", ["xyz", "abd", "abcd"]) == (1, 4)
    assert error_rates.fewest_edits(edits, "abc", []) == (0, 0)
    count, combine = error_rates.error_rate("cer", edits)
    counted = count(["kitten", "abc", "\u00fc"], [["sitting"], [""], ["u"]])
    assert [row["cer"] for row in counted.rows] == [3 / 7, 3, 1]
    assert combine(counted.sums.sum(axis=0))["cer"] == 7 / 8, "all edits by all characters"


def test_bleu() -> None:
    counted = bleu.count(["the cat sat on the mat"], [["the cat sat on a mat"]])
    # 6 words, 6 in the reference; 5 of 6, 3 of 5, 2 of 4, 1 of 3 runs match.
    assert counted.sums.tolist() == [[6, 6, 5, 3, 2, 1, 6, 5, 4, 3]]
    assert bleu.combine(counted.sums[0])["bleu"] == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    short = bleu.count(["the cat sat on"], [["the cat sat on the mat"]]).sums[0]
    assert bleu.combine(short)["bleu"] == pytest.approx(2.718281828459045 ** (1 - 6 / 4)), "brevity alone"
    assert bleu.combine(bleu.count(["", "dog"], [["cat"], ["cat"]]).sums.sum(axis=0))["bleu"] == 0


def test_rouge_l() -> None:
    # Common subsequence "the cat on the mat": 5 of 6 and 5 of 6.
    assert rouge_l("the cat sat on the mat", ["dog", "the cat lay on the mat"]) == pytest.approx(5 / 6)
    assert rouge_l("", ["cat"]) == rouge_l("cat", [""]) == rouge_l("cat", []) == 0
    assert rouge_l("\u732b", ["\u732b"]) == 0, "rouge-score knows the letters a to z"


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}\n</tool_call>'


@pytest.mark.parametrize(
    ("generated", "expected", "valid", "f1"),
    [
        ('{"a": 1}', '{"a": 1}', 1, 1),
        ('{"a": 1.0}', '{"a": 1}', 1, 1),
        ('{"a": true}', '{"a": 1}', 1, 0),
        ('{"a": "1"}', '{"a": 1}', 1, 0),
        ('{"a": null}', '{"a": 0}', 1, 0),
        ('{"a": " x "}', '{"a": "x"}', 1, 1),
        ('{"a": "x", "b": 2}', '{"a": "x"}', 1, 2 / 3),
        ('[{"n": "tea"}, {"n": "pie"}]', '[{"n": "pie"}, {"n": "tea"}]', 1, 1),
        ('{"n": ["x", "x"]}', '{"n": ["x"]}', 1, 2 / 3),
        ('{"a": {}}', '{"a": {}}', 1, 1),
        ('{"a": []}', '{"a": {}}', 1, 0),
        ("[]", "[]", 1, 1),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 1, 1),
        ('Sure: {"a": 1}', '{"a": 1}', 0, 0),
        ('{"a": 1', '{"a": 1}', 0, 0),
        ('{"a": NaN}', '{"a": 1}', 0, 0),
        ("", '{"a": 1}', 0, 0),
        ("[" * 100_000, '{"a": 1}', 0, 0),
        (CALL, CALL, 1, 1),
        (f"{CALL}\n{CALL}", CALL, 1, 2 * 4 / (8 + 4)),  # name, a, b twice in each call
        ('{"name": "add"}', CALL, 1, 2 * 1 / (1 + 4)),
        ('<call>{"name": "add"}</call>', CALL, 0, 0),
        ('{"\u00e9": "\u732b"}', '{"\\u00e9": "\\u732b"}', 1, 1),
        ("7", "7", 1, 1),
    ],
)
def test_json(generated: str, expected: str, valid: float, f1: float) -> None:
    counted = json_fields.count([generated], [["no JSON", expected]])
    assert counted.rows == [{"json_valid": valid, "json_field_f1": pytest.approx(f1)}]
    figures = json_fields.combine(counted.sums.sum(axis=0))
    assert [float(figures[name]) for name in ("json_valid", "json_field_f1")] == pytest.approx([valid, f1])


def test_fields_are_unknown_where_no_accepted_answer_is_json() -> None:
    counted = json_fields.count(['{"a": 1}', "{"], [["words"], []])
    assert counted.rows == [{"json_valid": 1.0}, {"json_valid": 0.0}]
    assert str(json_fields.combine(counted.sums.sum(axis=0))["json_field_f1"]) == "nan"


def test_iou() -> None:
    assert boxes.iou((0, 0, 10, 10), (0, 0, 10, 5)) == 0.5
    assert boxes.iou((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(25 / 175)
    assert boxes.iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert boxes.iou((3, 3, 3, 3), (3, 3, 3, 3)) == boxes.iou((9, 9, 1, 1), (9, 9, 1, 1)) == 0, "no area"


@pytest.mark.parametrize(
    ("generated", "expected", "counts"),
    [
        ([box(0, 0, 10, 10)], [box(0, 0, 10, 5)], (1, 1, 1)),  # 0.5 is enough
        ([box(0, 0, 10, 10)], [box(0, 0, 10, 4.9)], (0, 1, 1)),
        ([box(0, 0, 10, 10)] * 2, [box(0, 0, 10, 10)], (1, 2, 1)),  # one to one
        # The first fits both, the second only the first expected one: a greedy match would lose one.
        ([box(0, 0, 10, 10), box(0, 0, 10, 6)], [box(0, 0, 10, 8), box(0, 5, 10, 10)], (2, 2, 2)),
        ([box(0, 0, 9, 9, label="Cat ")], [box(0, 0, 9, 9, label="cat")], (1, 1, 1)),
        ([box(0, 0, 9, 9, label="dog")], [box(0, 0, 9, 9, label="cat")], (0, 1, 1)),
        ([box(0, 0, 9, 9, label="dog")], [box(0, 0, 9, 9)], (1, 1, 1)),
        ([box(0, 0, 9, 9)], [box(0, 0, 9, 9, label="cat")], (0, 1, 1)),
        ([box(0, 0, 9, 9, image=1)], [box(0, 0, 9, 9)], (0, 1, 1)),
        ([box(4, 4)], [box(4, 4)], (0, 0, 0)),  # points
        ([], [box(0, 0, 9, 9)], (0, 0, 1)),
        ([box(0, 0, 9, 9)], [], (0, 1, 0)),
        ([], [], (0, 0, 0)),
    ],
)
def test_boxes_are_matched_one_to_one(
    generated: list[dict[str, Any]], expected: list[dict[str, Any]], counts: tuple[int, int, int]
) -> None:
    assert boxes.count_row(generated, expected, 0.5) == counts


def test_figures_of_boxes() -> None:
    hit, miss = box(0, 0, 9, 9), box(50, 50, 60, 60)
    counted = boxes.count([[hit, miss], []], [[hit], [hit, hit]])
    assert counted.rows[1] == {"box_precision": 0.0, "box_recall": 0.0, "box_f1": 0.0}
    figures = boxes.combine(counted.sums.sum(axis=0))
    assert {name: float(value) for name, value in figures.items()} == {
        "box_precision": 1 / 2,
        "box_recall": 1 / 3,
        "box_f1": 2 / 5,
    }
    assert boxes.count([[]], [[]]).rows == [{"box_precision": 1.0, "box_recall": 1.0, "box_f1": 1.0}]


def test_map_in_order() -> None:
    hit, miss = box(0, 0, 10, 10, label="a"), box(50, 50, 60, 60, label="a")
    # IoU 0.62 is enough at 0.50, 0.55 and 0.60 of ten thresholds.
    part, other = box(0, 0, 10, 6.2, label="A"), box(0, 0, 10, 10, label="b")
    for generated, expected, value in (
        ([hit], [hit], 1),
        ([hit, miss], [hit], 1),  # what comes behind the hit costs nothing
        ([miss, hit], [hit], 0.5),  # the order counts
        ([part], [hit], 0.3),
        ([other], [hit], 0),
        ([box(4, 4)], [hit], 0),
        ([hit], [], 0),
        ([], [], 1),
    ):
        assert box_map.figures([generated], [expected]) == {"box_map_in_order": pytest.approx(value)}


def test_text_of_a_page() -> None:
    read = ocr_page.page_text
    assert read("one\n  two") == "one two"
    assert read('[{"bbox_2d": [1, 2, 3, 4], "text": "one"}, {"text": "two  three", "bbox_2d": [1, 2, 3, 4]}]') == (
        "one two three"
    )
    assert read("[[1, 2, 3, 4]]") is None
    assert read("[]") == ""
    assert read("7") == "7"


def test_figures_of_pages() -> None:
    answer = '[{"text": "one two", "bbox": [0, 0, 10, 10]}]'
    there, cut = box(0, 0, 10, 10, label="one two"), box(0, 0, 10, 6, label="one")
    counted = ocr_page.count(
        [("one  twx", [cut]), ("a\nb", None), ("[[0, 0, 10, 6]]", [cut])],
        [([answer], [there]), (["a b"], []), (["[[0, 0, 10, 10]]"], [there])],
    )
    assert "ocr_box_f1_50" not in counted.rows[1]
    assert "ocr_cer" not in counted.rows[2]
    figures = {name: float(value) for name, value in ocr_page.combine(counted.sums.sum(axis=0)).items()}
    assert figures == pytest.approx(
        {
            "ocr_cer": 1 / 10,
            "ocr_wer": 1 / 4,
            "ocr_anls": (6 / 7 + 1) / 2,
            "ocr_exact_match": 1 / 2,
            **{f"ocr_box_{name}_50": 1 for name in ("precision", "recall", "f1")},
            **{f"ocr_box_{name}_75": 0 for name in ("precision", "recall", "f1")},
        }
    )
