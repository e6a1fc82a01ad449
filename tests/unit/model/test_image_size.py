"""--min_pixels and --max_pixels: the model's images lie within them, wherever the processor is loaded from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.rows import write_uneven_rows
from support.runs import script_flags
from support.tiny import available
from vlm_lora.cli.main import run_script
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.loading import load_processor
from vlm_lora.training.outputs import save_processor

QWEN = [name for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5") if name in available()]


def pixels(processor: object, side: int = 400) -> int:
    """Return how many pixels a square image has after the processor."""
    images = processor.image_processor  # type: ignore[attr-defined]
    picture = Image.fromarray(np.zeros((side, side, 3), dtype=np.uint8))
    grid = images(images=[picture], return_tensors="pt")["image_grid_thw"]
    return int(grid.prod()) * images.patch_size**2


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("name", QWEN)
def test_images_lie_within_the_budget_and_a_plain_reload_shows_the_same(
    name: str, backend: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    place = {"model_name_or_path": str(model_folder(name)), "image_backend": backend}
    own = pixels(load_processor(ModelConfig(**place)))  # type: ignore[arg-type]
    smaller = load_processor(ModelConfig(**place, max_pixels=2048))  # type: ignore[arg-type]
    assert 1024 <= pixels(smaller) <= 2048 < own
    larger = load_processor(ModelConfig(**place, min_pixels=16384, max_pixels=32768))  # type: ignore[arg-type]
    assert 16384 <= pixels(larger, side=64) <= 32768
    for processor, side in ((smaller, 400), (larger, 64)):
        folder = tmp_path / str(side)
        save_processor(processor, folder)
        assert pixels(AutoProcessor.from_pretrained(folder), side) == pixels(processor, side)


def test_another_familys_images_have_no_budget(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(
        ConfigError, match=r"--max_pixels 1024: this model's images are not scaled .*Gemma3ImageProcessor"
    ):
        load_processor(ModelConfig(model_name_or_path=str(model_folder("gemma3")), max_pixels=1024))


def test_a_least_above_the_most_and_numbers_below_one_are_refused(model_folder: Callable[[str], Path]) -> None:
    place = str(model_folder("qwen2_5_vl"))
    with pytest.raises(ConfigError, match=r"--max_pixels 512: the least is 1024 pixels and the most 512.*Type both"):
        load_processor(ModelConfig(model_name_or_path=place, max_pixels=512))
    with pytest.raises(ConfigError, match="--min_pixels 0"):
        ModelConfig(model_name_or_path=place, min_pixels=0)


def test_another_size_than_in_training_is_said(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter's folder keeps the budget, and evaluates with it."""
    data = write_uneven_rows(tmp_path / "data", rows=2, validation=2)
    adapter = tmp_path / "adapter"
    flags, loud = {"do_train": True, "max_steps": 1, "max_pixels": 2048}, {"log_level": "warning"}
    assert run_script(script_flags(model_folder("qwen2_5_vl"), data, adapter, **flags)) == 0
    assert pixels(load_processor(ModelConfig(model_name_or_path=str(adapter)))) <= 2048
    capsys.readouterr()
    assert run_script(script_flags(adapter, data, tmp_path / "same", do_eval=True, **loud)) == 0
    assert "was trained with" not in capsys.readouterr().err, "the control"
    assert run_script(script_flags(adapter, data, tmp_path / "other", do_eval=True, max_pixels=4096, **loud)) == 0
    assert "adapter was trained with 1024 to 2048" in capsys.readouterr().err
