"""Device kinds."""

from __future__ import annotations

from enum import Enum

from habana_frameworks.torch import hpu


class synDeviceType(Enum):
    """Generations of the card."""

    synDeviceGaudi = 1
    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


def _get_device_type() -> synDeviceType:
    return synDeviceType.synDeviceGaudi2


def _is_fp16_supported() -> bool:
    return True


__all__ = ["hpu", "synDeviceType"]
