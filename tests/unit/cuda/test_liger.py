"""Liger's kernels go beside the project's loss, where they run."""

from __future__ import annotations

import pytest

from vlm_lora.errors import ConfigError
from vlm_lora.training import kernels
from vlm_lora.training.kernels import with_liger
from vlm_lora_cuda import CudaBackend
from vlm_lora_torch import TorchBackend

OWN_LOSS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: name == "liger_kernel" or None)


@pytest.mark.usefixtures("_installed")
def test_its_losses_are_off_and_the_rest_stays_as_asked() -> None:
    assert with_liger({"use_liger_kernel": True}, CudaBackend())["liger_kernel_config"] == OWN_LOSS
    asked = {"use_liger_kernel": True, "liger_kernel_config": {"rope": False, "cross_entropy": False}}
    assert with_liger(asked, CudaBackend())["liger_kernel_config"] == {"rope": False, **OWN_LOSS}
    assert with_liger({"use_liger_kernel": False, "seed": 1}, CudaBackend()) == {"use_liger_kernel": False, "seed": 1}


@pytest.mark.usefixtures("_installed")
def test_its_losses_are_refused() -> None:
    asked = {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": True}}
    with pytest.raises(ConfigError, match="fused_linear_cross_entropy True cannot be used"):
        with_liger(asked, CudaBackend())


@pytest.mark.usefixtures("_installed")
def test_other_hardware_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--use_liger_kernel true: .* do not run on the backend cpu\. Leave it out"):
        with_liger({"use_liger_kernel": True}, TorchBackend())


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ConfigError, match="pip install liger-kernel"):
        with_liger({"use_liger_kernel": True}, CudaBackend())
