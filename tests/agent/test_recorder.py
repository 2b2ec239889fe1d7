from __future__ import annotations

import threading

import pytest

from unbroken.agent.recorder import Recorder


def test_calls_run_in_order_and_give_their_results() -> None:
    recorder, seen = Recorder(), list[int]()
    futures = [recorder.submit(lambda n=n: seen.append(n) or n) for n in range(20)]  # type: ignore[misc]
    assert [future.result(10) for future in futures] == list(range(20))
    assert seen == list(range(20))
    assert recorder.close(10)


def test_failure_reaches_its_caller_and_later_calls_still_run() -> None:
    recorder = Recorder()
    failing, sound = recorder.submit(lambda: 1 // 0), recorder.submit(lambda: "done")
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    assert sound.result(10) == "done"
    assert recorder.close(10)


def test_close_gives_up_on_a_call_that_hangs() -> None:
    recorder, release = Recorder(), threading.Event()
    recorder.submit(lambda: release.wait(60))
    assert not recorder.close(0.01)
    release.set()
    assert recorder.close(10)
