"""One watcher over all sources: merges what they say and tells its owner, one thing at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

from unbroken.clock import SYSTEM_CLOCK, Clock, format_time
from unbroken.notice.cancellation import Cancellations
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.grace import lead_from
from unbroken.notice.source import Acknowledging, NoticeSource, Reach

_LOG = logging.getLogger("unbroken.notice")
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 60.0
_PROBLEM_SECONDS = 60.0
_REMEMBERED = 256

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class _Problem:
    source: str
    error: Exception
    at: float
    """Monotonic seconds when it happened, which may be before the owner's other callbacks let it be told."""


@dataclass(frozen=True)
class _Polled:
    """A notice that its source repeats, so that it may wait until its deadline is near."""

    notice: InterruptionNotice


@dataclass(frozen=True)
class _Cancelled:
    notice: InterruptionNotice


@dataclass(frozen=True)
class _Reached:
    source: str
    reach: Reach


_Said = InterruptionNotice | InterruptionAdvisory | _Polled | _Cancelled | _Reached | _Problem
_Heard = _Said | None


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
        on_cancelled: called once with each notice that its source announces no more. One that ``on_notice`` has had
            stays in force.
        on_reach: called with a source's name after its first poll, and when it begins or ceases to answer.
        lead: seconds before its deadline from which a notice of a source is one, and until which it is an advisory;
            None takes ``UNBROKEN_NOTICE_LEAD``, else three minutes.
        clock: wall clock for deadlines, monotonic time for pauses.

    Raises:
        ConfigError: the environment's lead is not usable.
    """

    def __init__(
        self,
        sources: Iterable[NoticeSource],
        on_notice: Callable[[InterruptionNotice], object],
        on_advisory: Callable[[InterruptionAdvisory], object],
        on_problem: Callable[[str, Exception], object],
        *,
        on_cancelled: Callable[[InterruptionNotice], object] = lambda _: None,
        on_reach: Callable[[str, Reach], object] = lambda _, __: None,
        lead: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._sources = tuple(sources)
        self._on_cancelled, self._on_reach = on_cancelled, on_reach
        self._lead = lead_from() if lead is None else lead
        self._on_notice, self._on_advisory, self._on_problem = on_notice, on_advisory, on_problem
        self._clock = clock
        self._closing = threading.Event()
        # Its put() may interrupt another put() in the same thread, which a lock of ours would not survive.
        self._inbox: SimpleQueue[_Heard] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._notice: InterruptionNotice | None = None
        self._advisories: dict[InterruptionAdvisory, None] = {}
        self._problems: dict[tuple[str, type[Exception]], float] = {}
        self._far: dict[tuple[str, str], None] = {}
        """Notices, by source and reason, that were told as advisories."""
        self._cancelled: dict[tuple[str, str], None] = {}
        self._acknowledging = False

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
        """Take a notice from elsewhere, such as a signal handler, and return at once; it is merged like any other, and
        told at once, however far its deadline is."""
        self._inbox.put(notice)

    def close(self, *, timeout: float = 5.0, acknowledge: bool = False) -> None:
        """Stop polling, deliver what was heard, and wait at most ``timeout`` seconds for the threads to end.

        A thread in the middle of a request may outlive that, and one whose source does not answer is not waited for; it
        is a daemon and can call nobody any more.

        Args:
            acknowledge: tell the sources that wish it that everything is saved and the machine may be taken.
        """
        self._acknowledging = acknowledge
        self._closing.set()
        self._inbox.put(None)
        deadline = SYSTEM_CLOCK.monotonic() + timeout
        absent = [source.name for source in self._sources if not source.reach().answers]
        for thread, name in zip(self._threads, ["", *(source.name for source in self._sources)], strict=False):
            # A service that is not there may hold its thread until a timeout: nobody waits for that.
            if thread is not threading.current_thread() and name not in absent:
                thread.join(max(0.0, deadline - SYSTEM_CLOCK.monotonic()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watch(self, source: NoticeSource) -> None:
        """Poll one source until closed, and let go of it."""
        failures = 0
        cancellations = Cancellations()
        announced: Sequence[InterruptionNotice | InterruptionAdvisory] = ()
        reach: Reach | None = None
        while not self._closing.is_set():
            try:
                announced = source.poll()
                for notice in cancellations.take(announced):
                    self._inbox.put(_Cancelled(notice))
                pause, failures = source.interval(), 0
            except Exception as error:  # noqa: BLE001 - a broken source reaches the owner and is asked again
                self._inbox.put(_Problem(source.name, error, self._clock.monotonic()))
                pause = min(_FIRST_PAUSE * 2.0 ** min(failures, 10), _LONGEST_PAUSE)
                failures += 1
            for event in announced:  # also after an error: a far notice comes near meanwhile
                self._inbox.put(_Polled(event) if isinstance(event, InterruptionNotice) else event)
            if (now := source.reach()) != reach and (reach is None or now.answers != reach.answers):
                reach = now
                self._inbox.put(_Reached(source.name, now))
            self._clock.wait(self._closing, pause)
        self._leave(source)

    def _leave(self, source: NoticeSource) -> None:
        try:
            if self._acknowledging and isinstance(source, Acknowledging):
                source.acknowledge()
            source.close()
        except Exception as error:  # noqa: BLE001 - the owner is leaving; only the log is left
            _LOG.warning("notices from %s: %s", source.name, error)

    def _tell(self) -> None:
        """Pass on what was heard, in order, until closed."""
        while (heard := self._inbox.get()) is not None:
            try:
                self._pass_on(heard)
            except Exception as error:  # noqa: BLE001 - the owner's callback failed; the next notice must still arrive
                self._complain(_Problem("watcher", error, self._clock.monotonic()))

    def _pass_on(self, heard: _Said) -> None:
        match heard:
            case InterruptionNotice():
                self._merge(heard)
            case InterruptionAdvisory():
                self._advise(heard)
            case _Polled(notice):
                self._consider(notice)
            case _Cancelled(notice):
                self._forget(notice)
            case _Reached(source, reach):
                self._on_reach(source, reach)
            case _Problem():
                self._complain(heard)

    def _consider(self, notice: InterruptionNotice) -> None:
        """Tell a far notice as an advisory; it comes again with each poll, and is merged when it is near."""
        if not notice.deadline - self._clock.now() > self._lead:
            self._merge(notice)
        elif _remember(self._far, (notice.source, notice.reason)):
            self._on_advisory(InterruptionAdvisory(notice.source, f"{notice.reason}{_at(notice.deadline)}"))

    def _forget(self, notice: InterruptionNotice) -> None:
        if _remember(self._cancelled, (notice.source, notice.reason)):
            self._on_cancelled(notice)

    def _merge(self, heard: InterruptionNotice) -> None:
        now = self._clock.now()
        deadline = heard.deadline if heard.deadline > now else now  # also where it is not a number
        if self._notice is None or deadline < self._notice.deadline:
            self._notice = replace(heard, deadline=deadline)
            self._on_notice(self._notice)

    def _advise(self, heard: InterruptionAdvisory) -> None:
        if _remember(self._advisories, heard):
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


def _remember(memory: dict[_Key, None], key: _Key) -> bool:
    """Whether it is new; only the newest are kept."""
    if key in memory:
        return False
    memory[key] = None
    if len(memory) > _REMEMBERED:
        del memory[next(iter(memory))]
    return True


def _at(deadline: float) -> str:
    try:
        return f", at {format_time(deadline)}"
    except (ValueError, OverflowError, OSError):
        return ""  # so far away that no calendar has it
