"""`--push_to_hub`: whether the Hub takes the model, asked before anything is read, and which files it gets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError
from vlm_lora.model.loading_errors import first_line

_CURE = (
    "Type --hub_token with a token that may write there (or `hf auth login`), or another --hub_model_id, or leave "
    "--push_to_hub out and upload the folder afterwards."
)

KEPT_HERE = (
    "*RUN_STATE.json",
    "*_run.lock*",
    "*training_args.bin",
    "runs/*",
    "*events.out.tfevents.*",
    "*.partial",
)
"""Patterns of files that are not uploaded, also from the folders below: what names this machine and its processes, in
its content or, as TensorBoard's files, by its own name; and a pickle that nobody needs."""


@contextmanager
def without_token(arguments: Any) -> Iterator[None]:
    """Take the Hub's token out of the arguments inside, where transformers writes them to `training_args.bin`."""
    tokens = {name: getattr(arguments, name) for name in ("hub_token", "push_to_hub_token") if hasattr(arguments, name)}
    try:
        for name in tokens:
            setattr(arguments, name, None)
        yield
    finally:
        for name, token in tokens.items():
            setattr(arguments, name, token)


@contextmanager
def uploading(trainer: Any) -> Iterator[None]:
    """Have the trainer upload without `KEPT_HERE` inside; transformers' trainers have no setting for it."""
    own: list[tuple[Any, str, Any]] = []
    for module in dict.fromkeys(sys.modules[kind.__module__] for kind in type(trainer).__mro__):
        if hasattr(module, "upload_folder"):  # 4.55, and optimum-habana on it
            own.append((module, "upload_folder", partial(_upload, module.upload_folder)))
        if hasattr(module, "hf_api"):  # 5.x
            own.append((module, "hf_api", partial(_SelectiveApi, module.hf_api)))
    before = [(module, name, getattr(module, name)) for module, name, _ in own]
    try:
        for each in own:
            setattr(*each)
        yield
    finally:
        for each in before:
            setattr(*each)


class _SelectiveApi:
    """The Hub's client, which leaves these files out of the folders that it uploads."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._api = make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def upload_folder(self, **keywords: Any) -> Any:
        return _upload(self._api.upload_folder, **keywords)


def _upload(upload: Callable[..., Any], **keywords: Any) -> Any:
    ignored = keywords.pop("ignore_patterns", None) or []
    return upload(ignore_patterns=[*([ignored] if isinstance(ignored, str) else ignored), *KEPT_HERE], **keywords)


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
