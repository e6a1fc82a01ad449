"""Columns that are left aside because another says what they say in the first rows: every row is held to that."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_lora.data.columns.search import ColumnSearch, Images
from vlm_lora.data.conversations.unread import says_nothing
from vlm_lora.data.formats.rows import Row
from vlm_lora.data.images.values import is_missing
from vlm_lora.data.wording import short
from vlm_lora.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Columns that repeat what is read, and the columns that they repeat."""

    prompt: str | None = None
    inside: tuple[str, ...] = ()
    """Whose text stands inside that of the prompt."""
    image: str | None = None
    aside: tuple[str, ...] = ()
    """Which say where the image lay that the column of images holds."""

    @property
    def columns(self) -> frozenset[str]:
        """All columns that repeat others."""
        return frozenset((*self.inside, *self.aside))

    def check(self, row: Row) -> None:
        """Hold a row to what the first ones say.

        Raises:
            DataError: a column holds what the one that is read does not; both are named.
        """
        asked = row.get(str(self.prompt))
        for column in self.inside:
            text = row.get(column)
            stands_inside = isinstance(text, str) and isinstance(asked, str) and text in asked
            if not stands_inside and not says_nothing(text):
                raise DataError(
                    f"The text of '{column}' ({short(text)}) does not stand inside that of '{self.prompt}' "
                    f"({short(asked)}), as it does in the first rows, so it would not be read. Correct the row, or "
                    f"type --ignore_columns {column} or --prompt_column {column}."
                )
        for column in self.aside:
            if is_missing(row.get(str(self.image))) and not is_missing(row.get(column)):
                raise DataError(
                    f"The row has no image in '{self.image}', and '{column}' holds {short(row[column])}, which would "
                    f"not be read: the first rows have their images in '{self.image}'. Put the image there, or type "
                    f"--image_column {column}."
                )


def find_repeats(search: ColumnSearch, pictures: Images, prompt: str | None, *, chosen: bool) -> Repeats:
    """Find the columns that repeat the prompt or the image.

    Args:
        search: the columns and first rows.
        pictures: where the images are.
        prompt: the column of questions.
        chosen: whether a flag names it: then no other is held against it.
    """
    asking = [] if prompt is None or chosen else search.named("prompt")
    holds = bool(asking) and search.holding_the_others(asking) == [prompt]
    inside = tuple(column for column in asking if holds and column != prompt)
    return Repeats(prompt=prompt, inside=inside, image=pictures.column, aside=pictures.aside)
