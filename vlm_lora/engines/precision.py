"""What `accelerate launch` says about precision: it reaches a run through one variable of the environment.

The training arguments start from that variable where no flag is set, so a run that does not read it too trains in
another precision than its log says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from vlm_lora.errors import ConfigError

VARIABLE = "ACCELERATE_MIXED_PRECISION"
FLAGS = ("bf16", "fp16")

_handed_on: dict[str, str | None] = {}
"""What the last arguments of this process wrote into the variable (`now`), and what was there (`before`)."""


def launched_precision(values: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """Return the flag that accelerate's `mixed_precision` stands for: bf16, fp16, or None where it says nothing.

    Its default, `no`, says nothing.

    Args:
        values: the training arguments that were set.
        environ: this process's environment.

    Raises:
        ConfigError: it contradicts a flag that was set, or is neither of the two.
    """
    word = (_launchers(environ) or "no").lower()
    if word == "no":
        return None
    source = spoken(word)
    if word not in FLAGS:
        raise ConfigError(f"{source} is not supported: allowed are no, {', '.join(FLAGS)}.")
    other = FLAGS[1 - FLAGS.index(word)]
    typed = f"--{word} false" if values.get(word) is False else f"--{other}" if values.get(other) else None
    if typed:
        raise ConfigError(
            f"{source} and {typed} contradict each other. Leave {typed} out, or start with mixed_precision no and type "
            "the precision as a flag."
        )
    return word


def spoken(word: str) -> str:
    """Return how messages name the launcher's setting."""
    return f"accelerate launch's mixed_precision {word} ({VARIABLE})"


@contextmanager
def launchers_own(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Make training arguments inside: they see the launcher's variable, and what they write there is remembered.

    transformers 4.55 and optimum-habana hand their own choice on through it, which a later run of this process would
    take for the launcher's.
    """
    before = _launchers(environ)
    if before is None:
        environ.pop(VARIABLE, None)
    else:
        environ[VARIABLE] = before
    yield
    now = environ.get(VARIABLE)
    _handed_on.clear()
    if now != before:
        _handed_on.update(before=before, now=now)


def _launchers(environ: Mapping[str, str]) -> str | None:
    now = environ.get(VARIABLE)
    return _handed_on["before"] if _handed_on and _handed_on["now"] == now else now
