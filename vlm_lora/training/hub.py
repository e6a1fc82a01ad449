"""Whether the Hub takes the model that `--push_to_hub` is to upload: asked before anything is read or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError
from vlm_lora.model.loading_errors import first_line

_CURE = (
    "Type --hub_token with a token that may write there (or `hf auth login`), or another --hub_model_id, or leave "
    "--push_to_hub out and upload the folder afterwards."
)


def check_push(arguments: Any) -> None:
    """Create the repository that a run is to be pushed to, as transformers' trainer would later; it may be there.

    Args:
        arguments: transformers' training arguments.

    Raises:
        ConfigError: there is no token, the Hub refuses it, or cannot be reached.
    """
    if not (arguments.push_to_hub and arguments.do_train):
        return
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    name = arguments.hub_model_id or Path(arguments.output_dir).absolute().name
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"--push_to_hub: {name} cannot be pushed, because HF_HUB_OFFLINE is set. Unset it, or leave --push_to_hub "
            "out."
        )
    try:
        HfApi(endpoint=constants.ENDPOINT, token=arguments.hub_token).create_repo(
            name, private=arguments.hub_private_repo, exist_ok=True
        )
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = str(error).strip().splitlines()[-1:]
        raise ConfigError(
            f"--push_to_hub: the Hub refuses to take {name} ({', '.join(map(str, [status, *said]))}). {_CURE}"
        ) from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise ConfigError(
            f"--push_to_hub: {name} cannot be made at {constants.ENDPOINT} ({first_line(error)}). {_CURE}"
        ) from error


_CLIENTS = ("requests", "httpx", "httpx2", "httpcore", "httpcore2")
"""Packages by which the Hub's client speaks to it; not all of their errors are OSErrors, as a missing token is."""
