"""What the verbs of the command line share: their own flags, the configuration, and logging. Imports no torch."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_lora.backend import set_environment
from vlm_lora.config.declaration import declarations
from vlm_lora.config.early import check_early
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sections.registered_names import is_registered
from vlm_lora.config.sources import parse
from vlm_lora.config.values import is_true
from vlm_lora.errors import ConfigError, Refusals, UserError
from vlm_lora.launch.placement import found, number_among_all
from vlm_lora.launch.process_group import part_at_exit
from vlm_lora.training.arguments import check_arguments

logger = logging.getLogger(__name__)

LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
"""transformers' names, without its default, `passive`: it leaves ours as the verb has it."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that every message takes the same road."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog}: {message}.")


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """Return a parser for the flags that only this verb has."""
    return _Parser(prog=f"vlm-lora {verb}", allow_abbrev=False, add_help=False)


def described(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return what each flag of a parser is for, by the flag as it is set; of a word without, by its place holder."""
    return {
        " ".join([*action.option_strings[:1], *([str(action.metavar)] if action.metavar else [])]): action.help or ""
        for action in parser._actions
    }


def configure(
    rest: Sequence[str],
    defaults: Mapping[str, Any],
    log_level: str = "info",
    *,
    verb: str,
    needed: Sequence[str] = (),
    keys: bool = True,
    placed: bool = False,
) -> RunConfig:
    """Parse the configuration, refuse what can be refused by now, add the verb's defaults, and set up logging.

    A registered model (`models:/NAME/VERSION`) becomes its folder.

    Args:
        rest: the words after the verb.
        defaults: keys below those that are given.
        log_level: where none is given. With `warning`, what the verb says of itself is all that is said at its start.
        verb: for the example in messages.
        needed: flags without which the verb does nothing.
        keys: whether the trainer's keys mean something to the verb.
        placed: for verbs that may be one process of several: it finds which, and tells torch.
    """
    refused = Refusals()
    run = parse(rest, environ=os.environ, refused=refused)
    trains = (
        is_true({**defaults, **run.raw}.get("do_train"))
        if verb == "train"
        else verb not in ("eval", "ask", "merge", "quantize")
    )
    check_early(
        run,
        verb,
        () if run.list_checkpoints is not None else needed,
        keys=keys,
        trains=trains,
        refused=refused,
        judge=check_arguments if trains else None,
    )
    placement = found({**os.environ, **run.environment}) if placed else None
    # Before the pipeline, and with it torch, is imported: some hardware reads its variables then.
    os.environ.update(placement.variables if placement else {})
    if placement:
        part_at_exit()
    set_environment(run)
    asked = str(run.raw.get("log_level", "passive")).lower()
    set_up_logging(log_level if asked == "passive" else asked)
    if placement:
        logger.info("%s", placement)
    run = replace(run, raw={**defaults, **run.raw})
    if not is_registered(run.model.model_name_or_path):
        return run
    from vlm_lora.deploy.registry.found import with_registered

    return with_registered(run)


def check_page(path: Path) -> None:
    """Refuse a file for `--html` that is something else: a page of ours is replaced, nobody's data is.

    Raises:
        ConfigError: it is a folder, or a file that is no page.
    """
    if path.is_dir():
        raise ConfigError(f"--html {path} is a folder; name a file, such as {path / 'page.html'}.")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as opened:
            start = opened.read(64).lstrip().lower()
        if not start.startswith((b"<!doctype html", b"<html")):
            raise ConfigError(f"--html {path} is a file already and no page; it would be replaced. Name another file.")


def rank() -> int:
    """Return this process's number among those of its run, from the environment alone."""
    return number_among_all(os.environ)


def set_up_logging(level: str) -> None:
    """Log to stderr, on rank 0 at the level asked for, on other ranks errors only."""
    if level.lower() not in LOG_LEVELS:
        raise ConfigError(f"--log_level {level}: allowed are {', '.join((*LOG_LEVELS, 'passive'))}.")
    shown = LOG_LEVELS[level.lower()] if rank() == 0 else logging.ERROR
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    # peft 0.21 reads an old name of transformers 5.23's; nothing that a user could act on.
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
    # Engines and accelerate call what torch 2.13 renamed, at every step; nothing that a user could act on.
    warnings.filterwarnings("ignore", message=".torch.distributed.* is deprecated", category=FutureWarning)
    # It speaks of a faster kernel for the CPU whenever it is imported, wanted or not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    declared = declarations().values()
    for root in dict.fromkeys(
        ["vlm_lora", *(name for one in declared for name in (one.logger, one.shared_logger) if name)]
    ):
        logging.getLogger(root).setLevel(shown)
    # Transformers' Trainer sets the level of its library where it is built; until then that says warnings at most.
    logging.getLogger("transformers").setLevel(max(shown, logging.WARNING))
    if shown > logging.WARNING:  # what it reads where it is imported later
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", logging.getLevelName(shown).lower())


def wants_debug(words: Sequence[str]) -> bool:
    """Say whether flags or configuration file ask for tracebacks; a mistake in them does not hide its own."""
    try:
        return parse(words, environ=os.environ).debug
    except UserError:
        return "--debug" in words


def wants_reasons(words: Sequence[str]) -> bool:
    """Say whether flags or configuration file ask for all that is said at `--log_level info` or `debug`."""
    try:
        return str(parse(words, environ=os.environ).raw.get("log_level", "")).lower() in ("info", "debug")
    except UserError:  # whoever reads them for their own sake will say it
        return False
