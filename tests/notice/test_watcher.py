"""The watcher merges what sources say and tells it once, whatever the sources do."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue

import pytest

from unbroken.notice import (
    AzureSource,
    EC2Source,
    InterruptionAdvisory,
    InterruptionNotice,
    KubernetesNodeSource,
    NoticeWatcher,
    Reach,
)
from unbroken.testing import AzureMetadataService, EC2MetadataService, FakeClock, KubernetesNodeService

Event = InterruptionNotice | InterruptionAdvisory


class ScriptedSource:
    """A source that gives the events, or raises the error, that the script has for each poll; its last line repeats."""

    def __init__(self, script: Sequence[list[Event] | Exception], name: str = "scripted") -> None:
        self.name = name
        self.polls = 0
        self.closed = False
        self._script = script

    def poll(self) -> list[Event]:
        self.polls += 1
        line = self._script[min(self.polls, len(self._script)) - 1]
        if isinstance(line, Exception):
            raise line
        return line

    def interval(self) -> float:
        return 2.0

    def reach(self) -> Reach:
        return Reach(True)

    def close(self) -> None:
        self.closed = True


class Ears:
    """What the watcher's owner heard, in order."""

    def __init__(self) -> None:
        self.heard: SimpleQueue[object] = SimpleQueue()

    def problem(self, source: str, error: Exception) -> None:
        self.heard.put((source, error))

    def next(self) -> object:
        return self.heard.get(timeout=10)

    def rest(self) -> list[object]:
        found = []
        while True:
            try:
                found.append(self.heard.get_nowait())
            except Empty:
                return found


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(manual=True)


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
def watch(clock: FakeClock, ears: Ears) -> Iterator[Callable[..., NoticeWatcher]]:
    """Makes and starts a watcher over sources; closes it in the end."""
    made: list[NoticeWatcher] = []

    def make(*sources: object) -> NoticeWatcher:
        watcher = NoticeWatcher(
            sources,  # type: ignore[arg-type]
            ears.heard.put,
            ears.heard.put,
            ears.problem,
            on_cancelled=lambda notice: ears.heard.put(("cancelled", notice)),
            clock=clock,
        )
        made.append(watcher)
        watcher.start()
        return watcher

    yield make
    for watcher in made:
        watcher.close()


def notice(clock: FakeClock, seconds: float, source: str = "ec2") -> InterruptionNotice:
    return InterruptionNotice(source, "test", clock.now() + seconds)


def poll_again(clock: FakeClock, times: int = 1, seconds: float = 2.0) -> None:
    for _ in range(times):
        clock.until_waiting()
        clock.advance(seconds)
    clock.until_waiting()


def test_a_notice_reaches_the_owner_and_stays_readable(clock, ears, watch) -> None:
    expected = notice(clock, 120)
    watcher = watch(ScriptedSource([[], [expected]]))
    clock.until_waiting()
    assert watcher.notice is None
    poll_again(clock)
    assert ears.next() == expected
    assert watcher.notice == expected


def test_a_notice_that_every_poll_repeats_is_told_once(clock, ears, watch) -> None:
    expected = notice(clock, 120)
    watcher = watch(source := ScriptedSource([[expected]]))
    poll_again(clock, times=10)
    watcher.close()
    assert source.polls == 11
    assert ears.rest() == [expected]


def test_only_an_earlier_deadline_is_told_again(clock, ears, watch) -> None:
    watcher = watch()
    first, later, earlier = (notice(clock, s, n) for s, n in ((100, "ec2"), (110, "other"), (30, "sigterm")))
    for heard in (first, later, first, earlier, first, later):
        watcher.report(heard)
    watcher.close()
    assert ears.rest() == [first, earlier]
    assert watcher.notice == earlier


@pytest.mark.parametrize("deadline", [-10.0, math.nan, -math.inf])
def test_a_deadline_that_has_passed_becomes_the_present(clock, ears, watch, deadline: float) -> None:
    watcher = watch()
    late = InterruptionNotice("ec2", "late", clock.now() + deadline)
    watcher.report(late)
    assert ears.next() == InterruptionNotice("ec2", "late", clock.now())
    clock.advance(5)
    watcher.report(late)
    watcher.close()
    assert ears.rest() == []


def test_an_advisory_that_comes_and_goes_is_told_once(clock, ears, watch) -> None:
    one, two = InterruptionAdvisory("ec2", "rebalance"), InterruptionAdvisory("ec2", "maintenance")
    watcher = watch(ScriptedSource([[one], [], [one], [two, one], [], [one]]))
    poll_again(clock, times=8)
    watcher.close()
    assert ears.rest() == [one, two]
    assert watcher.notice is None


def test_a_broken_source_is_told_and_does_not_silence_the_others(clock, ears, watch) -> None:
    error, expected = OSError("the cable is out"), notice(clock, 60)
    watch(ScriptedSource([error], name="broken"), ScriptedSource([[], [expected]]))
    assert ears.next() == ("broken", error)
    clock.until_waiting(2)
    clock.advance(2)
    assert ears.next() == expected


def test_a_source_that_recovers_is_heard(clock, ears, watch) -> None:
    expected = notice(clock, 60)
    watch(ScriptedSource([OSError("once"), [expected]]))
    poll_again(clock)
    assert [ears.next()[0], ears.next()] == ["scripted", expected]  # type: ignore[index]


def test_a_source_that_keeps_failing_is_asked_less_and_less_and_told_once_a_minute(clock, ears, watch) -> None:
    watcher = watch(source := ScriptedSource([OSError("always")]))
    poll_again(clock, times=3600, seconds=1.0)
    watcher.close()
    assert 3600 / 60 <= source.polls <= 3600 / 60 + 6  # 2, 4, 8, 16, 32, 60, 60, ... seconds apart
    assert len(ears.rest()) <= 3600 / 60


def test_a_source_that_fails_every_other_time_does_not_flood_the_owner(clock, ears, watch) -> None:
    watcher = watch(ScriptedSource([OSError("odd"), []] * 100))
    poll_again(clock, times=60)
    watcher.close()
    assert len(ears.rest()) == 3  # at 0, 60 and 120 s


def test_an_exception_in_a_callback_reaches_the_owner_and_the_next_notice_still_arrives(clock, ears) -> None:
    def stumble(heard: InterruptionNotice) -> None:
        ears.heard.put(heard)
        raise ValueError("the owner stumbles")

    first, earlier = notice(clock, 100), notice(clock, 50)
    with NoticeWatcher([], stumble, ears.heard.put, ears.problem, clock=clock) as watcher:
        watcher.report(first)
        watcher.report(earlier)
    heard = ears.rest()
    assert [heard[0], heard[2]] == [first, earlier]
    assert heard[1][0] == "watcher"  # type: ignore[index]
    assert "stumbles" in str(heard[1][1])  # type: ignore[index]


def test_a_handler_of_problems_that_fails_leaves_a_line_in_the_log(clock, ears, caplog) -> None:
    def fail(source: str, error: Exception) -> None:
        raise RuntimeError("cannot even complain")

    with NoticeWatcher([ScriptedSource([OSError("x")])], ears.heard.put, ears.heard.put, fail, clock=clock) as watcher:
        clock.until_waiting()
        watcher.report(expected := notice(clock, 5))
    assert ears.rest() == [expected]
    assert "cannot even complain" in caplog.text


def test_a_report_from_a_signal_handler_arrives(clock, ears, watch) -> None:
    watcher = watch()
    expected = notice(clock, 30, "sigusr2")
    before = signal.signal(signal.SIGUSR2, lambda *_: watcher.report(expected))
    try:
        signal.raise_signal(signal.SIGUSR2)
        assert ears.next() == expected
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_what_was_reported_before_the_start_is_told_after_it(clock, ears) -> None:
    watcher = NoticeWatcher([], ears.heard.put, ears.heard.put, ears.problem, clock=clock)
    watcher.report(expected := notice(clock, 30))
    assert ears.rest() == []
    with watcher:
        assert ears.next() == expected


def test_close_ends_the_threads_and_delivers_what_was_heard(clock, ears, watch) -> None:
    before = set(threading.enumerate())
    watcher = watch(ScriptedSource([[]]), ScriptedSource([[]], name="two"))
    clock.until_waiting(2)
    watcher.report(expected := notice(clock, 30))
    watcher.close()
    watcher.close()
    assert set(threading.enumerate()) <= before
    assert ears.rest() == [expected]


def test_close_does_not_wait_for_ever_for_a_source_that_hangs(clock, ears) -> None:
    asked, let_go = threading.Event(), threading.Event()

    class Hanging(ScriptedSource):
        def poll(self) -> list[Event]:
            asked.set()
            let_go.wait(30)
            return []

    watcher = NoticeWatcher([Hanging([[]])], ears.heard.put, ears.heard.put, ears.problem, clock=clock)
    watcher.start()
    assert asked.wait(10)
    watcher.close(timeout=0.05)
    (left,) = [thread for thread in threading.enumerate() if thread.name == "unbroken-notice-scripted"]
    assert left.daemon
    let_go.set()
    left.join(10)
    assert not left.is_alive()


def test_close_does_not_wait_at_all_for_a_service_that_is_not_there(clock, ears) -> None:
    asked, let_go = threading.Event(), threading.Event()

    class Absent(ScriptedSource):
        def poll(self) -> list[Event]:
            asked.set()
            let_go.wait(30)
            return []

        def reach(self) -> Reach:
            return Reach(False, "nobody answers")

    watcher = NoticeWatcher([Absent([[]])], ears.heard.put, ears.heard.put, ears.problem, clock=clock)
    watcher.start()
    assert asked.wait(60)
    watcher.close(timeout=60)
    # To wait would have meant to see the thread end, half a minute later.
    (left,) = [thread for thread in threading.enumerate() if thread.name == "unbroken-notice-scripted"]
    let_go.set()
    left.join(60)
    assert not left.is_alive()


def test_close_may_be_called_from_a_callback(clock, ears) -> None:
    closed = threading.Event()

    def close(heard: InterruptionNotice) -> None:
        watcher.close()
        closed.set()

    watcher = NoticeWatcher([], close, ears.heard.put, ears.problem, clock=clock)
    watcher.start()
    watcher.report(notice(clock, 30))
    assert closed.wait(10)
    watcher.close()
    assert ears.rest() == []


def test_a_watcher_starts_only_once(clock, ears, watch) -> None:
    watcher = watch()
    with pytest.raises(RuntimeError, match="only once"):
        watcher.start()


def test_an_ec2_interruption_is_heard_at_the_next_poll(clock, ears, watch) -> None:
    with EC2MetadataService(clock=clock) as service:
        watch(EC2Source(service.endpoint, clock=clock))
        clock.until_waiting()
        service.recommend_rebalance()
        deadline = service.interrupt(seconds=120)
        clock.advance(2)
        heard = [ears.next(), ears.next()]
    assert isinstance(heard[0], InterruptionNotice)
    assert heard[0].deadline == deadline
    assert isinstance(heard[1], InterruptionAdvisory)


def test_an_ec2_outage_is_told_once_and_the_notice_after_it_arrives(clock, ears, watch) -> None:
    with EC2MetadataService(clock=clock) as service:
        watch(EC2Source(service.endpoint, clock=clock))
        clock.until_waiting()
        service.misbehave("error500")
        poll_again(clock, times=20)
        assert [source for source, _ in ears.rest()] == ["ec2"]  # type: ignore[misc]
        service.misbehave("none")
        service.interrupt()
        poll_again(clock)
        assert isinstance(ears.next(), InterruptionNotice)


def test_a_far_notice_is_an_advisory_first_and_a_notice_when_it_is_near(clock, ears, watch) -> None:
    far = InterruptionNotice("ec2", "EC2 will reboot this instance", clock.now() + 900)
    watcher = watch(ScriptedSource([[far]]))
    poll_again(clock, times=3)
    advisory = ears.next()
    assert isinstance(advisory, InterruptionAdvisory)
    assert advisory.reason.startswith("EC2 will reboot this instance, at 20")
    poll_again(clock, seconds=711)  # 183 s are left
    assert watcher.notice is None
    poll_again(clock, times=2)
    assert ears.next() == far
    watcher.close()
    assert ears.rest() == []
    assert watcher.notice == far


def test_a_far_notice_comes_near_while_its_source_fails(clock, ears, watch) -> None:
    far = InterruptionNotice("ec2", "reboot", clock.now() + 900)
    watcher = watch(ScriptedSource([[far], OSError("gone")]))
    poll_again(clock, times=2)
    poll_again(clock, times=20, seconds=60)
    watcher.close()
    assert any(isinstance(heard, InterruptionNotice) and heard.reason == "reboot" for heard in ears.rest())


def test_the_lead_comes_from_the_environment(clock, ears, watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNBROKEN_NOTICE_LEAD", "20min")
    far = InterruptionNotice("ec2", "reboot", clock.now() + 900)
    watch(ScriptedSource([[far]]))
    assert ears.next() == far


def test_a_far_notice_that_is_reported_is_told_at_once(clock, ears, watch) -> None:
    watch().report(far := notice(clock, 9000))
    assert ears.next() == far


def test_a_cancelled_notice_is_said_and_stays_in_force(clock, ears, watch) -> None:
    expected = notice(clock, 100)
    watcher = watch(ScriptedSource([[expected], []]))
    poll_again(clock, times=5)
    watcher.close()
    assert ears.rest() == [expected, ("cancelled", expected)]
    assert watcher.notice == expected


def test_a_far_notice_that_is_cancelled_never_stops_anything(clock, ears, watch) -> None:
    far = InterruptionNotice("azure", "reboot", clock.now() + 900)
    watcher = watch(ScriptedSource([[far], []]))
    poll_again(clock, times=3)
    poll_again(clock, seconds=1000)
    watcher.close()
    advisory, cancelled = ears.rest()
    assert isinstance(advisory, InterruptionAdvisory)
    assert cancelled == ("cancelled", far)
    assert watcher.notice is None


def test_a_notice_that_flaps_is_told_once_and_cancelled_by_no_single_poll(clock, ears, watch) -> None:
    expected = notice(clock, 100)
    watcher = watch(ScriptedSource([[expected], []] * 10 + [[expected]]))
    poll_again(clock, times=20)
    watcher.close()
    assert ears.rest() == [expected]


def test_a_notice_that_is_cancelled_again_and_again_is_said_once(clock, ears, watch) -> None:
    far = InterruptionNotice("azure", "reboot", clock.now() + 9000)
    watcher = watch(ScriptedSource([[far], [], []] * 5 + [[]]))
    poll_again(clock, times=18)
    watcher.close()
    assert len(ears.rest()) == 2


def test_a_deadline_beyond_every_calendar_breaks_nothing(clock, ears, watch) -> None:
    watch(ScriptedSource([[InterruptionNotice("file", "some day", 1e300)]]))
    assert ears.next() == InterruptionAdvisory("file", "some day")


def test_reach_is_told_when_it_changes(clock, ears) -> None:
    heard: SimpleQueue[tuple[str, bool]] = SimpleQueue()
    with EC2MetadataService(clock=clock) as service:
        sources = [EC2Source(service.endpoint, clock=clock)]
        with NoticeWatcher(
            sources, ears.heard.put, ears.heard.put, ears.problem,
            on_reach=lambda name, reach: heard.put((name, reach.answers)), clock=clock,
        ):  # fmt: skip
            poll_again(clock, times=3)
            service.misbehave("error500")
            poll_again(clock, times=3)
            service.misbehave("none")
            poll_again(clock, times=3)
    assert [heard.get(timeout=60) for _ in range(3)] == [("ec2", True), ("ec2", False), ("ec2", True)]
    assert heard.empty()


@pytest.mark.parametrize("acknowledge", [True, False])
def test_sources_are_closed_and_where_it_is_wished_told_that_all_is_saved(clock, ears, acknowledge: bool) -> None:
    class Polite(ScriptedSource):
        acknowledged = False

        def acknowledge(self) -> None:
            assert not self.closed
            self.acknowledged = True

    polite, plain = Polite([[]]), ScriptedSource([[]], name="plain")
    watcher = NoticeWatcher([polite, plain], ears.heard.put, ears.heard.put, ears.problem, clock=clock)
    watcher.start()
    clock.until_waiting(2)
    watcher.close(acknowledge=acknowledge)
    assert polite.acknowledged is acknowledge
    assert polite.closed
    assert plain.closed


def test_a_refused_acknowledgement_leaves_a_line_in_the_log(clock, ears, caplog) -> None:
    with AzureMetadataService(clock=clock) as service:
        service.schedule()
        source = AzureSource(service.endpoint, acknowledging=True, clock=clock)
        watcher = NoticeWatcher([source], ears.heard.put, ears.heard.put, ears.problem, clock=clock)
        watcher.start()
        clock.until_waiting()
        service.misbehave("error500")
        watcher.close(acknowledge=True)
    assert "Azure did not take the acknowledgement" in caplog.text


def test_an_azure_event_that_is_cancelled_in_time_stops_nothing(clock, ears, watch) -> None:
    with AzureMetadataService(clock=clock) as service:
        watcher = watch(AzureSource(service.endpoint, clock=clock))
        event = service.schedule("Reboot", 900)
        clock.until_waiting()
        poll_again(clock)
        service.cancel(event)
        poll_again(clock, times=3)
        poll_again(clock, seconds=1000)
        watcher.close()
        assert [type(heard) for heard in ears.rest()] == [InterruptionAdvisory, tuple]
        assert watcher.notice is None


def test_sources_that_speak_of_the_same_end_make_one_notice_with_the_earliest_deadline(clock, ears, watch) -> None:
    with EC2MetadataService(clock=clock) as ec2, KubernetesNodeService(clock=clock) as kubernetes:
        deadline = ec2.interrupt(seconds=90)
        kubernetes.taint("aws-node-termination-handler/spot-itn")
        watcher = watch(
            EC2Source(ec2.endpoint, clock=clock), KubernetesNodeSource("node-0", kubernetes.endpoint, clock=clock)
        )
        clock.until_waiting(2)
        clock.advance(5)
        clock.until_waiting(2)
        watcher.close()
    assert watcher.notice is not None
    assert (watcher.notice.source, watcher.notice.deadline) == ("ec2", deadline)
    assert ears.rest()[-1] == watcher.notice
