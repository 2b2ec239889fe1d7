"""The trainer's end of the link: finding or starting an agent, and hearing what it says."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import unbroken.errors
from unbroken.clock import Clock
from unbroken.errors import EXIT_CONFIG, ConfigError, DamagedError, FencedError, StoreError, UnbrokenError
from unbroken.journal import Journal
from unbroken.link.arena import Slot, read_slot
from unbroken.link.channel import Channel, ChannelError, connect
from unbroken.link.messages import (
    PROTOCOL,
    SOCKET_VARIABLE,
    Advice,
    Bye,
    FromTrainer,
    Hello,
    Message,
    Refused,
    SlotCommitted,
    SlotFailed,
    SlotReturned,
    Stop,
    Welcome,
)
from unbroken.link.progress import ProgressPage
from unbroken.store import open_store
from unbroken.training.launcher import Launcher
from unbroken.training.ranks import Ranks

_log = logging.getLogger("unbroken")

_CONNECT_SECONDS = 30.0
_LOOK_SECONDS = 0.2
_WELCOME_SECONDS = 2400.0
"""The agent may first make durable what an earlier trainer left in memory (half an hour at most), and opening the store
and claiming may retry for minutes on a bad day of the storage."""


_FAREWELL_SECONDS = 10.0
_LAST_SECOND = 1.0
_REPLACEMENTS = 10
"""How many agents in a row may fail to start, or die within a minute, before we go on without one."""
_LIVED = 60.0


@dataclass(frozen=True)
class StopRequest:
    """Why and until when to stop."""

    source: str
    reason: str
    deadline: float
    """Wall-clock seconds since the epoch: for people, and wrong once the machine's clock is set."""
    until: float
    """The same moment by the monotonic clock: for waiting."""


@dataclass(frozen=True)
class ReturnedSlot:
    """Memory of an earlier trainer on this node."""

    slot: Slot
    manifest: str
    """Key of the checkpoint that it holds; "" where it is only memory."""

    def tensors(self) -> dict[str | tuple[str, tuple[int, ...]], memoryview]:
        """The bytes of the tensors in it, not verified; none where it is not sealed.

        Whole tensors by name, parts by name and where in the tensor they begin.
        """
        try:
            held = read_slot(self.slot.descriptor, writable=True)  # such are copied with other threads running
        except DamagedError as error:
            _log.warning("unbroken: %s; reading from the store", error)
            return {}
        tensors = held[1].tensors if held is not None else ()
        return {tensor.name if tensor.whole is None else (tensor.name, tensor.place): tensor.data for tensor in tensors}


class LinkFollower(Protocol):
    """Who talks to the agent about slots. Called from the link's threads."""

    def connected(self, channel: Channel) -> None:
        """An agent, the first or another one, has welcomed this attempt."""

    def heard(self, message: SlotCommitted | SlotFailed) -> None:
        """The agent answers for a slot."""

    def alone(self) -> None:
        """No agent will come any more."""


class AgentLink:
    """A connection to the node's agent, or to one started for this process alone.

    Args:
        uri: of the run.
        ranks: which of how many ranks this process is.
        clock: for deadlines.
    """

    def __init__(self, uri: str, *, ranks: Ranks | None = None, clock: Clock) -> None:
        self.uri = uri
        self._ranks = ranks or Ranks()
        self._launcher = Launcher.here()
        self._clock = clock
        self._folder = _folder()
        self._parting = threading.Event()
        self._short_lived = 0
        self.progress = ProgressPage(self._progress_path(), create=True)
        self._bye: Bye | None = None
        self._lock = threading.Lock()  # held where the channel is exchanged, or given its last word
        self._agent: subprocess.Popen[bytes] | None = None
        self._agents: list[subprocess.Popen[bytes]] = []
        """All that were started here: each is waited for."""
        self._channel: Channel | None = None
        self._messages: Iterator[Message] = iter(())
        self._listener: threading.Thread | None = None
        self._follower: LinkFollower | None = None
        self._alone = False
        self.returned: list[ReturnedSlot] = []
        """What the agent had left of an earlier trainer; whoever takes slots from it owns them."""
        self.attempt = 0
        self.claim = ""
        self.stop: StopRequest | None = None
        """Set, from another thread, as soon as the agent asks to stop; the earliest deadline stands."""
        self.advised = False
        """Set when an interruption became likely; whoever acts on it clears it."""
        self.on_stop: Callable[[StopRequest], None] = lambda _: None
        """Called, in another thread, with each stop that is asked for."""
        self._joining = False

    def join(self, attempt: int, claim: str) -> None:
        """Let :meth:`open` become part of an attempt that rank 0 has claimed."""
        self.attempt, self.claim, self._joining = attempt, claim, True

    def open(self) -> None:
        """Say hello and become an attempt of the run.

        Raises:
            UnbrokenError: the agent refused; the error is the one it met (no access, no such bucket, ...).
            StoreError: no agent could be reached or started.
        """
        try:
            self._say_hello(self._find_agent())
        except ChannelError as error:
            raise StoreError(
                f"the agent cannot be reached: {error.message}", kind="agent", hint="Look at the agent's messages above"
            ) from error
        self._joining = False
        self._listener = threading.Thread(target=self._listen, name="unbroken-link", daemon=True)
        self._listener.start()

    def follow(self, follower: LinkFollower) -> None:
        """Tell ``follower`` of the agent that is there now, and of all that comes."""
        with self._lock:
            self._follower = follower
            if self._channel is not None:
                follower.connected(self._channel)
            if self._alone:
                follower.alone()

    def open_journal(self) -> Journal:
        """The journal of the run that the agent has opened.

        Raises:
            UnbrokenError: it cannot be read.
        """
        return Journal.open(open_store(self.uri), clock=self._clock)

    @property
    def connected(self) -> bool:
        """Whether there is an agent to be told something."""
        return self._channel is not None

    def send(self, message: FromTrainer) -> None:
        """Tell the agent something; an agent that is gone is no reason to stop training."""
        channel = self._channel
        if channel is None:
            return
        try:
            channel.send(message)
        except ChannelError as error:
            _log.debug("not told to the agent: %s", error)

    def close(self, bye: Bye) -> None:
        """Say how the attempt ended and take the connection down."""
        with self._lock:
            self._bye = bye
            self._part(self._channel, bye)
        self._parting.set()
        if self._listener is not None:
            self._listener.join(_FAREWELL_SECONDS)
        self.progress.close()
        ended = [self._has_ended(agent) for agent in self._agents]
        if all(ended):  # else the last one clears up
            shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _part(channel: Channel | None, bye: Bye) -> None:
        if channel is not None:
            with contextlib.suppress(ChannelError):
                channel.send(bye)
            channel.close()

    def _has_ended(self, agent: subprocess.Popen[bytes]) -> bool:
        """Wait a moment for it: an agent of our own journals how we ended, and ends.

        In a session of its own, it may take longer than we do.
        """
        seconds = _FAREWELL_SECONDS
        if self.stop is not None:
            seconds = max(0.0, min(seconds, self.stop.until - self._clock.monotonic() - _LAST_SECOND))
        try:
            agent.wait(seconds)
        except subprocess.TimeoutExpired:
            _log.warning("unbroken: the agent is still at work; it ends by itself")
            return False
        return True

    def _progress_path(self) -> Path:
        return self._folder / f"{os.getpid()}.progress"

    def _find_agent(self) -> Path:
        path = os.environ.get(SOCKET_VARIABLE)
        return Path(path) if path else self._start_agent()

    def _start_agent(self) -> Path:
        """Start an agent for this process alone; by exec, in a session of its own."""
        path = Path(tempfile.mkdtemp(prefix="a", dir=self._folder)) / "agent.sock"
        command = [sys.executable, "-m", "unbroken.agent", "--socket", str(path), "--watch", str(os.getpid())]
        command += ["--clear", str(self._folder)]
        self._agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._agents.append(self._agent)
        return path

    def _connect(self, path: Path) -> Channel:
        """Connect to the agent at ``path``; one of our own that has ended already is not waited for."""
        deadline = self._clock.monotonic() + _CONNECT_SECONDS
        while True:
            try:
                return connect(path, timeout=_LOOK_SECONDS, clock=self._clock)
            except ChannelError:
                if self._agent is not None and (code := self._agent.poll()) is not None:
                    kind = ConfigError if code == EXIT_CONFIG else StoreError
                    raise kind(
                        f"the agent ended with {code} before it could be reached", kind="agent",
                        hint="Look at its message above",
                    ) from None  # fmt: skip
                if self._clock.monotonic() >= deadline:
                    raise

    def _say_hello(self, path: Path) -> None:
        channel = self._connect(path)
        watchdog = threading.Timer(_WELCOME_SECONDS, channel.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            channel.send(self._hello())
            messages = channel.messages()
            answer = next(messages, None)
            returned = _take_returned(channel, messages, answer.slots) if isinstance(answer, Welcome) else []
        finally:
            watchdog.cancel()
        match answer:
            case Welcome():
                with self._lock:
                    self.attempt, self.claim = answer.attempt, answer.claim
                    self._channel, self._messages = channel, messages
                    self.returned += returned
                    if self._bye is not None:  # the attempt ended while this agent was being greeted
                        self._part(channel, self._bye)
                    elif self._follower is not None:
                        self._follower.connected(channel)
            case Refused():
                channel.close()
                raise named_error(answer.error, answer.message, answer.kind, answer.hint)
            case _:
                channel.close()
                raise StoreError("the agent closed the link without an answer", kind="agent")

    def _hello(self) -> Hello:
        page = str(self.progress.path)
        return Hello(
            PROTOCOL, self.uri, os.getpid(), self._ranks.rank, self._ranks.world_size, page,
            attempt=self.attempt, claim=self.claim, joining=self._joining,
            restarts=self._launcher.restarts,
        )  # fmt: skip

    def _listen(self) -> None:
        """Runs in a thread until the link is closed; an agent that vanishes is replaced."""
        while True:
            began = self._clock.monotonic()
            try:
                for message in self._messages:
                    self._hear(message)
            except ChannelError as error:
                _log.warning("unbroken: %s", error)
            if self._bye is not None:
                return
            lost, self._channel = self._channel, None
            if lost is not None:
                lost.close()
            self._short_lived = 0 if self._clock.monotonic() - began >= _LIVED else self._short_lived + 1
            if not self._replace_agent():
                with self._lock:
                    self._alone = True
                    if self._follower is not None:
                        self._follower.alone()
                return

    def _replace_agent(self) -> bool:
        """Greet another agent, which adopts this attempt: False where the attempt ends first, or none would live."""
        _log.warning("unbroken: the agent is gone; training goes on, starting another one")
        while self._short_lived <= _REPLACEMENTS:
            # At once the first time; later ones ever more slowly, for whatever ends them may last.
            pause = 0.0 if self._short_lived <= 1 else min(2.0 ** (self._short_lived - 2), _LIVED)
            if self._clock.wait(self._parting, pause):
                return False
            try:
                self._say_hello(self._start_agent())
                return True
            except FencedError as error:
                _log.warning("unbroken: %s", error)
                return False  # the loop hears of it from the next save
            except (UnbrokenError, OSError) as error:
                self._short_lived += 1
                _log.warning("unbroken: another agent could not be started: %s", error)
        _log.warning("unbroken: no agent stays alive: interruptions are not heard, saving goes on")
        return False

    def _hear(self, message: Message) -> None:
        match message:
            case Stop():
                until = self._clock.monotonic() + message.deadline - self._clock.now()
                if self.stop is None or until < self.stop.until:
                    self.stop = StopRequest(message.source, message.reason, message.deadline, until)
                    self.on_stop(self.stop)
            case Advice():
                self.advised = True
            case SlotCommitted() | SlotFailed() if self._follower is not None:
                self._follower.heard(message)
            case _:
                _log.debug("unexpected message from the agent: %r", message)


def _folder() -> Path:
    """A new folder for the progress page: beside the agent's socket, which cleans up after a trainer that is killed."""
    socket = os.environ.get(SOCKET_VARIABLE)
    beside = Path(socket).parent if socket and Path(socket).parent.is_dir() else None
    return Path(tempfile.mkdtemp(prefix="trainer-" if beside else "unbroken-", dir=beside))


def _take_returned(channel: Channel, messages: Iterator[Message], count: int) -> list[ReturnedSlot]:
    returned = []
    for _ in range(count):
        message = next(messages, None)
        if not isinstance(message, SlotReturned):
            raise ChannelError(f"the agent promised {count} slots and sent {message!r}", kind="protocol")
        slot = Slot(message.slot, channel.take_descriptor())
        returned.append(ReturnedSlot(slot, message.manifest))
    return returned


def named_error(name: str, message: str, kind: str, hint: str) -> UnbrokenError:
    """An error that the agent met, as an exception of the same class."""
    found = getattr(unbroken.errors, name, None)
    if not (isinstance(found, type) and issubclass(found, UnbrokenError)):
        found = StoreError
    return found(message, kind=kind, hint=hint)
