"""Which signals ask a training process to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from unbroken.training.process_end import StopSignals


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    """As they begin in a process that has not touched SIGUSR1."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    stop = StopSignals()
    yield stop
    stop.remove()
    signal.signal(signal.SIGUSR1, before)


def test_advance_warning_of_a_scheduler_asks_to_stop(signals: StopSignals) -> None:
    signals.install()
    signal.raise_signal(signal.SIGUSR1)
    assert signals.received == "SIGUSR1"
    assert signals.received_at > 0


def test_program_that_handles_the_advance_warning_itself_keeps_it(signals: StopSignals) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    signals.install()
    signal.raise_signal(signal.SIGUSR1)
    assert heard == [signal.SIGUSR1]
    assert signals.received == ""


@pytest.mark.parametrize("choice", ["-sigusr1", "none", "ec2"])
def test_advance_warning_that_is_left_out_is_not_touched(
    signals: StopSignals, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setenv("UNBROKEN_NOTICES", choice)
    signals.install()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


def test_what_the_agent_lets_it_ignore_stays_ignored(signals: StopSignals) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signals.install()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_forked_child_lives_on_after_the_advance_warning(signals: StopSignals, monkeypatch: pytest.MonkeyPatch) -> None:
    signals.install()
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as if this were another process
    signal.raise_signal(signal.SIGUSR1)
    assert signals.received == ""


def test_everything_is_put_back(signals: StopSignals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals.install()
    signals.remove()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
