"""An HTTP(S) server on loopback that notes every request, and the fetchers that may reach it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from vlm_lora.data.images.urls import Address, Fetcher, UrlLimits, is_public

LOOPBACK = IPv4Address("127.0.0.1")
CERTIFICATE = Path(__file__).with_name("pictures_test.pem")
"""Of the server `pictures.test`, signed by itself, with its key: known to everybody, trusted by these tests alone."""


@dataclass(kw_only=True)
class ImageServer:
    """What a server has seen, and how to answer: each path's raw HTTP answer, in pieces."""

    port: int = 0
    answers: dict[str, list[bytes]] = field(default_factory=dict)
    connections: int = 0
    requests: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    """What TLS clients asked for."""
    stop: threading.Event = field(default_factory=threading.Event)
    pause: float = 0.0
    """Seconds between the pieces of an answer."""

    def url(self, path: str = "/a.png", host: str = "pictures.test", scheme: str = "http") -> str:
        """Return the URL of a path on this server."""
        return f"{scheme}://{host}:{self.port}{path}"

    def fetcher(
        self,
        resolve: Callable[[str, int], Sequence[Address]] | None = None,
        *,
        limits: UrlLimits | None = None,
    ) -> Fetcher:
        """Return a fetcher that takes every host for this server, and this server alone for public."""
        return Fetcher(
            resolve=resolve or (lambda host, port: (LOOPBACK,)),
            is_allowed=lambda address: address == LOOPBACK or is_public(address),
            ports=frozenset({self.port}),
            tls=lambda: ssl.create_default_context(cafile=str(CERTIFICATE)),
            limits=limits or UrlLimits(seconds=20.0),
        )

    def guarded(self, resolve: Callable[[str, int], Sequence[Address]]) -> Fetcher:
        """Return a fetcher with the real rule of addresses that could reach this server's port."""
        return Fetcher(resolve=resolve, ports=frozenset({self.port, 80, 443}), limits=UrlLimits(seconds=20.0))


def answer(body: bytes, *, status: str = "200 OK", headers: Sequence[str] = (), length: int | None = None) -> bytes:
    """Return a raw HTTP answer."""
    size = len(body) if length is None else length
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {size}", *headers, "", ""])
    return head.encode("latin-1") + body


def redirect(where: str, status: str = "302 Found") -> bytes:
    """Return a raw redirect."""
    return answer(b"", status=status, headers=[f"Location: {where}"])


def numeric_only(host: str, port: int) -> Sequence[Address]:
    """Resolve what is a number in any notation as the system does, and no name: that would ask a name server."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [ip_address(str(entry[4][0])) for entry in found]


@contextlib.contextmanager
def serving(*, tls: bool = False) -> Iterator[ImageServer]:
    """Run a server on a free port of 127.0.0.1 until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    server = ImageServer(port=listener.getsockname()[1])
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(CERTIFICATE))
        context.sni_callback = lambda connected, name, context: server.names.append(name)
    thread = threading.Thread(target=_accept, args=(listener, server, context))
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        thread.join()
        listener.close()


def _accept(listener: socket.socket, server: ImageServer, context: ssl.SSLContext | None) -> None:
    workers: list[threading.Thread] = []
    while not server.stop.is_set():
        try:
            connected, _ = listener.accept()
        except TimeoutError:
            continue
        server.connections += 1
        workers.append(threading.Thread(target=_serve, args=(connected, server, context)))
        workers[-1].start()
    for worker in workers:
        worker.join()


def _serve(connected: socket.socket, server: ImageServer, context: ssl.SSLContext | None) -> None:
    connected.settimeout(10)
    # Clients that hang up early are what some tests are about.
    with contextlib.suppress(OSError):
        if context is not None:
            connected = context.wrap_socket(connected, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head and (piece := connected.recv(65536)):
            head += piece
        text = head.decode("latin-1")
        path = text.split(" ")[1] if " " in text else ""
        server.requests.append(path)
        server.heads.append(text)
        for piece in server.answers.get(path, [answer(b"gone", status="404 Not Found")]):
            connected.sendall(piece)
            if server.stop.wait(server.pause):
                break
    connected.close()
