"""What the explanation of the data says of a chat's images: where they come from, and which words mark their places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlm_lora.data.columns.names import PLACEHOLDER, ROLES
from vlm_lora.data.columns.search import ColumnSearch, Images, explain_text_only, has_own_images
from vlm_lora.data.conversations.texts import OTHER_MARKS


def explain_images(search: ColumnSearch, chats: Sequence[Sequence[Mapping[str, Any]]], pictures: Images) -> str:
    """Say where a chat's images come from, or that they are left out."""
    if not any(has_own_images(turn) for turns in chats for turn in turns):
        return explain_text_only(search, pictures)
    taken = "images of the chat's parts are left out" if pictures.declined else "the chat's parts bring their own"
    return f"{pictures.why}; {taken}"


def explain_marks(texts: Iterable[str], pictures: Images) -> str:
    """Say what `<image>` in user texts that are no ShareGPT turns is: each row decides, by its number of images."""
    told = [*texts]
    others = dict.fromkeys(mark[0] for text in told for mark in OTHER_MARKS.finditer(text))
    if others and not pictures.declined:
        return (
            f"{', '.join([*others][:4])} in user texts mark images' places where a row has as many as images without "
            "a part; any other number makes a bad row"
        )
    if not any(PLACEHOLDER in text for text in told):
        return f"no {PLACEHOLDER} in the first rows' user texts: images have parts of their own or go first"
    if pictures.declined:
        return f"{PLACEHOLDER} in user texts is a word: there are no images"
    return (
        f"{PLACEHOLDER} in user texts marks an image's place where a row has as many as images without a part; any "
        "other number makes a bad row"
    )


def user_texts(turns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what users say: whole contents, and texts of parts."""
    for turn in turns:
        content = turn.get("content")
        if ROLES.get(str(turn.get("role")).casefold()) == "user":
            parts = content if isinstance(content, list | tuple) else [content]
            texts = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
            yield from (text for text in texts if isinstance(text, str))
