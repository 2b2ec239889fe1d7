"""What follows from a journal: attempts, checkpoints, whether the run is finished. Pure folding, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from unbroken.journal.events import (
    Advisory,
    AttemptClaimed,
    AttemptEnded,
    CheckpointCommitted,
    CheckpointRetired,
    Decided,
    Entry,
    Note,
    Notice,
    Origin,
    RunFinished,
)

NO_PROGRESS = "stopped-no-progress"


@dataclass(frozen=True)
class CheckpointRecord:
    """A committed checkpoint that was not retired."""

    n: int
    attempt: int
    at: float
    event: CheckpointCommitted

    @property
    def step(self) -> int:
        return self.event.step


@dataclass
class AttemptRecord:
    """One start of the run, as the journal tells it."""

    attempt: int
    claim: str
    origin: Origin
    claimed_at: float
    restored_step: int = -1
    """Step from which training went on; -1 where the attempt never got so far."""
    committed: list[CheckpointRecord] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    ended: AttemptEnded | None = None
    last_seen_at: float = 0.0
    """When its last entry was written."""
    purpose: str = ""
    """What it was claimed for, where that was not training."""

    @property
    def trains(self) -> bool:
        """Whether it is an attempt of the training, not one that only tends the run."""
        return not self.purpose

    @property
    def made_progress(self) -> bool:
        """Whether it committed a checkpoint, or took a finished run to its end."""
        return bool(self.committed) or (self.ended is not None and self.ended.cause == "finished")


@dataclass
class RunState:
    """The state of a run after the entries given to :meth:`apply`, in order."""

    tail: int = 0
    """Number of the last entry."""
    owner: AttemptRecord | None = None
    """The attempt that owns the run: the one with the newest claim."""
    attempts: dict[int, AttemptRecord] = field(default_factory=dict)
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    """Committed and not retired, oldest first, in the order of their commits (not of their steps: training
    may fall back past a damaged checkpoint and commit lower steps later)."""
    commits: list[CheckpointRecord] = field(default_factory=list)
    """Every commit, retired or not."""
    finished_step: int | None = None
    """The step at which the run was said to be complete, while no later attempt has gone on from there, or from an
    earlier step."""
    finished_by: int | None = None
    """The attempt that said so."""
    notes: list[Entry] = field(default_factory=list)
    advisories: list[Entry] = field(default_factory=list)
    decisions: list[Entry] = field(default_factory=list)
    """What a policy had done; of no attempt."""
    ignored: list[Entry] = field(default_factory=list)
    """Entries that count for nothing: a fenced attempt wrote them, or they commit a checkpoint a second
    time."""
    _committed: set[str] = field(default_factory=set)

    @property
    def trainings(self) -> list[AttemptRecord]:
        """The attempts that train, oldest first."""
        return [self.attempts[number] for number in sorted(self.attempts) if self.attempts[number].trains]

    def attempts_without_progress(self) -> int:
        """How many of the latest attempts in a row made no progress, since the last stop for that reason.

        Attempts that did not train count neither way.
        """
        count = 0
        for record in reversed(self.trainings):
            if record.made_progress or (record.ended is not None and record.ended.cause == NO_PROGRESS):
                break
            count += 1
        return count

    def fences(self, attempt: int, claim: str) -> bool:
        """Whether someone other than (attempt, claim) owns the run."""
        owner = self.owner
        return owner is not None and (owner.attempt, owner.claim) != (attempt, claim)

    def apply(self, entry: Entry) -> None:
        """Fold the next entry in.

        Raises:
            ValueError: the entry is not number ``tail + 1``.
        """
        if entry.n != self.tail + 1:
            raise ValueError(f"entry {entry.n} does not follow entry {self.tail}")
        self.tail = entry.n
        if not self._counts(entry):
            self.ignored.append(entry)
        elif isinstance(entry.event, Decided):
            self.decisions.append(entry)
        elif isinstance(entry.event, AttemptClaimed):
            record = AttemptRecord(
                entry.attempt, entry.claim, entry.origin, entry.at,
                last_seen_at=entry.at, purpose=entry.event.purpose,
            )  # fmt: skip
            self.attempts[entry.attempt] = self.owner = record
        else:
            self._recorded(entry, self.attempts[entry.attempt])

    def _counts(self, entry: Entry) -> bool:
        if isinstance(entry.event, AttemptClaimed):
            return entry.attempt == (self.owner.attempt if self.owner else 0) + 1
        if isinstance(entry.event, Decided):
            return True
        if isinstance(entry.event, CheckpointCommitted) and entry.event.manifest in self._committed:
            return False  # a commit whose outcome was unknown was made again: the first one stands
        return self.owner is not None and not self.fences(entry.attempt, entry.claim)

    def _recorded(self, entry: Entry, attempt: AttemptRecord) -> None:
        attempt.last_seen_at = max(attempt.last_seen_at, entry.at)
        match entry.event:
            case CheckpointCommitted() as event:
                self._record_commit(CheckpointRecord(entry.n, entry.attempt, entry.at, event), attempt)
            case CheckpointRetired(manifest=manifest):
                self.checkpoints = [kept for kept in self.checkpoints if kept.event.manifest != manifest]
            case AttemptEnded() as event:
                attempt.ended = event
            case Notice() as event:
                attempt.notices.append(event)
            case Advisory():
                self.advisories.append(entry)
            case RunFinished(step=step):
                self.finished_step, self.finished_by = step, entry.attempt
            case Note() as event:
                restored = event.data.get("step")
                if event.topic == "restored" and isinstance(restored, int):
                    attempt.restored_step = restored
                    self._unfinish(self.finished_step is not None and restored < self.finished_step)
                self.notes.append(entry)

    def _record_commit(self, record: CheckpointRecord, attempt: AttemptRecord) -> None:
        attempt.committed.append(record)
        self._committed.add(record.event.manifest)
        self.checkpoints.append(record)
        self.commits.append(record)
        self._unfinish(self.finished_step is not None and record.step > self.finished_step)

    def _unfinish(self, gone_on: bool) -> None:
        if gone_on:
            self.finished_step = self.finished_by = None
