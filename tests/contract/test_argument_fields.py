"""Fields that are read from a source file are those of the class that is installed."""

from __future__ import annotations

import dataclasses
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from vlm_lora.backend import installed
from vlm_lora.config import argument_fields
from vlm_lora.config.argument_fields import Unjudged, arguments_like

USABLE = sorted(name for name, backend in installed().items() if backend.probe().usable)
UNJUDGED = {"parallelism_config"}
"""An object of accelerate's, which no text makes."""


def described(hint: Any) -> Any:
    """Return a type as what it takes: an enumeration as its values."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return frozenset(described(member) for member in get_args(hint))
    if origin is Literal:
        return ("literal", get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return (hint.__name__, tuple(member.value for member in hint))
    if origin is not None:
        return (origin.__name__, tuple(described(member) for member in get_args(hint)))
    return "None" if hint is NoneType else getattr(hint, "__name__", str(hint))


def of_class(cls: type) -> dict[str, tuple[Any, Any]]:
    hints = get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return {field.name: (described(hints[field.name]), field.metadata.get("choices")) for field in fields}


@pytest.mark.parametrize("name", USABLE)
def test_names_types_and_choices_are_the_classes(name: str) -> None:
    read = arguments_like(name)
    assert read is not None
    found, expected = of_class(read), of_class(installed()[name].arguments_class())
    assert found.keys() == expected.keys()
    assert {field for field in found if Unjudged.__name__ in str(found[field][0])} <= UNJUDGED
    other = {
        field: (found[field][0], expected[field][0])
        for field in found.keys() - UNJUDGED
        if found[field][0] != expected[field][0]
    }
    assert other == {}
    # Choices that a file alone does not tell are left to the class.
    chosen = {field: list(choices) for field, (_, choices) in found.items() if choices}
    assert chosen == {field: list(expected[field][1]) for field in chosen}


@pytest.mark.parametrize("setting", ["num_train_epochs", "max_steps"])
@pytest.mark.parametrize("name", USABLE)
def test_defaults_that_a_check_counts_epochs_by_are_the_classes(name: str, setting: str) -> None:
    read = arguments_like(name)
    assert read is not None
    own = next(field for field in dataclasses.fields(installed()[name].arguments_class()) if field.name == setting)
    assert next(field.metadata["default"] for field in dataclasses.fields(read) if field.name == setting) == own.default
    assert isinstance(own.default, int | float)


def test_every_class_together_stands_for_auto() -> None:
    together = arguments_like("auto")
    assert together is not None
    names = {field.name for field in dataclasses.fields(together)}
    for name in USABLE:
        own = arguments_like(name)
        assert own is not None
        assert {field.name for field in dataclasses.fields(own)} <= names


def test_a_package_that_is_not_there_has_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argument_fields, "_file_of", lambda module: None)
    argument_fields._shape.cache_clear()
    try:
        assert arguments_like("cpu") is None
    finally:
        argument_fields._shape.cache_clear()


def test_a_class_that_is_no_longer_there_has_no_fields() -> None:
    """A new transformers that moves it is left to the class itself, and no start fails for it."""
    assert argument_fields._shape(("transformers.training_args:Gone",)) is None
    assert argument_fields._shape(("transformers.training_args:TrainingArguments",))


def test_the_comparison_sees_another_type_and_another_choice() -> None:
    """The control."""

    @dataclasses.dataclass
    class One:
        a: int | None = None

    @dataclasses.dataclass
    class Other:
        a: float | None = None

    assert of_class(One) != of_class(Other)
