"""The command line: verbs, exit codes, and the only place that turns an error into a message.

Exit codes: 0 done, 1 the user can fix it, 2 wrong usage, 75 a checkpoint was saved on a signal and the run can go
on from it, 76 the training stood still too long (ended by its watchdog), 128 and a signal's number ended by it
(130 Ctrl-C, 143 SIGTERM), 203 an error of ours.
Start-up imports neither torch nor transformers: `vlm-lora --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlm_lora.cli.setup import configure, described, rank, set_up_logging, verb_parser, wants_debug
from vlm_lora.config.early import DATA, MODEL, OUTPUT
from vlm_lora.config.surrogate_text import drop_stdout, flush_stdout, let_stdout_escape
from vlm_lora.config.version import __version__
from vlm_lora.errors import (
    ConfigError,
    EndedEarlyError,
    SignalledError,
    UserError,
    nearest,
    plain_message,
    refused_file,
)
from vlm_lora.launch.exits import exit_undisturbed, exit_without_collection
from vlm_lora.launch.process_group import lost_partner, port_taken
from vlm_lora.launch.roll_call import silent_rank
from vlm_lora.launch.stop_signals import stop_signals
from vlm_lora.progress import ERASE, can_take_lines_away, live_terminal

EXIT_DONE, EXIT_USER, EXIT_USAGE, EXIT_EARLY, EXIT_INTERRUPTED, EXIT_INTERNAL = 0, 1, 2, os.EX_TEMPFAIL, 130, 203

USAGE = f"""\
vlm-lora {__version__}: fine-tune vision-language models, LoRA first

  vlm-lora train    --model_name_or_path MODEL --dataset_name DATA --output_dir DIR
  vlm-lora eval     --model_name_or_path MODEL_OR_ADAPTER --dataset_name DATA
  vlm-lora ask      --model_name_or_path MODEL_OR_ADAPTER --image FILE --prompt "QUESTION"
  vlm-lora merge    ADAPTER --output_dir DIR [--rows N] [--max_shard_size SIZE] [--json]
  vlm-lora quantize FOLDER --scheme awq|fp8-dynamic --output_dir DIR [--rows N] | --make_environment
  vlm-lora servable FOLDER [--json]
  vlm-lora push     FOLDER REPO [--token TOKEN] [--private] [--with_rows] [--json]
  vlm-lora register FOLDER NAME [--tracking_uri URI] [--json]
  vlm-lora check    --model_name_or_path MODEL --dataset_name DATA [--json] [--html FILE] [--workers N]
  vlm-lora preview  --model_name_or_path MODEL --dataset_name DATA [--rows N] [--json] [--html FILE]
  vlm-lora cache    --model_name_or_path MODEL --dataset_name DATA [the flags of train] | --list | --clear NAME
  vlm-lora plan     --model_name_or_path MODEL --dataset_name DATA [--device H100-80 | all] [--world_size N] [--json]
  vlm-lora shard    --input DATA --out_dir DIR (--num_shards N | --samples_per_shard N) [--shuffle] [--prefix eval]
  vlm-lora launch   [--world_size N] [--nnodes N] [--use_deepspeed | --use_accelerate | --use_mpi] VERB_OR_SCRIPT ...
  vlm-lora report   RUN [--output FILE] [--report_images false]
  vlm-lora runs     DIR [--json]
  vlm-lora compare  RUN RUN [...] [--output FILE] [--report_images false]
  vlm-lora demo     [--output_dir DIR]
  vlm-lora doctor

Every flag is also a key of a YAML or JSON file: --config FILE, flags win.
vlm-lora VERB --help lists what the verb uses; --help_all explains all of it. --debug shows tracebacks.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guard(lambda: _run_verb(arguments), debug=wants_debug(arguments[1:]))


def _run_verb(arguments: Sequence[str]) -> int | None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return EXIT_DONE if arguments else EXIT_USAGE
    if arguments[0] in ("--version", "version"):
        print(__version__)
        return EXIT_DONE
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(f"vlm-lora: no verb '{verb}'; there are {', '.join(VERBS)}.{nearest(verb, VERBS)}", file=sys.stderr)
        return EXIT_USAGE
    if verb == "launch" and rest[:1] in (["-h"], ["--help"]):
        from vlm_lora.cli.launch import usage

        print(usage("vlm-lora launch"))
        return EXIT_DONE
    if {"-h", "--help", "--help_all", "--help-all"} & set(rest):
        verb = next((word for word in rest if word in VERBS), verb)  # `launch train --help`
        print(_verb_help(verb, everything=bool({"--help_all", "--help-all"} & set(rest))))
        return EXIT_DONE
    return VERBS[verb](rest)


def run_script(argv: Sequence[str] | None = None) -> int:
    """Run `examples/run_lora_vlm.py`: like `train`, but it does only what --do_train and --do_eval say."""
    rest = list(sys.argv[1:] if argv is None else argv)
    if not rest or {"-h", "--help", "--help_all", "--help-all"} & set(rest):
        print(_verb_help("train", everything=bool({"--help_all", "--help-all"} & set(rest))))
        return EXIT_DONE if rest else EXIT_USAGE
    return guard(lambda: _train(rest, defaults={}), debug=wants_debug(rest))


def run_launcher(program: str, *, backend: str = "auto", argv: Sequence[str] | None = None) -> int:
    """Run a launcher such as `launchers/gaudi_spawn.py`: start a script on several devices, pass its exit code on."""
    rest = list(sys.argv[1:] if argv is None else argv)
    if not rest or {"-h", "--help"} & set(rest[:1]):
        from vlm_lora.cli.launch import usage

        print(usage(program))
        return EXIT_DONE if rest else EXIT_USAGE
    return guard(lambda: _start(program, backend, rest), debug=False)


def guard(action: Callable[[], int | None], *, debug: bool) -> int:
    """Run `action`; turn what it raises into one message on stderr and an exit code, else return its own."""
    let_stdout_escape()
    exit_without_collection()
    try:
        with live_terminal():
            return _guarded(action, debug=debug)
    finally:
        exit_undisturbed()


def _guarded(action: Callable[[], int | None], *, debug: bool) -> int:
    try:
        code = action() or EXIT_DONE
        flush_stdout()  # here, where it is told that its reader has gone, or that its disk is full
        return code
    except UserError as error:
        if debug:
            traceback.print_exc()
        if rank() == 0 or error.told is None:
            _tell(f"error: {plain_message(error)}")
        if error.told is not None:
            error.told()
        return EXIT_USER
    except EndedEarlyError as ended:
        if rank() == 0:
            _tell(str(ended))
        return EXIT_EARLY
    except BrokenPipeError:  # `vlm-lora preview ... | head` has seen enough
        drop_stdout()
        return EXIT_DONE
    except SignalledError as signalled:
        if rank() == 0:
            _tell(str(signalled))
        return 128 + signalled.number
    except KeyboardInterrupt:
        _tell("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:  # the last resort: anything that reaches it is a fault of ours
        known = port_taken(error) or silent_rank(error) or lost_partner(error) or refused_file(error)
        if known and not debug:
            _tell(f"error: {known}")
            drop_stdout()
            return EXIT_USER
        traceback.print_exc()
        _tell(f"internal error ({type(error).__name__}): please report it with the lines above")
        return EXIT_INTERNAL


def _tell(message: str) -> None:
    """Write a message on a line of its own, which a progress bar may have left unfinished."""
    if rank() and can_take_lines_away(sys.stderr, os.environ):
        sys.stderr.write(ERASE)  # the live line that the first process draws on this terminal
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(message, file=sys.stderr)
    else:
        print(message, file=sys.stderr)


@stop_signals()
def _train(rest: Sequence[str], defaults: Mapping[str, Any] | None = None) -> None:
    own, others = _result_flags("train").parse_known_args(rest)
    run = configure(
        others,
        {"do_train": True, "do_eval": True} if defaults is None else defaults,
        log_level="warning",
        verb="train",
        needed=(MODEL, DATA, OUTPUT),
        placed=True,
    )
    if run.list_checkpoints is not None:
        from vlm_lora.cli.list_runs import list_checkpoints

        list_checkpoints(run.list_checkpoints)
        return
    if run.dry_run_options.dry_run:
        from vlm_lora.cli.dry_run import dry_run

        dry_run(run)
        return
    from vlm_lora.cli.runs import run_and_report

    run_and_report(run, as_json=own.json)


@stop_signals()
def _eval(rest: Sequence[str]) -> None:
    own, others = _eval_flags().parse_known_args(rest)
    if own.predictions_from is not None:
        from vlm_lora.cli.score import score

        score(own.predictions_from, others)
        return
    run = configure(others, {"do_eval": True}, log_level="warning", verb="eval", needed=(MODEL, DATA), placed=True)
    if run.dry_run_options.dry_run:
        raise ConfigError("--dry_run is for train: it shows the rows that would be trained on. Leave it out.")
    from vlm_lora.cli.runs import run_and_report

    run_and_report(replace(run, raw={**run.raw, "do_train": False}), as_json=own.json)


def _flags_of(module: str) -> argparse.ArgumentParser:
    """Return the flags of a verb that has a file of its own, which is imported when they are asked for."""
    flags: argparse.ArgumentParser = importlib.import_module(f"vlm_lora.cli.{module}").flags()
    return flags


def _result_flags(verb: str) -> argparse.ArgumentParser:
    parser = verb_parser(verb)
    parser.add_argument("--json", action="store_true", help="print the results as JSON, also on a terminal")
    return parser


def _eval_flags() -> argparse.ArgumentParser:
    parser = _result_flags("eval")
    parser.add_argument(
        "--predictions_from",
        "--predictions-from",
        metavar="FILE",
        help="score answers that another program made; no model is loaded",
    )
    return parser


def _ask(rest: Sequence[str]) -> None:
    from vlm_lora.cli.ask import ask

    ask(rest)


def _check(rest: Sequence[str]) -> None:
    from vlm_lora.cli.check import check

    check(rest)


def _preview(rest: Sequence[str]) -> None:
    from vlm_lora.cli.preview import preview

    preview(rest)


def _cache(rest: Sequence[str]) -> None:
    from vlm_lora.cli.cache import cache

    cache(rest)


def _report_run(rest: Sequence[str]) -> None:
    from vlm_lora.cli.report import report

    report(rest)


def _runs(rest: Sequence[str]) -> None:
    from vlm_lora.cli.list_runs import list_runs

    list_runs(rest)


def _compare(rest: Sequence[str]) -> None:
    from vlm_lora.cli.compare import compare

    compare(rest)


def _merge(rest: Sequence[str]) -> None:
    from vlm_lora.cli.merge import merge

    merge(rest)


def _quantize(rest: Sequence[str]) -> None:
    from vlm_lora.cli.quantize import quantize

    quantize(rest)


def _servable(rest: Sequence[str]) -> None:
    from vlm_lora.cli.servable import servable

    servable(rest)


def _push(rest: Sequence[str]) -> None:
    from vlm_lora.cli.publish.push import push

    push(rest)


def _register(rest: Sequence[str]) -> None:
    from vlm_lora.cli.publish.register import register

    register(rest)


def _plan(rest: Sequence[str]) -> None:
    from vlm_lora.cli.plan import plan

    plan(rest)


def _shard(rest: Sequence[str]) -> None:
    from vlm_lora.cli import shard

    shard.run(rest)


def _demo_flags() -> argparse.ArgumentParser:
    parser = verb_parser("demo")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/demo"), metavar="DIR", help="where all of it goes (runs/demo)"
    )
    return parser


def _demo(rest: Sequence[str]) -> None:
    own = _demo_flags().parse_args(rest)
    set_up_logging("warning")
    from vlm_lora.demo.run import run_demo

    run_demo(own.output_dir)


def _doctor(rest: Sequence[str]) -> None:
    verb_parser("doctor").parse_args(rest)
    from vlm_lora.report.doctor import diagnose

    print(diagnose())


def _start(program: str, backend: str, words: Sequence[str]) -> int:
    from vlm_lora.cli.launch import start

    return start(program, backend, words, verbs=tuple(VERBS))


VERBS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": _train,
    "eval": _eval,
    "ask": _ask,
    "merge": _merge,
    "quantize": _quantize,
    "servable": _servable,
    "push": _push,
    "register": _register,
    "check": _check,
    "preview": _preview,
    "cache": _cache,
    "plan": _plan,
    "shard": _shard,
    "report": _report_run,
    "runs": _runs,
    "compare": _compare,
    "launch": partial(_start, "vlm-lora launch", "auto"),
    "demo": _demo,
    "doctor": _doctor,
}


OWN_FLAGS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "train": partial(_result_flags, "train"),
    "eval": _eval_flags,
    "ask": partial(_flags_of, "ask"),
    "merge": partial(_flags_of, "merge"),
    "quantize": partial(_flags_of, "quantize"),
    "servable": partial(_flags_of, "servable"),
    "push": partial(_flags_of, "publish.push"),
    "register": partial(_flags_of, "publish.register"),
    "check": partial(_flags_of, "check"),
    "preview": partial(_flags_of, "preview"),
    "cache": partial(_flags_of, "cache"),
    "plan": partial(_flags_of, "plan"),
    "report": partial(_flags_of, "report"),
    "runs": partial(_flags_of, "list_runs"),
    "compare": partial(_flags_of, "compare"),
    "demo": _demo_flags,
}
"""The verbs that have flags in addition to the run's."""


def _verb_help(verb: str, *, everything: bool) -> str:
    if verb == "shard":
        from vlm_lora.cli.shard import HELP

        return HELP
    from vlm_lora.cli.help import help_text

    return help_text(verb, everything=everything, own=described(OWN_FLAGS[verb]()) if verb in OWN_FLAGS else {})


if __name__ == "__main__":
    sys.exit(main())
