"""A row and its schema become one `Conversation`: the converters, one for each layout.

Rules that hold everywhere: text stays as it is (an empty answer stays empty), pictures keep their order and
their number, every chat ends with an answer, and what cannot be read is an error rather than a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vlm_lora.data.columns import IMAGE_PARTS, PLACEHOLDER, ROLES, TEXT_PARTS, TURN_KEYS
from vlm_lora.data.conversation import Conversation, ImageRef, Part, RowSource, Text, Turn
from vlm_lora.data.draws import Ask
from vlm_lora.data.image_values import ImagePlace, read_image_value, read_image_values
from vlm_lora.data.marked_rows import convert_boxes, convert_page
from vlm_lora.data.pages import Page
from vlm_lora.data.schema import Row, Schema, parse_turns
from vlm_lora.data.task_answers import Draw, PageReading, ask_about
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

    def ask(page: Page, reading: PageReading, number: int) -> Sequence[tuple[str, str]]:
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
    question = _read_text(row.get(str(schema.prompt)), f"the prompt ('{schema.prompt}')")
    context = row.get(schema.context) if schema.context else None
    if context:
        question = f"{question}\n{_read_text(context, f'the context ({schema.context!r})')}"
    answers, accepted = _read_answers(row.get(str(schema.response)), str(schema.response))
    user = Turn(role="user", parts=(*images, Text(text=question)))
    return (user, Turn(role="assistant", parts=(Text(text=answers),))), accepted


def _convert_messages(row: Row, schema: Schema, images: Sequence[ImageRef], place: ImagePlace) -> _Converted:
    column = str(schema.messages)
    turns = _require_turns(row.get(column), column)
    return _place_images(_read_turns(turns, schema, place), images), ()


def _convert_pair(row: Row, schema: Schema, images: Sequence[ImageRef], place: ImagePlace) -> _Converted:
    prompt_value = row.get(str(schema.prompt))
    response_value = row.get(str(schema.response))
    accepted: tuple[str, ...] = ()
    prompt = parse_turns(prompt_value)
    if prompt is None:
        prompt = [{"role": "user", "content": _read_text(prompt_value, f"the prompt ('{schema.prompt}')")}]
    response = parse_turns(response_value)
    if response is None:
        answer, accepted = _read_answers(response_value, str(schema.response))
        response = [{"role": "assistant", "content": answer}]
    return _place_images(_read_turns([*prompt, *response], schema, place), images), accepted


_CONVERTERS: Mapping[str, Callable[[Row, Schema, Sequence[ImageRef], ImagePlace], _Converted]] = {
    "question_answer": _convert_question,
    "messages": _convert_messages,
    "prompt_completion": _convert_pair,
}


class _NextImage:
    """A place that the next picture (or the one at `index`) of the image column belongs to."""

    def __init__(self, index: int | None = None) -> None:
        self.index = index


_Draft = tuple[str, list["Part | _NextImage"]]


def _require_turns(value: Any, column: str) -> list[Mapping[str, Any]]:
    turns = parse_turns(value)
    if turns is None:
        what = "is empty" if not value else f"is no list of turns ({type(value).__name__})"
        raise DataError(f"The chat in column '{column}' {what}.")
    return turns


def _read_turns(turns: Sequence[Mapping[str, Any]], schema: Schema, place: ImagePlace) -> list[_Draft]:
    drafts: list[_Draft] = []
    for number, turn in enumerate(turns, start=1):
        role_key, text_key = _find_keys(turn)
        name = turn[role_key]
        role = ROLES.get(str(name).casefold())
        if role is None:
            raise DataError(f"Turn {number} has the unknown role {name!r}. Known are {', '.join(ROLES)}.")
        content = turn[text_key]
        if content is None:
            raise DataError(f'Turn {number} ({name}) has no {text_key}. An empty text is written as "".')
        marked = schema.placeholders and role == "user"
        try:
            drafts.append((role, list(_read_content(content, marked, place))))
        except DataError as error:
            raise type(error)(f"Turn {number} ({name}): {error}") from error
    return drafts


def _find_keys(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Return the keys of a turn's role and text: the style that is not null, where Arrow filled in both."""
    present = [keys for keys in TURN_KEYS if keys[0] in turn and keys[1] in turn]
    return next((keys for keys in present if turn[keys[0]] is not None), present[0])


def _read_content(content: Any, marked: bool, place: ImagePlace) -> Iterator[Part | _NextImage]:
    if isinstance(content, str):
        yield from _split_marks(content) if marked else (Text(text=content),)
    elif isinstance(content, Mapping):
        yield _read_part(content, place)
    elif isinstance(content, list | tuple):
        for part in content:
            yield Text(text=part) if isinstance(part, str) else _read_part(part, place)
    else:
        yield Text(text=_read_text(content, "the content"))


def _split_marks(text: str) -> Iterator[Part | _NextImage]:
    """Cut a text at `<image>`; nothing else is changed, line breaks beside a mark included."""
    for position, stretch in enumerate(text.split(PLACEHOLDER)):
        if position:
            yield _NextImage()
        if stretch or not text:
            yield Text(text=stretch)


def _read_part(part: Any, place: ImagePlace) -> Part | _NextImage:
    """Read one part; keys that are null say nothing (Arrow fills them in)."""
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
    if kind in IMAGE_PARTS:
        value = next((given[key] for key in IMAGE_PARTS[kind] if given.get(key)), None)
        if isinstance(value, Mapping) and "url" in value:
            value = value["url"]
        if value is not None:
            return read_image_value(value, place)
        index = given.get("index")
        return _NextImage(index if isinstance(index, int) else None)
    known = ", ".join((*TEXT_PARTS, *IMAGE_PARTS))
    raise DataError(f"A part has the type {kind!r}. Known are {known}; sound and video are not.")


def _place_images(drafts: list[_Draft], images: Sequence[ImageRef]) -> tuple[Turn, ...]:
    """Put the image column's pictures, in order, where the turns have places for them.

    Turns without any place or picture of their own get all pictures at the start of the first user turn.
    """
    places = [part for _, parts in drafts for part in parts if isinstance(part, _NextImage)]
    own = any(isinstance(part, ImageRef) for _, parts in drafts for part in parts)
    if images and not places and not own:
        first = next((parts for role, parts in drafts if role == "user"), None)
        if first is None:
            raise DataError(f"{len(images)} images and no user turn to put them in.")
        first[:0] = images
        return _finish(drafts, {})
    if len(places) != len(images):
        raise DataError(
            f"{len(places)} places for images in the turns ({PLACEHOLDER} or image parts without a "
            "picture of their "
            f"own), and {len(images)} images in the image column. They must be equally many."
        )
    order = [number if place.index is None else place.index for number, place in enumerate(places)]
    if sorted(order) != list(range(len(images))):
        raise DataError(f"The parts' indices {order} do not name each of the {len(images)} images once.")
    return _finish(drafts, {id(p): images[at] for p, at in zip(places, order, strict=True)})


def _finish(drafts: Sequence[_Draft], chosen: Mapping[int, ImageRef]) -> tuple[Turn, ...]:
    turns = []
    for role, parts in drafts:
        kept = tuple(chosen[id(part)] if isinstance(part, _NextImage) else part for part in parts)
        turns.append(Turn(role=ROLES[role], parts=kept))
    return tuple(turns)


def _check_turns(turns: Sequence[Turn]) -> None:
    if all(turn.role != "assistant" for turn in turns):
        raise DataError("No assistant turn: there is nothing to learn from or to compare with.")
    last = turns[-1]
    if last.role != "assistant":
        raise DataError(
            f"The last turn is the {last.role}'s ({last.text[:40]!r}) and has no answer. Remove it or answer it."
        )
    for number, turn in enumerate(turns, start=1):
        _check_unicode(turn.text, f"Turn {number} ({turn.role})")
        if turn.role == "assistant" and any(isinstance(part, ImageRef) for part in turn.parts):
            raise DataError(f"Turn {number} (assistant) holds a picture; models here answer with text only.")


def _check_unicode(text: str, what: str) -> None:
    """Refuse what JSON can escape and no encoding can write: tokenizers crash on it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half of a surrogate pair at character {error.start} ({text[error.start]!a}), which is no "
            "text. Write the whole character, or leave it out."
        ) from error


def _read_text(value: Any, what: str) -> str:
    """Return a text or a number as text."""
    if isinstance(value, str):
        return value
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing:
        raise DataError(f'There is no value for {what}. An empty text is written as "".')
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    kind = "true or false" if isinstance(value, bool) else f"of type {type(value).__name__}"
    raise DataError(f"The value of {what} is {kind}. It must be text or a number.")


def _read_answers(value: Any, column: str) -> tuple[str, tuple[str, ...]]:
    """Return the answer to train on and, where the data lists them, all that are accepted."""
    what = f"the response ('{column}')"
    if not isinstance(value, list | tuple):
        return _read_text(value, what), ()
    if not value:
        raise DataError(f"The list of accepted answers in '{column}' is empty.")
    accepted = tuple(_read_text(item.get("answer") if isinstance(item, Mapping) else item, what) for item in value)
    for answer in accepted:
        _check_unicode(answer, what)
    return accepted[0], accepted
