"""Rows that try to lead inside a network or out of the image root: nothing is sent, nothing outside is opened."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from support.datasets import draw_chart, encode_png, write_image
from support.image_server import LOOPBACK, ImageServer, answer, numeric_only, redirect, serving
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Url
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.data.images.urls import Address
from vlm_lora.errors import ImageError

PNG = encode_png(draw_chart(4)[0])
NAMES: dict[str, Sequence[Address]] = {
    "inside.test": (LOOPBACK,),
    "localhost": (IPv6Address("::1"), LOOPBACK),
    "both.test": (IPv4Address("93.184.215.14"), LOOPBACK),
    "metadata.test": (IPv4Address("169.254.169.254"),),
    "six.test": (IPv6Address("fd00:ec2::254"),),
}
"""What the test's resolver answers; numbers are read as the system reads them."""

URLS = [
    "http://127.0.0.1:{port}/a.png",
    "http://2130706433:{port}/a.png",
    "http://0x7f000001:{port}/a.png",
    "http://0x7f.0.0.1:{port}/a.png",
    "http://0177.0.0.1:{port}/a.png",
    "http://017700000001:{port}/a.png",
    "http://127.1:{port}/a.png",
    "http://0:{port}/a.png",
    "http://127.0.0.1.:{port}/a.png",
    "http://１２７.0.0.1:{port}/a.png",
    "http://[::1]:{port}/a.png",
    "http://[::ffff:127.0.0.1]:{port}/a.png",
    "http://[::ffff:7f00:1]:{port}/a.png",
    "http://[64:ff9b::127.0.0.1]:{port}/a.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://metadata.test/computeMetadata/v1/",
    "http://six.test/",
    "http://localhost:{port}/a.png",
    "http://ⓛocalhost:{port}/a.png",
    "http://inside.test:{port}/a.png",
    "http://both.test:{port}/a.png",
    "http://user@127.0.0.1:{port}/a.png",
    "http://1.1.1.1@127.0.0.1:{port}/a.png",
    "http://127.0.0.1:{port}\\@1.1.1.1/a.png",
    "http://127.0.0.1:{port}/a\r\nX-Injected: 1",
    "http://127.0.0.1:22/a.png",
    "https://inside.test:{port}/a.png",
    "ftp://127.0.0.1:{port}/a.png",
    "gopher://127.0.0.1:{port}/_GET%20/a.png",
    "file://127.0.0.1/{outside}",
    "jar:http://127.0.0.1:{port}/a.jar!/a.png",
    "//127.0.0.1:{port}/a.png",
]
PATHS = [
    "../outside.png",
    "pictures/../../outside.png",
    "..//..//..//..//..//..//..//..{outside}",
    "{outside}",
    "file://{outside}",
    "file:///%2e%2e{outside}",
    "link.png",
    "pictures/up/outside.png",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/environ",
    "/proc/self/root{outside}",
    "/etc/passwd",
    "pipe.png",
    "a.png\x00.jpg",
    "~/outside.png",
    "~root/outside.png",
    "pictures",
    ".",
    "\\\\server\\share\\a.png",
    "x" * 5000,
]

opened: list[str] = []
_watched: list[bool] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _watched and event == "open":
        opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else str(arguments[0]))


sys.addaudithook(_note)  # cannot be taken away again; it does nothing unless a test watches


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """Every path that Python opens while the test runs."""
    opened.clear()
    _watched.append(True)
    yield opened
    _watched.clear()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    with serving() as running:
        running.answers["/a.png"] = [answer(PNG)]
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image root with a good image and three ways out; next to it an image that must not be read."""
    folder = tmp_path / "root"
    write_image(folder / "pictures" / "a.png", seed=1)
    write_image(tmp_path / "outside.png", seed=2)
    monkeypatch.setenv("HOME", str(tmp_path))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "pictures" / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.png")
    return folder


def resolve(host: str, port: int) -> Sequence[Address]:
    return NAMES[host] if host in NAMES else numeric_only(host, port)


def load_row(root: Path, image: str, server: ImageServer) -> None:
    """Read a data file with one row as a run with --allow_urls does, up to the image's pixels."""
    row = {"image": image, "question": "What?", "answer": "Red."}
    (root / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    config = DataConfig(dataset_name=str(root / "train.jsonl"), allow_urls=True, image_column="image")
    data = load_splits(config, need_train=True, need_validation=False).train
    assert data is not None
    load_image(data[0].images[0].source, limits=ImageLimits(), fetcher=server.guarded(resolve))


@pytest.mark.parametrize("url", URLS)
def test_no_request_leads_inside(url: str, root: Path, server: ImageServer, watched: list[str]) -> None:
    outside = root.parent / "outside.png"
    with pytest.raises(ImageError):
        load_row(root, url.format(port=server.port, outside=outside), server)
    assert server.connections == 0
    assert str(outside) not in watched


@pytest.mark.parametrize("where", [url for url in URLS if url.startswith(("http", "//"))])
def test_no_redirect_leads_inside(where: str, root: Path, server: ImageServer) -> None:
    """The first server is public (here: allowed by name); what it sends us on to is not."""
    with serving() as public:
        public.answers["/r"] = [redirect(where.format(port=server.port, outside="").encode().decode("latin-1"))]
        fetcher = public.fetcher(lambda host, port: (LOOPBACK,) if host == "pictures.test" else resolve(host, port))
        ports = fetcher.ports | {server.port, 80, 443}
        first = iter([True])
        guarded = server.guarded(fetcher.resolve)
        # The one address that may be private is the first of all: the public server's.
        checked = type(fetcher)(
            resolve=fetcher.resolve,
            is_allowed=lambda address: next(first, False) or guarded.is_allowed(address),
            ports=ports,
            limits=fetcher.limits,
        )
        with pytest.raises(ImageError):
            load_image(Url(text=public.url("/r")), limits=ImageLimits(), fetcher=checked)
        assert public.requests == ["/r"]
    assert server.connections == 0


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_the_root(path: str, root: Path, server: ImageServer, watched: list[str]) -> None:
    outside = root.parent / "outside.png"
    with pytest.raises(ImageError, match=r"train\.jsonl row 0 \(line 1\): "):
        load_row(root, path.format(outside=outside), server)
    read = [name for name in watched if Path(name).resolve().is_relative_to(root.parent)]
    assert {Path(name).name for name in read} <= {"train.jsonl"}
    assert not [name for name in watched if name.startswith(("/dev/zero", "/dev/stdin", "/proc", "/etc/passwd"))]


def test_the_watch_and_the_server_notice_what_is_allowed(root: Path, server: ImageServer, watched: list[str]) -> None:
    """The control: without the checks, the same means do read the file and do reach the server."""
    load_row(root, "pictures/a.png", server)
    assert str((root / "pictures" / "a.png").resolve()) in watched
    load_image(root / "link.png", limits=ImageLimits())
    assert str(root / "link.png") in watched
    for url in URLS[:7]:
        server.fetcher(resolve).fetch(Url(text=url.format(port=server.port, outside="")))
    assert server.requests == ["/a.png"] * 7


def test_a_run_uses_the_rule_for_public_addresses(root: Path, server: ImageServer) -> None:
    """Without a fetcher of the test's own, the port of this server is refused, and on port 80 its address."""
    with pytest.raises(ImageError, match=r"port \d+ is not fetched from"):
        load_image(Url(text=f"http://127.0.0.1:{server.port}/a.png"), limits=ImageLimits())
    with pytest.raises(ImageError, match=r"127\.0\.0\.1, which is no public address"):
        load_image(Url(text="http://127.0.0.1/a.png"), limits=ImageLimits())
    assert server.connections == 0
