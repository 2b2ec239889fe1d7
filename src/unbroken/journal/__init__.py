"""The journal: a run's ordered, append-only log in the store, and the state of a run that follows from it."""

from unbroken.journal.events import Entry, Event, Origin
from unbroken.journal.journal import Journal, Lease
from unbroken.journal.state import AttemptRecord, CheckpointRecord, RunState

__all__ = ["AttemptRecord", "CheckpointRecord", "Entry", "Event", "Journal", "Lease", "Origin", "RunState"]
