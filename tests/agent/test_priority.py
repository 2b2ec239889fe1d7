"""Priorities of threads, as the system has them."""

from __future__ import annotations

import os
import threading

from unbroken.agent.priority import lower_uploads, raise_uploads


def nice(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def test_uploads_and_what_they_start_go_behind_and_the_main_thread_does_not() -> None:
    usual = nice(os.getpid())
    found: list[int] = []

    def upload() -> None:
        lower_uploads(7)
        started = threading.Thread(target=lambda: found.append(nice(threading.get_native_id())))
        started.start()
        started.join()
        found.append(nice(threading.get_native_id()))

    thread = threading.Thread(target=upload)
    thread.start()
    thread.join()
    assert found == [usual + 7, usual + 7]
    assert nice(os.getpid()) == usual


def test_putting_back_is_tried_and_a_refusal_changes_nothing() -> None:
    usual = nice(os.getpid())
    found: list[int] = []

    def upload() -> None:
        lower_uploads(5)
        raise_uploads()
        found.append(nice(threading.get_native_id()))

    thread = threading.Thread(target=upload)
    thread.start()
    thread.join()
    assert found in ([usual], [usual + 5])
