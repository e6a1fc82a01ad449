"""A stand-in for the Hub, on loopback: it keeps what is pushed to it, and refuses what it is told to refuse."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "secretword" * 2


@dataclass
class StandInHub:
    """What was asked of it, and what it holds."""

    address: str = ""
    refuses: Mapping[str, int] = field(default_factory=dict)
    """Statuses by the beginning of a path."""
    role: str = "write"
    """Of the token's."""
    asked: list[str] = field(default_factory=list)
    """Paths, in order, but for what the client asks about what it runs in, once in a process."""
    tokens: set[str] = field(default_factory=set)
    """Those that came with any request."""
    files: dict[str, bytes] = field(default_factory=dict)
    """By path in the repository."""
    commits: list[str] = field(default_factory=list)
    """Their messages."""

    def answer(self, path: str, body: bytes) -> Any:
        """Return what a request is answered with, as JSON or its status."""
        refused = next((status for begin, status in self.refuses.items() if path.startswith(begin)), None)
        if refused is not None:
            return refused
        if path == "/api/whoami-v2":
            return {"name": "me", "auth": {"accessToken": {"role": self.role}}}
        if path == "/api/repos/create":
            asked = json.loads(body)
            return {"url": f"{self.address}/{asked.get('organization') or 'me'}/{asked['name']}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]}
        if "/commit/" in path:
            return self._commit(path, body)
        return {} if path.endswith("/auth-check/write") or "/branch/" in path else 404

    def _commit(self, path: str, body: bytes) -> Any:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.commits.append(line["value"]["summary"])
            else:
                assert line["value"]["encoding"] == "base64", line["key"]
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        name = re.sub(r"/api/models/|/commit/.*", "", path)
        return {"commitUrl": f"{self.address}/{name}/commit/0123abcd", "commitOid": "0123abcd", "success": True}


@contextmanager
def stand_in_hub(refuses: Mapping[str, int] | None = None, *, role: str = "write") -> Iterator[StandInHub]:
    """Run one, and yield it."""
    hub = StandInHub(refuses=refuses or {}, role=role)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = self.path.partition("?")[0]
            if path != "/api/agent-harnesses":
                hub.asked.append(path)
            hub.tokens.add(str(self.headers.get("authorization")))
            found = hub.answer(path, body)
            status, said = (found, {"error": "No."}) if isinstance(found, int) else (200, found)
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
