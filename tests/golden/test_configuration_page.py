"""docs/configuration.md lists every setting and every accepted name, made from the code itself.

`make docs` writes it again.
"""

from pathlib import Path

from support.made_pages import check_made
from vlm_lora.cli.help import field_docs
from vlm_lora.config.aliases import describe_aliases
from vlm_lora.config.fields import own_fields
from vlm_lora.config.values import expected, spell

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN, END = "<!-- made from the code: begin -->", "<!-- made from the code: end -->"


def tables() -> str:
    lines = ["## Our settings", "", "| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    docs = {name: text for (_, name), text in field_docs().items()}
    for field in own_fields().values():
        meaning = " ".join(docs[field.name].split()).replace("|", "\\|")
        kind = expected(field.hint).split(" (")[0].replace("|", "\\|")
        lines.append(f"| `{field.name}` | {kind} | {spell(field.default)} | {meaning} |")
    lines += ["", "## Other names that are accepted", "", "| Name | Becomes | From |", "|---|---|---|"]
    lines += [f"| `{alias}` | {target} | {whose} |" for alias, target, whose in describe_aliases()]
    return "\n".join(lines)


def test_page_lists_what_the_code_accepts() -> None:
    check_made(PAGE, BEGIN, END, tables())
