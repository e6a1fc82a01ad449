"""Backends are found by entry point, and another device is never taken instead of the one asked for."""

from typing import ClassVar

import pytest

from vlm_lora.backend import Probe, Traits, installed, select
from vlm_lora.errors import BackendError


class Fake:
    name: ClassVar[str] = "fake"
    traits: ClassVar[Traits] = Traits(static_shapes=False)

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def probe(self) -> Probe:
        return self._probe


def offer(monkeypatch: pytest.MonkeyPatch, **probes: Probe) -> None:
    monkeypatch.setattr("vlm_lora.backend.installed", lambda: {name: Fake(probe) for name, probe in probes.items()})


def test_our_adapters_are_installed() -> None:
    assert {"cpu", "cuda", "habana"} <= set(installed())


def test_auto_takes_the_usable_one_of_highest_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(
        monkeypatch,
        slow=Probe(usable=True, device="slow"),
        fast=Probe(usable=True, device="fast", priority=10),
        absent=Probe(usable=False, device="", reason="no card", priority=99),
    )
    assert select("auto")[1].device == "fast"


def test_named_and_unusable_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(
        monkeypatch,
        card=Probe(usable=False, device="", reason="no card"),
        cpu=Probe(usable=True, device="cpu"),
    )
    with pytest.raises(BackendError, match="no card"):
        select("card")


def test_unknown_name_gets_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, habana=Probe(usable=True, device="hpu"))
    with pytest.raises(BackendError, match="'habana'"):
        select("habanna")


def test_nothing_usable_names_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, one=Probe(usable=False, device="", reason="reason one"))
    with pytest.raises(BackendError, match="reason one"):
        select("auto")
