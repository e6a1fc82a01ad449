"""Scores of answers that another program made, on the rows that an evaluation here takes; no model is loaded.

1. `read_answers` reads them from their file.
2. `RowNames` finds the row of each: by file and row, by number, by a column of names, or by order alone.
3. They are scored and written as our own answers are. Answers without a row, and rows without an answer, are named.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_lora.batching.boxes.conventions import CHOICES, PIXELS, BoxConvention, SeenImage
from vlm_lora.batching.boxes.writing import is_placed, read_places, write_places
from vlm_lora.config.resolution import write_resolved
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.whole_files import write_json
from vlm_lora.data.conversation import Conversation, Place, PlacedText, PlaceList
from vlm_lora.data.dataset import ConversationDataset, Conversations, load_splits
from vlm_lora.data.mixture import Mixture
from vlm_lora.data.wording import counted
from vlm_lora.errors import ConfigError, DataError
from vlm_lora.evaluation.answer_files import IDS, NUMBERS, SOURCE, AnswerFile, Foreign, read_answers
from vlm_lora.evaluation.answering import answered
from vlm_lora.evaluation.asked import image_names, question_of
from vlm_lora.evaluation.generation import Answer, accepted_answers
from vlm_lora.evaluation.held_out import with_trained_split
from vlm_lora.evaluation.origins import origin_of, task_of
from vlm_lora.evaluation.places import RECORD, refuse_other_results, with_own_folder
from vlm_lora.evaluation.predictions import PREDICTIONS, write_predictions
from vlm_lora.evaluation.scorer import say_chosen
from vlm_lora.metrics.choice import choose
from vlm_lora.metrics.facts import facts_of

logger = logging.getLogger(__name__)

RESULTS = "eval_results.json"
SHOWN = 5
"""Names that a message about rows or answers shows."""

_SEVERAL = -1
"""Stands for several rows, of which a name says not which."""

_PLACE = re.compile(r"(?P<file>.+) row (?P<row>\d+)(?: \(.*\))?")


def score_elsewhere(run: RunConfig, file: Path) -> dict[str, Any]:
    """Score the answers of a file, write `predictions.jsonl` and `eval_results.json`, and return the figures.

    Args:
        run: its data, `--metrics` and `output_dir`; of a model only the name is used, to find the rows that its
            training held out.
        file: the answers.

    Raises:
        UserError: the data or the answers cannot be read, no answer is of a row, or two are of the same one.
    """
    found = read_answers(file)
    run = with_trained_split(run)
    rows = load_splits(run.data, need_train=False, need_validation=True).validation
    assert rows is not None  # need_validation
    scorer = choose(run.scoring.asked, facts_of(rows))
    # What was evaluated is the file: results of other answers on the same data are not replaced.
    named = with_own_folder(replace(run, model=replace(run.model, model_name_or_path=str(file))))
    folder = Path(str(named.raw["output_dir"]))
    refuse_other_results(folder, named)
    _make_folder(folder)
    matched = _matched(found, rows, file)
    answers = [
        replace(
            _answer(rows[number], matched[number].text, _convention(run)),
            task=task_of(rows, number),
            origin=origin_of(rows, number),
        )
        for number in sorted(matched)
    ]
    say_chosen(scorer)
    scores = scorer.score([answered(answer) for answer in answers])
    figures: dict[str, Any] = {f"eval_{name}": value for name, value in scores.figures.items()}
    figures |= {f"eval_{name}_interval": list(ends) for name, ends in scores.intervals.items()}
    figures |= {f"eval_by_{way}": groups for way, groups in scores.groups.items()}
    figures |= {"eval_answers": scores.count, "eval_samples": len(rows)}
    write_predictions(folder / PREDICTIONS, answers, scores=scores.rows)
    write_json(folder / RESULTS, figures)
    write_resolved(folder / RECORD, named, {})
    return figures


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be made: {error.strerror}. Name another folder.") from error


def _matched(found: AnswerFile, rows: Conversations, file: Path) -> dict[int, Foreign]:
    """Return the answer of each row that has one, by the row's number."""
    names = RowNames(rows, found)
    logger.info("Answers of %s: under %s; which row each is of: %s.", file, found.answer_key, names.how)
    matched: dict[int, Foreign] = {}
    strays = []
    for order, answer in enumerate(found.answers):
        number = names.find(answer, order)
        if number is None:
            strays.append(answer)
        elif number in matched:
            raise DataError(
                f"--predictions_from {file}: {matched[number].place} and {answer.place} are both of "
                f"{rows.source(number)}. Leave one of them out."
            )
        else:
            matched[number] = answer
    if not matched:
        raise DataError(
            f"--predictions_from {file}: none of its {len(found.answers)} answers is of one of the "
            f"{counted(len(rows), 'row that is', 'rows that are')} evaluated ({names.how}; the first names "
            f"{found.answers[0].name!r}, the first row is {rows.source(0)}). Name their data by --validation_name."
        )
    if strays:
        logger.warning("Answers without a row, left out: %s.", _few([answer.place for answer in strays]))
    missing = [str(rows.source(number)) for number in range(len(rows)) if number not in matched]
    if missing:
        logger.warning(
            "Rows without an answer, which the scores do not count: %s of %d: %s.",
            len(missing),
            len(rows),
            _few(missing),
        )
    return matched


def _few(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


class RowNames:
    """Finds the rows that answers are of.

    Args:
        rows: what is evaluated.
        found: the answers, for the key that names their rows.

    Raises:
        DataError: nothing names the rows, and there are not as many answers as rows.
    """

    def __init__(self, rows: Conversations, found: AnswerFile) -> None:
        self._rows = rows
        self._places: dict[tuple[str, int], int] = {}
        self._names: dict[str, int] = {}
        self.how = "as many answers as rows, in their order"
        """Which key is compared with what, in words."""
        key = found.row_key
        if key is None:
            if len(found.answers) != len(rows):
                raise DataError(
                    f"--predictions_from, {found.answers[0].place}: "
                    f"{counted(len(found.answers), 'answer that does', 'answers that do')} not say which row it is of, "
                    f"and {counted(len(rows), 'row')}. Add a key to each: {SOURCE} (as predictions.jsonl has "
                    f"it), row (its number in the file, from 0) or a name of the data's own ({', '.join(IDS[:3])})."
                )
            return
        column = None if key in (SOURCE, *NUMBERS) else self._read_names(key)
        if column is not None:
            self.how = f"{_shown(key)} is the data's column '{column}'"
            return
        for number in range(len(rows)):
            source = rows.source(number)
            if source.row is not None:
                place = (Path(source.file).name, source.row)
                # Two files of one name in different folders: only their whole paths tell their rows apart.
                self._places[place] = number if self._places.get(place, number) == number else _SEVERAL
            for name in (str(source), source.key):
                if name is not None:
                    self._names.setdefault(name, number)
        self._files = sorted({file for file, _ in self._places})
        self.how = f"{_shown(key)} is file and row" if key == SOURCE else f"{_shown(key)} is a row's number, from 0"

    def find(self, answer: Foreign, order: int) -> int | None:
        """Return the number of the row that an answer is of; None where it is of none.

        Args:
            answer: the answer.
            order: how many come before it in its file.
        """
        name = answer.name
        if name is None:
            return order
        number = self._number(name)
        return None if number == _SEVERAL else number

    def _number(self, name: str | int) -> int | None:
        if str(name) in self._names:
            return self._names[str(name)]
        if str(name).isdecimal() and self._places:
            return self._places.get((self._files[0], int(name))) if len(self._files) == 1 else None
        match = _PLACE.fullmatch(str(name))
        return None if match is None else self._places.get((Path(match["file"]).name, int(match["row"])))

    def _read_names(self, key: str) -> str | None:
        """Read the data's column of rows' names, and return what it is called."""
        for number in range(len(self._rows)):
            data, place = self._member(number)
            row = data.rows[data.positions[place]]
            columns = {column.casefold(): column for column in row}
            wanted = next((columns[name.casefold()] for name in (key, *IDS) if name.casefold() in columns), None)
            if wanted is None or row[wanted] is None:
                return None
            if self._names.setdefault(str(row[wanted]), number) != number:
                return None  # several rows of one name: it is none
        return wanted if len(self._rows) else None

    def _member(self, number: int) -> tuple[ConversationDataset, int]:
        rows = self._rows
        if isinstance(rows, Mixture):
            member, place, _ = rows.find(number, 0)
            return rows.members[member], place
        return rows, number


def _shown(key: str) -> str:
    return f"'{key}'" if key else "each key"


def _convention(run: RunConfig) -> BoxConvention:
    """Return how the answers count boxes: `--box_coordinates`, or pixels of the stored image."""
    return CHOICES.get(run.data.box_coordinates, PIXELS)


def _answer(row: Conversation, text: str, convention: BoxConvention) -> Answer:
    answer = Answer(
        source=str(row.source),
        generated=text,
        accepted=accepted_answers(row),
        prompt=question_of(row),
        images=image_names(row),
    )
    if not is_placed([row.answer]):
        return answer
    sizes = [SeenImage(size=size, given=size, fed=size) for size in _sizes(row)]
    (written,), regions = write_places([row.answer], row.images, sizes, convention)
    return replace(
        answer,
        accepted=accepted_answers(row, written.text),
        boxes=read_places(text, sizes, convention),
        expected_boxes=regions,
    )


def _sizes(row: Conversation) -> list[tuple[int, int]]:
    """Return the size of each of the row's images, as the places in its answer know it."""
    known: dict[int, tuple[int, int]] = {}
    for part in row.answer.parts:
        for place in _places(part) if isinstance(part, PlacedText) else ():
            numbers = [number for number, image in enumerate(row.images) if place.image is None or place.image is image]
            known |= dict.fromkeys(numbers, place.size)
    return [known.get(number, (1, 1)) for number in range(len(row.images))]


def _places(text: PlacedText) -> list[Place]:
    found = []
    for piece in text.pieces:
        items = piece.items if isinstance(piece, PlaceList) else [piece]
        for item in items:
            values = [value for _, value in item] if isinstance(item, tuple) else [item]
            found += [value for value in values if isinstance(value, Place)]
    return found
