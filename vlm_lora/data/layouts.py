"""A row and its schema become one `Conversation`: the converters, one for each layout.

Rules that hold everywhere: text stays as it is (an empty answer stays empty), pictures keep their order and
their number, every chat ends with an answer, and what cannot be read is an error rather than a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlm_lora.data.chats import parse_turns
from vlm_lora.data.columns import CAPTION_QUESTION, IMAGE_PARTS, PLACEHOLDER, ROLES, TEXT_PARTS, TURN_KEYS
from vlm_lora.data.conversation import Conversation, ImageRef, Part, RowSource, Text, Turn
from vlm_lora.data.draws import Ask
from vlm_lora.data.image_places import Draft, NextImage, UserText, place_images, split_marks, without_marks
from vlm_lora.data.image_values import ImagePlace, read_image_value, read_image_values
from vlm_lora.data.marked_rows import convert_boxes, convert_page
from vlm_lora.data.pages import Page
from vlm_lora.data.row_texts import check_unicode, read_answers, read_text
from vlm_lora.data.rows import Row
from vlm_lora.data.schema import Schema
from vlm_lora.data.task_answers import Draw, PageReading, ask_about
from vlm_lora.data.typed_questions import Question, question_parts, read_question
from vlm_lora.data.unread_media import refuse_media
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

    def ask(page: Page, reading: PageReading, number: int) -> Sequence[tuple[Question, str]]:
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
    """Turn a page into the conversations with what `ask` asks, which share its picture; any other row into one.

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
    accepted: tuple[str, ...] = ()
    try:
        refuse_media(row, schema.columns)
        images = read_image_values(row.get(schema.image), place) if schema.image else ()
        if schema.boxes is not None:
            versions = [convert_boxes(row, schema.boxes, images)]
        elif schema.page is not None:
            versions = convert_page(row, schema.page, images, ask, number)
        else:
            turns, accepted = _CONVERTERS[schema.layout](row, schema, images, place)
            versions = [turns]
        for turns in versions:
            _check_turns(turns)
    except DataError as error:
        raise type(error)(f"{source}: {error}") from error
    system = () if system_prompt is None else (Turn(role="system", parts=(Text(text=system_prompt),)),)
    return [Conversation(turns=_led(turns, system), source=source, accepted_answers=accepted) for turns in versions]


def _led(turns: tuple[Turn, ...], system: tuple[Turn, ...]) -> tuple[Turn, ...]:
    return turns if any(turn.role == "system" for turn in turns) else (*system, *turns)


_Converted = tuple[tuple[Turn, ...], tuple[str, ...]]


def _convert_question(row: Row, schema: Schema, images: Sequence[ImageRef], place: ImagePlace) -> _Converted:
    question = read_text(row.get(str(schema.prompt)), f"the prompt ('{schema.prompt}')")
    context = row.get(schema.context) if schema.context else None
    if context:
        question = f"{question}\n{read_text(context, f'the context ({schema.context!r})')}"
    answers, accepted = read_answers(row.get(str(schema.response)), str(schema.response), schema.answers)
    drafts: list[Draft] = [("user", [UserText(text=question)]), ("assistant", [Text(text=answers)])]
    return place_images(drafts, images, typed=schema.no_pictures), accepted


def _convert_caption(row: Row, schema: Schema, images: Sequence[ImageRef], place: ImagePlace) -> _Converted:
    asked = str(schema.question)
    question = asked if schema.no_pictures else read_question(asked)
    if not images and (asked == CAPTION_QUESTION or not isinstance(question, str)):
        other = "" if isinstance(question, str) else f" without {PLACEHOLDER}"
        raise DataError(
            f"The row has no picture, and {asked!r} asks about one. Leave it out, or type --default_prompt{other}."
        )
    answer, accepted = read_answers(row.get(str(schema.response)), str(schema.response), schema.answers)
    user = Turn(role="user", parts=question_parts(question, images))
    return (user, Turn(role="assistant", parts=(Text(text=answer),))), accepted


def _convert_messages(row: Row, schema: Schema, images: Sequence[ImageRef], place: ImagePlace) -> _Converted:
    column = str(schema.messages)
    turns = _require_turns(row.get(column), column)
    return place_images(_read_turns(turns, _shown(schema, place)), images, typed=schema.no_pictures), ()


def _convert_pair(row: Row, schema: Schema, images: Sequence[ImageRef], place: ImagePlace) -> _Converted:
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
    return place_images(
        _read_turns([*prompt, *response], _shown(schema, place)), images, typed=schema.no_pictures
    ), accepted


_CONVERTERS: Mapping[str, Callable[[Row, Schema, Sequence[ImageRef], ImagePlace], _Converted]] = {
    "question_answer": _convert_question,
    "caption": _convert_caption,
    "messages": _convert_messages,
    "prompt_completion": _convert_pair,
}


def _require_turns(value: Any, column: str) -> list[Mapping[str, Any]]:
    turns = parse_turns(value)
    if turns is None:
        what = "is empty" if not value else f"is no list of turns ({type(value).__name__})"
        raise DataError(f"The chat in column '{column}' {what}.")
    return turns


def _shown(schema: Schema, place: ImagePlace) -> ImagePlace | None:
    """Return where pictures of parts are found; None where the user said that there are none."""
    return None if schema.no_pictures else place


def _read_turns(turns: Sequence[Mapping[str, Any]], place: ImagePlace | None) -> list[Draft]:
    drafts: list[Draft] = []
    for number, turn in enumerate(turns, start=1):
        role_key, text_key = _find_keys(turn)
        name = turn[role_key]
        role = ROLES.get(str(name).casefold())
        if role is None:
            raise DataError(f"Turn {number} has the unknown role {name!r}. Known are {', '.join(ROLES)}.")
        content = turn[text_key]
        if content is None:
            raise DataError(f'Turn {number} ({name}) has no {text_key}. An empty text is written as "".')
        try:
            parts = _read_content(content, place)
        except DataError as error:
            raise type(error)(f"Turn {number} ({name}): {error}") from error
        if role == "user" and text_key == "value" and isinstance(content, str):
            # ShareGPT: each mark is a place
            drafts.append((role, [Text(text=without_marks(content))] if place is None else list(split_marks(content))))
        elif role == "user":
            drafts.append((role, [UserText(text=part.text) if isinstance(part, Text) else part for part in parts]))
        else:
            drafts.append((role, list(parts)))
    return drafts


def _find_keys(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Return the keys of a turn's role and text: the style that is not null, where Arrow filled in both."""
    present = [keys for keys in TURN_KEYS if keys[0] in turn and keys[1] in turn]
    return next((keys for keys in present if turn[keys[0]] is not None), present[0])


def _read_content(content: Any, place: ImagePlace | None) -> list[Part | NextImage]:
    if isinstance(content, str):
        return [Text(text=content)]
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, list | tuple):
        parts = [Text(text=part) if isinstance(part, str) else _read_part(part, place) for part in content]
        return [part for part in parts if part is not None]
    return [Text(text=read_text(content, "the content"))]


def _read_part(part: Any, place: ImagePlace | None) -> Part | NextImage | None:
    """Read one part; keys that are null say nothing (Arrow fills them in). A picture is None without a place."""
    if not isinstance(part, Mapping):
        raise DataError(f"A part is given as a value of type {type(part).__name__}; a part is an object with a `type`.")
    given = {key: value for key, value in part.items() if value is not None}
    kind = given.get("type") or (
        "text" if "text" in given else "image" if given.keys() & {"image", "image_url"} else ""
    )
    if kind in TEXT_PARTS:
        text = next((given[key] for key in TEXT_PARTS[kind] if key in given), None)
        if not isinstance(text, str):
            raise DataError(f'A text part has no text; it is written as {{"type": "{kind}", "text": ...}}.')
        return Text(text=text)
    if kind in IMAGE_PARTS and place is None:
        return None
    if kind in IMAGE_PARTS and place is not None:
        value = next((given[key] for key in IMAGE_PARTS[kind] if given.get(key)), None)
        if isinstance(value, Mapping) and "url" in value:
            value = value["url"]
        if value is not None:
            return read_image_value(value, place)
        index = given.get("index")
        return NextImage(index if isinstance(index, int) else None)
    known = ", ".join((*TEXT_PARTS, *IMAGE_PARTS))
    raise DataError(f"A part has the type {kind!r}. Known are {known}; sound and video are not.")


def _check_turns(turns: Sequence[Turn]) -> None:
    if all(turn.role != "assistant" for turn in turns):
        raise DataError("No assistant turn: there is nothing to learn from or to compare with.")
    last = turns[-1]
    if last.role != "assistant":
        raise DataError(
            f"The last turn is the {last.role}'s ({last.text[:40]!r}) and has no answer. Remove it or answer it."
        )
    for number, turn in enumerate(turns, start=1):
        check_unicode(turn.text, f"Turn {number} ({turn.role})")
        if turn.role == "assistant" and any(isinstance(part, ImageRef) for part in turn.parts):
            raise DataError(f"Turn {number} (assistant) holds a picture; models here answer with text only.")
