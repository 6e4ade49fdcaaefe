"""`--serve`: a real server on a free port, asked by real requests."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from make_records import REPORTED_CSV, make_record
from PIL import Image

from imagefolder.errors import InputError
from imagefolder.files import write_json
from imagefolder.locks import file_lock
from leaderboard import watch as watching
from leaderboard.report import build_report
from leaderboard.serve import Handler, ReportServer, listen, serve
from leaderboard.store import read_records, write_record

Answer = tuple[int, dict[str, str], bytes]


def started(server: ReportServer) -> Callable[..., Answer]:
    threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()

    def ask(path: str, method: str = "GET", host: str | None = None) -> Answer:
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
        connection.putrequest(method, path, skip_host=True)
        if host != "":
            connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    return ask


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """An output folder with records, pictures and report, and things that nobody may see; made once."""
    folder = tmp_path_factory.mktemp("served") / "runs"
    for name in ("pictures", "records", "charts"):
        (folder / name).mkdir(parents=True)
    for seed in range(2):
        record = make_record(seed=seed)
        write_record(folder / "records", record)
        for path in record.pictures.values():
            Image.new("L", (8, 8)).save(folder / path)
    build_report(folder, read_records(folder / "records"), REPORTED_CSV)
    (folder / "charts" / "one.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for name in ("secret.txt", "pictures/notes.txt", "records/.hidden.json", "../outside.json"):
        (folder / name).write_text("secret")
    os.symlink("../../outside.json", folder / "records" / "link.json")
    return folder


@pytest.fixture
def folder(built, tmp_path) -> Path:
    (tmp_path / "outside.json").write_text("secret")
    return shutil.copytree(built, tmp_path / "runs", symlinks=True)


@pytest.fixture
def server(folder):
    server = listen(folder, 0)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(server):
    return started(server)


def test_the_page_is_the_report_with_one_more_right_and_one_more_script(folder, ask):
    status, headers, content = ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    served, stored = content.decode(), (folder / "report.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', served)
    assert policy is not None
    assert policy[1].endswith("; connect-src 'self'")
    assert "connect-src" not in stored
    script = re.search(r'<script data-build="[0-9a-f]{16}">.*?</script>\n', served, re.DOTALL)
    assert script is not None
    assert served.replace(script[0], "").replace("; connect-src 'self'", "") == stored
    assert ask("/report.html")[2] == content


def test_files_that_a_report_links_to_are_served(folder, ask):
    (record, *_) = read_records(folder / "records")
    picture = next(iter(record.pictures.values()))
    names = ("report.md", "leaderboard.csv", f"records/{record.name}.json", picture, "charts/one.svg")
    for name in names:
        status, headers, content = ask(f"/{name}?again=1")
        assert (status, content) == (200, (folder / name).read_bytes()), name
        assert headers["content-security-policy"].startswith("default-src 'none'"), name
    assert ask(f"/records/{record.name.replace('-', '%2D')}.json")[0] == 200


REFUSED = [
    "/secret.txt", "/pictures/notes.txt", "/records/.hidden.json", "/records/link.json", "/records", "/records/",
    "/pictures/", "/records/../secret.txt", "/records/..%2f..%2foutside.json", "/..%2foutside.json", "//outside.json",
    "/records/%2e%2e/outside.json", "/records/x%00.json", "/records/..\\outside.json", "/records/none.json",
    "/records/earlier/x.json", "/.records.lock", "/locks/x.json", "/mini-digits/seed0/generators/x/settings.json",
    "/report.html/", "/%2e%2e/%2e%2e/etc/passwd", "/records/%ff.json", "/" + "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("path", REFUSED)
def test_nothing_else_is_served(ask, path):
    status, _, content = ask(path)
    assert status in (400, 404)
    assert b"secret" not in content
    assert b"root:" not in content


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", ""]
)
def test_other_names_of_this_machine_are_refused(ask, host):
    status, _, content = ask("/state.json", host=host)
    assert (status, content) == (403, b"403 only for localhost\n")


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:9", "[::1]:8000", "LOCALHOST"])
def test_names_of_localhost_are_answered(ask, host):
    assert ask("/state.json", host=host)[0] == 200


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_get(ask, method):
    assert ask("/", method)[0] == 405


def test_state_names_the_build_and_what_is_running(folder, ask, server):
    def state() -> dict:
        server._running = (-math.inf, [])  # else it is looked up once a second
        return json.loads(ask("/state.json")[2])

    model = "mini-digits-f4eaf250/seed0/generators/VAR-0123abcd"
    (folder / model).mkdir(parents=True)
    write_json(folder / model / "settings.json", {"training": {"steps": 40}})
    (folder / model / "curve.jsonl").write_text('{"step": 20, "cross_entropy": 3.5}\n')
    (folder / "locks").mkdir()
    before = state()
    assert (before["problem"], [each["running"] for each in before["running"]]) == ("", [False])
    with file_lock(folder / "locks" / f"{model.replace('/', '-')}.lock"):
        (running,) = state()["running"]
    assert (running["running"], running["stage"], running["step"], running["steps"], running["values"]) == (
        True, "training generator", 20, 40, [["cross_entropy", 3.5]],
    )  # fmt: skip
    assert f'data-build="{before["build"]}"' in ask("/")[2].decode()
    assert state()["build"] == before["build"]
    (folder / "report.html").write_text("<html><body>new</body></html>")
    assert state()["build"] != before["build"]


def test_without_a_report_the_page_waits_for_one(tmp_path):
    server = listen(tmp_path / "missing", 0)
    ask = started(server)
    page = ask("/")[2].decode()
    assert "The report appears here with the first record." in page
    assert '<script data-build="">' in page
    assert json.loads(ask("/state.json")[2]) == {"build": "", "problem": "", "running": []}
    server.shutdown()
    server.server_close()


def test_a_port_that_is_taken_is_passed_over(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = listen(tmp_path, taken.getsockname()[1])
        assert server.server_address[1] > taken.getsockname()[1]
        assert server.address == f"http://127.0.0.1:{server.server_address[1]}/"
        server.server_close()
    with pytest.raises(InputError, match="port 70000 does not exist"):
        listen(tmp_path, 70000)


def test_a_client_that_leaves_does_not_disturb(server, ask, capfd):
    for content in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET", b"\0\xff\r\n\r\n"):
        with socket.create_connection(server.server_address[:2]) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not closed
            connection.sendall(content)
    assert ask("/state.json")[0] == 200
    assert Handler.timeout  # whoever sends half a request does not hold a thread forever
    assert capfd.readouterr().err == ""


def test_a_new_record_is_built_and_served(tmp_path, make, reported_csv, monkeypatch, capsys):
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.05)
    stop, found = threading.Event(), []
    monkeypatch.setattr("leaderboard.serve.listen", lambda *arguments: found.append(listen(*arguments)) or found[0])

    def build() -> None:
        if not (records := read_records(tmp_path / "records")):
            raise InputError("no records yet")
        build_report(tmp_path, records, reported_csv)

    thread = threading.Thread(target=serve, args=(tmp_path, 0, build, stop))
    thread.start()
    deadline = time.monotonic() + 30
    while not (found and found[0].problem):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert found[0].problem == "no records yet"
    write_record(tmp_path / "records", make(label="A row that is new"))
    while b"A row that is new" not in found[0].page():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stop.set()
    thread.join()
    assert found[0].problem == ""
    assert found[0].address in capsys.readouterr().out
