from __future__ import annotations

import gc
import os
import signal
import threading
from typing import Any

import pytest

from datarater.rater_model import exit_codes, interrupts
from datarater.rater_model.interrupts import Interrupts


class Stopped(Exception):  # noqa: N818
    pass


def test_a_signal_in_a_callback_of_the_collector_is_not_swallowed() -> None:
    def as_xla_does(phase: str, details: Any) -> None:
        gc.callbacks.remove(as_xla_does)
        signal.raise_signal(signal.SIGTERM)

    with Interrupts(Stopped) as listening:
        gc.callbacks.append(as_xla_does)
        gc.collect()  # an error out of a handler would end here
        assert as_xla_does not in gc.callbacks
        with pytest.raises(Stopped, match="SIGTERM"):
            listening.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_work_at_once(number: signal.Signals) -> None:
    ended = threading.Event()
    with Interrupts(Stopped) as listening:
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        with pytest.raises(Stopped, match=number.name):
            listening.wait_for(ended.wait)
    ended.set()


def test_work_gives_its_result_or_its_error() -> None:
    with Interrupts(Stopped) as listening:
        assert listening.wait_for(lambda: threading.current_thread().name) == "work"
        with pytest.raises(KeyboardInterrupt):
            listening.wait_for(lambda: signal.default_int_handler(2, None))


def test_another_thread_interrupts_and_only_its_first_error_counts() -> None:
    ended = threading.Event()
    with Interrupts(Stopped) as listening:

        def interrupt() -> None:
            listening.interrupt(Stopped("first"))
            listening.interrupt(Stopped("second"))

        threading.Timer(0.02, interrupt).start()
        with pytest.raises(Stopped, match="first"):
            listening.wait_for(ended.wait)
    ended.set()


def test_a_second_signal_leaves_at_once_with_75(capfd: pytest.CaptureFixture[str]) -> None:
    left: list[int] = []
    with Interrupts(Stopped, left.append) as listening:
        signal.raise_signal(signal.SIGTERM)
        assert left == []
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            listening.check()
    assert left == [exit_codes.STOPPED]
    assert capfd.readouterr().err == "stopped by a second SIGTERM\n"


def test_a_block_looks_at_those_around_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts(Stopped) as outer, Interrupts(Stopped) as inner:
        outer.interrupt(Stopped("outer"))
        for check in (inner.check, interrupts.check, outer.check):
            with pytest.raises(Stopped, match="outer"):
                check()
    assert signal.getsignal(signal.SIGTERM) == before
    interrupts.check()  # no block is open


def test_a_block_ends_with_an_error_that_nobody_has_seen() -> None:
    late = Interrupts(Stopped)
    late.__enter__()
    late.interrupt(Stopped("late"))
    with pytest.raises(Stopped, match="late"):
        late.__exit__(None, None, None)


def test_a_block_outside_of_the_main_thread_leaves_signals_to_the_main_thread() -> None:
    handlers = []
    ended = threading.Event()

    def in_a_thread() -> None:
        with Interrupts(Stopped) as listening:
            handlers.append(signal.getsignal(signal.SIGTERM))
            listening.interrupt(Stopped("told"))
            listening.wait_for(ended.wait)

    with Interrupts(Stopped) as main, pytest.raises(Stopped, match="told"):
        main.wait_for(in_a_thread)
    ended.set()
    assert handlers == [main._handle]
