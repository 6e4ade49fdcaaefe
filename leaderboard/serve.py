"""The report on localhost: a page that refreshes itself when the report was rebuilt, and shows what is running.

Only this machine can reach it, by GET, and only the files that a report links to. The page on disk loads nothing; the
served one may ask this server for `state.json`, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from imagefolder.errors import InputError, one_line
from imagefolder.files import read_text
from leaderboard.running import Runs
from leaderboard.watch import watch

ADDRESS, TRIES = "127.0.0.1", 20
PAGE, STATE = "report.html", "state.json"
HOSTS = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
# One name without a leading dot below one of these folders, or beside the report
SERVED = re.compile(
    r"report\.md|[a-z]+\.csv|(records|speed)/[^/\\.][^/\\]*\.json|pictures/[^/\\.][^/\\]*\.png|charts/[^/\\.][^/\\]*\.svg"
)
POLICY = re.compile(r'(<meta http-equiv="Content-Security-Policy" content="[^"]*)"')
SCRIPT = (Path(__file__).parent / "templates" / "live.js").read_text(encoding="utf-8")
EMPTY = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>No report yet</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src \
'unsafe-inline'"><style>:root { color-scheme: light dark } body { font: 16px sans-serif; margin: 2rem }</style></head>
<body><main><h1>No report yet</h1><p>The report appears here with the first record.</p></main></body></html>"""


class ReportServer(ThreadingHTTPServer):
    """Serves the report of an output folder; `problem` is why the last build failed, or ""."""

    daemon_threads = True

    def __init__(self, output: Path, port: int) -> None:
        super().__init__((ADDRESS, port), Handler)
        self.output, self.problem = output, ""
        self._runs, self._lock = Runs(output), threading.Lock()
        self._running: tuple[float, list[dict[str, Any]]] = (-math.inf, [])
        self._page: tuple[tuple[int, int] | None, str, str] = (None, "", EMPTY)

    @property
    def address(self) -> str:
        """Where a browser finds the report."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def page(self) -> bytes:
        """The report as it is on disk, with the script that keeps it up to date."""
        with self._lock:
            build, html = self._report()
        html = POLICY.sub(lambda match: f"{match[1]}; connect-src 'self'\"", html, count=1)
        before, end, after = html.rpartition("</body>")
        script = f'<script data-build="{build}">\n{SCRIPT}</script>\n'
        return (f"{before}{script}{end}{after}" if end else html + script).encode()

    def state(self) -> bytes:
        """Which build the report on disk is, and what is running, which is looked up once a second at most."""
        with self._lock:
            when, running = self._running
            if time.monotonic() - when > 1:
                running = [each.plain() for each in self._runs.now()]
                self._running = time.monotonic(), running
            state = {"build": self._report()[0], "problem": self.problem, "running": running}
        return json.dumps(state, allow_nan=False).encode()

    def file(self, name: str) -> bytes | None:
        """A file that a report links to; None for anything else."""
        if not SERVED.fullmatch(name):
            return None
        try:
            path = (self.output / name).resolve(strict=True)
            inside = path.is_relative_to(self.output.resolve()) and path.is_file()
            return path.read_bytes() if inside else None
        except (OSError, ValueError, RuntimeError):  # a NUL in the name, circular links
            return None

    def _report(self) -> tuple[str, str]:
        """An id of the report on disk, which changes with its content, and the report."""
        path = self.output / PAGE
        try:
            stat = path.stat()
            known = stat.st_mtime_ns, stat.st_size
            if known != self._page[0]:
                html = read_text(path)
                self._page = known, hashlib.sha256(html.encode()).hexdigest()[:16], html
        except (OSError, ValueError):
            self._page = None, "", EMPTY
        return self._page[1:]


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: ReportServer  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version, sys_version = "imagefolder", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain; charset=utf-8"
    timeout = 30  # seconds that a client may take to send its request

    def do_GET(self) -> None:
        """The page, its state or one of its files."""
        # A name that points here although it is not this machine's belongs to a page of somebody else
        if len(hosts := self.headers.get_all("Host", [])) != 1 or not HOSTS.fullmatch(hosts[0].strip()):
            self.send_error(HTTPStatus.FORBIDDEN, "only for localhost")
            return
        name = unquote(urlsplit(self.path).path, errors="replace").removeprefix("/")
        if name in ("", PAGE):
            self._send(self.server.page(), ".html", "frame-ancestors 'none'")
        elif name == STATE:
            self._send(self.server.state(), ".json")
        elif (content := self.server.file(name)) is not None:
            self._send(content, Path(name).suffix)
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "not a file of the report")

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "only GET")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse

    def _send(self, content: bytes, suffix: str, policy: str = "default-src 'none'; style-src 'unsafe-inline'") -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES[suffix])
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        """The same for every answer."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        super().end_headers()

    def handle(self) -> None:
        """Answer, unless the browser has gone in the meantime."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """The terminal shows builds, not requests."""


def listen(output: Path, port: int) -> ReportServer:
    """A server on `port`, or on the next free one; 0: any. Raises `InputError` if there is none."""
    if not 0 <= port < 2**16:
        raise InputError(f"port {port} does not exist; choose one from 1024 to 65535")
    last = min(port + TRIES, 2**16)
    for number in range(port, last):
        try:
            return ReportServer(output, number)
        except OSError as error:
            problem = error
    raise InputError(f"no port from {port} to {last - 1} can be listened on ({problem}); choose another with --serve")


def serve(output: Path, port: int, build: Callable[[], object], stop: threading.Event) -> None:
    """Serve the report and rebuild it after every change, until `stop` is set or this is interrupted."""
    server = listen(output, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def built(problem: str) -> None:
        server.problem = problem

    print(one_line(f"{server.address} shows the report of {output} and what is running; Ctrl-C ends"), flush=True)
    try:
        watch(output, build, stop, built=built)
    finally:
        server.shutdown()
        server.server_close()
