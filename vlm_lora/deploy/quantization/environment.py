"""The environment that llm-compressor runs in: it pins another transformers than training has.

`make` is the one command that makes it. A file of ours in it says for which versions it was made, and whether it was
finished.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from vlm_lora.config.whole_files import read_json, write_json
from vlm_lora.data.cache_folder import cache_place
from vlm_lora.errors import BackendError, ConfigError

MARK = "vlm_lora_quantize.json"
OLDEST = (3, 11)
"""The Python that the pinned versions need."""


def requirements() -> dict[str, str]:
    """Return the pinned versions by package."""
    text = (files(__package__) / "requirements.txt").read_text(encoding="utf-8")
    return dict(line.split("==") for line in text.splitlines() if line and not line.startswith("#"))


def place_of(given: Path | None) -> Path:
    """Return where the environment is, or would be made."""
    return given.expanduser() if given else cache_place("environments") / f"quantize-{requirements()['llmcompressor']}"


def python_of(given: Path | None) -> Path:
    """Return the environment's Python.

    Raises:
        BackendError: there is no environment, an unfinished one, or one for other versions.
    """
    place = place_of(given)
    state = _state(place)
    python = place / "bin" / "python"
    if state == "finished" and python.exists():
        return python
    why = {
        "none": "there is none",
        "unfinished": "it was not finished",
        "other": "it was made for other versions",
        "foreign": "what is there was not made by this command",
    }.get(state, "its Python is gone")
    raise BackendError(
        f"llm-compressor {requirements()['llmcompressor']} runs in an environment of its own, with transformers "
        f"{requirements()['transformers']}; looked at {place}: {why}. Make it once (with internet, some gigabytes): "
        f"vlm-lora quantize --make_environment{f' --environment {given}' if given else ''}"
    )


def make(given: Path | None) -> Path:
    """Make the environment, with the pinned versions; pip's own words go to stderr.

    Returns:
        Where it is.

    Raises:
        ConfigError: something else is there.
        BackendError: Python is too old, or something could not be installed.
    """
    place = place_of(given)
    state = _state(place)
    if state == "finished":
        return place
    if state == "foreign":
        raise ConfigError(f"--environment {place} is there already and no environment of ours. Name a new folder.")
    if sys.version_info < OLDEST:
        raise BackendError(
            f"Python {sys.version_info[0]}.{sys.version_info[1]}: the pinned versions need {OLDEST[0]}.{OLDEST[1]} or "
            "newer. Call vlm-lora with such a Python."
        )
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{place} cannot be made: {error.strerror}. Name another with --environment DIR.") from error
    write_json(place / MARK, {"finished": False, "versions": requirements()})
    _run([sys.executable, "-m", "venv", str(place)], "an environment (on Debian: apt-get install python3-venv)")
    pinned = [f"{name}=={version}" for name, version in requirements().items()]
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    # torch first and alone: the others ask for it without saying which build.
    _run([*pip, *(pin for pin in pinned if pin.startswith("torch=="))], "torch")
    _run([*pip, *pinned], "llm-compressor")
    write_json(place / MARK, {"finished": True, "versions": requirements()})
    return place


def _state(place: Path) -> str:
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return "none"
    if not (place / MARK).is_file():
        return "foreign"
    mark = read_json(place / MARK)
    if mark.get("finished") is not True:
        return "unfinished"
    return "finished" if mark.get("versions") == requirements() else "other"


def _run(words: list[str], what: str) -> None:
    done = subprocess.run(words, stdout=sys.stderr, check=False)
    if done.returncode:
        raise BackendError(
            f"Making {what} failed (exit code {done.returncode}); its own words stand above. What is there is taken "
            "away by the next try: vlm-lora quantize --make_environment"
        )
