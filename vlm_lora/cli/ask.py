"""`vlm-lora ask`: one question, a file of questions, or a conversation at the terminal, with a model loaded once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vlm_lora.cli.runs import keep_bars_out
from vlm_lora.cli.setup import configure, verb_parser
from vlm_lora.config.early import MODEL
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.values import MismatchError, convert
from vlm_lora.data.wording import counted
from vlm_lora.errors import ConfigError, DataError, nearest
from vlm_lora.progress import live_line

if TYPE_CHECKING:
    from vlm_lora.data.conversation import Conversation, ImageSource
    from vlm_lora.data.dataset import ConversationDataset
    from vlm_lora.evaluation.generation import Answerer, Reply

EXAMPLE = '{"image": "chart.png", "prompt": "What is the highest value?"}'
_INPUT_KEYS = {"image": "images", "images": "images", "prompt": "prompt", "question": "prompt", "text": "prompt"}
_BATCH = 8
HELP = "An empty line ends. /image FILE ... shows images with the next question, /new forgets all that was said."


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags that only this verb has."""
    parser = verb_parser("ask")
    parser.add_argument("--image", action="extend", nargs="+", default=[], metavar="FILE", help="images, in order")
    parser.add_argument("--prompt", metavar="TEXT", help="the question; without it, on a terminal: a conversation")
    parser.add_argument("--file", metavar="FILE", help="rows that ask, read as for training; answers as JSON lines")
    parser.add_argument("--output", type=Path, metavar="FILE", help="with --file: where the answers go, a new file")
    parser.add_argument("--inputs", metavar="JSON", help='as one object: {"image": ..., "prompt": ...}')
    for name, kind, meta, text in (
        ("do_sample", _switch, None, "draw the answer; by default it is the likeliest, token by token"),
        ("temperature", float, "T", "draw: below 1 likely tokens more often (0 does not draw)"),
        ("top_p", float, "P", "draw: from the likeliest tokens of this probability together"),
        ("top_k", int, "K", "draw: from so many of the likeliest tokens (0 for all)"),
        ("num_beams", int, "N", "follow so many answers and give the likeliest one (1)"),
    ):
        bare: dict[str, Any] = {"nargs": "?", "const": True} if kind is _switch else {"metavar": meta}
        parser.add_argument(*dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]), type=kind, help=text, **bare)
    return parser


def ask(rest: Sequence[str]) -> None:
    """Answer what was asked, or hold a conversation."""
    own, others = flags().parse_known_args(rest)
    given = _inputs(own)
    if given is None and own.file is None and not sys.stdin.isatty():
        raise ConfigError(
            "--prompt is missing: the question. Or type --file FILE with rows that ask; on a terminal, ask without "
            "--prompt holds a conversation."
        )
    if own.output is not None and own.output.exists():
        raise ConfigError(f"--output {own.output} is there already, and would be replaced. Name another file.")
    run = configure(others, {"output_dir": "unused"}, log_level="warning", verb="ask", needed=(MODEL,))
    from vlm_lora.evaluation.sampling import Sampling

    numbers = {name: getattr(own, name) for name in ("do_sample", "temperature", "top_p", "top_k")}
    beams = {} if own.num_beams is None else {"num_beams": own.num_beams}
    sampling = Sampling(**numbers, **beams)
    keywords = sampling.keywords if sampling.draws or beams else {}
    if own.file is not None:
        _ask_file(run, own.file, own.output, keywords)
    elif given is not None:
        _ask_one(run, given, keywords)
    else:
        answerer = _opened(run, (), keywords)
        converse(answerer, _images(own.image, run), run)


@dataclass(frozen=True, kw_only=True)
class _Question:
    prompt: str
    images: tuple[str, ...]


def _inputs(own: argparse.Namespace) -> _Question | None:
    """Return the one question that the flags ask; None for a file and for a conversation.

    Raises:
        ConfigError: flags that contradict each other, or an object of `--inputs` that asks nothing.
    """
    ways = [f"--{name}" for name in ("prompt", "file", "inputs") if getattr(own, name) is not None]
    if len(ways) > 1:
        raise ConfigError(f"{' and '.join(ways)} each ask by themselves. Leave all but one out.")
    if own.image and ways in (["--file"], ["--inputs"]):
        raise ConfigError(f"--image and {ways[0]}: {ways[0]} names its own images. Leave --image out.")
    if own.output is not None and own.file is None:
        raise ConfigError("--output is for --file: add it, or leave --output out.")
    if own.inputs is not None:
        return _read_inputs(own.inputs)
    return None if own.prompt is None else _Question(prompt=own.prompt, images=tuple(own.image))


def _read_inputs(text: str) -> _Question:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--inputs {text}: is no JSON ({error}). For example: --inputs '{EXAMPLE}'") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--inputs {text}: must be one JSON object, such as '{EXAMPLE}'.")
    unknown = [name for name in content if name not in _INPUT_KEYS]
    if unknown:
        raise ConfigError(
            f"--inputs: '{unknown[0]}' is no key of it.{nearest(unknown[0], _INPUT_KEYS)} For example: '{EXAMPLE}'"
        )
    found: dict[str, list[str]] = {"images": [], "prompt": []}
    for name, value in content.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, str) for each in values):
            raise ConfigError(f"--inputs: '{name}' must be text{' or a list of texts' if 'image' in name else ''}.")
        found[_INPUT_KEYS[name]] += values
    if len(found["prompt"]) != 1:
        raise ConfigError(f"--inputs {text}: must hold one 'prompt', a text. For example: '{EXAMPLE}'")
    return _Question(prompt=found["prompt"][0], images=tuple(found["images"]))


def _ask_one(run: RunConfig, asked: _Question, keywords: Mapping[str, Any]) -> None:
    images = _images(asked.images, run)
    from vlm_lora.data.conversation import RowSource, single_question

    where = RowSource(file="--image and --prompt")
    question = single_question(images, asked.prompt, run.data.system_prompt, where)
    answerer = _opened(run, [question], keywords)
    (reply,) = answerer.reply([question])
    _show(reply, answerer)


def _show(reply: Reply, answerer: Answerer) -> None:
    print(reply.text)
    boxes = reply.boxes(answerer.boxes, bare=False)
    if boxes:
        records = [region.record() for region in boxes]
        print(f"In pixels of the image as it is stored: {json.dumps(records, ensure_ascii=False)}")


def _ask_file(run: RunConfig, name: str, output: Path | None, keywords: Mapping[str, Any]) -> None:
    from vlm_lora.data.questions import open_questions, put_broken

    questions = open_questions(name, run.data)
    rows, broken = questions.rows, dict(questions.broken)
    answerer = _opened(run, (), keywords)  # a row that cannot be used, even the first, stops no other
    size = run.scoring.generation_batch_size or _BATCH
    failed = len(broken)
    with _lines(output) as stream:
        for start in range(0, len(rows), size):
            numbers = range(start, min(start + size, len(rows)))
            records = _answered(rows, numbers, answerer)
            failed += sum("error" in record for record in records)
            if broken:
                records = put_broken(records, [_number(rows, number) for number in range(start, len(rows))], broken)
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            stream.flush()
    asked = len(rows) + len(questions.broken)
    if output is not None:
        print(f"{counted(asked - failed, 'answer')} written to {output}")
    if failed:
        raise DataError(
            f"{failed} of {counted(asked, 'row')} of {name} could not be answered; the 'error' of each says why."
        )


def _number(rows: ConversationDataset, index: int) -> int:
    number = rows.source(index).row
    assert number is not None  # the files that may have broken rows count them
    return number


def _answered(rows: ConversationDataset, numbers: Sequence[int], answerer: Answerer) -> list[dict[str, Any]]:
    """Return what is written of some rows; one that cannot be used stops none of the others."""
    try:
        asked = [rows[number] for number in numbers]
        return [_record(row, reply, answerer) for row, reply in zip(asked, answerer.reply(asked), strict=True)]
    except DataError as error:
        if len(numbers) > 1:
            return [record for number in numbers for record in _answered(rows, [number], answerer)]
        return [{"source": str(rows.source(numbers[0])), "error": str(error)}]


def _record(row: Conversation, reply: Reply, answerer: Answerer) -> dict[str, Any]:
    from vlm_lora.evaluation.asked import image_names, question_of

    boxes = reply.boxes(answerer.boxes, bare=False)
    return {
        "source": str(row.source),
        "prompt": question_of(row),
        "images": list(image_names(row)),
        "generated": reply.text,
        **({"boxes": [region.record() for region in boxes]} if boxes else {}),
    }


@contextmanager
def _lines(output: Path | None) -> Iterator[TextIO]:
    """Give a new file, or standard output."""
    if output is None:
        yield sys.stdout
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("x", encoding="utf-8", errors="backslashreplace") as stream:
        yield stream


def converse(answerer: Answerer, images: Sequence[ImageSource], run: RunConfig) -> None:
    """Read questions until an empty line or the end of the input, and answer each; what cannot be used is said.

    Args:
        answerer: generates.
        images: shown with the first question of each conversation.
        run: its system prompt, and whether addresses of images may be fetched.
    """
    from vlm_lora.evaluation.dialogue import Dialogue

    dialogue = Dialogue(answerer, run.data.system_prompt)
    shown = list(images)
    print(HELP)
    while words := _read_line():
        command, _, rest = words.partition(" ")
        try:
            if command == "/image":
                shown += _images(rest.split(), run)
                print(f"Images with the next question: {len(shown)}.")
            elif command == "/new":
                dialogue.begin_anew()
                shown = list(images)
                print(f"Begun anew; images with the next question: {len(shown)}.")
            elif command.startswith("/") and "/" not in command[1:]:
                print(f"There is no {command}. {HELP}")
            else:
                _show(dialogue.ask(words, shown), answerer)
                shown = []
        except DataError as error:
            print(f"error: {error}")
            shown = [] if command != "/image" else shown


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return ""


def _opened(run: RunConfig, questions: Sequence[Any], keywords: Mapping[str, Any]) -> Answerer:
    if live_line() is None:
        keep_bars_out()
    from vlm_lora import pipeline

    answerer = pipeline.open_answerer(run, questions, keywords)
    if keywords.get("do_sample"):
        from transformers import set_seed

        set_seed(int(run.raw.get("seed", 42)))  # loading a model draws as many numbers as it likes
    return answerer


def _images(names: Sequence[str], run: RunConfig) -> list[ImageSource]:
    """Return images by path or address.

    Raises:
        DataError: names all that cannot be used.
    """
    found: list[ImageSource] = []
    wrong: list[str] = []
    for name in names:
        try:
            found.append(_image(name, run))
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError("\n".join(wrong))
    return found


def _image(name: str, run: RunConfig) -> ImageSource:
    from vlm_lora.data.images.values import read_url

    if "://" in name:
        return read_url(name, allow=run.data.allow_urls)
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"The image {name}: no such file (looked at {path.absolute()}).")
    return path


def _switch(text: str) -> bool:
    try:
        return bool(convert(text, bool))
    except MismatchError as error:
        raise argparse.ArgumentTypeError(f"{text}: must be {error}") from error
