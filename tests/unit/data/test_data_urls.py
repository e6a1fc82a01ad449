"""Images behind URLs: what is fetched, what it may cost, and what is kept. The server is the test's own."""

from __future__ import annotations

import os
import pickle
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import numpy as np
import pytest

from support.datasets import draw_chart, encode_png
from support.image_server import LOOPBACK, ImageServer, answer, redirect, serving
from vlm_lora.data.conversation import Url
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.data.images.urls import Address, Fetcher, UrlLimits, is_public, kept_file, read_kept
from vlm_lora.errors import ImageError

PNG = encode_png(draw_chart(4)[0])
LIMITS = ImageLimits()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with serving() as running:
        running.answers["/a.png"] = [answer(PNG)]
        yield running


def test_an_image_is_fetched_once_and_kept(server: ImageServer) -> None:
    url = Url(text=server.url())
    first = load_image(url, limits=LIMITS, fetcher=server.fetcher())
    again = load_image(url, limits=LIMITS, fetcher=server.fetcher())
    expected = np.asarray(load_image(PNG, limits=LIMITS))
    assert np.array_equal(np.asarray(first), expected)
    assert np.array_equal(np.asarray(again), expected)
    assert server.requests == ["/a.png"]
    assert read_kept(url) == PNG
    assert kept_file(url).parent.parent == Path(os.environ["VLM_LORA_CACHE"])
    assert os.listdir(kept_file(url).parent) == [kept_file(url).name]  # nothing unfinished  # noqa: PTH208
    # The control: another URL is another image.
    server.answers["/b.png"] = [answer(encode_png(draw_chart(5)[0]))]
    other = load_image(Url(text=server.url("/b.png")), limits=LIMITS, fetcher=server.fetcher())
    assert not np.array_equal(np.asarray(other), expected)


def test_a_reference_fetches_nothing_until_it_is_loaded(server: ImageServer) -> None:
    url = pickle.loads(pickle.dumps(Url(text=server.url())))
    assert server.connections == 0
    load_image(url, limits=LIMITS, fetcher=server.fetcher())
    assert server.connections == 1


def test_what_the_server_is_told(server: ImageServer) -> None:
    server.answers["/gr%C3%BCn%20a.png?x=1&y=%2F"] = [answer(PNG)]
    server.fetcher().fetch(Url(text=server.url("/grün%20a.png?x=1&y=%2F#part")))
    lines = server.heads[0].split("\r\n")
    assert lines[0] == "GET /gr%C3%BCn%20a.png?x=1&y=%2F HTTP/1.1"
    assert [line for line in lines if line.lower().startswith("host:")] == [f"Host: pictures.test:{server.port}"]
    assert not [line for line in lines if line.lower().startswith(("cookie", "authorization", "referer"))]


def test_proxies_of_the_environment_are_not_used(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}/proxy")
    with serving() as other:
        other.answers["/a.png"] = [answer(PNG)]
        assert other.fetcher().fetch(Url(text=other.url())) == PNG
    assert server.connections == 0


def test_what_cannot_be_loaded_is_not_kept(server: ImageServer) -> None:
    server.answers["/page"] = [answer(b"<!DOCTYPE html><html>log in</html>")]
    url = Url(text=server.url("/page"))
    for requests in (1, 2):
        with pytest.raises(ImageError, match=r"^http://pictures\.test:\d+/page: .*a web page"):
            load_image(url, limits=LIMITS, fetcher=server.fetcher())
        assert len(server.requests) == requests
    assert not kept_file(url).exists()


def test_a_kept_file_that_went_bad_is_fetched_again(server: ImageServer, caplog: pytest.LogCaptureFixture) -> None:
    url = Url(text=server.url())
    load_image(url, limits=LIMITS, fetcher=server.fetcher())
    kept_file(url).write_bytes(kept_file(url).read_bytes()[:-50])
    again = load_image(url, limits=LIMITS, fetcher=server.fetcher())
    assert again.tobytes() == load_image(PNG, limits=LIMITS).tobytes()
    assert f"{kept_file(url)}, kept of {url.text}, is not as it was written: it is fetched again." in caplog.text
    assert len(server.requests) == 2
    server.answers["/a.png"] = [answer(b"gone", status="404 Not Found")]
    load_image(url, limits=LIMITS, fetcher=server.fetcher())
    assert len(server.requests) == 2, "it was kept again"


def test_a_kept_image_that_other_limits_refuse_is_named(server: ImageServer) -> None:
    url = Url(text=server.url())
    load_image(url, limits=LIMITS, fetcher=server.fetcher())
    with pytest.raises(
        ImageError, match=rf"kept from an earlier run as {kept_file(url)}\): .*more than the 10 allowed"
    ):
        load_image(url, limits=replace(LIMITS, max_bytes=10), fetcher=server.fetcher())


def test_workers_may_fetch_the_same_image_at_once(server: ImageServer) -> None:
    url = Url(text=server.url())
    loaded: list[bytes] = []

    def work() -> None:
        loaded.append(load_image(url, limits=LIMITS, fetcher=server.fetcher()).tobytes())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == [load_image(PNG, limits=LIMITS).tobytes()] * 8
    assert read_kept(url) == PNG


def test_a_cache_that_cannot_be_written_is_named(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(os.environ["VLM_LORA_CACHE"])
    place.write_bytes(b"a file")
    with pytest.raises(ImageError, match=rf"cannot be kept in {place}/images.*VLM_LORA_CACHE"):
        load_image(Url(text=server.url()), limits=LIMITS, fetcher=server.fetcher())


def test_redirects_are_followed_up_to_the_limit(server: ImageServer) -> None:
    for number in range(6):
        server.answers[f"/{number}"] = [redirect(f"/{number + 1}", "307 Temporary Redirect")]
    server.answers["/6"] = [answer(PNG)]
    assert server.fetcher().fetch(Url(text=server.url("/1"))) == PNG
    assert server.requests == [f"/{number}" for number in range(1, 7)]
    with pytest.raises(ImageError, match="more than 5 redirects"):
        server.fetcher().fetch(Url(text=server.url("/0")))


def test_a_redirect_is_checked_as_the_first_url(server: ImageServer) -> None:
    def resolve(host: str, port: int) -> Sequence[Address]:
        return (LOOPBACK if host == "pictures.test" else IPv4Address("10.0.0.1"),)

    for where in (
        f"http://inside.test:{server.port}/a.png",
        f"//inside.test:{server.port}/a.png",
    ):
        server.answers["/r"] = [redirect(where)]
        with pytest.raises(ImageError, match=r"redirected to http://inside\.test.*10\.0\.0\.1, which is no public"):
            server.fetcher(resolve).fetch(Url(text=server.url("/r")))
    for where in ("file:///etc/passwd", "ftp://pictures.test/a", "gopher://127.0.0.1:6379/_x"):
        server.answers["/r"] = [redirect(where)]
        with pytest.raises(ImageError, match="only http and https are fetched"):
            server.fetcher(resolve).fetch(Url(text=server.url("/r")))
    assert set(server.requests) == {"/r"}


def test_a_host_is_resolved_once_and_connected_to_at_that_address(server: ImageServer) -> None:
    """DNS rebinding: the second answer would lead inside."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> Sequence[Address]:
        asked.append(host)
        return (LOOPBACK,) if len(asked) == 1 else (IPv4Address("10.0.0.1"),)

    assert server.fetcher(resolve).fetch(Url(text=server.url())) == PNG
    assert asked == ["pictures.test"]
    with pytest.raises(ImageError, match=r"10\.0\.0\.1"):
        server.fetcher(resolve).fetch(Url(text=server.url()))


def test_one_address_inside_refuses_the_host(server: ImageServer) -> None:
    with pytest.raises(ImageError, match=r"169\.254\.169\.254, which is no public address"):
        server.fetcher(lambda host, port: (LOOPBACK, IPv4Address("169.254.169.254"))).fetch(Url(text=server.url()))
    assert server.connections == 0


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([answer(b"x" * 1001)], "1001 bytes or more, and at most 1000"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", *([b"x" * 400] * 3)], "bytes or more, and at most 1000"),
        (
            [
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                *([b"190\r\n" + b"x" * 400 + b"\r\n"] * 3),
                b"0\r\n\r\n",
            ],
            "bytes or more, and at most 1000",
        ),
        ([answer(b"x" * 10, length=20)], "promised 20 bytes and sent 10"),
        ([answer(b"no", status="500 Oh\x07No")], "answers 500"),
        ([answer(b"", status="302 Found")], "answers 302"),
        ([answer(b"x", headers=["Content-Encoding: gzip"])], "compresses the image"),
        ([b"SSH-2.0-OpenSSH_9.9\r\n"], "cannot be fetched"),
        ([b""], "cannot be fetched"),
        ([b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n"], "cannot be fetched"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"], "cannot be fetched"),
        ([redirect("http://[::1/")], "Invalid IPv6"),
        ([redirect("http://exa mple/")], "no space"),
        ([redirect("http://%61/a.png")], "no host name"),
    ],
)
def test_answers_that_are_refused(pieces: list[bytes], said: str, server: ImageServer) -> None:
    server.answers["/a.png"] = pieces
    with pytest.raises(ImageError, match=rf"^http://pictures\.test:\d+/a\.png: .*{said}"):
        server.fetcher(limits=UrlLimits(max_bytes=1000, seconds=20.0)).fetch(Url(text=server.url()))


def test_the_limit_of_bytes_is_exact(server: ImageServer) -> None:
    server.answers["/a.png"] = [b"HTTP/1.1 200 OK\r\n\r\n", *([b"x" * 250] * 4)]
    fetched = server.fetcher(limits=UrlLimits(max_bytes=1000, seconds=20.0)).fetch(Url(text=server.url()))
    assert fetched == b"x" * 1000


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", *([b"x"] * 500)],
        [b"HTTP/1.1 200 OK\r\n", *([b"X: y\r\n"] * 90)],
        [*(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 900)],
    ],
    ids=["body", "headers", "one header"],
)
def test_a_server_that_drips_is_left_after_the_whole_time(pieces: list[bytes], server: ImageServer) -> None:
    """Every single read is answered in time; what counts is the sum."""
    server.pause = 0.05
    server.answers["/a.png"] = pieces
    with pytest.raises(ImageError, match=r"not complete after 0\.5 s"):
        server.fetcher(limits=UrlLimits(seconds=0.5)).fetch(Url(text=server.url()))


def test_a_resolver_that_hangs_is_left_too(server: ImageServer) -> None:
    never = threading.Event()

    def resolve(host: str, port: int) -> Sequence[Address]:
        never.wait()
        return ()

    with pytest.raises(ImageError, match=r"not complete after 0\.2 s"):
        server.fetcher(resolve, limits=UrlLimits(seconds=0.2)).fetch(Url(text=server.url()))
    never.set()


def test_unknown_hosts_and_closed_ports_are_said(server: ImageServer) -> None:
    def resolve(host: str, port: int) -> Sequence[Address]:
        raise OSError(-2, "Name or service not known")

    with pytest.raises(ImageError, match="cannot be fetched \\(Name or service not known\\)"):
        server.fetcher(resolve).fetch(Url(text=server.url()))
    with pytest.raises(ImageError, match="has no address"):
        server.fetcher(lambda host, port: ()).fetch(Url(text=server.url()))


def test_the_next_address_is_tried_where_one_does_not_answer(server: ImageServer) -> None:
    # Another loopback address: nothing listens there on this port.
    closed = IPv4Address("127.0.0.2")
    fetcher = Fetcher(
        resolve=lambda host, port: (closed, LOOPBACK),
        is_allowed=lambda address: address in (closed, LOOPBACK),
        ports=frozenset({server.port}),
    )
    assert fetcher.fetch(Url(text=server.url())) == PNG


def test_tls_checks_the_hosts_certificate_and_tells_its_name() -> None:
    with serving(tls=True) as server:
        server.answers["/a.png"] = [answer(PNG)]
        assert server.fetcher().fetch(Url(text=server.url(scheme="https"))) == PNG
        assert server.names == ["pictures.test"]
        assert f"Host: pictures.test:{server.port}" in server.heads[0]
        with pytest.raises(ImageError, match="certificate"):
            server.fetcher().fetch(Url(text=server.url(scheme="https", host="other.test")))
        # What runs use trusts the system's authorities, and this certificate is signed by none.
        default = Fetcher(resolve=lambda *_: (LOOPBACK,), is_allowed=lambda _: True, ports=frozenset({server.port}))
        with pytest.raises(ImageError, match="certificate"):
            default.fetch(Url(text=server.url(scheme="https")))
        assert server.requests == ["/a.png"]
    assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED


PUBLIC = [
    "93.184.215.14",
    "1.1.1.1",
    "168.63.129.17",
    "100.128.0.1",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "192.0.3.1",
]
INSIDE = [
    "0.0.0.0", "0.1.2.3", "10.255.255.255", "100.64.0.1", "100.127.255.255", "100.100.100.200", "127.0.0.1",
    "127.255.0.1", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192",
    "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1",
    "224.0.1.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:93.184.215.14", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:10::1", "2001:db8::1", "2002:7f00:1::", "2002:5db8:d70e::1", "3fff::1", "5f00::1", "fc00::1",
    "fd00:ec2::254", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip


def test_public_addresses_and_all_others() -> None:
    assert [address for address in PUBLIC if not is_public(ip_address(address))] == []
    assert [address for address in INSIDE if is_public(ip_address(address))] == []
    assert is_public(IPv4Address("172.32.0.1"))
    assert is_public(IPv6Address("2003::1"))
