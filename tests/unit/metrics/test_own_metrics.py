"""A user's own metric: both forms, its direction, and what is said where it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_lora.config.scoring import ScoringConfig
from vlm_lora.errors import ConfigError
from vlm_lora.metrics.choice import choose
from vlm_lora.metrics.facts import DataFacts
from vlm_lora.metrics.scored import Answered

LENGTH = "def score(generated: str, accepted: list[str]) -> float:\n    return len(generated) / 10\n"
CLASS = """import datasets
import evaluate


class Longer(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": REFERENCES})
        return evaluate.MetricInfo(description="d", citation="c", inputs_description="i", features=features)

    def _compute(self, predictions, references):
        return {"longer": sum(len(p) for p in predictions) / len(predictions), "count": len(references)}
"""


def file(folder: Path, text: str, name: str = "my_metric.py") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def answered(generated: str, row: str = "rows.jsonl row 0") -> Answered:
    return Answered(row=row, generated=generated, accepted=("x",), task="t")


def refused(asked: str) -> str:
    with pytest.raises(ConfigError) as error:
        choose([asked], DataFacts())
    return str(error.value)


def test_a_function_scores_rows(tmp_path: Path) -> None:
    scorer = choose([file(tmp_path, LENGTH)], DataFacts())
    assert scorer.names == ("exact_match", "my_metric")
    assert scorer.greater_is_better("eval_my_metric")
    assert scorer.reasons[-1] == f"{tmp_path / 'my_metric.py'}: asked for by --metrics (my_metric)"
    scores = scorer.score([answered("ab"), answered("abcd")])
    assert [row["my_metric"] for row in scores.rows] == [0.2, 0.4]
    assert scores.figures["my_metric"] == scores.groups["task"]["t"]["my_metric"] == pytest.approx(0.3)
    assert scores.intervals["my_metric"] == pytest.approx((0.2, 0.4))


def test_a_function_may_give_several_figures_and_their_directions(tmp_path: Path) -> None:
    text = (
        "greater_is_better = {'hits': True, 'cost': False}\n"
        "def score(generated, accepted):\n    return {'cost': len(generated), 'hits': generated in accepted}\n"
    )
    scorer = choose([file(tmp_path, text)], DataFacts())
    assert scorer.names == ("exact_match", "cost", "hits")
    assert not scorer.greater_is_better("cost")
    assert scorer.score([answered("x"), answered("yyy")]).figures == {"exact_match": 0.5, "cost": 2, "hits": 0.5}
    less = choose([file(tmp_path, f"greater_is_better = False\n{LENGTH}")], DataFacts())
    assert not less.greater_is_better("my_metric")


@pytest.mark.parametrize("references", ["text", "datasets.Sequence(text)"])
def test_a_class_of_evaluate_scores_all_rows(references: str, tmp_path: Path) -> None:
    name = f"longer{len(references)}.py"
    text = CLASS.replace("REFERENCES", references).replace('"count"', '"each": [1], "count"')
    scorer = choose([file(tmp_path, text, name)], DataFacts())
    assert scorer.reasons[-1].endswith("(longer, count; left out, as no numbers: each)")
    scores = scorer.score([answered("ab"), answered("abcd")])
    assert scores.figures == {"exact_match": 0, "longer": 3, "count": 2}
    assert "longer" not in scores.intervals
    assert scores.groups["task"]["t"]["longer"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "it has neither a function score(generated, accepted) nor a metric class of evaluate"),
        ("import no_such_package\n", "my_metric.py, line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(3)\n", "my_metric.py, line 1: SystemExit: 3 (loading it)"),
        ("def score(a, b):\n    x = 1\n    return a / b\n", "my_metric.py, line 3: TypeError: unsupported operand"),
        ("def score(a):\n    return 1\n", "my_metric.py: TypeError: score() takes 1 positional argument but 2 were"),
        ("def score(a, b):\n    return 'good'\n", "'my_metric' is 'good' for a made-up row, and must be a finite"),
        ("def score(a, b):\n    return float('nan')\n", "'my_metric' is nan for a made-up row"),
        ("def score(a, b):\n    return {}\n", "it gives no figure for a made-up row"),
        ("def score(a, b):\n    return {'exact_match': 1}\n", "its figure 'exact_match' is called as one of"),
        (f"greater_is_better = 'yes'\n{LENGTH}", "greater_is_better is 'yes'. Write True or False"),
        (f"greater_is_better = {{'other': True}}\n{LENGTH}", "for each of its figures: my_metric."),
        (CLASS.replace("REFERENCES", "text").replace("return {", "return 1 / 0  # {"), "line 12: ZeroDivisionError"),
        (CLASS.replace("REFERENCES", "text").replace("return {", "return 7  # {"), "its compute gives 7, and must"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_message_before_training(text: str, message: str, tmp_path: Path) -> None:
    told = refused(file(tmp_path, text))
    assert told.startswith(f"--metrics {tmp_path / 'my_metric.py'}: ")
    assert message in told
    assert "\n" not in told


def test_a_row_on_which_it_fails_is_named(tmp_path: Path) -> None:
    text = "def score(generated, accepted):\n    return 10 / len(generated)\n"
    scorer = choose([file(tmp_path, text)], DataFacts())
    with pytest.raises(ConfigError, match=r"line 2: ZeroDivisionError: .* \(rows\.jsonl row 7\)"):
        scorer.score([answered("ab"), answered("", "rows.jsonl row 7")])
    other = "def score(generated, accepted):\n    return {'a': 1} if 'apples' in generated else {'b': 1}\n"
    scorer = choose([file(tmp_path, other, "other.py")], DataFacts())
    with pytest.raises(ConfigError, match=r"for rows\.jsonl row 0 it gives the figures b, and for a made-up row a"):
        scorer.score([answered("ab")])


def test_a_folder_as_evaluate_has_them_and_what_is_no_python_file(tmp_path: Path) -> None:
    (tmp_path / "folded").mkdir()
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Row:\n    text: str\n\n"
        "def score(generated, accepted):\n    return len(Row(generated).text)\n"
    )
    file(tmp_path / "folded", text, "folded.py")
    assert choose([str(tmp_path / "folded")], DataFacts()).names == ("exact_match", "folded")
    for asked in ("some/metric", file(tmp_path, text, "notes.txt")):
        assert refused(asked).startswith(f"--metrics {asked}: a metric of yours is a Python file, and /")


def test_a_name_with_a_comma_is_one_file(tmp_path: Path) -> None:
    asked = file(tmp_path, LENGTH, "mine, too.py")
    assert choose([asked], DataFacts()).names == ("exact_match", "mine, too")
    assert ScoringConfig(metrics=(asked, "anls,cer")).asked == (asked, "anls", "cer")


def test_two_files_may_not_give_the_same_figure(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first, second = file(tmp_path, LENGTH), file(tmp_path / "b", LENGTH)
    with pytest.raises(ConfigError, match=f"--metrics {second}: its figure 'my_metric' is called as one of {first}"):
        choose([first, second], DataFacts())


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("def score(generated, accepted):\n    return 10**400\n", "huge.py", "must be a finite number"),
        (
            "def score(generated, accepted):\n    return 1\n",
            "loss.py",
            "name of something else in results (eval_loss)",
        ),
        (
            "def score(generated, accepted):\n    return 1\n",
            "rows.py",
            "name of something else in results (eval_rows)",
        ),
    ],
)
def test_what_would_be_no_figure_or_another_one_is_refused(tmp_path: Path, text: str, name: str, says: str) -> None:
    assert says in refused(file(tmp_path, text, name))
