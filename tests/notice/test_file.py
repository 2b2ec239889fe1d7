from __future__ import annotations

import os
from pathlib import Path

import pytest

from unbroken.notice import FileSource, InterruptionAdvisory, InterruptionNotice, SourceError
from unbroken.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notice"


@pytest.fixture
def source(path: Path, clock: FakeClock) -> FileSource:
    return FileSource(path, grace=50, clock=clock)


def write(path: Path, text: str, at: float) -> None:
    """As a scheduler does: beside it, then renamed."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.utime(fresh, (at, at))
    fresh.replace(path)


def test_no_file_and_an_empty_one_announce_nothing(source: FileSource, path: Path) -> None:
    assert source.poll() == []
    path.touch()
    assert source.poll() == []
    assert source.reach().answers


def test_seconds_count_from_when_it_was_written(source: FileSource, path: Path, clock: FakeClock) -> None:
    write(path, "stop 90: the queue is drained", clock.now())
    expected = InterruptionNotice("file", "the queue is drained", clock.now() + 90)
    clock.advance(20)
    assert source.poll() == source.poll() == [expected]


def test_a_stop_without_a_time_leaves_the_grace_period(source: FileSource, path: Path, clock: FakeClock) -> None:
    write(path, "stop", clock.now())
    assert source.poll() == [InterruptionNotice("file", f"{path} says stop", clock.now() + 50)]


def test_a_deadline_is_taken_as_it_is(source: FileSource, path: Path, clock: FakeClock) -> None:
    write(path, f'{{"action": "stop", "deadline": {clock.now() + 7}}}', clock.now() - 1000)
    (notice,) = source.poll()
    assert isinstance(notice, InterruptionNotice)
    assert notice.deadline == clock.now() + 7


def test_an_advisory_is_one(source: FileSource, path: Path, clock: FakeClock) -> None:
    write(path, "advise: prices rise", clock.now())
    assert source.poll() == [InterruptionAdvisory("file", "prices rise")]


def test_a_file_that_is_removed_or_says_none_cancels(source: FileSource, path: Path, clock: FakeClock) -> None:
    write(path, "stop 90", clock.now())
    assert len(source.poll()) == 1
    path.unlink()
    assert source.poll() == []
    write(path, "stop 90", clock.now())
    assert len(source.poll()) == 1
    write(path, "none", clock.now())
    assert source.poll() == []


def test_what_an_earlier_start_was_told_is_said_once_and_stops_nothing(
    source: FileSource, path: Path, clock: FakeClock
) -> None:
    write(path, "stop 90", clock.now() - 3600)
    with pytest.raises(SourceError, match="before this program began"):
        source.poll()
    assert source.poll() == source.poll() == []


def test_a_deadline_that_passes_while_we_run_stays_announced(source: FileSource, path: Path, clock: FakeClock) -> None:
    write(path, "stop 10", clock.now())
    first = source.poll()
    clock.advance(100)
    assert source.poll() == first
    assert len(first) == 1


def test_half_a_file_is_waited_for_and_garbage_is_a_notice(source: FileSource, path: Path, clock: FakeClock) -> None:
    write(path, '{"action": "st', clock.now())
    assert source.poll() == []
    write(path, '{"action": "stop", "seconds": 9}', clock.now())
    assert [event.reason for event in source.poll()] == [f"{path} says stop"]
    write(path, "halt!", clock.now())
    source.poll()
    (notice,) = source.poll()
    assert isinstance(notice, InterruptionNotice)
    assert "halt!" in notice.reason
    assert notice.deadline == clock.now() + 50


def test_a_file_that_cannot_be_read_is_said(source: FileSource, path: Path) -> None:
    path.mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        source.poll()
    assert not source.reach().answers


def test_a_pipe_without_a_writer_holds_nobody(source: FileSource, path: Path) -> None:
    os.mkfifo(path)
    assert source.poll() == []
