"""A hub in memory that answers the few requests of uploads and downloads over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`files` by "owner/repo/path"; `corrupt`: names whose content is changed in transit; `requests`: received."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.corrupt: set[str] = set()
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(timeout=10)


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        self._file(body=True)

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self._json({"url": f"{self.server.endpoint}/{name}", "id": name, "name": name})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in content.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.server.files[f"{repo}/{item['value']['path']}"] = base64.b64decode(item["value"]["content"])
            url = f"{self.server.endpoint}/{repo}/commit/{COMMIT}"
            self._json({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self._error(404, "EntryNotFound")

    def _file(self, body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.path == "/":
            self._json({})
            return
        repo, found, rest = unquote(self.path).lstrip("/").partition("/resolve/")
        name = f"{repo}/{rest.partition('/')[2]}"
        if not found or not any(known.startswith(f"{repo}/") for known in self.server.files):
            self._error(404, "RepoNotFound")
        elif name not in self.server.files:
            self._error(404, "EntryNotFound")
        else:
            content = self.server.files[name]
            large = len(content) > 10_000  # like the hub: sha256 for large files, git's hash for small ones
            etag = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
            if name in self.server.corrupt:
                content = bytes([content[0] ^ 1]) + content[1:]
            self.send_response(200)
            self.send_header("ETag", f'"{etag.hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""
