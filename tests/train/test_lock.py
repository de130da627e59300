"""One run per folder: a second is refused and told by whom, and no death leaves the lock behind."""

import contextlib
import errno
import fcntl
import os
import signal
import socket

import pytest

from train.lock import LockError, RunLock


@contextlib.contextmanager
def holder(run_dir, *, worker=False):
    """A process that holds the lock until it is killed; with a forked worker of its own, if asked for.

    Yields:
        Its number, and the worker's.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with RunLock(run_dir):
                if not worker or os.fork() == 0:
                    os.write(writing, f"{os.getpid()}\n".encode())
                signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as file:
        grandchild = int(file.readline())
    try:
        yield child, grandchild
    finally:
        for pid in {child, grandchild}:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_run_is_refused_and_told_by_whom(tmp_path):
    run_dir = tmp_path / "runs" / "first"
    with holder(run_dir) as (pid, _):
        with pytest.raises(LockError, match=f"first is in use by process {pid} on {socket.gethostname()}; wait for it"):
            RunLock(run_dir).__enter__()
        with RunLock(tmp_path / "runs" / "second"):
            pass


def test_the_same_process_is_refused_too(tmp_path):
    with RunLock(tmp_path), pytest.raises(LockError, match=f"in use by process {os.getpid()} "):
        RunLock(tmp_path).__enter__()


def test_a_killed_run_does_not_block(tmp_path):
    with holder(tmp_path):
        pass
    (tmp_path / ".lock").write_text("process 4194304 on a-machine-with-a-long-name\n" * 3)
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_worker_that_outlives_its_killed_run_does_not_block(tmp_path):
    with holder(tmp_path, worker=True) as (pid, worker):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.kill(worker, 0)  # raises if it were gone
        with RunLock(tmp_path):
            pass


def test_it_ends_with_the_block_however_that_is_left_and_can_be_taken_again(tmp_path):
    lock = RunLock(tmp_path)
    for _ in range(3):
        with pytest.raises(KeyError), lock:
            raise KeyError
    with RunLock(tmp_path):
        pass


def test_refusing_leaks_no_file(tmp_path):
    with RunLock(tmp_path):
        free = os.dup(0)
        os.close(free)
        for _ in range(3):
            with pytest.raises(LockError):
                RunLock(tmp_path).__enter__()
        assert os.dup(0) == free
        os.close(free)


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LockError, match=r"cannot be locked \(Function not implemented\); choose a --run-dir on a file"):
        RunLock(tmp_path).__enter__()
