"""--push_to_hub is tried before anything else: what the Hub refuses is one message, and nothing is read or written."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from support.datasets import write_chartqa_folder
from vlm_lora.cli.main import main
from vlm_lora.errors import ConfigError
from vlm_lora.training.hub import check_push


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
