"""The simulated device: right numbers, refused mixtures, counted compilations and reads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional


@pytest.fixture(autouse=True)
def _lazy() -> None:
    from habana_frameworks.torch.core import mark_step

    mark_step()


def compiled() -> int:
    from habana_frameworks.torch.hpu.metrics import metric_global

    return int(dict(metric_global("graph_compilation").stats())["TotalNumber"])


def test_a_layer_trains_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    found = []
    for device in ("cpu", "hpu"):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 4)).to(device)
        loss = functional.cross_entropy(model(inputs.to(device)), targets.to(device))
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == 5
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_lazily_conjugated_numbers_are_copied_as_what_they_are() -> None:
    """As the backward pass of rotations by complex numbers has them (Llama 4)."""
    values = torch.view_as_complex(torch.randn(4, 3, 2))
    there = values.to("hpu")
    assert there.conj().is_conj()
    assert torch.equal(there.conj().cpu(), values.conj())
    assert torch.equal((there * there.conj()).cpu(), values * values.conj())
    assert torch.equal(there.conj().imag.cpu(), -values.imag)
    assert not torch.equal(there.cpu(), values.conj())  # the control
    target = torch.zeros_like(there).conj()
    target.copy_(there)
    assert torch.equal(target.cpu(), values)


def test_mixed_devices_are_refused() -> None:
    there = torch.ones(3, device="hpu")
    with pytest.raises(RuntimeError, match="device"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="expected all tensors on hpu"):
        torch.cat([there, torch.ones(3)])
    assert (there * torch.tensor(2.0)).sum().item() == 6, "0-dimensional CPU tensors are allowed"
    assert there[torch.tensor([0, 2])].shape == (2,), "CPU indices are allowed"


def test_a_graph_compiles_once_per_shape() -> None:
    from habana_frameworks.torch.core import mark_step

    def step(size: int) -> int:
        before = compiled()
        (torch.ones(size, 7, device="hpu") * 3).tanh().sum(0)
        mark_step()
        return compiled() - before

    assert [step(size) for size in (113, 113, 114, 113, 114)] == [1, 0, 1, 0, 0]


def test_reads_are_counted_and_cut_the_graph() -> None:
    from hpu_simulator.library import statistics

    values = torch.arange(6.0, device="hpu")
    before = statistics()
    values.sum().item()
    values.cpu()
    values.nonzero()
    after = statistics()
    assert after.items - before.items == 1
    assert after.copies_to_host - before.copies_to_host == 1
    assert after.dynamic_shapes - before.dynamic_shapes == 1
    assert after.graphs_run - before.graphs_run >= 2


def test_memory_is_counted() -> None:
    import habana_frameworks.torch.hpu as hpu

    before = hpu.memory_stats()["InUse"]
    block = torch.empty(2**20, device="hpu")
    assert hpu.memory_stats()["InUse"] - before == block.nbytes
    del block
    assert hpu.memory_stats()["InUse"] == before
    assert hpu.memory_stats()["MaxInUse"] >= before + 4 * 2**20


def test_autocast_lowers_matrix_products_and_keeps_the_loss_in_fp32() -> None:
    there = torch.randn(4, 4, device="hpu")
    with torch.autocast("hpu", dtype=torch.bfloat16):
        product = there @ there
        loss = functional.cross_entropy(product, torch.zeros(4, dtype=torch.long, device="hpu"))
    assert product.dtype == torch.bfloat16
    assert loss.dtype == torch.float32


def test_the_vendors_adam_has_its_epsilon_outside() -> None:
    from habana_frameworks.torch.hpex.optimizers import FusedAdamW

    weight = torch.nn.Parameter(torch.zeros(1, device="hpu"))
    weight.grad = torch.full((1,), 1e-3, device="hpu")
    FusedAdamW([weight], lr=0.1, eps=1e-3).step()
    # lr * sqrt(1 - b2) / (1 - b1) * (1 - b1) g / (sqrt(1 - b2) g + eps)
    root = 0.001**0.5
    assert weight.item() == pytest.approx(-0.1 * root * 1e-3 / (root * 1e-3 + 1e-3), rel=1e-4)
