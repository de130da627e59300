"""Signals raise a flag, a second Ctrl-C raises an exception, and afterwards everything is as before."""

import os
import signal
import threading

import pytest

from train.stop import SIGNALS, StopRequest


def test_nothing_came():
    with StopRequest() as stop:
        assert stop.name is None and stop.signum is None and stop.exit_code == 0


@pytest.mark.parametrize(
    ("signum", "name", "exit_code"),
    [
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGINT, "SIGINT", 130),
        (signal.SIGUSR1, "SIGUSR1", 128 + signal.SIGUSR1),
    ],
)
def test_a_signal_raises_the_flag_and_nothing_else(signum, name, exit_code):
    with StopRequest() as stop:
        signal.raise_signal(signum)
        assert stop.name == name and stop.signum == signum
    assert stop.name == name and stop.exit_code == exit_code, "known after the block too"


def test_the_first_signal_counts():
    with StopRequest() as stop:
        for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(signum)
        assert stop.name == "SIGUSR1"


def test_whoever_insists_is_obeyed_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGTERM"


def test_the_handlers_of_before_come_back():
    def mine(signum, frame):
        received.append(signum)

    received = []
    first = [signal.signal(signum, mine) for signum in SIGNALS]
    try:
        with pytest.raises(KeyError), StopRequest():
            raise KeyError
        assert [signal.getsignal(signum) for signum in SIGNALS] == [mine] * 3
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with StopRequest() as outer, StopRequest() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner.name == "SIGTERM" and outer.name is None and received == [signal.SIGTERM]
    finally:
        for signum, handler in zip(SIGNALS, first, strict=True):
            signal.signal(signum, handler)


def test_it_can_be_entered_again():
    stop = StopRequest()
    before = [signal.getsignal(signum) for signum in SIGNALS]
    for _ in range(2):
        with stop:
            pass
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_a_thread_other_than_the_main_one_is_refused():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    caught = []

    def enter():
        try:
            with StopRequest():
                pass
        except ValueError as error:
            caught.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in caught[0]
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_a_process_leaves_with_the_code_that_a_shell_expects():
    ready, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with StopRequest() as stop:
            os.write(writing, b"ready")
            while not stop.name:
                pass
        os._exit(stop.exit_code)
    os.read(ready, 5)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    os.close(ready)
    os.close(writing)
