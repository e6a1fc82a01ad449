"""The traps of optimum-habana 1.21.2, each shown on the vendor's own code, and what runs here instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from support.rows import write_uneven_rows
from support.runs import capture_trainer
from support.stacks import GAUDI, on_hpu, run_words
from vlm_lora.cli.main import run_script
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.errors import BackendError, ConfigError
from vlm_lora_habana import HabanaBackend
from vlm_lora_habana.models import check_plain

BACKEND = HabanaBackend


def test_the_plan_knows_the_vendors_default_optimizer() -> None:
    [field] = [field for field in fields(BACKEND().arguments_class()) if field.name == "optim"]
    assert BACKEND.traits.optimizer == field.default


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_uneven_rows(tmp_path / "data", rows=6, validation=3)


@pytest.fixture
def trained(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Train on the simulated device in this process; return the trainer."""
    trainers = capture_trainer(monkeypatch)

    def train(shape: str, **flags: object) -> Any:
        settings = {"do_train": True, "max_steps": 1, "bf16": False, "per_device_train_batch_size": 2, **flags}
        assert run_script(on_hpu(model_folder(shape), data, tmp_path / "out", **settings)) == 0
        return trainers[-1]

    return train


# 1. Arguments before any model: test_same_numbers.py looks at what ran. 2. and 3. Vendor classes that are wrong.

VENDORS_GEMMA3 = """
import sys, torch
from optimum.habana.transformers.modeling_utils import adapt_transformers_to_gaudi
if sys.argv[2] == "vendor":
    adapt_transformers_to_gaudi()
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval()
ids = torch.tensor([[5, 6, *[model.config.image_token_id] * 16, 5, 6]])
pixels = torch.rand(1, 3, 32, 32)
types = (ids == model.config.image_token_id).long()
with torch.no_grad():
    found = [
        model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), token_type_ids=kind).logits
        for kind in (types, torch.zeros_like(types))
    ]
print("MODEL", type(model).__name__, bool(torch.allclose(*found, atol=1e-5)))
"""


@pytest.mark.parametrize(
    ("whose", "line"),
    [
        ("vendor", "MODEL GaudiGemma3ForConditionalGeneration True"),
        ("own", "MODEL Gemma3ForConditionalGeneration False"),
    ],
)
def test_the_vendors_gemma3_drops_the_types_of_tokens(
    whose: str, line: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Image tokens then attend causally. The control is transformers' own class, which looks at them."""
    script = tmp_path / "gemma3.py"
    script.write_text(VENDORS_GEMMA3)
    done = run_words([script, model_folder("gemma3"), whose], python=GAUDI, variables={"PT_HPU_LAZY_MODE": "1"})
    assert line in done.stdout, done.stderr[-3000:]


def test_a_vendors_class_in_the_model_is_refused(model_folder: Callable[[str], Path]) -> None:
    from optimum.habana.transformers.models import GaudiLlavaForConditionalGeneration

    model = GaudiLlavaForConditionalGeneration.from_pretrained(model_folder("llava"))
    with pytest.raises(BackendError, match="GaudiLlava"):
        check_plain(model)


# 4. and 5. The count of supervised tokens.


@pytest.mark.parametrize(
    ("flags", "named", "said"),
    [
        ({}, "FusedAdamW", None),
        ({"optim": "adamw_torch"}, "FusedAdamW", "by use_fused_adam of the Gaudi configuration it is the bridge's"),
        ({"optim": "sgd"}, "SGD", "--optim sgd wins over use_fused_adam"),
    ],
)
def test_another_optimizer_is_taken_where_it_was_asked_for(
    flags: dict[str, str], named: str, said: str | None, trained: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """GaudiTrainer alone takes its AdamW whatever `--optim` says."""
    optimizer = trained("gemma3", log_level="info", **flags).optimizer
    assert type(getattr(optimizer, "optimizer", optimizer)).__name__ == named
    assert said is None or said in capsys.readouterr().err


def test_label_batches_of_different_widths_are_counted(trained: Callable[..., Any]) -> None:
    trainer = trained("gemma3", gradient_accumulation_steps=2, static_shapes=False)
    batches = [trainer.data_collator([trainer.train_dataset[i] for i in pair]) for pair in ((0, 1), (2, 3))]
    assert batches[0]["labels"].shape != batches[1]["labels"].shape
    expected = sum(int(batch["labels"].ne(-100).sum()) for batch in batches)
    found, count = trainer.get_batch_samples_transformers(iter(batches), 2, trainer.args.device)
    assert len(found) == 2
    assert int(count) == expected
    base: Any = next(kind for kind in type(trainer).__mro__ if kind.__name__ == "GaudiTrainer")
    vendors = base.get_batch_samples_transformers(trainer, iter(batches), 2, trainer.args.device)
    assert vendors[1] is None, "the control: the vendor goes on without a count"


# 6. Gradient checkpointing, which the vendor's loop switches off: in test_reference_commands.py.
# 7. Qwen2.5-VL's vision tower.


@pytest.mark.parametrize("sizes", [((64, 96),), ((56, 56), (140, 84))])
def test_windowed_tower_gives_the_models_own_numbers(
    sizes: tuple[tuple[int, int], ...], model_folder: Callable[[str], Path]
) -> None:
    from transformers import AutoModelForImageTextToText

    from vlm_lora_habana.host_reads import keep_reads_on_host

    model = AutoModelForImageTextToText.from_pretrained(model_folder("qwen2_5_vl")).eval()
    tower = model.model.visual
    grid = torch.tensor([[1, height // 14 // 2 * 2, width // 14 // 2 * 2] for height, width in sizes])
    channels = tower.config.in_channels * tower.config.temporal_patch_size * tower.config.patch_size**2
    pixels = torch.randn(int(grid.prod(1).sum()), channels)
    with torch.no_grad():
        expected = tower(pixels, grid_thw=grid)
        keep_reads_on_host(model)
        found = tower(pixels, grid_thw=grid)
        other = tower(pixels, grid_thw=grid[:, [0, 2, 1]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found, other) == all(height == width for height, width in sizes)


# 9. Flags that cannot be honoured.


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"fp16": True}, "--bf16"),
        ({"tf32": True}, "NVIDIA"),
        ({"use_hpu_graphs_for_training": True}, "--use_hpu_graphs_for_training"),
        ({"fp8": True}, "--fp8"),
        ({"context_parallel_size": 2}, "--context_parallel_size 2"),
        ({"max_hpu_graphs": 3}, "--use_hpu_graphs_for_inference"),
    ],
)
def test_refused_flags(flags: dict[str, bool], named: str, tmp_path: Path) -> None:
    backend = BACKEND()
    backend.prepare(RunConfig())
    with pytest.raises(ConfigError, match=named):
        backend.arguments(RunConfig(), {"output_dir": str(tmp_path), **flags})


def test_attention_that_gaudi_has_not(tmp_path: Path) -> None:
    backend = BACKEND()
    run = RunConfig(model=ModelConfig(attn_implementation="flash_attention_2"))
    backend.prepare(run)
    with pytest.raises(BackendError, match="gaudi_fused_sdpa"):
        backend.arguments(run, {"output_dir": str(tmp_path)})


def test_the_vendors_attention_gets_a_mask(trained: Callable[..., Any]) -> None:
    """It has no mask function of its own in transformers, and would see padding and the future."""
    trainer = trained("llava", attn_implementation="gaudi_fused_sdpa")
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in (0, 2)]))
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "supervised_positions")}
    changed = dict(inputs, input_ids=inputs["input_ids"].clone())
    changed["input_ids"][:, -1] = 5
    with torch.no_grad():
        model = trainer.model.eval()
        ours, theirs = model(**inputs).logits.cpu(), model(**changed).logits.cpu()
    torch.testing.assert_close(ours[:, :-1], theirs[:, :-1])
    assert not torch.allclose(ours[:, -1], theirs[:, -1])


# HPU graphs: evaluation's positions are an input of what is captured.


def test_hpu_graphs_capture_positions_as_inputs(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import habana_frameworks.torch.hpu as hpu

    captured: list[Any] = []

    def capture(module: Any, *args: Any, **kwargs: Any) -> Any:
        captured.append(module)
        return module

    monkeypatch.setattr(hpu, "wrap_in_hpu_graph", capture)
    flags = {"do_eval": True, "bf16": False, "use_hpu_graphs_for_inference": True}
    assert run_script(on_hpu(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 0
    assert {type(module).__name__ for module in captured} == {"ScoredModel"}
    assert list(inspect.signature(captured[0].forward).parameters) == ["inputs", "targets", "positions", "count"]


def test_hpu_graphs_with_sizes_in_the_graph_are_refused(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"do_eval": True, "bf16": False, "use_hpu_graphs_for_inference": True}
    assert run_script(on_hpu(model_folder("qwen2_5_vl"), data, tmp_path / "out", **flags)) == 1
    assert "--use_hpu_graphs_for_inference" in capsys.readouterr().err


def test_questions_are_answered_with_a_cache_of_fixed_size(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    flags = {"do_eval": True, "bf16": False, "predict_with_generate": True, "max_new_tokens": 4}
    assert run_script(on_hpu(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 0
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 3
