"""Ctrl-C while a library is imported waits until it is whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from nlc.interrupts import whole


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A shell that runs the tests in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), whole():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("whole")
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_waits_where_nothing_came() -> None:
    with whole():
        pass
    with pytest.raises(ValueError), whole():
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_has_no_signals() -> None:
    entered = []

    def enter() -> None:
        with whole():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]
