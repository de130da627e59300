"""Files over HTTP: resumed, checked, and visible under their own name only when they are whole and right.

Bytes go to `NAME.part` beside the place. What is there from an earlier, broken attempt is continued where the server
can (a `Range` request) and fetched again where it cannot. Length and SHA-256 are checked, the file is flushed to the
disk, and only then renamed.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from data.files import publish

Progress = Callable[[str, int, int | None], object]  # what is being fetched, bytes so far, bytes in all where known

BLOCK = 1 << 20  # bytes
TIMEOUT_S = 30
WAITS_S = (0.5, 1.0, 2.0)  # before the second, third and fourth attempt
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses after which it is worth trying again
OFFLINE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}


class DownloadError(OSError):
    """A file could not be had; one line names its address, the reason, and where to put it by hand."""


class Interrupted(Exception):
    """One attempt failed for a reason that may pass."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str,
    progress: Progress | None = None,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Brings one file to its place, unless one is there.

    Args:
        url: an HTTP or HTTPS address.
        path: where the file shall lie; missing folders are made.
        sha256: what its content must hash to.
        progress: called after every block.
        pause: waits some seconds between two attempts.

    Raises:
        DownloadError: it cannot be had, or is not what it should be. Nothing is visible at `path` then.
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "a+b") as file:
            with contextlib.suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():  # another process fetched it while we waited
                return
            _fill(file, url, path, sha256, progress, pause)
            file.flush()
            publish(part, path)
    except DownloadError:
        if part.stat().st_size == 0:
            part.unlink()
        raise
    except OSError as error:
        raise DownloadError(f"cannot write {part}: {error.strerror or error}; free space or allow writing") from error


def unavailable(url: str, path: Path | str, reason: object) -> DownloadError:
    """The one line for a file that cannot be had."""
    return DownloadError(f"cannot download {url}: {reason}; get it on another machine and put it at {path}")


def _fill(
    file: BinaryIO, url: str, path: Path, sha256: str, progress: Progress | None, pause: Callable[[float], object]
) -> None:
    """Attempts until the open file holds exactly what it should, or there is no hope."""
    waits = iter(WAITS_S)
    while True:
        resumed = file.seek(0, os.SEEK_END) > 0
        try:
            _attempt(file, url, path, progress)
        except Interrupted as error:
            reason = str(error)
        else:
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found == sha256:
                return
            file.truncate(0)
            reason = f"what came has the SHA-256 {found[:12]}…, not {sha256[:12]}…"
            if not resumed:
                raise unavailable(url, path, reason)
        wait = next(waits, None)
        if wait is None:
            raise unavailable(url, path, reason)
        pause(wait)


def _attempt(file: BinaryIO, url: str, path: Path, progress: Progress | None) -> None:
    """One request, appended to what is there if the server agrees.

    Raises:
        Interrupted: worth another attempt; what came stays in the file.
        DownloadError: not worth it.
    """
    have = file.seek(0, os.SEEK_END)
    try:
        response = _request(url, have)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the file on the server is shorter than what is here
            file.truncate(0)
        elif error.code not in TEMPORARY:
            raise unavailable(url, path, f"HTTP {error.code} {error.reason}") from error
        raise Interrupted(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, socket.gaierror) or getattr(cause, "errno", None) in OFFLINE:
            raise unavailable(url, path, "no network") from error
        raise Interrupted(f"{cause}" or type(cause).__name__) from error
    with response:
        have, total = _agreed(response, have)
        file.truncate(have)
        for block in _blocks(response):
            file.write(block)
            have += len(block)
            if progress:
                progress(path.name, have, total)
    if total is not None and have != total:
        raise Interrupted(f"the connection closed after {have:,} of {total:,} bytes")


def _request(url: str, start: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "stepladder", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)


def _agreed(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """The byte a response begins at, as many as there already are or none, and the length of the whole file."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match and int(match[1]) == have:
            return have, None if match[2] == "*" else int(match[2])
        raise Interrupted("the server sent another range than the one asked for")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(f"{error}" or type(error).__name__) from error
        if not block:
            return
        yield block
