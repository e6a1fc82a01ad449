"""Images behind http and https URLs, fetched only where `--allow_urls` was set, and never from inside a network.

1. Take the URL apart: http or https on its usual port, a host, no user name or password.
2. Resolve the host once. Every address it has must be public, or nothing is sent.
3. Connect to one of those very addresses: there is no second resolution that could answer otherwise. TLS still
   checks the host's certificate, and no proxy of the environment is used: it would resolve for itself.
4. A redirect starts again at 1. Time and bytes are counted over everything.

What could be loaded is kept under `$VLM_LORA_CACHE/images` (`~/.cache/vlm-lora/images`), by the URL's SHA-256: a line
with the SHA-256 of the URL and of all that follows, then the image. A file that is not as it was written is not used.
Which addresses are public is decided here, too: none counts that leads inside by another name.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import TypeAlias
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from vlm_lora.config.whole_files import replacing
from vlm_lora.data.cache_folder import cache_place
from vlm_lora.data.conversation import Url
from vlm_lora.errors import ImageError

logger = logging.getLogger(__name__)

FORMAT = 1
"""Changes with the layout of kept files."""

Address: TypeAlias = IPv4Address | IPv6Address

_INSIDE_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this machine
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' own (and one cloud's metadata)
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host, although the number is public
        "169.254.0.0/16",  # link-local: the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays into IPv6
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_6 = IPv6Network("2000::/3")
"""All that is assigned as global unicast. ::1, mapped IPv4, NAT64, private, link-local and multicast lie outside."""
_INSIDE_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols, Teredo among them: an IPv4 address inside
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
)


def is_public(address: Address) -> bool:
    """Tell whether an address belongs to the public internet.

    The tables are written out because what `ipaddress.is_global` says has changed between Python's versions;
    both must agree. Forms of IPv6 that carry an IPv4 address are refused whatever they carry.

    >>> is_public(IPv4Address("93.184.215.14")), is_public(IPv6Address("::ffff:93.184.215.14"))
    (True, False)
    """
    if isinstance(address, IPv4Address):
        inside = any(address in network for network in _INSIDE_4)
    else:
        inside = address not in _GLOBAL_6 or any(address in network for network in _INSIDE_6)
    return not inside and address.is_global and not address.is_multicast


PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 64 * 1024
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|[0-9a-f:.]+")
"""A name, or an IPv6 address without brackets."""
_KEPT_IN_PATH = "/%:@!$&'()*+,;=~-._?"
"""What stays as it is in a path or query; all else is percent-encoded."""

Resolve = Callable[[str, int], Sequence[Address]]


@dataclass(frozen=True, kw_only=True)
class UrlLimits:
    """What one image may cost."""

    seconds: float = 30.0
    """From the first resolution to the last byte, redirects included."""
    max_bytes: int = 64 * 1024 * 1024
    max_redirects: int = 5


@dataclass(frozen=True, kw_only=True)
class _Target:
    """One request: where to, and what the server is told."""

    url: str
    scheme: str
    host: str
    port: int
    path: str


def resolve_host(host: str, port: int) -> Sequence[Address]:
    """Return all addresses that the system's resolver knows for a host.

    Raises:
        OSError: it knows none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(ip_address(str(entry[4][0])) for entry in found))


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """Fetches one URL at a time. Everything that decides where to is a field, so that a test can decide otherwise."""

    limits: UrlLimits = field(default_factory=UrlLimits)
    resolve: Resolve = resolve_host
    is_allowed: Callable[[Address], bool] = is_public
    ports: frozenset[int] = frozenset(PORTS.values())
    tls: Callable[[], ssl.SSLContext] = ssl.create_default_context

    def fetch(self, url: Url) -> bytes:
        """Return what a URL holds, following redirects.

        Raises:
            ImageError: the URL or a redirect leads where it must not, or the server, time or size fails. The
                message begins with the URL.
        """
        deadline = time.monotonic() + self.limits.seconds
        text = url.text
        try:
            for _ in range(self.limits.max_redirects + 1):
                body, onward = self._request(self._take_apart(text), deadline)
                if onward is None:
                    return body
                text = urljoin(text, onward)
        except ImageError as error:
            via = "" if text == url.text else f"redirected to {_short(text)}: "
            raise ImageError(f"{_short(url.text)}: {via}{error}") from error
        except TimeoutError as error:
            raise ImageError(
                f"{_short(url.text)}: not complete after {self.limits.seconds:g} s. Download the image and name the "
                "file."
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ImageError(
                f"{_short(url.text)}: cannot be fetched ({_reason(error)}). Check the URL, or download the image and "
                "name the file."
            ) from error
        raise ImageError(f"{_short(url.text)}: more than {self.limits.max_redirects} redirects.")

    def _take_apart(self, text: str) -> _Target:
        if re.search(r"[\x00-\x20\x7f\\]", text):
            raise ImageError("a URL holds no space, control character or backslash; they are written as %20 and so on.")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ImageError(f"not a URL: {error}.") from error
        if parts.scheme not in PORTS:
            raise ImageError(f"only http and https are fetched, not {parts.scheme or 'this'}.")
        if "@" in parts.netloc:
            raise ImageError("a URL with a user name or password is not fetched. Download the image.")
        host = _host(parts)
        port = PORTS[parts.scheme] if port is None else port
        if port not in self.ports:
            allowed = " and ".join(map(str, sorted(self.ports)))
            raise ImageError(f"port {port} is not fetched from; allowed are {allowed}.")
        query = f"?{parts.query}" if parts.query else ""
        path = quote((parts.path or "/") + query, safe=_KEPT_IN_PATH)
        return _Target(url=text, scheme=parts.scheme, host=host, port=port, path=path)

    def _request(self, target: _Target, deadline: float) -> tuple[bytes, str | None]:
        """Return the body, or where the server sends us on to."""
        stream = self._connect(target, self._checked_addresses(target, deadline), deadline)
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = stream  # it has the three methods that http.client calls
        try:
            connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", _host_header(target))
            connection.putheader("User-Agent", "vlm-lora")
            connection.putheader("Accept", "image/*")
            connection.putheader("Accept-Encoding", "identity")
            connection.putheader("Connection", "close")
            connection.endheaders()
            response = connection.getresponse()
            if response.status in _REDIRECTS and response.getheader("Location"):
                return b"", response.getheader("Location")
            if response.status != http.client.OK:
                raise ImageError(f"the server answers {response.status} {response.reason[:40]}.")
            return self._body(response), None
        finally:
            connection.close()
            stream.hang_up()

    def _checked_addresses(self, target: _Target, deadline: float) -> Sequence[Address]:
        """Resolve a host, once; refuse it if one of its addresses is not public."""
        addresses = _in_time(lambda: self.resolve(target.host, target.port), deadline)
        for address in addresses:
            if not self.is_allowed(address):
                raise ImageError(
                    f"{target.host} leads to {address}, which is no public address: a data file must not reach into "
                    "this network. Download the image and name the file."
                )
        if not addresses:
            raise ImageError(f"{target.host} has no address.")
        return addresses

    def _connect(self, target: _Target, addresses: Sequence[Address], deadline: float) -> _Deadlined:
        failure: OSError | None = None
        for address in addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            plain = socket.socket(family, socket.SOCK_STREAM)
            try:
                plain.settimeout(_remaining(deadline))
                plain.connect((str(address), target.port))
                if target.scheme == "https":
                    plain.settimeout(_remaining(deadline))
                    return _Deadlined(self.tls().wrap_socket(plain, server_hostname=target.host), deadline)
                return _Deadlined(plain, deadline)
            except (TimeoutError, ssl.SSLError):
                plain.close()
                raise
            except OSError as error:  # a host with IPv6 and IPv4 addresses, of which one is not reachable from here
                plain.close()
                failure = error
        assert failure is not None  # there is at least one address
        raise failure

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        encoding = response.getheader("Content-Encoding", "identity")
        if encoding.lower() not in ("", "identity"):
            raise ImageError(f"the server compresses the image ({encoding[:20]}) although it was asked not to.")
        # None where the server announces no length; http.client counts it down while reading.
        announced = response.length
        if announced is not None and announced > self.limits.max_bytes:
            raise self._too_large(announced)
        chunks: list[bytes] = []
        received = 0
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            if received > self.limits.max_bytes:
                raise self._too_large(received)
            chunks.append(chunk)
        if announced is not None and received < announced:
            raise ImageError(f"the server promised {announced} bytes and sent {received}.")
        return b"".join(chunks)

    def _too_large(self, size: int) -> ImageError:
        return ImageError(
            f"{size} bytes or more, and at most {self.limits.max_bytes} are fetched. Make it smaller, or download it "
            "and name the file."
        )


PUBLIC = Fetcher()
"""What runs use."""


class _Reader(io.RawIOBase):
    """Reads from a socket; each read gets only the time that is left of the whole."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        super().__init__()
        self._socket = connected
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        self._socket.settimeout(_remaining(self._deadline))
        return self._socket.recv_into(buffer)  # type: ignore[arg-type]  # a writable buffer, as BufferedReader gives


class _Deadlined:
    """A connected socket as far as http.client uses one."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(_remaining(self._deadline))
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._socket, self._deadline))

    def close(self) -> None:
        """Do nothing: http.client lets go of the socket before the body is read."""

    def hang_up(self) -> None:
        self._socket.close()


def kept_file(url: Url) -> Path:
    """Return where a URL's image is kept, whether it is there or not."""
    name = hashlib.sha256(url.text.encode("utf-8", "surrogatepass")).hexdigest()
    return cache_place("images") / name


def keep(url: Url, encoded: bytes) -> None:
    """Write an image to its place in one step: whoever reads it at the same time finds all of it or nothing.

    Raises:
        ImageError: the cache folder cannot be written.
    """
    place = kept_file(url)
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(place) as stream:
            stream.write(_line(url, encoded) + encoded)
    except OSError as error:
        raise ImageError(
            f"{_short(url.text)}: cannot be kept in {place.parent} ({error.strerror}). Set VLM_LORA_CACHE to a folder "
            "with space that may be written."
        ) from error


def read_kept(url: Url) -> bytes | None:
    """Return what is kept of a URL; None where nothing is, or it is not as it was written, which is said."""
    place = kept_file(url)
    try:
        content = place.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        logger.warning("%s, kept of %s, cannot be read (%s): it is fetched again.", place, _short(url.text), error)
        return None
    line, _, encoded = content.partition(b"\n")
    if line + b"\n" == _line(url, encoded):
        return encoded
    logger.warning("%s, kept of %s, is not as it was written: it is fetched again.", place, _short(url.text))
    return None


def _line(url: Url, encoded: bytes) -> bytes:
    """Return the line in front of a kept image: whose it is, and a hash of its bytes."""
    hashes = kept_file(url).name, hashlib.sha256(encoded).hexdigest()
    return f"vlm-lora image {FORMAT} {' '.join(hashes)}\n".encode("ascii")


def _host(parts: SplitResult) -> str:
    name = parts.hostname or ""
    try:
        host = name.encode("idna").decode("ascii").lower() if not name.isascii() else name
    except UnicodeError as error:
        raise ImageError(f"'{name[:60]}' is no host name: {error}.") from error
    if not _HOST.fullmatch(host):
        raise ImageError(f"'{host[:60]}' is no host name.")
    return host


def _host_header(target: _Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return host if target.port == PORTS[target.scheme] else f"{host}:{target.port}"


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _in_time(resolve: Callable[[], Sequence[Address]], deadline: float) -> Sequence[Address]:
    """Resolve in a thread of its own: the system's resolver takes no time limit."""
    answers: queue.SimpleQueue[Sequence[Address] | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(resolve())
        except Exception as error:  # handed over to the thread that waits
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=_remaining(deadline))
    except queue.Empty as error:
        raise TimeoutError from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:120]


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
