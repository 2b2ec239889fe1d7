"""One start of the command: its trainers, what they said, and the attempt they work on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from unbroken.agent.admission import Admission, Admitting
from unbroken.agent.arena import Arena
from unbroken.agent.claims import Claim, Claims
from unbroken.agent.deadline import Deadline
from unbroken.agent.events import Admitted, Chosen, Departed, Durable, Event, Fenced, ThreadFailed, Told, Trouble
from unbroken.agent.journal_facts import JournalFacts, ask_journal, known_facts
from unbroken.agent.outcome import first_failure
from unbroken.agent.recorder import Recorder
from unbroken.agent.roster import Member, Roster
from unbroken.agent.server import LinkServer
from unbroken.agent.uploader import Uploader, UploadEvent
from unbroken.clock import Clock
from unbroken.errors import FencedError, UnbrokenError
from unbroken.journal import Event as JournalEvent
from unbroken.journal import Lease
from unbroken.journal.events import AttemptEnded, Note
from unbroken.link.channel import Channel, ChannelError
from unbroken.link.messages import (
    Advice,
    Bye,
    Committed,
    FromAgent,
    Hello,
    Message,
    Refused,
    Restored,
    Sealed,
    SlotCommitted,
    SlotFailed,
    SlotOffered,
    SlotReturned,
    Stop,
    Stopping,
    Welcome,
)
from unbroken.link.progress import Progress

JOIN_SECONDS = 2.0
"""For how long a thread is waited for, where no deadline comes sooner."""


@dataclass
class Heard:
    """What the trainers of one start have said. Copied for readers by :meth:`Session.heard`."""

    hellos: int = 0
    byes: tuple[Bye, ...] = ()
    lost: tuple[int, ...] = ()
    """Ranks whose connection ended without a good-bye."""
    refused: Refused | None = None
    fenced: bool = False
    committed_step: int = -1
    """Highest step of this start that is known to be durable; -1: none."""
    stopping: int = -1
    """The step that is being saved before leaving; -1: none."""
    progress: Progress | None = None
    """The newest reading of the trainers' progress pages."""
    world_size: int = 1
    """Ranks of the attempt, on all nodes together."""
    leads: bool = True
    """Whether rank 0 of the attempt is served here: then its end is written here."""


class Session:
    """Serves trainers at ``socket`` from the constructor to :meth:`close`. All methods are safe from any thread.

    Args:
        claims: gives out the attempts; nobody else may use it while the session is open.
        arena: the trainers' memory; it outlives the session.
        post: told what happens, in whichever thread it happens.
        patience: for how many seconds a store that fails is asked again while a trainer waits for its attempt.
        upload_patience: for how many seconds a new attempt waits until the states of the one before are durable.
        nice: of the threads that upload.
    """

    def __init__(
        self,
        socket: Path,
        claims: Claims,
        arena: Arena,
        post: Callable[[Event], None],
        clock: Clock,
        *,
        patience: float = 0.0,
        upload_patience: float = 0.0,
        nice: int = 0,
    ) -> None:
        self._claims = claims
        self._arena = arena
        self._recipient = post
        self._posting = threading.Lock()
        self._closed = False
        """Nothing is posted, and nothing is begun in the store, by threads that outlive the session."""
        self._clock = clock
        self._opening = threading.Lock()  # held while the store is asked; never needed to send a stop
        self._lock = threading.RLock()
        self._roster = Roster(self._lock)
        self._heard = Heard()
        self._stop: Stop | None = None
        self._recorder = Recorder()
        self._uploader = Uploader(arena, self._hear_uploader, clock, nice=nice)
        self._admission = Admission(
            claims, self._uploader, self._post, clock, patience=patience, upload_patience=upload_patience
        )
        self._server = LinkServer(socket, self._serve, lambda error: self._post(ThreadFailed(error)))

    def close(self, timeout: float = JOIN_SECONDS) -> None:
        """End the connections and the threads; one that hangs in the store is left behind after ``timeout`` seconds.

        What is left behind claims nothing and posts nothing: it would fence, or end, whatever comes after.
        """
        self._claims.close()
        self._admission.hurry()
        self._uploader.close(timeout)
        self._server.close(timeout)
        self._recorder.close(timeout)
        with self._posting:
            self._closed = True

    @property
    def claim(self) -> Claim | None:
        """The attempt that the trainers work on."""
        return self._claims.current

    def heard(self) -> Heard:
        """What was said so far, with a fresh reading of the progress pages."""
        with self._lock:
            self._read_progress()
            return replace(self._heard)

    def trainers(self) -> list[Hello]:
        """The trainers that are connected, by rank."""
        with self._lock:
            return self._roster.hellos()

    def connected(self) -> bool:
        """Whether any trainer that has not said good-bye is connected, or one is being admitted."""
        with self._lock:
            return self._roster.expects_more()

    def stop(self, stop: Stop) -> bool:
        """Tell all trainers, those to come too, to save and leave; False where none is connected yet."""
        now = self._clock.monotonic()
        self._uploader.press(Deadline(now, now + stop.deadline - self._clock.now()).leave_at)
        with self._lock:
            self._stop = stop
            self._admission.hurry()
            self._send_all(stop)
            return self._roster.expects_more()

    def advise(self, advice: Advice) -> None:
        """Tell the connected trainers that an interruption has become likely."""
        with self._lock:
            self._send_all(advice)

    def unsaved(self) -> tuple[int, ...]:
        """Steps that trainers announced and that are not durable yet, oldest first."""
        return self._uploader.left()

    def abandon(self) -> None:
        """Let go of those: there is no time left for them."""
        self._uploader.abandon("the time is up")

    def record(self, event: JournalEvent) -> Future[None] | None:
        """Write to the journal in the background; None where there is no attempt to write for.

        Trouble is posted; it is no reason to stop training.
        """
        claim = self.claim
        return None if claim is None else self._recorder.submit(lambda: self._append(claim, event))

    def ask_journal(self, patience: float) -> Future[JournalFacts] | None:
        """Read the journal again; asks a store that fails for ``patience`` seconds. None where there is no attempt."""
        claim, heard = self.claim, self.heard()
        if claim is None:
            return None
        said = [bye.step for bye in heard.byes if bye.outcome == "finished"]
        awaited = -1 if heard.leads else max(said, default=-1)  # rank 0 writes that on another node, at about this time
        return self._recorder.submit(
            lambda: ask_journal(claim, self._claims.attempts, patience, self._clock, awaited=awaited)
        )

    def last_known(self) -> JournalFacts:
        """The same without asking the store: the journal as it was last read, and what the trainers said since."""
        claim, told = self.claim, self.heard().committed_step
        facts = JournalFacts() if claim is None else known_facts(claim, self._claims.attempts)
        return replace(facts, durable_step=max(facts.durable_step, told), committed=facts.committed or told >= 0)

    def _serve(self, channel: Channel) -> None:
        messages = channel.messages()
        try:
            hello = next(messages, None)
            if not isinstance(hello, Hello) or not self._greet(channel, hello):
                return
            for message in messages:
                self._listen(channel, hello.rank, message)
        except ChannelError as error:
            self._post(Trouble(str(error)))
        finally:
            self._part(channel)

    def _greet(self, channel: Channel, hello: Hello) -> bool:
        with self._lock:
            self._roster.greeting += 1
            self._heard.hellos += 1
        try:
            with self._opening:
                answer = self._admission.answer(hello, lambda attempt: self._vacant(hello, attempt), self._last_words)
                return self._admit(channel, hello, answer)
        finally:
            with self._lock:
                self._roster.greeting -= 1

    def _vacant(self, hello: Hello, attempt: int) -> bool:
        """Whether all trainers of an attempt are gone.

        Raises:
            ConfigError: one of this rank is connected, and stays.
        """
        with self._lock:
            self._roster.demand_vacancy(hello, attempt)
            return not self._roster.live(attempt)

    def _admit(self, channel: Channel, hello: Hello, answer: Admitting | Refused) -> bool:
        with self._lock:
            if isinstance(answer, Refused):
                self._heard.refused = self._heard.refused or answer
                channel.send(answer)
                return False
            if answer.first:
                self._begin(hello)
            elif hello.rank == 0:
                self._heard.leads = True
            self._roster.add(channel, Member(hello, answer.writer))
            self._welcome(channel, hello, answer.writer.claim.lease)
        self._post(Admitted(hello, answer.writer.claim.lease.attempt, answer.first))
        return True

    def _begin(self, hello: Hello) -> None:
        """Another attempt begins: what was said before is about the one before."""
        self._heard = replace(
            self._heard, byes=(), lost=(), refused=None, stopping=-1, progress=None,
            world_size=hello.world_size, leads=hello.world_size == 1 or hello.rank == 0,
        )  # fmt: skip

    def _welcome(self, channel: Channel, hello: Hello, lease: Lease) -> None:
        # A trainer that had another agent before has memory of its own.
        returned = [] if hello.attempt and not hello.joining else self._arena.inherit(channel, hello.rank)
        channel.send(Welcome(lease.attempt, lease.claim, len(returned)))
        for slot in returned:
            channel.send(SlotReturned(slot.number, slot.manifest), slot.descriptor)
        if self._stop is not None:
            channel.send(self._stop)

    def _last_words(self) -> AttemptEnded | None:
        """The end of an attempt whose trainers are gone while the command goes on with new ones; None where the agent
        of rank 0 writes it."""
        heard = self.heard()
        if not heard.leads:
            return None
        bye = first_failure(heard.byes) or next(iter(heard.byes), None)
        step = heard.progress.step if heard.progress else -1
        return AttemptEnded(bye.outcome if bye else "crashed", step, "the command went on with another attempt")

    def _listen(self, channel: Channel, rank: int, message: Message) -> None:
        match message:
            case Hello() | Welcome() | Refused() | SlotReturned() | SlotCommitted() | SlotFailed() | Stop() | Advice():
                raise ChannelError(f"rank {rank} sent a {type(message).__name__} out of turn", kind="protocol")
            case SlotOffered(slot=number):
                self._arena.offer(channel, rank, number, channel.take_descriptor())
            case Sealed():
                self._sealed(channel, rank, message)
            case _:
                with self._lock:
                    self._take_in(channel, rank, message)
                if isinstance(message, Stopping):
                    self._uploader.stopping(message.step)
                if isinstance(message, Bye) and message.outcome == "finished":
                    self._arena.forget(channel)  # the command may go on, and want the memory for something else
                self._post(Told(rank, message))

    def _take_in(self, channel: Channel, rank: int, message: Message) -> None:
        match message:
            case Bye():
                self._read_progress()
                if self._is_current(self._roster.member(channel).attempt):
                    self._heard.byes += (msgspec.structs.replace(message, rank=rank),)
                self._roster.said_goodbye(channel)
            case Committed(step=step):
                self._heard.committed_step = max(self._heard.committed_step, step)
            case Restored(manifest=manifest):
                self._roster.member(channel).writer.restored(manifest)
            case Stopping(step=step):
                self._heard.stopping = max(self._heard.stopping, step)

    def _sealed(self, channel: Channel, rank: int, message: Sealed) -> None:
        taken = self._arena.take(channel, rank, message.slot)
        if taken is None:
            channel.send(SlotFailed(message.slot, message.step, "StoreError", "this slot was never offered", "slot"))
            return
        with self._lock:
            writer = self._roster.member(channel).writer
        self._uploader.submit(writer, channel, taken, message.step)

    def _hear_uploader(self, event: UploadEvent) -> None:
        with self._lock:
            match event:
                case Durable(event=commit):
                    self._heard.committed_step = max(self._heard.committed_step, commit.step)
                case Fenced(text, attempt):
                    event = self._fenced(text, attempt)
        if isinstance(event, Chosen):
            self.record(Note("emergency", event.text, {"action": event.action, **event.numbers}))
        self._post(event)

    def _part(self, channel: Channel) -> None:
        with self._lock:
            self._read_progress()
            member = self._roster.remove(channel)
            if member is not None and not member.parted and self._is_current(member.attempt):
                self._heard.lost += (member.hello.rank,)
        if member is not None:
            member.writer.parted()
            self._uploader.parted(channel)
            self._post(Departed(member.hello.rank))

    def _is_current(self, attempt: int) -> bool:
        return self.claim is not None and self.claim.lease.attempt == attempt

    def _fenced(self, text: str, attempt: int) -> Fenced | Trouble:
        """A later attempt owns the run. Where several ranks start together again, that is the next one of the same
        training, which the agent of rank 0 has begun: it matters only to those that still train."""
        if not self._is_current(attempt) or self._heard.world_size == 1 or self._roster.live(attempt):
            self._heard.fenced = self._heard.fenced or self._is_current(attempt)
            return Fenced(text, attempt)
        return Trouble(text)

    def _read_progress(self) -> None:
        if self.claim is not None:
            self._heard.progress = self._roster.progress(self.claim.lease.attempt) or self._heard.progress

    def _send_all(self, message: FromAgent) -> None:
        for channel in self._roster.channels():
            try:
                channel.send(message)
            except ChannelError:
                continue  # its own thread meets the end of the connection and says so

    def _post(self, event: Event) -> None:
        with self._posting:
            if not self._closed:
                self._recipient(event)

    def _append(self, claim: Claim, event: JournalEvent) -> None:
        if self._closed:
            return
        try:
            claim.append(event)
        except FencedError as error:
            if claim is not self.claim:
                return  # by an attempt of this very session, which came after
            with self._lock:
                found = self._fenced(error.message, claim.lease.attempt)
            self._post(found)
        except UnbrokenError as error:
            self._post(Trouble(f"the journal could not be written: {error}"))
