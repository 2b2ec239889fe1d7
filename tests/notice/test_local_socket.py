from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from unbroken.notice import InterruptionAdvisory, InterruptionNotice, SocketSource, SourceError, local_socket
from unbroken.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def source(path: Path, clock: FakeClock) -> Iterator[SocketSource]:
    source = SocketSource(path, grace=50, clock=clock)
    assert source.poll() == []
    yield source
    source.close()


def say(source: SocketSource, path: Path, text: bytes) -> bytes:
    """Announce, let the source look once, and give back what it answered."""
    with socket.socket(socket.AF_UNIX) as scheduler:
        scheduler.settimeout(60)
        scheduler.connect(str(path))
        scheduler.sendall(text)
        source.poll()
        return scheduler.recv(1000)


def test_an_announcement_holds_until_another_comes(source: SocketSource, path: Path, clock: FakeClock) -> None:
    assert say(source, path, b"stop 90: drained\n") == b"ok\n"
    expected = InterruptionNotice("socket", "drained", clock.now() + 90)
    clock.advance(5)
    assert source.poll() == source.poll() == [expected]
    say(source, path, b'{"action": "advise", "reason": "prices rise"}\n')
    assert source.poll() == [InterruptionAdvisory("socket", "prices rise")]
    say(source, path, b"none\n")
    assert source.poll() == []


def test_garbage_is_answered_and_changes_nothing(source: SocketSource, path: Path) -> None:
    say(source, path, b"stop\n")
    before = source.poll()
    assert b"write stop, stop 90, advise or none" in say(source, path, b"halt\n")
    assert source.poll() == before
    assert len(before) == 1


def test_a_sender_that_says_nothing_holds_a_poll_for_its_timeout_alone(
    source: SocketSource, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_socket, "_READ_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert source.poll() == []


def test_only_the_same_user_may_connect(source: SocketSource, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_close_removes_the_socket_and_one_left_behind_is_replaced(path: Path, clock: FakeClock) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    source = SocketSource(path, clock=clock)
    assert source.poll() == []
    assert source.reach().answers
    source.close()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(path: Path, clock: FakeClock) -> None:
    path.write_text("precious")
    source = SocketSource(path, clock=clock)
    with pytest.raises(SourceError, match="cannot listen"):
        source.poll()
    assert path.read_text() == "precious"
    source.close()
    assert path.exists()
