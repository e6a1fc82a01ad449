"""--min_pixels, --max_pixels and --image_size: each family shows images so, wherever its processor is loaded from."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.mask_cases import IMAGE, conversation, picture
from support.rows import write_uneven_rows, write_varied_rows
from support.runs import script_flags
from support.tiny import available, build_processor
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.style import style_for
from vlm_lora.cli.main import main, run_script
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.families import FAMILIES
from vlm_lora.model.image_scaling import SCALINGS
from vlm_lora.model.image_size import describe_size, match_config, match_model, scaling_of, set_image_size
from vlm_lora.model.loading import load_processor
from vlm_lora.training.outputs import save_processor

QWEN = [name for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5") if name in available()]

# family, setting, size of the image, its tokens before and after. Tiles and patches are small in the tiny processors.
MEANINGS = [
    ("qwen2_5_vl", {"max_pixels": 2048}, (400, 400), 16, 4),
    ("qwen2_5_vl", {"image_size": 96}, (400, 400), 16, 36),
    ("qwen2_5_vl", {"min_pixels": 3000}, (32, 32), 4, 16),
    ("internvl", {"max_pixels": 1024}, (64, 32), 3 * 16, 16),
    ("internvl", {"image_size": 64}, (64, 64), 16, 5 * 16),
    ("internvl", {"min_pixels": 2048}, (30, 30), 16, 3 * 16),
    ("llava_next", {"max_pixels": 2048}, (64, 64), 88, 36),
    ("llava_next", {"min_pixels": 4096}, (32, 32), 36, 88),
    ("llava_onevision", {"max_pixels": 2048}, (64, 64), 88, 36),
    ("llava-pixtral", {"image_size": 16}, (64, 64), 16, 4),
    ("llava-pixtral", {"max_pixels": 300}, (64, 64), 16, 4),
    ("mistral3", {"image_size": 17}, (64, 64), 16, 4),
    ("idefics3", {"image_size": 64}, (64, 64), 16, 5 * 16),
    ("smolvlm", {"max_pixels": 1024}, (64, 64), 5 * 4, 4),
    ("gemma3", {"image_size": 96}, (1024, 256), 16, 4 * 16),
    ("gemma3", {"max_pixels": 1024}, (1024, 256), 16, 16),
    ("gemma4", {"max_pixels": 140 * 144}, (64, 64), 64, 121),
    ("lfm2_vl", {"max_pixels": 1100}, (64, 64), 16, 4),
    ("lfm2_vl", {"min_pixels": 2048}, (32, 32), 4, 9),
    ("phi4_multimodal", {"max_pixels": 2 * 448**2}, (896, 448), 409, 801),
]
ENLARGED = {"min_pixels": "so there is no least"}
ONE_SIZE = dict.fromkeys(("min_pixels", "max_pixels", "image_size"), "one size alone")
REFUSED: dict[str, dict[str, str]] = {
    "llava": ONE_SIZE,
    "paligemma": ONE_SIZE,
    "gemma3n": ONE_SIZE,
    "mllama": dict.fromkeys(ONE_SIZE, "would take one shape for another"),
    "gemma3": ENLARGED,
    "gemma4": ENLARGED,
    "idefics3": ENLARGED,
    "smolvlm": ENLARGED,
    "llava-pixtral": {"min_pixels": "never enlarged"},
    "mistral3": {"min_pixels": "never enlarged"},
    "phi4_multimodal": {"min_pixels": "never enlarged"},
    "phi3_v": dict.fromkeys(ONE_SIZE, "not known here"),
}


def sized(family: str, *, longest: int | None = None, trained: str | None = None, **settings: Any) -> Any:
    """Return a family's tiny processor with these settings."""
    processor = build_processor(family)
    set_image_size(processor, ModelConfig(**settings), trained=trained, longest=longest)
    return processor


def tokens(processor: Any, family: str, size: tuple[int, int], *, prompt: bool = False) -> int:
    """Return how many placeholder tokens an image takes in a training row, or in the question that `ask` puts."""
    ends = frozenset({processor.tokenizer.eos_token_id})
    encoder = RowEncoder(processor, style_for(family.partition("-")[0]), eos_token_ids=ends, max_length=None)
    row = conversation((("user", (IMAGE, "a")), ("assistant", ("b",))), image=picture(size=size))
    ids = (encoder.encode_prompt(row) if prompt else encoder.encode(row)).input_ids.tolist()
    # The others are fences, and ends of its lines.
    return max(ids.count(media) for media in encoder._media_token_ids)


@pytest.mark.parametrize(("family", "setting", "size", "before", "after"), [m for m in MEANINGS if m[0] in available()])
def test_tokens_of_an_image_in_training_in_a_question_and_after_a_plain_reload(
    family: str, setting: dict[str, Any], size: tuple[int, int], before: int, after: int, tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    assert tokens(build_processor(family), family, size) == before
    processor = sized(family, **setting)
    assert tokens(processor, family, size) == tokens(processor, family, size, prompt=True) == after
    save_processor(processor, tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert tokens(reloaded, family, size) == after
    assert describe_size(reloaded).partition(" (")[0] == describe_size(processor).partition(" (")[0]


def test_the_table_knows_every_familys_processor_and_each_row_serves_one() -> None:
    kinds = {name: scaling_of(build_processor(name)) for name in available() if name != "phi3_v"}
    assert None not in kinds.values()
    assert {name.partition("-")[0] for name in kinds} >= set(FAMILIES) & set(available()) - {"phi3_v"}
    others = {start for start, scaling in SCALINGS.items() if scaling not in kinds.values()}
    assert others <= {"Phi3VImageProcessor", "LlavaImageProcessor", "Gemma4ImageProcessor", "Lfm2VlImageProcessor"}


@pytest.mark.parametrize(("family", "setting"), [(f, s) for f in REFUSED for s in REFUSED[f] if f in available()])
def test_what_a_family_cannot_do_is_refused_with_its_own_size(family: str, setting: str) -> None:
    before = describe_size(build_processor(family))
    with pytest.raises(ConfigError) as refused:
        sized(family, **dict[str, Any]({setting: 5000}))
    assert REFUSED[family][setting] in str(refused.value)
    assert before in str(refused.value)
    assert f"--{setting} 5000" in str(refused.value)


IMPOSSIBLE = [
    ("qwen2_5_vl", {"max_pixels": 512}, "the least is 1024 pixels and the most 512. Type both"),
    ("qwen2_5_vl", {"min_pixels": 1, "max_pixels": 255}, "a patch has 256 pixels"),
    ("internvl", {"max_pixels": 1023}, "a tile of 32x32 has 1024 pixels"),
    ("internvl", {"min_pixels": 4097}, "the least is 5 tiles of 1024 pixels and the most 2"),
    ("llava_next", {"image_size": 63}, "none of the sizes that images are brought to fits: 64x32, 32x64, 64x64"),
    ("llava-pixtral", {"image_size": 7}, "a patch has 8 pixels a side"),
    ("llava-pixtral", {"image_size": 65}, "has positions for 64 pixels a side and no more"),
    ("smolvlm", {"image_size": 31}, "a tile has 32 pixels a side"),
    ("smolvlm", {"image_size": 7 * 32}, "7 tiles need the token <row_7_col_7>"),
    ("gemma3", {"image_size": 31}, "every image is shown at 32x32 pixels"),
    ("gemma4", {"max_pixels": 10079}, "70 tokens of 144 pixels are the least; type 10080 or more"),
    ("lfm2_vl", {"max_pixels": 255}, "a token has 256 pixels"),
    ("lfm2_vl", {"max_pixels": 512}, "the least is 1024 pixels and the most 512"),
    ("lfm2_vl", {"max_pixels": 3 * 4096}, "3 tiles need the token <|img_row_1_col_3|>"),
    ("phi4_multimodal", {"max_pixels": 448**2 - 1}, "a tile of 448x448 has 200704 pixels"),
]


@pytest.mark.parametrize(("family", "settings", "words"), [case for case in IMPOSSIBLE if case[0] in available()])
def test_numbers_that_cannot_be_kept_to_are_refused(family: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sized(family, longest=64, **settings)
    assert words in str(refused.value)


def test_settings_that_say_two_things_and_numbers_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="--max_pixels 9 --image_size 3: both say how large"):
        sized("qwen2_5_vl", max_pixels=9, image_size=3)
    for flag in ("min_pixels", "max_pixels", "image_size"):
        with pytest.raises(ConfigError, match=f"--{flag} 0: must be a whole number from 1"):
            ModelConfig(**{flag: 0})  # type: ignore[arg-type]


def test_variables_of_other_tools_are_said_not_to_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MAX_PIXELS", "2048")
    sized("qwen2_5_vl", max_pixels=4096)
    assert caplog.text == "", "the control: the setting was given"
    sized("qwen2_5_vl", min_pixels=1024)
    assert "The environment variable MAX_PIXELS is not read here. Type --max_pixels 2048." in caplog.text


@pytest.mark.parametrize("family", ["internvl", "gemma3"])
def test_another_size_than_a_run_trained_with_is_said(family: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    sized(family, trained="runs/first", max_pixels=1024 if family == "gemma3" else 2048)
    assert caplog.text == "", "the control: as it was"
    sized(family, trained="runs/first", image_size=64)
    assert "runs/first was trained with images" in caplog.text


def pixels(processor: Any, side: int = 400) -> int:
    """Return how many pixels a square image has after one of Qwen's processors."""
    images = processor.image_processor
    square = Image.fromarray(np.zeros((side, side, 3), dtype=np.uint8))
    grid = images(images=[square], return_tensors="pt")["image_grid_thw"]
    return int(grid.prod()) * int(images.patch_size) ** 2


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


def test_a_run_keeps_its_size_and_another_one_is_said(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LLaVA-NeXT's model has the sizes too: it would cut images that its processor did not."""
    data = write_varied_rows(tmp_path / "data", rows=2, validation=2)
    adapter, loud = tmp_path / "adapter", {"log_level": "warning"}
    words = {"do_train": True, "max_steps": 1, "max_pixels": 2048}
    assert run_script(script_flags(model_folder("llava_next"), data, adapter, **words)) == 0
    kept = load_processor(ModelConfig(model_name_or_path=str(adapter)))
    assert tokens(kept, "llava_next", (64, 64)) == 36
    capsys.readouterr()
    assert run_script(script_flags(adapter, data, tmp_path / "same", do_eval=True, **loud)) == 0
    assert "was trained with" not in capsys.readouterr().err, "the control"
    assert run_script(script_flags(adapter, data, tmp_path / "other", do_eval=True, min_pixels=2048, **loud)) == 0
    assert "was trained with" not in capsys.readouterr().err, "what leaves them as they are"
    image = str(data / "train-0.png")
    asked = ["ask", "--model_name_or_path", str(adapter), "--image", image, "--prompt", "What?", "--use_cpu"]
    assert main([*asked, "--image_size", "64", "--max_length", "300"]) == 0
    assert "was trained with" not in capsys.readouterr().err


@pytest.mark.parametrize("family", ["internvl", "smolvlm"])
def test_weights_that_a_run_saved_say_it_as_an_adapter_does(
    family: str, model_folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = shutil.copytree(model_folder(family), tmp_path / "saved")
    load_processor(ModelConfig(model_name_or_path=str(saved), max_pixels=1024))
    assert "was trained with" not in caplog.text, "the control: a published model"
    (saved / "run_files.json").write_text("{}")
    load_processor(ModelConfig(model_name_or_path=str(saved), max_pixels=1024))
    assert f"{saved} was trained with images" in caplog.text


def test_a_models_own_code_with_crops() -> None:
    """Phi-3-Vision's processor comes with the model; this has its setting."""

    class Phi3VImageProcessor:
        num_crops = 16

    tokenizer = SimpleNamespace(get_vocab=dict, init_kwargs={})
    processor: Any = SimpleNamespace(image_processor=Phi3VImageProcessor(), tokenizer=tokenizer)
    assert describe_size(processor) == "in up to 16 crops of 336x336 pixels (Phi3VImageProcessor: num_crops 16)"
    set_image_size(processor, ModelConfig(image_size=2 * 336), trained=None)
    assert processor.image_processor.num_crops == 4


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("image_resolution", "512", "--image_size SIDE or --max_pixels N"),
        ("image_resize_algorithm", "bicubic", "as the model's own processor does; leave it out"),
        ("max_dynamic_patch", "6", "--max_pixels or --min_pixels: so many tiles times 448x448"),
        ("min_dynamic_patch", "2", "--max_pixels or --min_pixels: so many tiles times 448x448"),
        ("force_image_size", "224", "type --max_pixels N"),
        ("image_resized_width", "224", "type --max_pixels N"),
        ("image_resized_height", "224", "type --max_pixels N"),
        ("num_crops", "4", "so many crops times 336x336"),
    ],
)
def test_other_tools_names_say_what_to_type(
    name: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "--model_name_or_path", "m", "--dataset_name", "d", f"--{name}", value]) == 1
    error = capsys.readouterr().err
    assert f"--{name} {value}: " in error
    assert words in error


def test_the_plan_tells_its_assumed_size_from_the_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model_name_or_path", "m", "--image_size", "1024x768"]) == 1
    assert "--assumed_size 1024x768" in capsys.readouterr().err


def test_a_model_cuts_images_otherwise_than_a_processor_it_was_not_brought_to() -> None:
    """The control of the next test: without it, training fails or reads the wrong tiles."""
    from support.tiny import build_model

    processor = sized("llava_next", max_pixels=2048)
    model = build_model("llava_next", processor.tokenizer)
    inputs = processor(text=["<image> a"], images=[[picture(size=(64, 64))]], return_tensors="pt")
    with pytest.raises((ValueError, RuntimeError)):
        model(**inputs)
    match_model(model, processor)
    assert model(**inputs).logits.isfinite().all()


def test_a_model_is_brought_to_the_sizes_of_its_processor() -> None:
    from support.tiny.configurations import CONFIGURATIONS

    processor = sized("llava_next", max_pixels=2048)
    config = CONFIGURATIONS["llava_next"](processor.tokenizer)
    assert len(config.image_grid_pinpoints) == 3
    match_config(config, processor)
    assert config.image_grid_pinpoints == [[32, 64], [64, 32]]


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return the JSON that a verb printed; packages may have written lines before it."""
    lines = capsys.readouterr().out.splitlines()
    return json.loads("\n".join(lines[next(at for at, line in enumerate(lines) if line in ("[", "{")) :]))


def test_check_plan_and_preview_say_the_size_and_the_tokens(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=2, validation=1)
    words = ["--model_name_or_path", str(model_folder("internvl")), "--dataset_name", str(data), "--use_cpu"]
    said = "in 2 to 2 tiles of 32x32 pixels (GotOcr2ImageProcessor"
    assert main(["preview", *words, "--rows", "1", "--json", "--min_pixels", "2048"]) == 0
    row = printed(capsys)[0]
    assert row["image_size"].startswith(said)
    assert row["image_tokens"] == [50], "three tiles of 16, and two fences"
    assert main(["preview", *words, "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "Images are shown in 1 to 2 tiles" in shown, "the control: without the setting"
    assert "image 1: 32x32 pixels, 18 tokens" in shown
    assert main(["check", *words, "--json", "--workers", "0", "--min_pixels", "2048"]) == 0
    report = printed(capsys)
    assert report["image_size"].startswith(said)
    assert report["splits"]["train"]["image_tokens"]["most"] == 50
    assert main(["plan", *words, "--json", "--device", "H100-80", "--min_pixels", "2048"]) == 0
    plan = printed(capsys)
    assert plan["image_size"].startswith(said)
    assert "50 tokens an image" in plan["rows"]


@pytest.mark.parametrize("name", ["max_pixel", "image_pixels", "max_image_size", "max_image_pixel"])
def test_a_wrong_name_is_never_led_to_the_setting_that_refuses_images(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "--model_name_or_path", "m", "--dataset_name", "d", f"--{name}", "9"]) == 1
    error = capsys.readouterr().err
    assert f"--{name} is not a known key" in error
    assert "max_image_pixels" not in error
