"""One step of an attempt of several ranks, as this node sees it: what is there, until when to wait, whether it is
committed. Asks no store."""

from __future__ import annotations

from dataclasses import dataclass, field

from unbroken.agent.local_ranks import LocalRanks
from unbroken.agent.rank_attempt_writer import RankAttemptWriter
from unbroken.agent.triage import Upload
from unbroken.checkpoint import RankDurable
from unbroken.errors import MismatchError
from unbroken.journal import CheckpointRecord

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks at the store."""
LISTING_PAUSE = 5.0
"""The same between two listings of those who only wait for another agent's commit."""
LONGEST = 300.0
"""Seconds after which a save is given up, whoever it waits for."""
DESERTED_LEAST = 30.0
"""The same after all trainers here are gone, or twice what the upload took, where that is longer: another agent may
have to take the commit over."""
LACKING_LEAST = 10.0
"""The same while a record is missing, most often that of a node which is lost: the next start waits for this."""


@dataclass
class Part:
    """What one rank here has made durable, and the slot that waits for the answer."""

    upload: Upload
    writer: RankAttemptWriter
    durable: RankDurable


@dataclass(eq=False)
class CommonSave:
    """All moments are monotonic seconds."""

    ranks: LocalRanks
    step: int
    began: float
    """When the first part was recorded here."""
    tail: int
    """Number of the journal's last entry before that part was written."""
    parts: dict[int, Part] = field(default_factory=dict)
    known: dict[int, RankDurable] = field(default_factory=dict)
    """Those of all ranks whose records were read, or written here."""
    listed: frozenset[int] = frozenset()
    """The ranks whose records are there, as far as was asked without reading them."""
    recorded_at: float = 0.0
    """When the last part was recorded here."""
    complete_at: float | None = None
    """When the last record of all was seen."""
    next_at: float = 0.0
    list_at: float = 0.0
    pause: float = FIRST_PAUSE
    looked: bool = False
    """Whether the store was asked before."""
    abandoned: str = ""
    trouble: str = ""
    """What the store said last."""

    @property
    def attempt(self) -> int:
        """Its number."""
        return self.ranks.claim.lease.attempt

    @property
    def complete(self) -> bool:
        """Whether the records of all ranks are known."""
        return len(self.known) == self.ranks.world_size

    @property
    def there(self) -> bool:
        """Whether the records of all ranks are in the store."""
        return len(self.listed | self.known.keys()) == self.ranks.world_size

    @property
    def ready(self) -> bool:
        """Whether there is anything to look for: not before the parts of this node are there."""
        return self.ranks.here <= self.parts.keys()

    def add(self, part: Part, now: float) -> None:
        """Another rank's part is recorded."""
        rank = part.writer.rank
        self.parts[rank], self.known[rank] = part, part.durable
        self.recorded_at = self.next_at = now
        self.list_at = now + LISTING_PAUSE

    def press(self) -> None:
        """There is no time to wait for the next look."""
        self.next_at = self.list_at = 0.0

    def commit(self) -> CheckpointRecord | None:
        """Its commit, as far as the journal was read.

        Raises:
            MismatchError: the attempt has committed the step before, in another state: it takes no second one.
        """
        found = next((record for record in self._commits() if record.step == self.step), None)
        if found is not None and found.n <= self.tail:
            raise MismatchError(
                f"this attempt has committed step {self.step} before, in another state", kind="overtaken"
            )
        return found

    def hopeless(self, now: float, until: float | None) -> str:
        """Why to give it up, or "".

        Args:
            until: when all must be committed, where a notice runs.
        """
        if self.abandoned or (found := self.ranks.hopeless(self.step)):
            return self.abandoned or found
        newer = [record.step for record in self._commits() if record.n > self.tail and record.step > self.step]
        if newer:
            return f"step {max(newer)} was committed"
        if until is not None and now >= until:
            return f"{self._lacks()}, and the deadline is here"
        if now >= self.began + LONGEST:
            return f"{self._lacks()} after {LONGEST:.0f} s"
        if self._alone(now) >= self._longest_alone():
            return f"{self._lacks()} {self._longest_alone():.0f} s after the last trainer left"
        return ""

    def soonest(self, now: float, until: float | None) -> float:
        """Seconds until it must be looked at again."""
        moments = [self.began + LONGEST]
        if self.ready:
            moments.append(self.next_at)
        if until is not None:
            moments.append(until)
        if self.ranks.deserted_for():
            moments.append(now - self._alone(now) + self._longest_alone())
        return max(0.0, min(moments) - now)

    def _lacks(self) -> str:
        absent = [rank for rank in range(self.ranks.world_size) if rank not in self.listed | self.known.keys()]
        if not absent:
            return "nobody could commit it"
        others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        return f"nothing is there of rank {absent[0]}{others}"

    def _alone(self, now: float) -> float:
        """For how many seconds it has been waiting without a trainer."""
        return min(self.ranks.deserted_for(), now - self.recorded_at)

    def _longest_alone(self) -> float:
        least = DESERTED_LEAST if self.there else LACKING_LEAST
        return max(least, 2 * max((part.upload.seconds for part in self.parts.values()), default=0.0))

    def _commits(self) -> list[CheckpointRecord]:
        record = self.ranks.claim.journal.state.attempts.get(self.attempt)
        return list(record.committed) if record is not None else []
