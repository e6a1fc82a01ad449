"""What a model card says of scores, data and the base's licence: what the run found, and what the base's files say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vlm_lora.config.early import is_path_of_model

INTERVAL = "_interval"
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")


def score_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return each figure with its value and its 95 % interval (empty where it has none), by name."""
    return [
        (name, _number(value), _interval(metrics.get(name + INTERVAL)))
        for name, value in sorted(metrics.items())
        if not name.endswith(INTERVAL) and isinstance(value, int | float | str) and not isinstance(value, bool)
    ]


def data_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a line for each split of a data report: rows, bad, duplicates, images, tokens, what is supervised.

    Args:
        report: the content of `data_report.json`; empty where rows were not checked.
    """
    lines: list[tuple[str, ...]] = []
    for name, split in (report.get("splits") or {}).items():
        tokens, share = split.get("tokens") or {}, split.get("supervised_share")
        length = f"{tokens['median']:,} (at most {tokens['most']:,})" if tokens.get("count") else ""
        lines.append(
            (
                name,
                f"{split.get('rows', 0):,}",
                f"{split.get('bad', 0):,}",
                f"{split.get('repeated', 0):,}",
                f"{(split.get('pictures') or {}).get('total', 0):,}",
                length,
                "" if share is None else f"{share:.1%}",
            )
        )
    return lines


def hub_id(name: str) -> str | None:
    """Return a model's name where it is one of the Hub; None for a folder."""
    return None if is_path_of_model(name) or Path(name).expanduser().exists() else name


def licence_of(name: str) -> tuple[str | None, str]:
    """Return the licence of a base model as its own card names it, and a sentence about it.

    Nothing is fetched: of a Hub model the card is read where the Hub's cache has it.
    """
    place = Path(name).expanduser()
    card = place / "README.md" if place.is_dir() else _cached_card(name)
    where = f"`{place.name}`" if place.is_dir() else f"[{name}](https://huggingface.co/{name})"
    found = _named_in(card) if card is not None and card.is_file() else None
    if found is not None:
        return found, f"The base model's licence, as its own card names it: `{found}`. It holds for what is made of it."
    files = [file for file in LICENCE_FILES if place.is_dir() and (place / file).is_file()]
    if files:
        return None, f"The base model's licence is its file `{files[0]}`. It holds for what is made of it."
    return None, f"The base model's licence is not named in its files here: read it at {where} before you share this."


def _cached_card(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "README.md")
    return Path(found) if isinstance(found, str) else None


def _named_in(card: Path) -> str | None:
    """Return the licence that a card's settings name."""
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        return None
    try:
        settings = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:  # somebody else's card: one that cannot be read names nothing
        return None
    named = settings.get("license") if isinstance(settings, dict) else None
    return named if isinstance(named, str) else None


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _interval(ends: Any) -> str:
    if not (isinstance(ends, list | tuple) and len(ends) == 2):
        return ""
    return f"{ends[0]:.4g} to {ends[1]:.4g}"
