"""`vlm-lora ask`: questions from a file, as one object, drawn by seed, and a conversation at the terminal."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_image, write_jsonl
from vlm_lora import pipeline
from vlm_lora.cli.main import main
from vlm_lora.data.conversation import Conversation
from vlm_lora.evaluation.generation import Answerer, Reply


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asking")
    for number in range(3):
        write_image(folder / f"{number}.png", seed=number)
    return folder


@pytest.fixture
def words(model_folder: Callable[[str], Path]) -> list[str]:
    return ["ask", "--model_name_or_path", str(model_folder("qwen2_vl")), "--use_cpu", "--max_new_tokens", "6"]


def asked(words: list[str], capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    capsys.readouterr()
    assert main([*words, *map(str, flags)]) == 0
    return capsys.readouterr().out


def test_one_object_says_what_the_flags_say(words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = place / "0.png"
    flags = asked(words, capsys, "--image", image, "--prompt", "What is it?")
    assert flags.strip()
    assert asked(words, capsys, "--inputs", json.dumps({"image": str(image), "prompt": "What is it?"})) == flags
    other = json.dumps({"image": [str(place / "1.png"), str(image)], "prompt": "And “ü”?"})
    assert asked(words, capsys, "--inputs", other) != flags, "the control: another question"


def test_drawn_answers_are_the_same_by_seed(words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = ("--image", place / "0.png", "--prompt", "What is it?", "--temperature", "5.0")
    drawn = [asked(words, capsys, *question, "--seed", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_file_of_questions(words: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"image": "gone.png", "prompt": "And this?"},
        {"image": "0.png", "prompt": "What is it?"},
        {"image": "1.png", "prompt": "Größe?"},
    ]
    file = write_jsonl(place / "questions.jsonl", rows)
    first, *others = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([first, "7", '{"image": "0.png", "pro', *others, "[]"]) + "\n", encoding="utf-8")
    output = tmp_path / "new" / "answers.jsonl"
    assert main([*words, "--file", str(file), "--output", str(output)]) == 1
    said = capsys.readouterr()
    assert f"2 answers written to {output}" in said.out
    assert "4 of 6 rows" in said.err
    assert "%|" not in said.err, "no bar of a library where there is no terminal"
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert "gone.png" in lines[0]["error"]
    assert [line["source"] for line in lines] == [f"{file} row {row} (line {row + 1})" for row in range(6)]
    for line, text in ((lines.pop(5), "a list"), (lines.pop(2), "not JSON"), (lines.pop(1), "a number")):
        assert text in line["error"]
    assert [line["prompt"] for line in lines[1:]] == ["What is it?", "Größe?"]
    assert lines[1]["images"] == [str(place / "0.png")]
    alone = asked(words, capsys, "--image", place / "0.png", "--prompt", "What is it?")
    assert lines[1]["generated"] == alone.removesuffix("\n")
    assert main([*words, "--file", str(file), "--output", str(output)]) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--prompt is missing"),
        (["--prompt", "a", "--file", "b"], "--prompt and --file each ask by themselves"),
        (["--image", "a.png", "--inputs", "{}"], "--image and --inputs"),
        (["--prompt", "a", "--output", "b"], "--output is for --file"),
        (["--inputs", "{"], "is no JSON"),
        (["--inputs", "[1]"], "must be one JSON object"),
        (["--inputs", '{"imag": "a", "prompt": "b"}'], "'imag' is no key of it. Did you mean 'image'"),
        (["--inputs", '{"image": "a"}'], "must hold one 'prompt'"),
        (["--prompt", "a", "--image", "none.png"], "The image none.png: no such file"),
        (["--prompt", "a", "--top_p", "2"], "--top_p 2"),
        (["--file", "none.jsonl"], "none.jsonl"),
    ],
)
def test_wrong_commands_are_refused_by_name(
    flags: list[str], said: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *flags]) == 1
    assert said in capsys.readouterr().err


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_conversation_keeps_what_was_said_and_loads_once(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Conversation] = []
    opened = []
    reply, open_answerer = Answerer.reply, pipeline.open_answerer

    def noted(self: Answerer, conversations: Any) -> list[Reply]:
        seen.extend(conversations)
        return reply(self, conversations)

    def counted(*args: Any) -> Answerer:
        opened.append(args)
        return open_answerer(*args)

    monkeypatch.setattr(Answerer, "reply", noted)
    monkeypatch.setattr(pipeline, "open_answerer", counted)
    lines = ["What is it?", "/image gone.png", f"/image {place / '1.png'}", "And this?", "/wrong", "/new", "Again?", ""]
    monkeypatch.setattr(sys, "stdin", _Terminal("\n".join([*lines, "never read"]) + "\n"))
    said = asked(words, capsys, "--image", place / "0.png")
    assert len(opened) == 1
    assert [len(one.images) for one in seen] == [1, 2, 1]
    assert [len(one.turns) for one in seen] == [2, 4, 2]
    first = said.splitlines()[1].removeprefix("> ")
    assert seen[1].turns[1].text == first.strip()
    assert "The image gone.png: no such file" in said
    assert "There is no /wrong" in said
