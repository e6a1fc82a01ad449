"""Two hundred variants of what rows look like: the right rows, or an error with file and row. Nothing else.

Each variant is a good file with one seeded change: a column missing, renamed, null, of another type or there
twice. What must come of it is written next to the change.
"""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.datasets import write_image, write_jsonl
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.names import COLUMN_NAMES, ColumnRole
from vlm_lora.data.conversation import ImageRef
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import DataError

ROWS = 4
VARIANTS = 200


def question(n: int) -> str:
    return f"question {n}?"


def chat(n: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question(n)}, {"role": "assistant", "content": f"answer {n}"}]


def share(n: int) -> list[dict[str, Any]]:
    return [{"from": "human", "value": f"<image>{question(n)}"}, {"from": "gpt", "value": f"answer {n}"}]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A good row by number, and what each of its columns is."""

    row: Callable[[int], dict[str, Any]]
    roles: Mapping[ColumnRole, str]


LAYOUTS = (
    Layout(
        row=lambda n: {"image": f"{n}.png", "question": question(n), "answer": f"answer {n}"},
        roles={"image": "image", "prompt": "question", "response": "answer"},
    ),
    Layout(
        row=lambda n: {"image_path": f"{n}.png", "prompt": question(n), "response": f"answer {n}", "id": f"x{n}"},
        roles={"image": "image_path", "prompt": "prompt", "response": "response"},
    ),
    Layout(
        row=lambda n: {"images": [f"{n}.png"], "messages": chat(n)}, roles={"image": "images", "messages": "messages"}
    ),
    Layout(
        row=lambda n: {"image": f"{n}.png", "conversations": share(n)},
        roles={"image": "image", "messages": "conversations"},
    ),
)

Told = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Rows with one change, and what must come of them."""

    what: str
    rows: list[dict[str, Any]]
    told: dict[int, Told] = field(default_factory=dict)
    """Turns by row where they are others than before."""
    refused: frozenset[int] = frozenset()
    """Rows that must be refused, each by its number."""
    unreadable: bool = False
    """Whether the file must be refused, by its name."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    doubled: str = ""
    """A column that is written twice."""


def good_turns(n: int, picture: str | None = "") -> Told:
    name = f"<{n}.png>" if picture == "" else picture
    return ((name, question(n)) if name else (question(n),), (f"answer {n}",))


def good_rows(layout: Layout) -> list[dict[str, Any]]:
    return [layout.row(n) for n in range(ROWS)]


def renamed(rows: Sequence[dict[str, Any]], old: str, new: str) -> list[dict[str, Any]]:
    return [{new if key == old else key: value for key, value in row.items()} for row in rows]


def missing(layout: Layout, rng: random.Random) -> Variant:
    role = rng.choice(list(layout.roles))
    rows = [{k: v for k, v in row.items() if k != layout.roles[role]} for row in good_rows(layout)]
    marked = role == "image" and "conversations" in rows[0]  # a mark without an image
    told = {n: good_turns(n, None) for n in range(ROWS)} if role == "image" and not marked else {}
    refused = frozenset(range(ROWS)) if marked else frozenset()
    return Variant(what=f"{role} missing", rows=rows, told=told, refused=refused, unreadable=role != "image")


def missing_in_one_row(layout: Layout, rng: random.Random) -> Variant:
    role, n = rng.choice(list(layout.roles)), rng.randrange(ROWS)
    rows = good_rows(layout)
    del rows[n][layout.roles[role]]
    return without(f"{role} missing in one row", rows, role, n)


def null(layout: Layout, rng: random.Random) -> Variant:
    role, n = rng.choice(list(layout.roles)), rng.randrange(ROWS)
    rows = good_rows(layout)
    rows[n][layout.roles[role]] = None
    return without(f"{role} null", rows, role, n)


def without(what: str, rows: list[dict[str, Any]], role: ColumnRole, n: int) -> Variant:
    if role != "image" or "conversations" in rows[n]:
        return Variant(what=what, rows=rows, refused=frozenset({n}))
    return Variant(what=what, rows=rows, told={n: good_turns(n, None)})


def renamed_to_a_usual_name(layout: Layout, rng: random.Random) -> Variant:
    role = rng.choice(list(layout.roles))
    new = rng.choice([name for name in COLUMN_NAMES[role].usual if name not in layout.row(0)])
    new = rng.choice([new, new.upper(), new.title()])
    return Variant(what=f"{role} renamed", rows=renamed(good_rows(layout), layout.roles[role], new))


def renamed_to_anything(layout: Layout, rng: random.Random) -> Variant:
    role = rng.choice(list(layout.roles))
    new = rng.choice(["kolumne", "x 1", "Ä", "column.with.dots", "  "])
    rows = renamed(good_rows(layout), layout.roles[role], new)
    # Images and chats are known by their values; texts are not.
    return Variant(what=f"{role} renamed oddly", rows=rows, unreadable=role in ("prompt", "response"))


def renamed_and_mapped(layout: Layout, rng: random.Random) -> Variant:
    role = rng.choice(list(layout.roles))
    rows = renamed(good_rows(layout), layout.roles[role], "kolumne")
    return Variant(what=f"{role} mapped", rows=rows, flags={f"{role}_column": "kolumne"})


def mapped_wrongly(layout: Layout, rng: random.Random) -> Variant:
    role = rng.choice(list(layout.roles))
    flags = {f"{role}_column": f"{layout.roles[role]}s"}
    return Variant(what=f"{role} mapped to nothing", rows=good_rows(layout), flags=flags, unreadable=True)


def mistyped(layout: Layout, rng: random.Random) -> Variant:
    role, n = rng.choice(list(layout.roles)), rng.randrange(ROWS)
    rows = good_rows(layout)
    values: Mapping[str, Sequence[Any]] = {
        "image": (7, True, {"url": "x"}, [[1, 2], [3]], ["0.png", None], "nowhere.png", "../0.png"),
        "prompt": (["a"], {"text": "a"}, True, []),
        "response": ({"text": "a"}, True, [], [None], [["a"]]),
        "messages": (7, "hello", {}, [{"x": 1}], [{"role": "user"}], [5], chat(1)[:1], chat(1)[::-1]),
    }
    value = rng.choice(values[role])
    rows[n][layout.roles[role]] = value
    return Variant(what=f"{role} mistyped", rows=rows, refused=frozenset({n}))


def number(layout: Layout, rng: random.Random) -> Variant:
    roles: tuple[ColumnRole, ColumnRole] = ("prompt", "response")
    role, n = rng.choice(roles), rng.randrange(ROWS)
    if role not in layout.roles:
        return mistyped(layout, rng)
    rows = good_rows(layout)
    rows[n][layout.roles[role]] = 7
    first, second = good_turns(n)
    told = ((first[0], "7"), second) if role == "prompt" else (first, ("7",))
    return Variant(what=f"{role} a number", rows=rows, told={n: told})


def second_candidate(layout: Layout, rng: random.Random) -> Variant:
    role = rng.choice(list(layout.roles))
    other = rng.choice([name for name in COLUMN_NAMES[role].usual if name not in layout.row(0)])
    rows = [{**row, other: copy.deepcopy(row[layout.roles[role]])} for row in good_rows(layout)]
    if rng.random() < 0.5:
        return Variant(what=f"{role} twice, mapped", rows=rows, flags={f"{role}_column": layout.roles[role]})
    return Variant(what=f"{role} twice", rows=rows, unreadable=True)


def doubled(layout: Layout, rng: random.Random) -> Variant:
    column = layout.roles[rng.choice(list(layout.roles))]
    return Variant(what="one name twice", rows=good_rows(layout), doubled=column, unreadable=True)


def other_columns(layout: Layout, rng: random.Random) -> Variant:
    names = rng.sample(["id", "width", "note", "score", "split", "Über"], 3)
    rows = [{**{name: f"{n} {name}" for name in names}, **row} for n, row in enumerate(good_rows(layout))]
    unread = tuple(name for name in names if name in ("note", "Über"))
    if unread and rng.random() < 0.5:
        return Variant(what="other columns", rows=rows, unreadable=True)
    return Variant(what="other columns", rows=rows, flags={"ignore_columns": unread})


def shuffled_columns(layout: Layout, rng: random.Random) -> Variant:
    rows = good_rows(layout)
    return Variant(what="columns in another order", rows=[dict(rng.sample(list(r.items()), len(r))) for r in rows])


CHANGES = (
    *(missing, missing_in_one_row, null, renamed_to_a_usual_name, renamed_to_anything, renamed_and_mapped),
    *(mapped_wrongly, mistyped, mistyped, number, second_candidate, doubled, other_columns, shuffled_columns),
)


def make(seed: int) -> Variant:
    rng = random.Random(seed)
    return CHANGES[seed % len(CHANGES)](rng.choice(LAYOUTS), rng)


def write(variant: Variant, folder: Path, seed: int) -> Path:
    """Write a variant as JSON Lines, JSON or Parquet, whichever can hold it."""
    for n in range(ROWS):
        write_image(folder / f"{n}.png", seed=n)
    kind = ("jsonl", "json", "parquet")[seed % 3]
    if variant.doubled:
        return write_doubled(variant, folder, kind)
    if kind == "parquet":
        try:
            pq.write_table(pa.Table.from_pylist(variant.rows), folder / "rows.parquet")
            return folder / "rows.parquet"
        except pa.ArrowException:  # a column of two types
            kind = "jsonl"
    if kind == "json":
        (folder / "rows.json").write_text(json.dumps(variant.rows), encoding="utf-8")
        return folder / "rows.json"
    return write_jsonl(folder / "rows.jsonl", variant.rows)


def write_doubled(variant: Variant, folder: Path, kind: str) -> Path:
    path, name = folder / f"rows.{kind}", variant.doubled
    if kind == "parquet":
        table = pa.Table.from_pylist(variant.rows)
        pq.write_table(table.append_column(name, table[name]), path)
        return path
    again = [f'{json.dumps(row)[:-1]}, "{name}": {json.dumps(row[name])}}}' for row in variant.rows]
    path.write_text("\n".join(again) if kind == "jsonl" else f"[{', '.join(again)}]", encoding="utf-8")
    return path


def outcome(variant: Variant, path: Path) -> str | list[Told | str]:
    """Return the error that opening raises, or for each row its turns or its error."""
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0, **variant.flags)
    try:
        data = load_splits(config, need_train=True, need_validation=False).train
    except DataError as error:
        return str(error)
    assert data is not None
    found: list[Told | str] = []
    for n in range(len(data)):
        try:
            turns = data[n].turns
        except DataError as error:
            found.append(str(error))
            continue
        found.append(
            tuple(
                tuple(f"<{Path(str(p.source)).name}>" if isinstance(p, ImageRef) else p.text for p in turn.parts)
                for turn in turns
            )
        )
    return found


def check(variant: Variant, path: Path) -> None:
    """Compare what came of a variant with what must come of it."""
    found = outcome(variant, path)
    if variant.unreadable:
        assert isinstance(found, str), (variant.what, found)
        assert path.name in found
        return
    assert isinstance(found, list), (variant.what, found)
    assert len(found) == ROWS
    for n, told in enumerate(found):
        if n in variant.refused:
            assert isinstance(told, str), (variant.what, told)
            # Of a text file the line, too.
            assert told.startswith((f"{path} row {n}: ", f"{path} row {n} (line ")), told
        else:
            assert told == variant.told.get(n, good_turns(n)), variant.what


@pytest.mark.parametrize("seed", range(VARIANTS))
def test_a_variant_gives_the_right_rows_or_a_clear_error(seed: int, tmp_path: Path) -> None:
    variant = make(seed)
    check(variant, write(variant, tmp_path, seed))


def test_the_variants_are_of_every_kind() -> None:
    made = [make(seed) for seed in range(VARIANTS)]
    outcomes = Counter(
        "file refused" if v.unreadable else "row refused" if v.refused else "changed" if v.told else "same"
        for v in made
    )
    assert all(outcomes[kind] >= 10 for kind in ("file refused", "row refused", "changed", "same")), outcomes
    assert len({v.what for v in made}) >= 25


def test_wrong_rows_and_missing_errors_are_noticed(tmp_path: Path) -> None:
    """The control: each kind of expectation fails where the outcome is another."""
    rows = good_rows(LAYOUTS[0])
    path = write(Variant(what="good", rows=rows), tmp_path, 0)
    check(Variant(what="good", rows=rows), path)
    wrong = (
        Variant(what="control", rows=rows, unreadable=True),
        Variant(what="control", rows=rows, refused=frozenset({1})),
        Variant(what="control", rows=rows, told={1: good_turns(2)}),
        Variant(what="control", rows=rows, flags={"image_column": "nothing"}),
    )
    for variant in wrong:
        with pytest.raises(AssertionError):
            check(variant, path)
