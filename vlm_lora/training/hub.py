"""`--push_to_hub`: whether the Hub takes the model, asked before anything is read, and which files it gets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from vlm_lora.training.hub_access import Repository, open_repository
from vlm_lora.training.meeting import agreeing

KEPT_HERE = (
    "*RUN_STATE.json",
    "*_run.lock*",
    "*training_args.bin",
    "runs/*",
    "*events.out.tfevents.*",
    "*.partial",
    "*MANIFEST*.json",
)
"""Patterns of files that are not uploaded, also from the folders below: what names this machine and its processes, in
its content or, as TensorBoard's files, by its own name; a pickle that nobody needs; and the manifest, which covers
files that stay here, where the Hub keeps hashes of its own."""

ROWS = ("*predictions.jsonl", "*report.html", "*quarantine.jsonl", "*overlong_rows.json")
"""Patterns of files that hold rows of the data: texts, and images of them."""


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
    """Have the trainer upload without `KEPT_HERE` and `ROWS` inside; transformers' trainers have no setting for it.

    Its arguments have no token inside, because they are pickled before the upload, which gets the token by itself.
    """
    token = trainer.args.hub_token
    own: list[tuple[Any, str, Any]] = []
    for module in dict.fromkeys(sys.modules[kind.__module__] for kind in type(trainer).__mro__):
        if hasattr(module, "upload_folder"):  # 4.55, and optimum-habana on it
            own.append((module, "upload_folder", partial(_upload, module.upload_folder, token)))
        if hasattr(module, "hf_api"):  # 5.x
            own.append((module, "hf_api", partial(_SelectiveApi, module.hf_api, token)))
    before = [(module, name, getattr(module, name)) for module, name, _ in own]
    try:
        for each in own:
            setattr(*each)
        with without_token(trainer.args):
            yield
    finally:
        for each in before:
            setattr(*each)


class _SelectiveApi:
    """The Hub's client, which leaves these files out of the folders that it uploads."""

    def __init__(self, make: Callable[[], Any], token: str | None) -> None:
        self._api, self._token = make(), token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def upload_folder(self, **keywords: Any) -> Any:
        return _upload(self._api.upload_folder, self._token, **keywords)


def _upload(upload: Callable[..., Any], token: str | None, /, **keywords: Any) -> Any:
    ignored = keywords.get("ignore_patterns") or []
    ignored = [*([ignored] if isinstance(ignored, str) else ignored), *KEPT_HERE, *ROWS]
    return upload(**{**keywords, "ignore_patterns": ignored, "token": token})


def check_push(arguments: Any) -> str | None:
    """Try the repository that a run is to be pushed to, on the first process; all of them call it.

    Args:
        arguments: transformers' training arguments.

    Returns:
        The repository's whole name on the first process of a run that pushes, else None.

    Raises:
        ConfigError: as `open_repository`.
    """
    if not (arguments.push_to_hub and arguments.do_train):
        return None
    repository = repository_of(arguments)
    return agreeing(arguments, lambda: open_repository(repository) if arguments.process_index == 0 else None)


def repository_of(arguments: Any) -> Repository:
    """Return the repository that transformers' training arguments name; by default one named as the output folder."""
    return Repository(
        name=arguments.hub_model_id or Path(arguments.output_dir).absolute().name,
        token=arguments.hub_token,
        private=arguments.hub_private_repo,
        revision=getattr(arguments, "hub_revision", None),
        asked_by="--push_to_hub",
        token_flag="--hub_token",
        name_flag="--hub_model_id",
    )
