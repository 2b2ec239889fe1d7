"""The channel between trainer and agent, over real sockets."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from unbroken.journal.events import CheckpointCommitted
from unbroken.link.channel import Channel, ChannelError, connect, listen
from unbroken.link.messages import (
    PROTOCOL,
    Advice,
    Bye,
    Committed,
    Hello,
    Message,
    Refused,
    Restored,
    Restoring,
    SaveFailed,
    Sealed,
    SignalReceived,
    SlotCommitted,
    SlotFailed,
    SlotOffered,
    SlotReturned,
    Stop,
    StopAgreed,
    Stopping,
    Welcome,
)
from unbroken.testing import FakeClock

EVERY_MESSAGE: list[Message] = [
    Hello(PROTOCOL, "s3://bucket/run", 12, rank=1, world_size=2, progress="/tmp/p", attempt=3, claim="c", joining=True),
    Welcome(3, "claim"),
    Refused("ConfigError", "no", kind="uri", hint="mend it"),
    Restoring(10, 20),
    Restored(5, 0.5, 1 << 40, "manifests/5.json"),
    SlotOffered(0),
    Sealed(1, 12),
    SlotCommitted(1, CheckpointCommitted(12, "manifests/12.json", "aa", 1 << 40, 5, metrics="m", stall=0.5)),
    SlotFailed(0, 12, "StoreError", "away", "unavailable", "wait"),
    SlotReturned(1, "manifests/12.json"),
    Committed(6, 1.5, 0.01, 0),
    SaveFailed(7, "the disk is full\nreally"),
    Stop("ec2", "terminate", 1.75e9),
    Advice("ec2", "rebalance"),
    SignalReceived("SIGTERM"),
    StopAgreed("ec2", "terminate", 1.75e9),
    Stopping(8),
    Bye("failed", 9, "ValueError", "böse \N{SNOWMAN}", 1, 2, "lost-rank"),
]


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    left, right = (Channel(end) for end in socket.socketpair())
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Channel]]:
    left, right = socket.socketpair()
    left.settimeout(10)
    channel = Channel(right)
    yield left, channel
    left.close()
    channel.close()


def test_every_message_arrives_as_it_was_sent(pair: tuple[Channel, Channel]) -> None:
    here, there = pair
    for message in EVERY_MESSAGE:
        here.send(message)
    here.close()
    assert list(there.messages()) == EVERY_MESSAGE


def test_the_list_above_leaves_no_message_out() -> None:
    assert {type(message) for message in EVERY_MESSAGE} == set(Message.__args__)


def test_a_message_that_arrives_in_pieces_is_one_message(raw: tuple[socket.socket, Channel]) -> None:
    other, channel = raw
    messages = channel.messages()
    line = b'{"type":"welcome","attempt":2,"claim":"x"}\n'
    for byte in range(len(line) - 1):
        other.sendall(line[byte : byte + 1])
    other.sendall(line[-1:] + line)
    assert [next(messages), next(messages)] == [Welcome(2, "x")] * 2


def test_messages_end_when_the_other_end_closes(raw: tuple[socket.socket, Channel]) -> None:
    other, channel = raw
    other.sendall(b'{"type":"welcome","att')  # cut in the middle: no message
    other.close()
    assert list(channel.messages()) == []


def test_close_frees_a_thread_that_is_receiving(pair: tuple[Channel, Channel]) -> None:
    here, there = pair
    here.send(Stopping(1))
    receiving, received = threading.Event(), []

    def receive() -> None:
        for message in there.messages():
            received.append(message)
            receiving.set()

    thread = threading.Thread(target=receive)
    thread.start()
    assert receiving.wait(10)
    there.close()
    thread.join(10)
    assert not thread.is_alive()
    assert received == [Stopping(1)]


def test_sending_to_an_end_that_is_gone_is_an_error(pair: tuple[Channel, Channel]) -> None:
    here, there = pair
    there.close()
    with pytest.raises(ChannelError, match="gone") as caught:
        here.send(Stopping(1))
    assert caught.value.kind == "closed"


@pytest.mark.parametrize(
    "line",
    [
        b"hello\n",
        b"{}\n",
        b'{"type":"unheard-of"}\n',
        b'{"type":"stopping"}\n',
        b'{"type":"stopping","step":"x"}\n',
        b"\n",
    ],
)
def test_a_line_that_is_no_message_is_an_error_that_shows_it(raw: tuple[socket.socket, Channel], line: bytes) -> None:
    other, channel = raw
    other.sendall(line)
    with pytest.raises(ChannelError) as caught:
        next(channel.messages())
    assert caught.value.kind == "protocol"
    assert repr(line[:-1])[1:] in str(caught.value)


def test_a_line_without_end_is_refused_and_not_collected_for_ever(raw: tuple[socket.socket, Channel]) -> None:
    other, channel = raw
    flood = threading.Thread(target=_send_until_refused, args=(other,))
    flood.start()
    with pytest.raises(ChannelError, match="longer than 1 MiB"):
        next(channel.messages())
    channel.close()
    flood.join(10)
    assert not flood.is_alive()


def _send_until_refused(other: socket.socket) -> None:
    try:
        while True:
            other.sendall(b"x" * 65536)
    except OSError:
        return


def test_messages_of_many_threads_do_not_mix(pair: tuple[Channel, Channel]) -> None:
    here, there = pair
    long = "x" * 300_000

    def send(first: int) -> None:
        for step in range(first, first + 10):
            here.send(SaveFailed(step, long))

    threads = [threading.Thread(target=send, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    messages = there.messages()
    received = [next(messages) for _ in range(40)]
    for thread in threads:
        thread.join(10)
    assert sorted(message.step for message in received if isinstance(message, SaveFailed)) == list(range(40))
    assert all(isinstance(message, SaveFailed) and message.message == long for message in received)


def test_connect_reaches_who_listens_and_only_this_user_may(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with listen(path) as server:
        channel = connect(path, timeout=5)
        accepted = Channel(server.accept()[0])
        channel.send(Stopping(4))
        assert next(accepted.messages()) == Stopping(4)
        channel.close()
        accepted.close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_connect_waits_for_an_agent_that_is_still_starting(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    servers: list[socket.socket] = []

    class StartsLate(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if not servers and self.monotonic() > begun + 1:
                servers.append(listen(path))

    clock = StartsLate()
    begun = clock.monotonic()
    connect(path, timeout=5, clock=clock).close()
    servers[0].close()
    assert clock.monotonic() < begun + 2


def test_connect_gives_up_after_its_timeout_and_names_the_path(tmp_path: Path) -> None:
    clock = FakeClock()
    begun = clock.monotonic()
    with pytest.raises(ChannelError, match=r"nobody\.sock") as caught:
        connect(tmp_path / "nobody.sock", timeout=5, clock=clock)
    assert caught.value.kind == "unreachable"
    assert 5 <= clock.monotonic() - begun < 6
