"""A row and its schema become one `Conversation`: the converters, one for each layout.

Rules that hold everywhere: text stays as it is (an empty answer stays empty), images keep their order and
their number, every chat ends with an answer, and what cannot be read is an error rather than a guess.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.columns.names import CAPTION_QUESTION, NOTHING, PLACEHOLDER
from vlm_lora.data.columns.schema import Schema
from vlm_lora.data.columns.unknown import refuse_unknown_columns
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text, Turn
from vlm_lora.data.conversations.choice_numbers import as_letter
from vlm_lora.data.conversations.choices import asked_text, refuse_hidden, refuse_unshown, show_choices
from vlm_lora.data.conversations.grounding import accepted_when_filled, fill_marks
from vlm_lora.data.conversations.image_places import Draft, UserText, place_images, read_tags
from vlm_lora.data.conversations.region_rows import convert_boxes, convert_page
from vlm_lora.data.conversations.texts import is_turn, parse_turns, question_parts, read_question
from vlm_lora.data.conversations.told import after_history, read_history, refuse_history, system_text, with_system
from vlm_lora.data.conversations.tools import read_tools, tool_columns
from vlm_lora.data.conversations.turns import check_unicode, read_answers, read_text, read_turns
from vlm_lora.data.conversations.unread import (
    refuse_box_marks,
    refuse_media,
    refuse_unread_columns,
    says_nothing,
)
from vlm_lora.data.formats.rows import Row
from vlm_lora.data.images.values import ImagePlace, is_missing, read_image_values
from vlm_lora.data.ocr.pages import Page
from vlm_lora.data.ocr.task_answers import Draw, PageReading, TaskSample, ask_about
from vlm_lora.data.ocr.task_sampling import Ask
from vlm_lora.data.wording import quoted
from vlm_lora.errors import DataError


def build_conversation(
    row: Row,
    schema: Schema,
    *,
    source: RowSource,
    place: ImagePlace,
    system_prompt: str | None = None,
    draw: Draw | None = None,
) -> Conversation:
    """Turn a row into a conversation.

    Args:
        row: Values by column.
        schema: What the columns mean.
        source: File and row.
        place: Where image paths start and may lead.
        system_prompt: System turn for conversations that bring none.
        draw: Which task a page of OCR data gets; by default that of epoch 0 and the row.

    Raises:
        DataError: The row cannot be used; the message begins with file and row.
    """
    drawn = draw or Draw(row=source.row or 0)

    def ask(page: Page, reading: PageReading, number: int) -> Sequence[TaskSample]:
        return [ask_about(page, reading, drawn)]

    found = build_asked(row, schema, source=source, place=place, system_prompt=system_prompt, ask=ask, number=drawn.row)
    return found[0]


def build_asked(
    row: Row,
    schema: Schema,
    *,
    source: RowSource,
    place: ImagePlace,
    system_prompt: str | None,
    ask: Ask,
    number: int,
) -> list[Conversation]:
    """Turn a page into the conversations with what `ask` asks, which share its image; any other row into one.

    Args:
        row: As of `build_conversation`, like all others but the last two.
        schema: What the columns mean.
        source: File and row.
        place: Where image paths start and may lead.
        system_prompt: System turn for conversations that bring none.
        ask: What is asked about a page.
        number: The row's position among all rows of its files.

    Raises:
        DataError: The row cannot be used; the message begins with file and row.
    """
    row = schema.without_ignored(row)
    told = tool_columns(row, schema.columns, chat=schema.is_chat) if schema.layout in _DRAFTERS else []
    try:
        refuse_media(row, schema.columns)
        refuse_unread_columns(row, (*schema.columns, *told), chat=schema.is_chat)
        refuse_unknown_columns(row, schema.reading)
        images = _images_of(row, schema, place)
        if schema.layout in _DRAFTERS:
            read = _read_drafts(row, schema, place, images, told)
        else:
            read = _read_whole(row, schema, images, ask, number)
            refuse_history(row, schema.told)
        versions = [with_system(turns, system_text(row, schema.told)) for turns in read.versions]
        for turns in versions:
            _check_turns(turns)
        check_unicode("".join(read.tools), "The row's tools")
        _check_meant(row, schema, versions[0])
    except DataError as error:
        raise type(error)(f"{source}: {error}") from error
    system = () if system_prompt is None else (Turn(role="system", parts=(Text(text=system_prompt),)),)
    return [
        Conversation(turns=_led(turns, system), source=source, accepted_answers=read.accepted, tools=read.tools)
        for turns in versions
    ]


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What a row says."""

    versions: Sequence[tuple[Turn, ...]]
    """The turns of each conversation that it becomes."""
    accepted: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()


def _read_whole(row: Row, schema: Schema, images: tuple[ImageRef, ...], ask: Ask, number: int) -> _Read:
    """Read a row that its image's boxes, page or caption are all of."""
    if schema.boxes is not None:
        return _Read(versions=[convert_boxes(row, schema.boxes, images)])
    if schema.page is not None:
        return _Read(versions=convert_page(row, schema.page, images, ask, number))
    turns, accepted = _convert_caption(row, schema, images)
    return _Read(versions=[turns], accepted=accepted)


def _read_drafts(
    row: Row, schema: Schema, place: ImagePlace, images: tuple[ImageRef, ...], told: Sequence[str]
) -> _Read:
    """Read a row of questions and answers or of a chat: its turns, with its history, tools and images put in."""
    drafts, accepted = _DRAFTERS[schema.layout](row, schema, place)
    drafts = after_history(read_history(row, schema.told, _shown(schema, place), schema.ignored_keys), drafts)
    held = [(f"The column '{column}'", row[column]) for column in told]
    tools = read_tools([*held, *(("A turn's 'tools'", draft.tools) for draft in drafts)])
    if not schema.no_pictures:
        drafts = read_tags(drafts, place)
    turns = place_images(drafts, images, typed=schema.no_pictures)
    filled = fill_marks(row, turns, images)
    return _Read(
        versions=[filled], accepted=accepted if filled == turns else accepted_when_filled(accepted), tools=tools
    )


def _images_of(row: Row, schema: Schema, place: ImagePlace) -> tuple[ImageRef, ...]:
    columns = [] if schema.image is None else [schema.image, *schema.more_images]
    filled = [column for column in columns if not is_missing(row.get(column))]
    if schema.either and len(filled) > 1:
        raise DataError(
            f"The row has images in {quoted(filled)}, and the first rows have them in one of these alone. Leave one "
            f"empty, or type --image_column {' '.join(columns)} to show all, in this order."
        )
    return tuple(image for column in filled for image in read_image_values(row[column], place))


def _led(turns: tuple[Turn, ...], system: tuple[Turn, ...]) -> tuple[Turn, ...]:
    return turns if any(turn.role == "system" for turn in turns) else (*system, *turns)


_Drafted = tuple[list[Draft], tuple[str, ...]]


def _draft_question(row: Row, schema: Schema, place: ImagePlace) -> _Drafted:
    asked, answered = row.get(str(schema.prompt)), row.get(str(schema.response))
    if isinstance(asked, list | tuple) and isinstance(answered, list | tuple) and asked:
        if not len(asked) == len(answered) == 1:
            return _draft_questions(row, asked, answered, schema), ()
        asked, answered = asked[0], answered[0]
    question = read_text(asked, f"the prompt ('{schema.prompt}')", cell=schema.answers.cells)
    question = "\n".join([question, *_context_of(row, schema)])
    answers, accepted = read_answers(answered, str(schema.response), schema.answers)
    if schema.show_choices:
        answers = as_letter(row, schema.columns, question=question, answer=answers, first=schema.answers.first_choice)
        question = show_choices(row, schema.columns, question=question, answer=answers, ignored=schema.ignored_keys)
    user = Draft(role="user", parts=[UserText(text=question)])
    return [user, Draft(role="assistant", parts=[Text(text=answers)])], accepted


def _context_of(row: Row, schema: Schema) -> list[str]:
    """Return the text that continues the question, where there is one."""
    context = row.get(schema.context) if schema.context else None
    if says_nothing(context) and not isinstance(context, str):
        return []
    if isinstance(context, float) and schema.whole_context and context.is_integer():
        context = int(context)
    text = read_text(context, f"the context ({schema.context!r})")
    return [] if text in ("", NOTHING) else [text]


def _draft_questions(row: Row, asked: Sequence[Any], answered: Sequence[Any], schema: Schema) -> list[Draft]:
    """Draft a turn for each of a row's questions, and one for the answer at its place.

    What continues a question is the row's, and so stands in the first turn.
    """
    if len(asked) != len(answered):
        raise DataError(
            f"The row's questions in '{schema.prompt}' are {len(asked)} and its answers in '{schema.response}' "
            f"{len(answered)}; each question takes the answer at its place."
        )
    if schema.show_choices:
        refuse_unshown(row, schema.columns, question=asked_text(*asked), count=len(asked), ignored=schema.ignored_keys)
    drafts = []
    for number, (question, answer) in enumerate(zip(asked, answered, strict=True), start=1):
        text = read_text(question, f"question {number} ('{schema.prompt}')")
        text = "\n".join([text, *(_context_of(row, schema) if number == 1 else [])])
        told, _ = read_answers(answer, str(schema.response), schema.answers)
        drafts += [Draft(role="user", parts=[UserText(text=text)]), Draft(role="assistant", parts=[Text(text=told)])]
    return drafts


def _convert_caption(row: Row, schema: Schema, images: Sequence[ImageRef]) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    asked = str(schema.question)
    question = asked if schema.no_pictures else read_question(asked)
    if not images and (asked == CAPTION_QUESTION or not isinstance(question, str)):
        other = "" if isinstance(question, str) else f" without {PLACEHOLDER}"
        raise DataError(
            f"The row has no image, and {asked!r} asks about one. Leave it out, or type --default_prompt{other}."
        )
    answer, accepted = read_answers(row.get(str(schema.response)), str(schema.response), schema.answers)
    user = Turn(role="user", parts=question_parts(question, images))
    return (user, Turn(role="assistant", parts=(Text(text=answer),))), accepted


def _draft_messages(row: Row, schema: Schema, place: ImagePlace) -> _Drafted:
    column = str(schema.messages)
    return read_turns(_require_turns(row.get(column), column), _shown(schema, place), schema.ignored_keys), ()


def _draft_pair(row: Row, schema: Schema, place: ImagePlace) -> _Drafted:
    prompt_value = row.get(str(schema.prompt))
    response_value = row.get(str(schema.response))
    accepted: tuple[str, ...] = ()
    prompt = parse_turns(prompt_value)
    if prompt is None:
        prompt = [{"role": "user", "content": read_text(prompt_value, f"the prompt ('{schema.prompt}')")}]
    response = parse_turns(response_value)
    if response is None:
        answer, accepted = read_answers(response_value, str(schema.response), schema.answers)
        response = [{"role": "assistant", "content": answer}]
    return read_turns([*prompt, *response], _shown(schema, place), schema.ignored_keys), accepted


_DRAFTERS: Mapping[str, Callable[[Row, Schema, ImagePlace], _Drafted]] = {
    "question_answer": _draft_question,
    "messages": _draft_messages,
    "prompt_completion": _draft_pair,
}


def _require_turns(value: Any, column: str) -> list[Mapping[str, Any]]:
    turns = parse_turns(value, pairs=True)
    if turns is None:
        what = "is empty" if not value else f"is no list of turns ({type(value).__name__})"
        for number, turn in enumerate(value if isinstance(value, list | tuple) else (), start=1):
            if isinstance(turn, Mapping) and not is_turn(turn):
                what = f'is no list of turns: {number} has no "role" and "content", but {quoted(turn)}'
                break
        raise DataError(f"The chat in column '{column}' {what}.")
    return turns


def _shown(schema: Schema, place: ImagePlace) -> ImagePlace | None:
    """Return where images of parts are found; None where the user said that there are none."""
    return None if schema.no_pictures else place


def _check_turns(turns: Sequence[Turn]) -> None:
    if all(turn.role != "assistant" for turn in turns):
        raise DataError("No assistant turn: there is nothing to learn from or to compare with.")
    if not any(turn.is_answer for turn in turns):
        raise DataError(
            "Each answer is marked as one that is not trained on (weight 0, loss false, ...): there is nothing to "
            "learn from. Leave the row out, or the marks."
        )
    last = turns[-1]
    if last.role != "assistant":
        raise DataError(
            f"The last turn is the {last.role}'s ({last.text[:40]!r}) and has no answer. Remove it or answer it."
        )
    for number, turn in enumerate(turns, start=1):
        check_unicode(turn.text + turn.reasoning, f"Turn {number} ({turn.role})")
        for call in turn.tool_calls:
            arguments = json.dumps(json.loads(call.arguments), ensure_ascii=False)
            check_unicode(call.name + arguments, f"A call of turn {number} ({turn.role})")
        if turn.role == "assistant" and any(isinstance(part, ImageRef) for part in turn.parts):
            raise DataError(f"Turn {number} (assistant) holds an image; models here answer with text only.")


def _check_meant(row: Row, schema: Schema, turns: Sequence[Turn]) -> None:
    """Refuse texts that mean nothing without the rest of the row: marks for boxes, letters of choices."""
    if schema.layout == "page":
        return
    refuse_box_marks(row, turns)
    if schema.layout != "boxes":
        for place, turn in enumerate(turns):
            if turn.is_answer:
                asked = "\n".join(before.text for before in turns[:place])
                keys = schema.ignored_keys
                refuse_hidden(row, schema.columns, question=asked, answer=turn.text, ignored=keys)
