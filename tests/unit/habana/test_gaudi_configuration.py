"""`--gaudi_config_name`: a folder, a file, a Hub id; never a silent default."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_lora.errors import ConfigError
from vlm_lora_hpu.configuration import DEFAULT, autocast_variables, read_configuration
from vlm_lora_hpu.zero import zero_settings


def write(folder: Path, content: Any) -> Path:
    path = folder / "gaudi_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_default_folder_and_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"use_fused_adam": False, "optimum_version": "1.21"})
    assert read_configuration(None) == dict(DEFAULT)
    assert read_configuration(str(tmp_path)) == read_configuration(str(path)) == {"use_fused_adam": False}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "no readable JSON"),
        ("[1]", "one JSON object"),
        ({"use_fused_adm": True}, "use_fused_adam"),
        ({"autocast_bf16_ops": ["add"]}, "go together"),
    ],
)
def test_a_wrong_file_is_refused(content: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        read_configuration(str(write(tmp_path, content)))


def test_an_empty_folder_and_an_id_that_cannot_be_fetched_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no gaudi_config"):
        read_configuration(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be fetched from the Hub"):
        read_configuration("Habana/gpt2")


def test_autocast_lists_become_files_that_the_bridge_is_told_of() -> None:
    assert autocast_variables({"use_fused_adam": True}) == {}
    variables = autocast_variables({"autocast_bf16_ops": ["add", "mm"], "autocast_fp32_ops": ["softmax"]})
    assert Path(variables["PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST"]).read_text() == "add\nmm\n"
    assert Path(variables["PT_HPU_AUTOCAST_FP32_OPS_LIST"]).read_text() == "softmax\n"


SHIPPED = sorted((Path(__file__).parents[3] / "launchers" / "deepspeed").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("bf16", [True, False])
def test_precision_of_a_shipped_zero_file_follows_the_run(path: Path, bf16: bool) -> None:
    """DeepSpeed takes the text "auto" for true; optimum-habana leaves it there."""
    settings = zero_settings(str(path), bf16=bf16)
    assert settings["bf16"]["enabled"] is bf16
    assert settings["fp16"]["enabled"] is False
    assert settings["zero_optimization"]["stage"] in (1, 2, 3)


def test_zero_settings_that_cannot_be_honoured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zero2"):
        zero_settings(str(tmp_path / "none.json"), bf16=True)
    with pytest.raises(ConfigError, match="bf16"):
        zero_settings({"fp16": {"enabled": True}}, bf16=True)
    with pytest.raises(ConfigError, match="--bf16 false"):
        zero_settings({"bf16": {"enabled": True}}, bf16=False)
