"""R20: whatever the server does, no bad file is ever visible under its name."""

import errno
import hashlib
import http.server
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data import download as module
from data.download import DownloadError, download

CONTENT = random.Random(0).randbytes(3 * module.BLOCK // 2)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Answers each request by the next step of a plan, and with the file itself when the plan is over."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[Callable[[Handler], None]] = []
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/file.txt"

    def handle_error(self, *args: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        (self.server.plan.pop(0) if self.server.plan else whole)(self)

    def log_message(self, *args: object) -> None:
        pass


def answer(
    handler: Handler, body: bytes, status: int = 200, length: int | None = None, headers: dict[str, str] | None = None
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def whole(handler: Handler) -> None:
    """What a good server does: the file, or the part of it that was asked for."""
    if not handler.headers["Range"]:
        return answer(handler, CONTENT)
    start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    if start >= len(CONTENT):
        return answer(handler, b"", 416)
    answer(handler, CONTENT[start:], 206, headers={"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"})


def without_ranges(handler: Handler) -> None:
    answer(handler, CONTENT)


def without_length(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(CONTENT)


def truncated(handler: Handler) -> None:
    start = int((handler.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    rest = CONTENT[start:]
    status, headers = 200, {}
    if start:
        status, headers = 206, {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"}
    answer(handler, rest[: len(rest) // 2], status, len(rest), headers)


def wrong_bytes(handler: Handler) -> None:
    answer(handler, bytes(len(CONTENT)))


def another_range(handler: Handler) -> None:
    answer(handler, CONTENT, 206, headers={"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"})


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: answer(handler, b"<html>an error page</html>", code)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raw" / "file.txt"


def fetch(server: Server, path: Path) -> list[float]:
    """Downloads; makes sure that the file is not visible before the end. Returns the waits."""
    waits: list[float] = []

    def progress(name: str, done: int, total: int | None) -> None:
        assert name == path.name and 0 < done <= len(CONTENT) and total in (None, len(CONTENT))
        assert not path.exists()

    download(server.url, path, sha256=SHA256, progress=progress, pause=waits.append)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return waits


def leave_part(path: Path, content: bytes) -> Path:
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir()
    part.write_bytes(content)
    return part


def test_a_file_comes_whole_and_is_not_fetched_twice(server: Server, path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download(server.url, path, sha256=SHA256, progress=lambda name, done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen == [(module.BLOCK, len(CONTENT)), (len(CONTENT), len(CONTENT))]
    download(server.url, path, sha256=SHA256)
    assert server.ranges == [None]


def test_what_is_there_is_continued(server: Server, path: Path) -> None:
    leave_part(path, CONTENT[:1000])
    assert fetch(server, path) == []
    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize(
    ("there", "plan", "requests"),
    [
        (CONTENT[:1000], [without_ranges], 1),
        (b"of another file", [], 2),
        (CONTENT + b"more", [], 2),
        (CONTENT[:1000], [another_range], 2),
        (CONTENT, [], 2),
    ],
    ids=["no ranges", "another file's", "too long", "another range", "all but renamed"],
)
def test_what_cannot_be_continued_is_fetched_again(server: Server, path: Path, there, plan, requests: int) -> None:
    leave_part(path, there)
    server.plan = plan
    fetch(server, path)
    assert len(server.ranges) == requests


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server: Server, path: Path) -> None:
    server.plan = [truncated, truncated]
    assert fetch(server, path) == [0.5, 1.0]
    half = len(CONTENT) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + (len(CONTENT) - half) // 2}-"]


@pytest.mark.parametrize(
    "plan",
    [[status(500)], [status(503), status(429)], [hang_up], [without_length]],
    ids=["500", "503 429", "hang up", "no length"],
)
def test_what_may_pass_is_tried_again(server: Server, path: Path, plan) -> None:
    server.plan = plan[:]
    waits = fetch(server, path)
    assert waits == ([] if plan == [without_length] else [0.5, 1.0][: len(plan)])


def test_a_server_that_says_nothing_is_left(server: Server, path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    done = threading.Event()
    server.plan = [lambda handler: done.wait(5)]
    assert fetch(server, path) == [0.5]
    done.set()


def refused(server: Server, path: Path) -> str:
    with pytest.raises(DownloadError) as caught:
        download(server.url, path, sha256=SHA256, pause=lambda seconds: None)
    message = str(caught.value)
    assert not path.exists()
    assert "\n" not in message and server.url in message and f"put it at {path}" in message
    return message


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_what_will_not_pass_is_said_at_once(server: Server, path: Path, code: int) -> None:
    server.plan = [status(code)] * 9
    assert f"HTTP {code}" in refused(server, path)
    assert len(server.ranges) == 1 and list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "reason"),
    [(status(500), "HTTP 500"), (truncated, "closed after"), (hang_up, "")],
    ids=["500", "cut off", "hung up"],
)
def test_patience_ends(server: Server, path: Path, step, reason: str) -> None:
    server.plan = [step] * 9
    assert reason in refused(server, path)
    assert len(server.ranges) == 4
    left = path.with_name("file.txt.part")
    assert CONTENT.startswith(left.read_bytes()) if step is truncated else not left.exists()


def test_other_bytes_are_refused_and_thrown_away(server: Server, path: Path) -> None:
    server.plan = [wrong_bytes] * 9
    assert "SHA-256" in refused(server, path)
    assert len(server.ranges) == 1 and list(path.parent.iterdir()) == []


def test_other_bytes_after_good_ones_are_thrown_away_too(server: Server, path: Path) -> None:
    leave_part(path, CONTENT[:1000])
    server.plan = [wrong_bytes] * 9
    assert "SHA-256" in refused(server, path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "error", [socket.gaierror(-2, "Name or service not known"), OSError(errno.ENETUNREACH, "Network is unreachable")]
)
def test_no_network_is_said_at_once(path: Path, monkeypatch, error: OSError) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(DownloadError, match=f"https://example.org/a: no network; .* put it at {path}"):
        download("https://example.org/a", path, sha256=SHA256, pause=lambda seconds: pytest.fail("waited"))


def test_a_place_that_cannot_be_written_is_named(server: Server, path: Path, monkeypatch) -> None:
    path.parent.write_text("a file where a folder is needed")
    with pytest.raises(DownloadError, match="cannot write .*file.txt.part: File exists"):
        download(server.url, path, sha256=SHA256)
    path.parent.unlink()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "publish", full)
    with pytest.raises(DownloadError, match="cannot write .*file.txt.part: No space left"):
        download(server.url, path, sha256=SHA256)
    assert not path.exists()


def test_two_at_once_fetch_one_file(server: Server, path: Path) -> None:
    both = threading.Barrier(2)

    def fetch_one() -> None:
        both.wait()
        download(server.url, path, sha256=SHA256)

    threads = [threading.Thread(target=fetch_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT and server.ranges == [None]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
