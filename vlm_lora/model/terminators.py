"""Which tokens end an answer, read from the model's own generation configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ModelError
from vlm_lora.model.folder_faults import AGAIN, read_settings, refuse_misspelt
from vlm_lora.model.loading import base_config
from vlm_lora.model.loading_errors import first_line


def eos_token_ids(model: ModelConfig, config: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids at which generation stops: generation_config's, else the tokenizer's own eos.

    Args:
        model: says where the model lies.
        config: the model's configuration, whose eos stands in when there is no generation_config.json.
        tokenizer: whose `eos_token_id` is always among them.

    Raises:
        ModelError: nothing names an end, so the model could never learn to stop.
    """
    from transformers import GenerationConfig

    base = base_config(model)
    file = Path(str(base.model_name_or_path)) / "generation_config.json"
    ids: set[int] = set()
    try:
        generation = GenerationConfig.from_pretrained(
            base.model_name_or_path, revision=base.model_revision, token=base.token, cache_dir=base.cache_dir
        )
    except OSError:  # the model ships no generation_config.json, which is allowed
        generation = GenerationConfig.from_model_config(config)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(f"{file}: cannot be used ({first_line(error)}). {AGAIN}") from error
    if file.is_file():
        refuse_misspelt(file, read_settings(file), set(vars(GenerationConfig())))
    for found in (generation.eos_token_id, tokenizer.eos_token_id):
        ids.update(found if isinstance(found, list) else [] if found is None else [found])
    if not ids:
        raise ModelError(
            f"{Path(str(base.model_name_or_path)).name}: neither generation_config.json nor the tokenizer names an "
            "eos token. Add eos_token_id to generation_config.json: without it the model cannot learn to stop."
        )
    return frozenset(ids)
