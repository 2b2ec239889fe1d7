from __future__ import annotations

import os
import signal
import threading

import pytest

from unbroken.doctor import Check, Finding, Place, examine, exit_code_of
from unbroken.errors import AccessError
from unbroken.testing import FakeClock

_FINE = Check("fine", lambda _: [Finding("ok", "fine")])


def _raises(error: Exception) -> Check:
    def run(place: Place) -> list[Finding]:
        raise error

    return Check("raises", run)


def test_a_check_that_raises_is_a_finding_and_the_others_go_on() -> None:
    found = examine(Place(), [_raises(KeyError("lost")), _FINE])
    assert [(one.check, one.severity, one.exit_code) for one in found] == [("raises", "error", 1), ("fine", "ok", 0)]
    assert "KeyError: 'lost'" in found[0].found


def test_an_error_of_ours_keeps_its_exit_code_and_hint() -> None:
    (found,) = examine(Place(), [_raises(AccessError("denied", hint="Ask for it"))])
    assert (found.found, found.todo, found.exit_code) == ("denied", "Ask for it", 77)


def test_a_check_that_hangs_is_left_behind_and_the_others_go_on() -> None:
    released = threading.Event()

    def hang(place: Place) -> list[Finding]:
        released.wait(60.0)
        return [Finding("ok", "too late")]

    try:
        found = examine(Place(), [Check("hangs", hang, 0.05, late_code=74), _FINE])
    finally:
        released.set()
    assert [(one.check, one.severity, one.exit_code) for one in found] == [("hangs", "error", 74), ("fine", "ok", 0)]


def test_when_the_time_is_over_the_rest_is_not_looked_at() -> None:
    clock = FakeClock()

    def long(place: Place) -> list[Finding]:
        clock.advance(100.0)
        return [Finding("ok", "done")]

    found = examine(Place(clock=clock), [Check("long", long), _FINE], seconds=50.0)
    assert [one.severity for one in found] == ["ok", "error"]
    assert "the time was over" in found[1].found


@pytest.mark.parametrize(("severity", "looked"), [("ok", True), ("note", True), ("warning", False), ("error", False)])
def test_a_check_waits_for_what_it_needs(severity: str, looked: bool) -> None:
    first = Check("first", lambda _: [Finding(severity, "found")])
    second = Check("second", lambda _: [Finding("ok", "looked")], needs="first")
    assert (examine(Place(), [first, second])[1].found == "looked") == looked
    assert examine(Place(), [second])[0].found == "looked"


def test_secrets_are_left_out_of_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdef-123456")
    finding = Finding("error", "said abcdef-123456", "why hunter2-and-more", "do abcdef-123456")
    place = Place(environment={"DB_PASSWORD": "hunter2-and-more"})
    (found,) = examine(place, [Check("tells", lambda _: [finding])])
    assert (found.found, found.why, found.todo) == ("said ***", "why ***", "do ***")


def test_findings_are_told_as_they_come() -> None:
    told: list[Finding] = []
    assert examine(Place(), [_FINE, _FINE], say=told.append) == told
    assert len(told) == 2


def test_the_exit_code_is_that_of_the_first_error() -> None:
    warning, denied, config = (
        Finding("warning", "w"),
        Finding("error", "d", exit_code=77),
        Finding("error", "c", exit_code=78),
    )
    assert exit_code_of([warning]) == 0
    assert exit_code_of([warning], "warning") == 1
    assert exit_code_of([Finding("ok", "fine")], "note") == 0
    assert exit_code_of([warning, denied, config], "note") == 77


def test_an_interrupt_waits_for_the_check_to_take_away_what_it_wrote() -> None:
    interrupted, taken_away = threading.Event(), []

    def on_interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def write(place: Place) -> list[Finding]:
        os.kill(os.getpid(), signal.SIGINT)
        interrupted.wait(60.0)
        threading.Event().wait(0.1)  # so that a caller that does not wait comes first
        taken_away.append("all")
        return []

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            examine(Place(), [Check("writes", write, 60.0)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert taken_away == ["all"]
