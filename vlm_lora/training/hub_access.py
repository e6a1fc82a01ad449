"""Where a model is pushed to: a repository of the Hub, its name, token and reach tried before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vlm_lora.compat import check_write_access
from vlm_lora.errors import ConfigError
from vlm_lora.model.loading_errors import first_line

_CLIENTS = ("requests", "httpx", "httpx2", "httpcore", "httpcore2")
"""Packages by which the Hub's client speaks to it; not all of their errors are OSErrors."""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the Hub, as somebody named it."""

    name: str
    """`OWNER/NAME`, or a name alone for one of the token's owner."""
    token: str | None = field(default=None, repr=False)
    """None for what `HF_TOKEN` or `hf auth login` says."""
    private: bool | None = None
    """Of a new one; None for its owner's default."""
    revision: str | None = None
    """A branch, made if it is not there; None for `main`."""
    asked_by: str
    """How messages begin: the flag or the command that asks for it."""
    token_flag: str
    name_flag: str


def open_repository(repository: Repository) -> str:
    """Try name, token and reach, and create the repository (and its branch) where it is not there yet.

    Returns:
        Its whole name, `OWNER/NAME`.

    Raises:
        ConfigError: the name cannot be one, there is no token, the Hub refuses it or its rights, or is not reached.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    place, begin = repository.name, repository.asked_by
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"{begin}: {place} cannot be pushed, because HF_HUB_OFFLINE is set. Unset it.")
    try:
        validate_repo_id(place)
    except HFValidationError as error:
        raise ConfigError(
            f"{begin}: {place} is no name of a repository ({first_line(error)}). Type {repository.name_flag} as "
            "OWNER/NAME, of letters, digits and - _ . alone."
        ) from error
    if not (repository.token or get_token()):
        raise ConfigError(
            f"{begin}: there is no token to push {place} with. Type {repository.token_flag} with one that may write "
            "(from https://huggingface.co/settings/tokens), set HF_TOKEN, or type `hf auth login`."
        )
    with explained(repository):
        api = client(repository)
        _refuse_reader(api.whoami(), repository)
        whole: str = api.create_repo(place, private=repository.private, exist_ok=True).repo_id
        check_write_access(api, whole)
        if repository.revision not in (None, "main") and not str(repository.revision).startswith("refs/"):
            api.create_branch(whole, branch=str(repository.revision), exist_ok=True)
    return whole


def client(repository: Repository) -> Any:
    """Return the Hub's client with the repository's token."""
    from huggingface_hub import HfApi, constants

    return HfApi(endpoint=constants.ENDPOINT, token=repository.token)


@contextmanager
def explained(repository: Repository, *, after: str = "") -> Iterator[None]:
    """Turn what the Hub or the way there refuses inside into one message.

    Args:
        repository: what is pushed to.
        after: what else is said, such as that nothing is lost.

    Raises:
        ConfigError: says what was refused and what to type.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    begin, more = repository.asked_by, f" {after}" if after else ""
    try:
        yield
    except HfHubHTTPError as error:
        raise ConfigError(f"{begin}: {_refusal(error, repository)}{more}") from error
    except Exception as error:
        # A status that the client tells of by another class, or no answer at all.
        if getattr(getattr(error, "response", None), "status_code", None) is not None:
            raise ConfigError(f"{begin}: {_refusal(error, repository)}{more}") from error
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise ConfigError(
            f"{begin}: the Hub is not reached at {constants.ENDPOINT} ({first_line(error)}). Look at the network, at "
            f"HF_ENDPOINT and at the proxy's variables.{more}"
        ) from error


def _refusal(error: Any, repository: Repository) -> str:
    """Return what the Hub refused, in words for its status."""
    status = error.response.status_code
    said = (str(error).strip().splitlines() or [""])[-1]
    quoted = f"({status}, {said})"
    if status == 401:
        return f"the Hub does not know the token {quoted}. Type another {repository.token_flag}, or `hf auth login`."
    if status == 403:
        return (
            f"the token may not write to {repository.name} {quoted}. Type another {repository.token_flag}, one with "
            f"the right to write there, or another {repository.name_flag}."
        )
    if status >= 500:
        return f"the Hub fails {quoted}. Try again later (https://status.huggingface.co says how it is)."
    return f"the Hub refuses to take {repository.name} {quoted}. Another name: {repository.name_flag}."


def _refuse_reader(owner: dict[str, Any], repository: Repository) -> None:
    """Refuse a token that is for reading alone, as the Hub says of it."""
    role = ((owner.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise ConfigError(
            f"{repository.asked_by}: the token may only read. Type another {repository.token_flag}, one of the type "
            "Write (https://huggingface.co/settings/tokens)."
        )
