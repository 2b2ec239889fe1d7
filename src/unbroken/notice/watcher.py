"""One watcher over all sources: merges what they say and tells its owner, one thing at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.source import NoticeSource

_LOG = logging.getLogger("unbroken.notice")
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 60.0
_PROBLEM_SECONDS = 60.0
_REMEMBERED = 256


@dataclass(frozen=True)
class _Problem:
    source: str
    error: Exception
    at: float
    """Monotonic seconds when it happened, which may be before the owner's other callbacks let it be told."""


_Heard = InterruptionNotice | InterruptionAdvisory | _Problem | None


class NoticeWatcher:
    """Polls each source in a thread of its own and calls back from one further thread.

    The callbacks never run at the same time, nor inside :meth:`report`, which is therefore safe to call in a
    signal handler. An exception in a callback goes to ``on_problem``. A context manager: starts on entry,
    closes on exit.

    Args:
        sources: who is polled; may be empty.
        on_notice: called with the first notice, and again when one with an earlier deadline is heard. A
            deadline that has passed is moved to the present.
        on_advisory: called once with each distinct advisory.
        on_problem: called with a source's name and its error; for one source and type of error at most once a minute.
        clock: wall clock for deadlines, monotonic time for pauses.
    """

    def __init__(
        self,
        sources: Iterable[NoticeSource],
        on_notice: Callable[[InterruptionNotice], object],
        on_advisory: Callable[[InterruptionAdvisory], object],
        on_problem: Callable[[str, Exception], object],
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._sources = tuple(sources)
        self._on_notice, self._on_advisory, self._on_problem = on_notice, on_advisory, on_problem
        self._clock = clock
        self._closing = threading.Event()
        # Its put() may interrupt another put() in the same thread, which a lock of ours would not survive.
        self._inbox: SimpleQueue[_Heard] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._notice: InterruptionNotice | None = None
        self._advisories: dict[InterruptionAdvisory, None] = {}
        self._problems: dict[tuple[str, type[Exception]], float] = {}

    @property
    def notice(self) -> InterruptionNotice | None:
        """The notice with the earliest deadline so far, or None; set before ``on_notice`` is called with it."""
        return self._notice

    def start(self) -> None:
        """Start polling and calling back.

        Raises:
            RuntimeError: it was started before.
        """
        if self._threads:
            raise RuntimeError("a notice watcher starts only once")
        self._threads = [threading.Thread(target=self._tell, name="unbroken-notices", daemon=True)] + [
            threading.Thread(target=self._watch, args=(source,), name=f"unbroken-notice-{source.name}", daemon=True)
            for source in self._sources
        ]
        for thread in self._threads:
            thread.start()

    def report(self, notice: InterruptionNotice) -> None:
        """Take a notice from elsewhere, such as a signal handler, and return at once; it is merged like any other."""
        self._inbox.put(notice)

    def close(self, *, timeout: float = 5.0) -> None:
        """Stop polling, deliver what was heard, and wait at most ``timeout`` seconds for the threads to end.

        A thread in the middle of a request may outlive that; it is a daemon and can call nobody any more.
        """
        self._closing.set()
        self._inbox.put(None)
        deadline = SYSTEM_CLOCK.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - SYSTEM_CLOCK.monotonic()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watch(self, source: NoticeSource) -> None:
        """Poll one source until closed."""
        failures = 0
        while not self._closing.is_set():
            try:
                for event in source.poll():
                    self._inbox.put(event)
                pause, failures = source.interval(), 0
            except Exception as error:  # noqa: BLE001 - a broken source reaches the owner and is asked again
                self._inbox.put(_Problem(source.name, error, self._clock.monotonic()))
                pause = min(_FIRST_PAUSE * 2.0 ** min(failures, 10), _LONGEST_PAUSE)
                failures += 1
            self._clock.wait(self._closing, pause)

    def _tell(self) -> None:
        """Pass on what was heard, in order, until closed."""
        while (heard := self._inbox.get()) is not None:
            try:
                self._pass_on(heard)
            except Exception as error:  # noqa: BLE001 - the owner's callback failed; the next notice must still arrive
                self._complain(_Problem("watcher", error, self._clock.monotonic()))

    def _pass_on(self, heard: InterruptionNotice | InterruptionAdvisory | _Problem) -> None:
        if isinstance(heard, InterruptionNotice):
            self._merge(heard)
        elif isinstance(heard, InterruptionAdvisory):
            self._advise(heard)
        else:
            self._complain(heard)

    def _merge(self, heard: InterruptionNotice) -> None:
        now = self._clock.now()
        deadline = heard.deadline if heard.deadline > now else now  # also where it is not a number
        if self._notice is None or deadline < self._notice.deadline:
            self._notice = replace(heard, deadline=deadline)
            self._on_notice(self._notice)

    def _advise(self, heard: InterruptionAdvisory) -> None:
        if heard in self._advisories:
            return
        self._advisories[heard] = None
        if len(self._advisories) > _REMEMBERED:
            del self._advisories[next(iter(self._advisories))]
        self._on_advisory(heard)

    def _complain(self, problem: _Problem) -> None:
        kind = (problem.source, type(problem.error))
        said_at = self._problems.get(kind)
        if said_at is not None and problem.at - said_at < _PROBLEM_SECONDS:
            return
        self._problems[kind] = problem.at
        try:
            self._on_problem(problem.source, problem.error)
        except Exception:  # noqa: BLE001 - there is nobody left to tell but the log
            _LOG.exception("the handler of problems failed on: %s: %s", problem.source, problem.error)
