"""Exit codes, help, start-up and the message of an error."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_lora.cli.main import guard, main
from vlm_lora.config.version import __version__
from vlm_lora.errors import ConfigError, EndedEarlyError, RenderingError, plain_message


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong"), 1),
        (KeyboardInterrupt(), 130),
        (EndedEarlyError("saved"), 75),
        (ZeroDivisionError("ours"), 203),
        (NotADirectoryError(20, "Not a directory", "a/b"), 1),
        (OSError(5000, "of no path"), 203),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(lambda: fail(error), debug=False) == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 203)


def test_help_ends_quietly_where_its_reader_has_gone_and_in_one_line_on_a_full_disk() -> None:
    command = [sys.executable, "-m", "vlm_lora", "eval", "--help_all"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone, Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
        refused = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[0].startswith("error: standard output or a file cannot be used: No space left")
    assert len(refused.stderr.splitlines()) == 1


def test_a_message_stands_on_a_line_of_its_own_beside_a_progress_bar() -> None:
    code = (
        "from tqdm import tqdm\nfrom vlm_lora.cli.main import guard\nfrom vlm_lora.errors import ConfigError\n"
        "bar = tqdm(total=3)\ndef fail(): raise ConfigError('wrong')\nguard(fail, debug=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "error: wrong" in done.stderr.splitlines()


@pytest.mark.parametrize("ours", [True, False])
def test_a_command_exits_without_a_last_garbage_collection(ours: bool) -> None:
    """Which takes a second where torch is; a process that runs no command of ours collects, as Python does."""
    code = (
        "from vlm_lora.cli.main import main\nclass Garbage:\n    def __init__(self): self.self = self\n"
        f"    def __del__(self): print('collected', flush=True)\n{'main([])' if ours else ''}\n"
        "Garbage()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("collected" in done.stdout) != ours


@pytest.mark.parametrize("ours", [True, False])
def test_a_signal_for_the_whole_run_does_not_kill_a_process_that_exits(ours: bool) -> None:
    """What is imported before may take its time at the exit."""
    code = (
        "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGUSR1))\n"
        f"from vlm_lora.cli.main import main\n{'main([])' if ours else ''}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == (0 if ours else -signal.SIGUSR1)


def test_no_arguments_is_wrong_usage_and_shows_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "vlm-lora train" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("flags", [["--help"], ["train", "--help"]])
def test_help_imports_no_torch(flags: list[str]) -> None:
    code = (
        "import sys; from vlm_lora.cli.main import main; "
        f"status = main({flags!r}); print('torch' in sys.modules, 'transformers' in sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"


def test_message_from_a_worker_loses_the_traceback() -> None:
    text = (
        "Caught RenderingError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\nvlm_lora.errors.RenderingError: train.jsonl row 3: no answer\n'
    )
    assert plain_message(RenderingError(text)) == "train.jsonl row 3: no answer"
    assert plain_message(RenderingError("plain")) == "plain"
