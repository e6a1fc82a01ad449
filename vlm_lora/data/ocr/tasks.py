"""The tasks of OCR pages: a CSV that users bring, one question a row. It is data, never code.

Columns `task,input_type,output_type,question`. A type is one word or several in brackets: `image`,
`[lines, image]`, `[box, lines, image]`, `[lines, box]`. A question may hold `{image}` (a varied phrase for the image),
`{text}` (the text of an item that is given), `{box}` (the box of an item that is given) and, where boxes are asked for,
`{box_format}` (a sentence that says in what form, and counted how, the model is to answer); other braces are text.
A question of `[lines, image]` (or another level) without `{text}` gives no item: it asks for the boxes of all of them.
With `{box}` it gives the box of one of them, as `[box, lines, image]` does, and its text is the answer.
One `<image>` is the place of the image, which else goes first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_lora.data.columns.names import PLACEHOLDER as PICTURE
from vlm_lora.data.formats.csv_files import read_csv
from vlm_lora.data.ocr.pages import LEVELS
from vlm_lora.errors import DataError, nearest

OWN_FILE = Path(__file__).with_name("ocr_tasks.csv")
"""Our own tasks, taken where the user brings none; `examples/ocr_tasks.csv` shows the same."""

COLUMNS = ("task", "input_type", "output_type", "question")
INPUTS = ("box", *LEVELS)
"""What an input type may name in addition to the image: one of them, or `box` and the level that it is a box of."""
OUTPUTS = ("text", "text2d", *LEVELS, "box")
"""What may be asked for; `box` also together with a level."""

PLACEHOLDER = re.compile(r"\{(image|text|box|box_format)\}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question that can be asked about a page."""

    name: str
    """Its category, such as `reading`."""
    given: str | None
    """What the question gives in addition to the image: the box of an item (`box`), the text of one (its level), or
    nothing."""
    output: str
    """What is asked for: `text`, `text2d`, a level, `box`, or `LEVEL,box`."""
    question: str
    among: str | None = None
    """The level that the input type names in addition to what is given: the level whose boxes are asked for, all of
    them, where nothing is given; the level of the item whose box is given."""
    input: str = "image"
    """The input type, as messages write it."""

    @property
    def level(self) -> str | None:
        """The level that the answer is made of, where the output names one."""
        first = self.output.split(",")[0]
        return first if first in LEVELS else None


def load_tasks(path: Path | None, *, names: Sequence[str] = (), outputs: Sequence[str] = ()) -> tuple[Task, ...]:
    """Read the tasks of a run.

    Args:
        path: the user's CSV; None takes our own, of which only plain reading as text where nothing is chosen.
        names: keep tasks of these categories (`--tasks`); none keeps all.
        outputs: keep tasks of these output types (`--output_types`), `lines,box` or `[lines, box]`; none keeps all.

    Raises:
        DataError: the file or a row of it cannot be used (named), or nothing is left.
    """
    if path is None and not names and not outputs:
        names, outputs = ("reading",), ("text",)
    tasks = read_tasks(OWN_FILE if path is None else path)
    where = "our own tasks" if path is None else str(path)
    wanted = tuple(_spelled(output) for output in outputs)
    _check_known("tasks", names, {task.name for task in tasks}, where)
    _check_known("output_types", wanted, {task.output for task in tasks}, where)
    kept = tuple(t for t in tasks if (not names or t.name in names) and (not wanted or t.output in wanted))
    if not kept:
        raise DataError(
            f"--tasks {' '.join(names)} --output_types {' '.join(wanted)}: no task of {where} is of both. It has "
            f"{', '.join(sorted({f'{t.name} with {t.output}' for t in tasks}))}."
        )
    return kept


def read_tasks(path: Path) -> tuple[Task, ...]:
    """Read and check a task file.

    Raises:
        DataError: not readable, columns missing, or a row that cannot be used; the row is named.
    """
    if not path.is_file():
        raise DataError(f"--task_file {path}: no such file (looked at {path.absolute()}).")
    table = read_csv(path)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        others = [name for name in table.columns if name not in COLUMNS]
        raise DataError(
            f"--task_file {path} has no column '{missing[0]}'.{nearest(missing[0], others)} It must have "
            f"{', '.join(COLUMNS)}; it has {', '.join(table.columns)}."
        )
    if not len(table):
        raise DataError(f"--task_file {path} has no rows.")
    tasks = []
    for number in range(len(table)):
        row = table[number]
        try:
            tasks.append(_read_task(*(row[name] or "" for name in COLUMNS)))
        except DataError as error:
            raise DataError(
                f"--task_file {path} row {table.number(number)} (line {table.line(number)}): {error}"
            ) from error
    return tuple(tasks)


def _read_task(name: str, input_type: str, output_type: str, question: str) -> Task:
    if not name.strip():
        raise DataError("its task is empty. Name its category, for example reading.")
    if not question.strip():
        raise DataError("its question is empty.")
    named = _read_input(input_type)
    output = _read_output(output_type)
    level = next((word for word in named if word in LEVELS), None)
    held = {match.group(1) for match in PLACEHOLDER.finditer(question)}
    tells = output in ("text", "text2d", level)
    if "box" in named or ("box" in held and tells):
        given, among = "box", level
    elif level is not None and not held & {"text", "box"}:
        given, among = None, level
    else:
        given, among = level, None
    _check_answerable(input_type, output_type, output, given, level)
    _check_placeholders(question, given, output)
    written = f"[{', '.join((*named, 'image'))}]" if named else "image"
    return Task(name=name.strip(), given=given, output=output, question=question, among=among, input=written)


def _check_answerable(input_type: str, output_type: str, output: str, given: str | None, level: str | None) -> None:
    """Check that what is asked for is known of what is given, and not given itself."""
    if given == "box" and "box" in output.split(","):
        raise DataError(f"input_type {input_type} gives a box and output_type {output_type} asks for it.")
    if given == "box" and level is not None and output not in ("text", "text2d", level):
        raise DataError(
            f"input_type {input_type} gives the box of one of the {level}, so output_type {output_type} cannot be "
            f"answered: it must be {level}, text or text2d."
        )
    if given != "box" and level is not None and output not in ("box", f"{level},box"):
        raise DataError(
            f"input_type {input_type} gives the text of one of the {level}, so output_type {output_type} cannot be "
            f"answered: it must be box or [{level}, box]; or the question holds {{box}} and output_type is {level}."
        )


def _read_input(text: str) -> tuple[str, ...]:
    """Return what an input type names in addition to the image: `box` first, then the level."""
    words = _words(text)
    others = [word for word in words if word != "image"]
    levels = [word for word in others if word in LEVELS]
    if "image" not in words or any(word not in INPUTS for word in others) or len(levels) > 1 or len(others) > 2:
        raise DataError(
            f"input_type {text!r} is not known: allowed are image, {', '.join(f'[{name}, image]' for name in INPUTS)}, "
            "and [box, lines, image] (or another level)."
        )
    return (*dict.fromkeys(word for word in others if word == "box"), *levels)


def _read_output(text: str) -> str:
    spelled = _spelled(text)
    allowed = (*OUTPUTS, *(f"{level},box" for level in LEVELS))
    if spelled not in allowed:
        shown = ", ".join((*OUTPUTS, *(f"[{level}, box]" for level in LEVELS)))
        raise DataError(f"output_type {text!r} is not known: allowed are {shown}.")
    return spelled


def _check_placeholders(question: str, given: str | None, output: str) -> None:
    """Check that a question names what it gives, and nothing else."""
    if question.count(PICTURE) > 1:
        raise DataError(
            f"the question has {question.count(PICTURE)} {PICTURE}, and a page has one image: {question!r}. Write "
            "one where the image stands, or none (it then goes first)."
        )
    found = {match.group(1) for match in PLACEHOLDER.finditer(question)}
    wanted = {None: None, "box": "box"}.get(given, "text")
    if wanted is not None and wanted not in found:
        raise DataError(f"the question has no {{{wanted}}} although its input_type gives one: {question!r}.")
    if "box_format" in found and output.split(",")[-1] != "box":
        raise DataError(
            f"the question has {{box_format}} although its output_type asks for no box: {question!r}. Leave it out."
        )
    extra = sorted(found - {"image", "box_format", wanted})
    if extra:
        raise DataError(
            f"the question has {{{extra[0]}}} although its input_type gives none: {question!r}. "
            f"{{box}} goes with [box, image], {{text}} with {', '.join(f'[{level}, image]' for level in LEVELS)}."
        )


def _check_known(flag: str, given: Sequence[str], known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise DataError(
                f"--{flag} {name}: {where} has none of that.{nearest(name, known)} It has {', '.join(sorted(known))}."
            )


def _words(text: str) -> list[str]:
    return [word.strip().strip("'\"").casefold() for word in text.strip().strip("[]()").split(",") if word.strip()]


def _spelled(text: str) -> str:
    """Write an output type in one way, whatever its brackets and order: the level first, then the box."""
    return ",".join(sorted(_words(text), key=lambda word: (word == "box", word)))
