"""docs/families.md lists every type that was tried, as docs/families.json has it; `make docs` writes it."""

from __future__ import annotations

import os

from support.families.page import BEGIN, PAGE, read_results, works, write_table
from vlm_lora.model.families import FAMILIES


def test_the_page_is_made_from_the_results() -> None:
    head, marker, tail = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    made = "\n\n" + write_table(read_results())
    if os.environ.get("UPDATE_DOCS") == "1":
        PAGE.write_text(head + BEGIN + made, encoding="utf-8")
        return
    assert marker
    assert tail == made


def test_what_the_table_refuses_is_refused_in_the_results_with_its_reason() -> None:
    rows = read_results()
    assert {name: row["refused"] for name, row in rows.items() if "refused" in row} == {
        name: family.refused for name, family in FAMILIES.items() if family.refused
    }


def test_no_family_of_the_table_fails() -> None:
    rows = read_results()
    assert [name for name, row in rows.items() if name in FAMILIES and "failed" in row] == []


def test_what_works_is_counted_and_what_does_not_is_named_with_its_reason() -> None:
    rows = read_results()
    table = write_table({**rows, "sought": {"failed": "KeyError: x"}, "found": {"template": "plain", "adapted": ["q"]}})
    assert "| `sought` | does not work: KeyError: x |  |  |" in table
    assert "| `found` | trained, reloaded | plain | q |" in table
    working = sum(works(row) for row in rows.values())
    assert f"Of {len(rows) + 2} types {working + 1} work" in table
