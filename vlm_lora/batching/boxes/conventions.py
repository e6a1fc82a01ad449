"""How models count places in images: one table of families, and the numbers of a place there and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeVar

from vlm_lora.batching.canvases import Size

Unit = Literal["pixels", "resized_pixels", "per_mille", "bins"]
SpellingName = Literal["json", "qwen_marks", "ref_box", "loc"]
_Number = TypeVar("_Number", int, float)

GRIDS: Mapping[str, tuple[int, int]] = MappingProxyType({"per_mille": (1000, 1000), "bins": (1024, 1023)})
"""Units that do not depend on the size: into how many steps a side is divided, and the largest number."""


@dataclass(frozen=True, kw_only=True)
class BoxConvention:
    """How one model counts and writes boxes. Numbers are rounded to the nearest."""

    unit: Unit
    """Pixels of the image upright as it is stored; pixels of the image as the processor feeds it to the model;
    thousandths of its width and height, 0 to 1000; or one of 1024 bins along each side, 0 to 1023."""
    spelling: SpellingName = "json"
    """`json`: `{"bbox_2d": [x1, y1, x2, y2]}`; `qwen_marks`: `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`; `ref_box`:
    `<ref>label</ref><box>[[x1, y1, x2, y2]]</box>`; `loc`: `<locY1><locX1><locY2><locX2> label`, joined by ` ; `."""
    y_first: bool = False
    """Whether y stands before x."""
    source: str = ""
    """Where the makers say so; empty where it is a choice of this project or of the user."""

    @property
    def text(self) -> str:
        """The unit and spelling in words."""
        order = "y before x" if self.y_first else "x before y"
        return f"{_UNITS[self.unit]}, {order}, written as {_SPELLED[self.spelling]}"


_UNITS: Mapping[Unit, str] = {
    "pixels": "pixels of the image before resizing",
    "resized_pixels": "pixels of the image as the processor resizes it",
    "per_mille": "0 to 1000 along each side",
    "bins": "0 to 1023 along each side",
}
_SPELLED: Mapping[SpellingName, str] = {
    "json": "JSON (bbox_2d)",
    "qwen_marks": "<|box_start|>(x1,y1),(x2,y2)<|box_end|>",
    "ref_box": "<ref>label</ref><box>[[x1, y1, x2, y2]]</box>",
    "loc": "<loc0000> to <loc1023>",
}

_QWEN3 = BoxConvention(unit="per_mille", source="github.com/QwenLM/Qwen3-VL issues 1427, 1486 (maintainers)")
_GLM = BoxConvention(unit="per_mille", source="zai-org's grounding skill for GLM-V: round(x / width * 1000), bbox_2d")
_INTERNVL = BoxConvention(
    unit="per_mille", spelling="ref_box", source="InternVL 2.5's grounding data, as ms-swift's template has it"
)

CONVENTIONS: Mapping[str, BoxConvention] = MappingProxyType(
    {
        "qwen2_vl": BoxConvention(
            unit="per_mille",
            spelling="qwen_marks",
            source="github.com/QwenLM/Qwen3-VL issues 721, 866 (maintainers)",
        ),
        "qwen2_5_vl": BoxConvention(
            unit="resized_pixels", source="github.com/QwenLM/Qwen3-VL issues 676, 721, 866, 1161 (maintainers)"
        ),
        "qwen3_vl": _QWEN3,
        "qwen3_vl_moe": _QWEN3,
        "qwen3_5": _QWEN3,
        "qwen3_5_moe": _QWEN3,
        "paligemma": BoxConvention(
            unit="bins",
            spelling="loc",
            y_first=True,
            source="google-research/big_vision, PaliGemma's README; transformers' processing_paligemma.py",
        ),
        "glm4v": _GLM,
        "glm4v_moe": _GLM,
        "glm46v": _GLM,
        "internvl": _INTERNVL,
        "internvl_chat": _INTERNVL,
    }
)
"""By `model_type`, what the makers say of the boxes that they trained on."""

OWN_CHOICE = BoxConvention(unit="per_mille")
"""For families whose makers document none: it does not change with the size that an image is shown at."""

PIXELS = BoxConvention(unit="pixels")

CHOICES: Mapping[str, BoxConvention] = MappingProxyType(
    {
        "pixels": PIXELS,
        "resized_pixels": BoxConvention(unit="resized_pixels"),
        "per_mille": BoxConvention(unit="per_mille"),
    }
)
"""What `--box_coordinates` names besides `auto`; all of them as JSON, x before y."""


def convention_for(model_type: str, choice: str) -> BoxConvention:
    """Return how a model's boxes are counted and written.

    Args:
        model_type: of the model's configuration.
        choice: a value of `--box_coordinates`; `auto` is the makers' way, or per mille where they document none.
    """
    if choice == "auto":
        return CONVENTIONS.get(model_type, OWN_CHOICE)
    return CHOICES[choice]


def explain(convention: BoxConvention, model_type: str) -> str:
    """Say how boxes are counted and written, and who says so."""
    if convention.source:
        why = f"as {model_type}'s makers do ({convention.source})"
    elif convention is OWN_CHOICE and model_type not in CONVENTIONS:
        why = f"our choice, no documented way of {model_type}'s makers is known; --box_coordinates sets another"
    else:
        why = "by --box_coordinates"
    return f"{convention.text}; {why}"


@dataclass(frozen=True, kw_only=True)
class SeenImage:
    """One image's sizes (width, height) on its way to the model."""

    size: Size
    """As it is stored, upright."""
    given: Size
    """As the processor gets it: smaller, or brought to a canvas."""
    fed: Size | None = None
    """As the processor feeds it to the model; None where that is not one size of the whole image."""


def counted(numbers: Sequence[float], seen: SeenImage, convention: BoxConvention) -> tuple[int, ...]:
    """Return the numbers that a model writes for a place.

    Args:
        numbers: x and y in turn, in pixels of the image as it is stored.
        seen: the image's sizes.
        convention: how the model counts. Resized pixels need `seen.fed`.
    """
    found = []
    for place, number in enumerate(numbers):
        axis = place % 2
        side = seen.size[axis]
        if convention.unit in GRIDS:
            steps, most = GRIDS[convention.unit]
            found.append(min(round(number * steps / side), most))
        elif convention.unit == "resized_pixels":
            fed = _fed(seen)[axis]
            found.append(min(round(number * fed / side), fed))
        else:
            found.append(round(number))
    return _turned(tuple(found)) if convention.y_first else tuple(found)


def in_pixels(numbers: Sequence[float], seen: SeenImage, convention: BoxConvention) -> tuple[float, ...]:
    """Return the pixels, x before y, of the image as it is stored that a model's numbers mean: `counted` undone."""
    ordered = _turned(tuple(numbers)) if convention.y_first else tuple(numbers)
    found = []
    for place, number in enumerate(ordered):
        axis = place % 2
        if convention.unit in GRIDS:
            found.append(number * seen.size[axis] / GRIDS[convention.unit][0])
        elif convention.unit == "resized_pixels":
            found.append(number * seen.size[axis] / _fed(seen)[axis])
        else:
            found.append(float(number))
    return tuple(found)


def _fed(seen: SeenImage) -> Size:
    assert seen.fed is not None, "resized pixels are refused for a processor that feeds no whole image"
    return seen.fed


def _turned(numbers: tuple[_Number, ...]) -> tuple[_Number, ...]:
    """Exchange x and y."""
    return tuple(numbers[place ^ 1] for place in range(len(numbers)))
