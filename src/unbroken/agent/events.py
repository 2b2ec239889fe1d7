"""What can reach the agent's main loop, and the one queue through which all of it comes."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from unbroken.journal.events import CheckpointCommitted
from unbroken.link.messages import FromTrainer, Hello
from unbroken.notice.choice import SIGUSR1, choice_of_environment
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice


@dataclass(frozen=True)
class SignalHeard:
    """A signal for the agent itself."""

    number: signal.Signals


@dataclass(frozen=True)
class NoticeHeard:
    """A source announces an interruption, or an earlier deadline for one."""

    notice: InterruptionNotice


@dataclass(frozen=True)
class AdvisoryHeard:
    """A source says that an interruption has become likely."""

    advisory: InterruptionAdvisory


@dataclass(frozen=True)
class Admitted:
    """A trainer was welcomed into an attempt."""

    hello: Hello
    attempt: int
    first: bool
    """Whether the attempt began with this trainer."""


@dataclass(frozen=True)
class Told:
    """A trainer said something."""

    rank: int
    message: FromTrainer


@dataclass(frozen=True)
class Departed:
    """A trainer's connection is closed."""

    rank: int


@dataclass(frozen=True)
class Durable:
    """The agent has committed a checkpoint."""

    event: CheckpointCommitted
    attempt: int


@dataclass(frozen=True)
class Chosen:
    """What is uploaded in the time that a notice leaves."""

    action: str
    text: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Trouble:
    """Something went wrong in a thread, and people should know; training goes on."""

    text: str


@dataclass(frozen=True)
class Fenced:
    """The journal says that another attempt owns the run."""

    text: str
    attempt: int
    """Which was replaced."""


@dataclass(frozen=True)
class ThreadFailed:
    """A thread met an error that it did not expect; the main loop raises it."""

    error: BaseException


@dataclass(frozen=True)
class Woken:
    """Something may have changed: look again."""


Event: TypeAlias = (
    SignalHeard
    | NoticeHeard
    | AdvisoryHeard
    | Admitted
    | Told
    | Departed
    | Durable
    | Chosen
    | Trouble
    | Fenced
    | ThreadFailed
    | Woken
)


class Mailbox:
    """Events for the main loop. :meth:`post` is safe from any thread and from signal handlers."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def post(self, event: Event) -> None:
        """Hand over an event."""
        self._queue.put(event)

    def take(self, seconds: float) -> Event | None:
        """The next event, or None where none comes within ``seconds``."""
        try:
            return self._queue.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None


def _stops() -> tuple[signal.Signals, ...]:
    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return (*stops, signal.SIGUSR1) if SIGUSR1 in choice_of_environment().on else stops


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """What is started inside the block ignores SIGUSR1, unless it handles it itself: its default is death, and
    schedulers send it to all processes. One that comes inside the block is lost, and the end that it announces is not.
    """
    if threading.current_thread() is not threading.main_thread() or signal.SIGUSR1 not in _stops():
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def signals_to(mailbox: Mailbox, *, ignore_stops: bool = False) -> Iterator[None]:
    """Turn this process's signals into events until the block ends. For the main thread.

    A stop signal that was ignored when the process started (``nohup``, a background job's SIGINT) stays ignored,
    except SIGTERM.

    Args:
        ignore_stops: whether SIGTERM, SIGINT, SIGHUP and SIGUSR1 are for somebody else.
    """

    def heard(number: int, _frame: object) -> None:
        mailbox.post(SignalHeard(signal.Signals(number)) if number != signal.SIGCHLD else Woken())

    previous = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, heard)}
    for number in _stops():
        ignored = signal.getsignal(number) is signal.SIG_IGN and number != signal.SIGTERM
        previous[number] = signal.signal(number, signal.SIG_IGN if ignore_stops or ignored else heard)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
