"""The table of public data sets in docs/data.md has a line for each in `support.public_schemas`.

`make docs` writes it again.
"""

from pathlib import Path

from support.made_pages import check_made
from support.public_schemas import PUBLIC_SETS
from support.public_schemas.form import PublicSet

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BEGIN, END = "<!-- public data sets: begin -->", "<!-- public data sets: end -->"
HEAD = ("| Data set | Columns | Read as | Flag | Columns from |", "|---|---|---|---|---|")


def line(one: PublicSet) -> str:
    how = f"refused by name; {one.how}" if one.refused else one.how
    typed = " ".join(filter(None, (one.flag.replace("{folder}/", ""), *one.ignored)))
    flag = f"`{typed}`" if typed else ""
    source = f"[read]({one.address})" if "://" in one.address else one.address
    cells = (one.name, one.columns, how, flag, source)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def test_table_is_current() -> None:
    check_made(PAGE, BEGIN, END, "\n".join((*HEAD, *map(line, PUBLIC_SETS))))
