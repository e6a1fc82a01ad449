"""Quantizing: what is refused before anything heavy, and the arithmetic that proves the written folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vlm_lora import configure
from vlm_lora.deploy.quantization import environment, quantize, worker
from vlm_lora.deploy.quantization.layers import check_layers
from vlm_lora.deploy.quantization.request import QuantizeRequest
from vlm_lora.deploy.quantization.schemes import COMPRESSORS_OWN, OURS, SCHEMES, pairs_of, scheme_of
from vlm_lora.errors import BackendError, ConfigError, ModelError
from vlm_lora.model.families import family_of

GROUP = 128


def config_of(folder: Path, **text: int) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    for name, value in text.items():
        setattr(config.text_config, name, value)
    return config


def test_sizes_that_make_no_groups_are_refused_by_layer_and_size(model_folder: Callable[[str], Path]) -> None:
    config = config_of(model_folder("qwen2_5_vl"), hidden_size=256, intermediate_size=448)
    with pytest.raises(
        ModelError, match=r"layers\.0\.mlp\.down_proj has 448 inputs, no multiple of 128, and so have 2 of 14"
    ):
        check_layers("model", config, family_of(config), SCHEMES["awq"])
    assert len(check_layers("model", config, family_of(config), SCHEMES["fp8-dynamic"]).quantized) == 14
    config.text_config.intermediate_size = 512
    layers = check_layers("model", config, family_of(config), SCHEMES["awq"])
    assert set(layers.inputs) == {256, 512}
    assert all(".language_model.layers." in name for name in layers.quantized)
    assert any(".visual." in name for name in layers.kept)
    assert "lm_head" in layers.kept


def test_awq_is_refused_for_a_class_that_no_table_knows(model_folder: Callable[[str], Path]) -> None:
    config = config_of(model_folder("idefics3"))
    with pytest.raises(ConfigError, match=r"not known of Idefics3ForConditionalGeneration.*Type --scheme fp8-dynamic"):
        check_layers("model", config, family_of(config), SCHEMES["awq"])
    assert pairs_of(COMPRESSORS_OWN[0], ["model.language_model"]) is None
    pairs = pairs_of("LlavaForConditionalGeneration", ["model.language_model"])
    assert pairs is not None
    assert len(pairs) == len(OURS["LlavaForConditionalGeneration"]) == 4
    assert pairs[1][0] == r"re:.*(model\.language_model)\.layers\.\d+\.self_attn\.v_proj$"


def test_a_scheme_and_a_number_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"allowed are awq, fp8-dynamic\. Did you mean 'awq'"):
        scheme_of("awk")
    with pytest.raises(ConfigError, match=r"--rows 0: must be 1 or more"):
        QuantizeRequest(scheme="awq", rows=0)


def test_processors_of_older_transformers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "IS_5", False)
    run = configure(model_name_or_path=str(tmp_path), output_dir=str(tmp_path / "out"))
    with pytest.raises(BackendError, match=r"^transformers \d+\.\d+: its processors leave out"):
        quantize.quantize(run, QuantizeRequest(scheme="awq"))


def made(folder: Path, *, finished: bool = True, versions: dict[str, str] | None = None) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    mark = {"finished": finished, "versions": versions or environment.requirements()}
    (folder / environment.MARK).write_text(json.dumps(mark))
    return folder


def test_without_its_environment_the_command_that_makes_it_is_said(tmp_path: Path) -> None:
    command = rf"vlm-lora quantize --make_environment --environment {tmp_path}"
    with pytest.raises(BackendError, match=rf"there is none\. Make it once .*: {command}/none$"):
        environment.python_of(tmp_path / "none")
    with pytest.raises(BackendError, match=r"not finished"):
        environment.python_of(made(tmp_path / "cut", finished=False))
    with pytest.raises(BackendError, match=r"made for other versions"):
        environment.python_of(made(tmp_path / "old", versions={"llmcompressor": "0.1"}))
    assert environment.python_of(made(tmp_path / "good")) == tmp_path / "good" / "bin" / "python"
    assert environment.make(tmp_path / "good") == tmp_path / "good"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match=r"no environment of ours"):
        environment.make(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").exists()


def test_the_pinned_versions_are_exact() -> None:
    pinned = environment.requirements()
    assert {"llmcompressor", "transformers", "torch", "compressed-tensors"} <= set(pinned)
    assert all(version[0].isdigit() and "," not in version for version in pinned.values())


def pack(numbers: torch.Tensor) -> torch.Tensor:
    """Eight numbers of 4 bits to a word, the first lowest."""
    words = torch.zeros(*numbers.shape[:-1], numbers.shape[-1] // 8, dtype=torch.int64)
    for place in range(8):
        words |= numbers[..., place::8] << (4 * place)
    return words.to(torch.int32)  # the highest bit becomes the sign


def in_four_bits(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Round to 16 steps between the smallest and the largest of each group."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scale = (high - low) / 15
    zero = torch.round(-low / scale)
    numbers = torch.clamp(torch.round(groups / scale.unsqueeze(2)) + zero.unsqueeze(2), 0, 15).flatten(1).long()
    return {
        "weight_packed": pack(numbers),
        "weight_scale": scale,
        "weight_zero_point": pack(zero.long().T.contiguous()).T.contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }


def test_a_rounded_weight_lies_within_half_a_step_and_one_that_was_moved_does_not() -> None:
    weight = torch.randn(16, 2 * GROUP, generator=torch.Generator().manual_seed(0))
    held = in_four_bits(weight)
    assert 0.45 < worker.error_in_steps(held, weight) <= worker.allowed(torch.float32) < 0.501
    moved = {**held, "weight_packed": held["weight_packed"] ^ (1 << 5)}  # one number of each eight by two
    assert worker.error_in_steps(moved, weight) > 1.4
    ones = {**held, "weight_scale": torch.ones_like(held["weight_scale"])}
    assert worker.error_in_steps(ones, weight) > 1
    broken = {**held, "weight_scale": held["weight_scale"] * float("nan")}
    assert worker.error_in_steps(broken, weight) == float("inf")


def test_an_8_bit_float_lies_within_half_a_step_of_its_own() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax(1, keepdim=True) / 448
    held = {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}
    assert 0.45 < worker.error_in_steps(held, weight) <= worker.allowed(torch.float32)
    assert worker.error_in_steps(held, weight * 1.2) > 1


class Toy(nn.Module):
    """Two layers, of which the first makes what the second reads, behind a norm, and a tower."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.RMSNorm(GROUP)
        self.first = nn.Linear(GROUP, GROUP)
        self.second = nn.Linear(GROUP, GROUP, bias=False)
        self.tower = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        said: torch.Tensor = self.second(self.first(self.norm(x)))
        return said


class Packed(nn.Module):
    """A layer as it is loaded."""

    def __init__(self, held: dict[str, torch.Tensor], bias: torch.Tensor | None) -> None:
        super().__init__()
        for name, tensor in held.items():
            self.register_buffer(name, tensor)
        if bias is not None:
            self.bias = nn.Parameter(bias)


SCALES = torch.linspace(0.5, 2, GROUP), torch.linspace(3, 0.4, GROUP)
READ = {"first": SCALES[0], "second": SCALES[1]}
MADE = {"norm": SCALES[0], "first": SCALES[1]}


def quantized() -> Toy:
    """What AWQ and rounding make of a toy."""
    toy: Any = Toy()
    with torch.no_grad():
        for name in ("first", "second"):
            layer = getattr(toy, name)
            held = in_four_bits(worker.scaled(layer.weight, READ.get(name), MADE.get(name)).float())
            bias = None if layer.bias is None else layer.bias / MADE[name]
            setattr(toy, name, Packed(held, bias))
        toy.norm.weight.div_(SCALES[0])
    return toy


def test_a_folder_is_compared_layer_by_layer_and_tensor_by_tensor() -> None:
    before, after = Toy(), quantized()
    chosen = ["first", "second"]
    assert worker.compare_layers(before, after, chosen, READ, MADE) < 0.501
    kept, changed = worker.compare_others(before, after, chosen, MADE)
    assert kept == 2  # the tower's
    assert set(changed) == {"norm.weight", "first.bias"}


def compared(after: Toy) -> None:
    worker.compare_layers(Toy(), after, ["first", "second"], READ, MADE)
    worker.compare_others(Toy(), after, ["first", "second"], MADE)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda toy: toy.tower.weight.data.mul_(1.01), "tower.weight is not as it was"),
        (lambda toy: toy.second.weight_scale.mul_(1.2), "second: a weight lies"),
        (lambda toy: setattr(toy, "second", Toy().second), "1 layers are quantized instead of 2; second is the first"),
    ],
)
def test_what_is_not_as_it_should_be_is_named(harm: Callable[[Toy], object], said: str) -> None:
    after = quantized()
    harm(after)
    with pytest.raises(worker.RefusedError, match=said):
        compared(after)


def test_scales_that_fit_a_model_leave_what_it_says_and_others_do_not() -> None:
    before, x = Toy(), torch.randn(3, GROUP)
    said = before(x).detach()
    changed = worker.compare_others(before, quantized(), ["first", "second"], MADE)[1]
    worker.rescale(before, changed, READ, MADE)
    assert worker.distance([said], [before(x).detach()]) < 1e-5
    unfit = Toy()
    worker.rescale(unfit, changed, {"second": SCALES[1]}, MADE)  # the norm's reader forgotten
    assert worker.distance([said], [unfit(x).detach()]) > 0.1


def test_patterns_name_what_stays_whole_however_it_is_called() -> None:
    import re

    linears = ["model.visual.blocks.0.attn.qkv", "model.language_model.layers.0.mlp.down_proj", "lm_head"]
    found = worker.patterns(linears, ["model.visual", "model.visual.merger"], [linears[1]])

    def whole(name: str) -> bool:
        return any(re.match(pattern.removeprefix("re:"), name) for pattern in found)

    for name in (linears[0], "visual.blocks.0.attn.qkv", "lm_head", "language_model.lm_head"):
        assert whole(name), name
    for name in (linears[1], "model.layers.0.mlp.down_proj", "language_model.model.layers.0.mlp.down_proj"):
        assert not whole(name), name
    with pytest.raises(worker.RefusedError, match="no pattern tells"):
        worker.patterns(["a.proj", "model.b.a.proj"], [], ["model.b.a.proj"])
