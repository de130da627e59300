"""File operations that a power cut cannot undo half-way, and reading that a hostile folder cannot lead astray."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

CHUNK = 16 * 2**20  # bytes hashed and written at a time; macOS refuses to write 2 GB in one call


def make_folder(path: Path) -> None:
    """Makes a folder and its parents where missing, each of them durable."""
    if not path.is_dir():
        make_folder(path.parent)
        os.mkdir(path)
        sync_folder(path.parent)


def write(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Writes a new file and flushes it to the disk; its name is durable only once its folder is flushed too.

    Args:
        path: must not exist.
        parts: the content, written as it comes.

    Returns:
        Bytes written and their SHA-256, computed from memory, not from what the disk gave back.
    """
    size, digest = 0, hashlib.sha256()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                written = os.write(file, rest[:CHUNK])
                digest.update(rest[:written])
                size += written
                rest = rest[written:]
        os.fsync(file)
    finally:
        os.close(file)
    return size, digest.hexdigest()


def sync_folder(path: Path) -> None:
    """Flushes the names in a folder to the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems flush no folders: nothing more can be done there
            raise
    finally:
        os.close(folder)


def rename(source: Path, target: Path) -> None:
    """Gives a file or folder another name in the same folder, durably. A file of that name is replaced."""
    os.rename(source, target)
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Deletes a file or a whole folder; a link is deleted, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)


def open_regular(path: Path, limit: int) -> BinaryIO:
    """Opens a file for reading, unless it is something else or too large; nothing of it has been read then.

    Args:
        path: where it lies.
        limit: bytes it may have.

    Raises:
        ValueError: it is a link, a folder, a pipe or a device, or it is larger.
    """
    try:  # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever
        file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except IsADirectoryError:
        raise ValueError("is a folder, not a file") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("is a link, not a file") from None
        raise
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a regular file")
    raise ValueError(f"has {status.st_size:,} bytes; at most {limit:,} are accepted")


def read(path: Path, limit: int) -> bytes:
    """The content of a small regular file. Raises as `open_regular`."""
    with open_regular(path, limit) as file:
        return file.read(limit)
