"""The turns of a chat as drafts: roles, texts, images, and which answers are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm_lora.data.columns.names import IMAGE_PARTS, ROLES, TEXT_PARTS, TURN_KEYS
from vlm_lora.data.conversation import Part, Role, Text
from vlm_lora.data.conversations.image_places import Draft, NextImage, UserText, split_marks, without_marks
from vlm_lora.data.conversations.row_texts import read_text
from vlm_lora.data.conversations.turn_keys import read_mark, refuse_other_text, refuse_unread_keys
from vlm_lora.data.images.values import ImagePlace, is_missing, read_image_value
from vlm_lora.data.wording import quoted
from vlm_lora.errors import DataError

_NOT_OF_TEXT = ("image", "images", "image_url", "image_urls", "bytes", "base64", "video", "audio")
"""Keys of a text part that would hold another part's content."""
_NOT_OF_IMAGES = ("text", "content", "source", "data", "file", "file_id", "video", "audio")
"""Keys of an image part that would hold another part's content, or an image in a way that is not read."""
_TYPELESS = ("text", "image", "image_url")
"""Keys that say what a part without a type is."""


def read_turns(turns: Sequence[Mapping[str, Any]], place: ImagePlace | None) -> list[Draft]:
    """Return turns as drafts, in order.

    Args:
        turns: as `parse_turns` returns them.
        place: where images of parts are found; None where there are none, so that marks and parts for them are left
            out.

    Raises:
        DataError: a turn that cannot be read as it is meant; the message begins with its number and role.
    """
    drafts = []
    for number, turn in enumerate(turns, start=1):
        role_key, text_key = _find_keys(turn, number)
        name = turn[role_key]
        role = ROLES.get(str(name).casefold())
        if role is None:
            raise DataError(f"Turn {number} has the unknown role {name!r}. Known are {', '.join(ROLES)}.")
        content = turn[text_key]
        try:
            refuse_unread_keys(turn)
            drafts += [] if content is None else [_read_turn(turn, role, text_key, place)]
        except DataError as error:
            raise type(error)(f"Turn {number} ({name}): {error}") from error
        if content is None:
            raise DataError(f'Turn {number} ({name}) has no {text_key}. An empty text is written as "".')
    return drafts


def _read_turn(turn: Mapping[str, Any], role: Role, text_key: str, place: ImagePlace | None) -> Draft:
    content = turn[text_key]
    wanted = read_mark(turn, role)
    supervised = True if wanted is None else wanted
    parts = list(_read_content(content, place, role, supervised=supervised))
    if role == "assistant":
        if not any(isinstance(part, Text) and part.text.strip() for part in parts):
            refuse_other_text(turn)
        return Draft(role=role, parts=parts, supervised=supervised)
    if role == "user" and text_key == "value" and isinstance(content, str):
        # ShareGPT: each mark is a place
        marked = [Text(text=without_marks(content))] if place is None else list(split_marks(content))
        return Draft(role=role, parts=marked)
    if role == "user":
        return Draft(role=role, parts=[UserText(text=p.text) if isinstance(p, Text) else p for p in parts])
    return Draft(role=role, parts=parts)


def _find_keys(turn: Mapping[str, Any], number: int) -> tuple[str, str]:
    """Return the keys of a turn's role and text: the style that is not null, where Arrow filled in both."""
    present = [keys for keys in TURN_KEYS if keys[0] in turn and keys[1] in turn]
    texts = [turn[text] for _, text in present if turn[text] is not None]
    if len(texts) == 2 and texts[0] != texts[1]:
        raise DataError(
            f"Turn {number} has two texts that differ: {quoted(text for _, text in present)}. Leave one out."
        )
    return next((keys for keys in present if turn[keys[0]] is not None), present[0])


def _read_content(
    content: Any, place: ImagePlace | None, role: Role, *, supervised: bool
) -> Iterator[Part | NextImage]:
    if isinstance(content, str):
        yield Text(text=content)
        return
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        yield Text(text=read_text(content, "the content"))
        return
    for part in content:
        if isinstance(part, str):
            yield Text(text=part)
            continue
        if not isinstance(part, Mapping):
            raise DataError(
                f"A part is given as a value of type {type(part).__name__}; a part is an object with a `type`."
            )
        wanted = read_mark(part, role)
        if role == "assistant" and wanted not in (None, supervised):
            raise DataError(
                "a part is marked otherwise than its turn, and an answer is trained on whole or not at all."
            )
        yield from _read_part(part, place)


def _read_part(part: Mapping[str, Any], place: ImagePlace | None) -> Iterator[Part | NextImage]:
    """Read one part; keys that are null say nothing (Arrow fills them in). An image is left out without a place."""
    given = {key: value for key, value in part.items() if value is not None}
    kind = given.get("type")
    if kind:
        yield from _read_typed(given, kind, place)
        return
    # Without a type a part is what its keys hold, in their order.
    shown = [key for key in given if key in _TYPELESS and (key == "text" or not is_missing(given[key]))]
    if len(shown) > 1 and {"image", "image_url"} <= set(shown):
        raise DataError("A part without a type has 'image' and 'image_url'. Write one part for each image.")
    for key in shown or [key for key in given if key in _TYPELESS][:1]:
        rest = {name: value for name, value in given.items() if name == key or name not in _TYPELESS}
        yield from _read_typed(rest, "text" if key == "text" else "image", place)
    if not any(key in _TYPELESS for key in given):
        yield from _read_typed(given, "", place)


def _read_typed(given: Mapping[str, Any], kind: str, place: ImagePlace | None) -> Iterator[Part | NextImage]:
    if kind in TEXT_PARTS:
        _refuse_others(given, kind, _NOT_OF_TEXT)
        text = next((given[key] for key in TEXT_PARTS[kind] if key in given), None)
        if not isinstance(text, str):
            raise DataError(f'A text part has no text; it is written as {{"type": "{kind}", "text": ...}}.')
        yield Text(text=text)
    elif kind in IMAGE_PARTS:
        _refuse_others(given, kind, _NOT_OF_IMAGES)
        if place is None:
            return
        value = next((given[key] for key in IMAGE_PARTS[kind] if given.get(key)), None)
        if isinstance(value, Mapping) and "url" in value:
            value = value["url"]
        if value is not None:
            yield read_image_value(value, place)
        else:
            index = given.get("index")
            yield NextImage(index if isinstance(index, int) else None)
    else:
        known = ", ".join((*TEXT_PARTS, *IMAGE_PARTS))
        raise DataError(f"A part has the type {kind!r}. Known are {known}; sound and video are not.")


def _refuse_others(given: Mapping[str, Any], kind: str, others: Sequence[str]) -> None:
    found = [key for key in others if key in given and not is_missing(given[key])]
    if found:
        raise DataError(
            f"A part of type {kind!r} also has {quoted(found)}, which is not read there. Write one part for each "
            f'text and each image, such as {{"type": "image", "image": ...}}.'
        )
