"""What must not stand in a file that is kept: tokens, keys and passwords are taken out of texts and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vlm_lora.config.aliases import SECRETS, canonical_name
from vlm_lora.config.repeated import MASK

# Of keys and flags, of which `max_new_tokens` is one: only the end of the name tells.
_SECRET_NAME = re.compile(r"(^|[_.-])(token|secret|password|passwd|key|credentials?)$", re.IGNORECASE)
_NOT_SECRET = frozenset({"pad_token", "eos_token", "bos_token", "unk_token", "image_token"})

_IN_TEXT: tuple[tuple[re.Pattern[str], str], ...] = (
    # https://user:password@host
    (re.compile(r"(\w+://)[^/\s@\"']+@"), rf"\1{MASK}@"),
    # https://host/file?token=...
    (
        re.compile(
            r"([?&][^=&\s\"']*(?:token|key|secret|password|credential|sig|signature)[^=&\s\"']*=)[^&\s\"']+", re.I
        ),
        rf"\1{MASK}",
    ),
    # {"WANDB_API_KEY": "..."}, typed as the value of a flag
    (
        re.compile(r"([\"']\w*(?:TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL)[\"']\s*:\s*)(\"[^\"]*\"|'[^']*')", re.I),
        rf'\1"{MASK}"',
    ),
    # Tokens that are known by their beginning: the Hub's, GitHub's, OpenAI's, AWS's.
    (re.compile(r"\b(?:hf_|api_org_|ghp_|github_pat_|sk-)[A-Za-z0-9_-]{16,}|\bAKIA[A-Z0-9]{16}\b"), MASK),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.I), rf"\1 {MASK}"),
)


def masked(text: str) -> str:
    """Return a text without what is known to be secret by its form: passwords and tokens in URLs, the Hub's tokens."""
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def is_secret(name: str) -> bool:
    """Say whether a setting of this name holds a secret."""
    plain = name.strip().lstrip("-").replace("-", "_")
    if plain in _NOT_SECRET:
        return False
    return canonical_name(plain) in SECRETS or _SECRET_NAME.search(plain) is not None


def masked_words(words: Iterable[str]) -> list[str]:
    """Return the words of a command line without secrets: the values of flags that hold one, and as `masked`."""
    found: list[str] = []
    hides = False
    for word in words:
        if word.startswith("--"):
            name, equals, _ = word.partition("=")
            hides = is_secret(name)
            found.append(f"{name}={MASK}" if hides and equals else masked(word))
            hides = hides and not equals
        else:
            found.append(MASK if hides else masked(word))
    return found


def masked_values(values: Any, name: str = "") -> Any:
    """Return values as JSON holds them without secrets, by the keys of mappings and as `masked`."""
    if isinstance(values, Mapping):
        return {key: masked_values(value, str(key)) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [masked_values(value, name) for value in values]
    if values is not None and not isinstance(values, bool) and name and is_secret(name):
        return MASK
    return masked(values) if isinstance(values, str) else values
