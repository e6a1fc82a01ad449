"""A processor of another model is refused before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import script_flags
from vlm_lora.cli.main import main
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ModelError
from vlm_lora.model.loading import load_config, load_processor
from vlm_lora.model.processor.placeholder import check_placeholder

FILES = ("*processor*", "*token*", "chat_template*")


@pytest.mark.parametrize("written", ["<patch>", "<image>"])
def test_a_processor_may_write_another_token_for_its_placeholder(
    written: str, model_folder: Callable[[str], Path]
) -> None:
    model = ModelConfig(model_name_or_path=str(model_folder("llava")))
    config, processor = load_config(model), load_processor(model)
    image = config.image_token_id
    config.image_token_id = image + 1
    row = [1, image + 1 if written == "<patch>" else image, 2]
    if written == "<patch>":
        check_placeholder(config, processor, lambda: row)
    else:
        with pytest.raises(ModelError, match=rf"by <image> \({image}\), and the model \(llava\) looks for token"):
            check_placeholder(config, processor, lambda: row)


def test_another_models_processor_is_refused(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(model_folder("gemma3"), mixed)
    for pattern in FILES:
        for path in model_folder("llava").glob(pattern):
            shutil.copy(path, mixed)
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    assert main(["train", *script_flags(mixed, data, tmp_path / "out", max_steps=1)]) == 1
    said = capsys.readouterr().err
    assert "The processor does not belong to the model: it marks images by <image> (" in said
    assert "Traceback" not in said
