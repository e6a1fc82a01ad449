"""`--enable_thinking`: whether the chat template prompts for thoughts, as the template's own default.

It stands at the beginning of the chat template, which is saved with the processor, so that `ask`, `eval` and serving
prompt as training did; what a caller of the template says still wins.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ConfigError

logger = logging.getLogger(__name__)

_NAME = "enable_thinking"
_DEFAULT = re.compile(
    rf"\A\{{%- set {_NAME} = {_NAME} if {_NAME} is defined else (?P<value>true|false) -%\}}",
)
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


def set_thinking(processor: Any, config: ModelConfig, *, trained: str | None) -> None:
    """Give the chat template the default that was asked for.

    Args:
        processor: changed in place.
        config: `enable_thinking`; None leaves the template's own default.
        trained: the adapter folder that it was loaded from, whose training had the template's default; None for a base.

    Raises:
        ConfigError: the template does not read `enable_thinking`.
    """
    wanted = config.enable_thinking
    if wanted is None:
        return
    templates = processor.chat_template
    template = templates.get("default") if isinstance(templates, Mapping) else templates
    typed = f"--{_NAME} {str(wanted).lower()}"
    if not isinstance(template, str) or not reads_thinking(template):
        raise ConfigError(
            f"{typed}: this model's chat template does not read {_NAME}, so its prompts would stay as they are. Leave "
            "it out; of a model that always thinks, or never, nothing has to be set."
        )
    found = _DEFAULT.match(template)
    if trained is not None and (found is None or found["value"] != str(wanted).lower()):
        before = "the template's own default" if found is None else f"--{_NAME} {found['value']}"
        logger.warning("%s: %s was trained with %s.", typed, trained, before)
    template = f"{{%- set {_NAME} = {_NAME} if {_NAME} is defined else {str(wanted).lower()} -%}}" + _DEFAULT.sub(
        "", template
    )
    processor.chat_template = {**templates, "default": template} if isinstance(templates, Mapping) else template
    if processor.tokenizer.chat_template is not None:
        processor.tokenizer.chat_template = processor.chat_template
    logger.info("Chat template: %s by default (%s).", f"{_NAME} = {str(wanted).lower()}", typed)


def reads_thinking(template: str) -> bool:
    """Tell whether a template's source reads `enable_thinking`, its comments aside."""
    return re.search(rf"\b{_NAME}\b", _COMMENT.sub("", template)) is not None
