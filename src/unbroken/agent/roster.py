"""Who is connected, and how far they say they are. Every method wants the lock that the roster was made with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unbroken.agent.attempt_writer import AttemptWriter
from unbroken.agent.rank_attempt_writer import RankAttemptWriter
from unbroken.errors import ConfigError
from unbroken.link.channel import Channel
from unbroken.link.messages import Hello
from unbroken.link.progress import Progress, ProgressPage

DEPARTURE_SECONDS = 0.5
"""For how long a new trainer waits for the thread of one that is gone to notice it."""


@dataclass
class Member:
    """A trainer that was welcomed."""

    hello: Hello
    writer: AttemptWriter | RankAttemptWriter
    page: ProgressPage | None = field(default=None)
    parted: bool = False
    """Whether it has said good-bye: its connection may stay open, held by a process that it forked."""

    @property
    def attempt(self) -> int:
        """Number of its attempt. Trainers of the one before may still be there for a while."""
        return self.writer.claim.lease.attempt


class Roster:
    """The trainers of one start."""

    def __init__(self, lock: threading.RLock) -> None:
        self._departure = threading.Condition(lock)
        self._members: dict[Channel, Member] = {}
        self.greeting = 0
        """Trainers that said hello and have no answer yet."""

    def add(self, channel: Channel, member: Member) -> None:
        """A trainer is welcomed."""
        self._members[channel] = member

    def said_goodbye(self, channel: Channel) -> None:
        """A trainer's last word."""
        self._members[channel].parted = True
        self._departure.notify_all()

    def remove(self, channel: Channel) -> Member | None:
        """The connection is closed; None where it was no trainer's that was welcomed."""
        member = self._members.pop(channel, None)
        self._departure.notify_all()
        if member is not None and member.page is not None:
            member.page.close()
        return member

    def member(self, channel: Channel) -> Member:
        """The trainer at the other end."""
        return self._members[channel]

    def channels(self) -> Iterator[Channel]:
        """Of all whose connection is open."""
        return iter(self._members)

    def hellos(self) -> list[Hello]:
        """Of all whose connection is open, by rank."""
        return sorted((member.hello for member in self._members.values()), key=lambda hello: hello.rank)

    def live(self, attempt: int | None = None) -> list[Hello]:
        """Of those that have not said good-bye; of one attempt alone, where it is given."""
        return [
            member.hello
            for member in self._members.values()
            if not member.parted and (attempt is None or member.attempt == attempt)
        ]

    def expects_more(self) -> bool:
        """Whether anybody may still say something of weight."""
        return bool(self.live()) or self.greeting > 0

    def demand_vacancy(self, hello: Hello, attempt: int) -> None:
        """Refuse a second trainer of one rank: both would train, and commit, as the same attempt.

        Args:
            attempt: whose trainers count.

        Raises:
            ConfigError: one of this rank is connected, and stays.
        """
        if self._departure.wait_for(lambda: self._holder(hello.rank, attempt) is None, DEPARTURE_SECONDS):
            return
        holder = self._holder(hello.rank, attempt)
        raise ConfigError(
            f"process {hello.pid} opens {hello.uri} as rank {hello.rank} of {hello.world_size}, and process "
            f"{holder.pid if holder else 0} of the same command trains it as that rank",
            kind="second-trainer",
            hint="Start one trainer of each rank below each unbroken run; guard a script that spawns processes with "
            'if __name__ == "__main__"',
        )

    def progress(self, attempt: int) -> Progress | None:
        """Read the pages of an attempt's trainers anew.

        Of several, the fewest steps count: no step is done before all ranks have done it, and a rank that hangs is to
        be seen. Never the latest moment: a clock may be set back.
        """
        readings = []
        for member in self._members.values():
            if member.parted or member.attempt != attempt:
                continue
            if member.page is None and member.hello.progress:
                member.page = _open_page(Path(member.hello.progress))
            reading = member.page.read() if member.page is not None else None
            if reading is not None:
                readings.append(reading)
        return min(readings, key=lambda reading: reading.step, default=None)

    def _holder(self, rank: int, attempt: int) -> Hello | None:
        return next((hello for hello in self.live(attempt) if hello.rank == rank), None)


def _open_page(path: Path) -> ProgressPage | None:
    try:
        return ProgressPage(path)
    except (OSError, ValueError):
        return None  # not made yet, or gone with its folder
