"""--push_to_hub: what the Hub refuses is one message, before anything is read or written; which files it is given."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils._paths import filter_repo_objects

from support.datasets import write_chartqa_folder
from support.rows import write_uneven_rows
from support.runs import run
from vlm_lora.backend import installed
from vlm_lora.cli.main import main
from vlm_lora.errors import ConfigError
from vlm_lora.training.hub import KEPT_HERE, check_push


@contextmanager
def hub(status: int) -> Iterator[tuple[str, list[str]]]:
    """Answer every request with a status, on loopback; yield the address, and the paths that were asked for."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            asked.append(self.path)
            body = json.dumps({"error": "No.", "url": "https://huggingface.co/me/x"}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def arguments(**given: Any) -> SimpleNamespace:
    usual = {
        "push_to_hub": True,
        "do_train": True,
        "hub_model_id": "me/x",
        "hub_token": "hf_wrong",
        "hub_private_repo": None,
    }
    return SimpleNamespace(**{**usual, "output_dir": "out", **given})


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


@pytest.mark.parametrize("status", [401, 403])
def test_what_the_hub_refuses_is_said(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(status) as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(
            ConfigError, match=rf"the Hub refuses to take me/x \({status}, .*--hub_token .*--hub_model_id"
        ):
            check_push(arguments())
        assert asked
        count = len(asked)
        check_push(arguments(push_to_hub=False))
        assert len(asked) == count, "the control: nothing is asked without the flag"


def test_a_hub_that_takes_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(200) as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        check_push(arguments())
        # huggingface_hub may ask what it runs in first, once in a process.
        assert [path for path in asked if path != "/api/agent-harnesses"] == ["/api/repos/create"]


def test_no_network_and_no_token_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(200) as (address, _):
        pass  # nobody listens there any more
    monkeypatch.setattr(constants, "ENDPOINT", address)
    with pytest.raises(ConfigError, match=rf"me/x cannot be made at {address} "):
        check_push(arguments())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="me/x cannot be pushed, because HF_HUB_OFFLINE is set"):
        check_push(arguments())


def test_a_run_ends_before_its_data_is_read(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_chartqa_folder(tmp_path / "charts", train=2, val=1, test=0, seed=1)
    words = ["--model_name_or_path", str(model_folder("llava")), "--dataset_name", str(data), "--use_cpu"]
    words += [
        "--output_dir",
        str(tmp_path / "out"),
        "--max_steps",
        "1",
        "--push_to_hub",
        "true",
        "--hub_model_id",
        "me/x",
    ]
    with hub(401) as (address, _):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert main(["train", *words]) == 1
    said = capsys.readouterr().err
    assert "error: --push_to_hub: the Hub refuses to take me/x (401, " in said
    assert "Traceback" not in said
    assert "rows" not in said.replace("error: ", ""), "nothing was read"
    assert not (tmp_path / "out").exists()


HERE = ("RUN_STATE.json", "_run.lock", "training_args.bin", "runs/events.out.tfevents.1.host.7.0")


@pytest.mark.parametrize(
    ("strategy", "uploads"),
    [
        ("end", ["."]),
        ("every_save", [".", "."]),
        ("checkpoint", [".", "last-checkpoint", "."]),
        ("all_checkpoints", [".", "checkpoint-1", "."]),
    ],
)
def test_what_names_this_machine_is_never_uploaded(
    strategy: str,
    uploads: list[str],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By each way in which a run uploads, on the trainers of both stacks; the control is what transformers leaves."""
    data = write_uneven_rows(tmp_path / "data", rows=2, validation=0)
    out = tmp_path / "out"
    given: list[tuple[str, set[str], set[str]]] = []

    def taken(**keywords: Any) -> Any:
        folder = Path(keywords["folder_path"])
        for name in HERE if folder == out else ():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        ours = keywords["ignore_patterns"]
        theirs = [pattern for pattern in ours if pattern not in KEPT_HERE]
        left, unchosen = (set(filter_repo_objects(names, ignore_patterns=one)) for one in (ours, theirs))
        given.append((keywords.get("path_in_repo") or ".", left, unchosen))
        return SimpleNamespace(done=lambda: True, is_done=lambda: True, result=lambda: None)

    for kind in installed()["cpu"].trainer_class().__mro__:
        module = sys.modules[kind.__module__]
        if hasattr(module, "upload_folder"):
            monkeypatch.setattr(module, "upload_folder", taken)
        if hasattr(module, "hf_api"):
            monkeypatch.setattr(module, "hf_api", lambda: SimpleNamespace(upload_folder=taken))

    def no_repository(trainer: Any, **_: Any) -> None:
        trainer.hub_model_id, trainer.push_in_progress = "me/x", None

    monkeypatch.setattr("transformers.Trainer.init_hf_repo", no_repository)
    monkeypatch.setattr("vlm_lora.pipeline.check_push", lambda arguments: None)
    flags = {"do_train": True, "max_steps": 1, "save_strategy": "steps", "save_steps": 1, "push_to_hub": True}
    run(model_folder("gemma3"), data, out, **flags, hub_model_id="me/x", hub_strategy=strategy)
    assert [place for place, _, _ in given] == uploads
    for place, names, unchosen in given:
        assert "adapter_model.safetensors" in names
        assert not [name for name in names if any(word in name for word in HERE)], place
        assert "training_args.bin" in unchosen
        assert ("RUN_STATE.json" in unchosen) == (place == "."), "the control: transformers alone would upload it"


def test_the_token_is_written_nowhere(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_chartqa_folder(tmp_path / "charts", train=2, val=1, test=0, seed=1)
    saving = {"do_train": True, "max_steps": 1, "save_strategy": "steps", "save_steps": 1, "hub_token": "hf_secretword"}

    def holding(output: Path) -> list[str]:
        files = [path for path in output.rglob("*") if path.is_file()]
        return sorted({path.name for path in files if b"hf_secretword" in path.read_bytes()})

    run(model_folder("llava"), data, tmp_path / "out", **saving)
    assert (tmp_path / "out" / "training_args.bin").is_file()
    assert holding(tmp_path / "out") == []
    monkeypatch.setattr("vlm_lora.training.trainer.without_token", nullcontext)
    run(model_folder("llava"), data, tmp_path / "control", **saving)
    assert holding(tmp_path / "control") == ["training_args.bin"]
