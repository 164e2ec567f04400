"""A small hub on the loopback, as the hub's own client sees the real one: whole, broken, wrong and gated files."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


@dataclass
class Hub:
    """What the hub serves, and which requests it received."""

    files: dict[str, bytes]
    """OWNER/NAME/FILE → content"""
    gated: set[str] = field(default_factory=set)
    """OWNER/NAME of repositories that need a token with access"""
    allowed: set[str] = field(default_factory=set)
    """Tokens with access"""
    breaks: dict[str, list[int]] = field(default_factory=dict)
    """File → after how many bytes each of its next downloads breaks off"""
    wrong: set[str] = field(default_factory=set)
    """Files whose bytes are not those that their hash states"""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, file and range"""
    address: str = ""

    def downloads(self, file: str) -> list[str | None]:
        """Return the ranges of the downloads of a file, ``None`` for one from its start."""
        return [span for method, name, span in self.requests if method == "GET" and name.endswith(file)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self, *, body: bool) -> None:
        hub, (place, _, rest) = self.hub, self.path.strip("/").partition("/resolve/")
        name = f"{place}/{rest.partition('/')[2]}"
        if not place:
            return self._refuse(200, "")
        hub.requests.append((self.command, name, self.headers.get("Range")))
        if place in hub.gated:
            token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
            if token not in hub.allowed:
                return self._refuse(403 if token else 401, "GatedRepo")
        if not any(known.startswith(f"{place}/") for known in hub.files):
            return self._refuse(404, "RepoNotFound")
        if name not in hub.files:
            return self._refuse(404, "EntryNotFound")
        content = hub.files[name]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            sent = bytes(len(content)) if name in hub.wrong else content
            stops = hub.breaks.get(name)
            if stops:
                self.wfile.write(sent[start : start + stops.pop(0)])
                self.wfile.flush()
                self.connection.shutdown(2)
                self.close_connection = True
                return None
            self.wfile.write(sent[start:])
        return None

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def small_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve files while the context lasts."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
