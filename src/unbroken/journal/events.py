"""What the journal records. The wire form is specified in docs/spec/journal-v1.md."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from unbroken.errors import DamagedError, FormatError

FORMAT = 1
"""The newest format of journals that this version reads, and the one it writes."""

_Count = Annotated[int, msgspec.Meta(ge=1)]


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where an entry was written.

    ``price`` is what the machine costs an hour, in ``currency``, where whoever started it said so.
    """

    host: str
    pid: int
    pool: str = ""
    price: float | None = None
    currency: str = ""


class AttemptClaimed(msgspec.Struct, tag="attempt-claimed", frozen=True, omit_defaults=True):
    """A new attempt owns the run; every lower one is fenced from here on. The entry's ``claim`` names it.

    ``purpose`` is "" for an attempt that trains; another word (``prune``) for one that only tends the run.
    """

    command: list[str] = []
    purpose: str = ""


class AttemptEnded(msgspec.Struct, tag="attempt-ended", frozen=True, omit_defaults=True):
    """The attempt is over.

    ``cause`` is one of ``finished``, ``interrupted``, ``crashed``, ``failed``, ``left``,
    ``stopped-no-progress``, ``maintenance`` and ``imported`` (it did not train). ``last_step`` is the last
    completed step as far as is known, or -1.
    """

    cause: str
    last_step: int = -1
    detail: str = ""


class Notice(msgspec.Struct, tag="notice", frozen=True, omit_defaults=True):
    """An interruption was announced. ``deadline`` is in wall-clock seconds since the epoch."""

    source: str
    reason: str
    deadline: float


class Advisory(msgspec.Struct, tag="advisory", frozen=True, omit_defaults=True):
    """An interruption has become likely."""

    source: str
    reason: str


class CheckpointCommitted(msgspec.Struct, tag="checkpoint", frozen=True, omit_defaults=True):
    """The entry that makes a checkpoint exist.

    ``parent`` is the step of the checkpoint from which training came here within or across attempts (-1:
    none). ``metrics`` and ``metrics_sha256`` name the object with what was logged for the steps in
    ``(metrics_after, step]``, where anything was.
    """

    step: int
    manifest: str
    sha256: str
    size: int
    """Bytes of state in the checkpoint."""
    written: int
    """Bytes written for it: less than ``size`` where tensors did not change since the parent."""
    parent: str = ""
    """Manifest key of the checkpoint whose state this one continues, or "" for a run's first."""
    metrics: str = ""
    metrics_sha256: str = ""
    stall: float = 0.0
    """Seconds for which the training loop stood still."""
    seconds: float = 0.0
    """Seconds from the step boundary until everything but this entry was durable."""


class CheckpointRetired(msgspec.Struct, tag="checkpoint-retired", frozen=True, omit_defaults=True):
    """The checkpoint with this manifest is given up; its objects may be deleted after this entry."""

    manifest: str
    step: int


class RunFinished(msgspec.Struct, tag="run-finished", frozen=True, omit_defaults=True):
    """Training is complete; the checkpoint of ``step`` is committed."""

    step: int


class Note(msgspec.Struct, tag="note", frozen=True, omit_defaults=True):
    """Anything else worth keeping. ``topic`` is a short stable word: ``restored``, ``save-failed``,
    ``damaged``, ..."""

    topic: str
    text: str
    data: dict[str, Any] = {}


class Decided(msgspec.Struct, tag="decided", frozen=True, omit_defaults=True):
    """What to pay for from here on, by a policy. Whoever looks after the run writes it, and owns no attempt."""

    action: str
    """``idle``, ``spot`` or ``on-demand``."""
    policy: str
    rule: str
    """Of the policy, which made it."""
    pool: str = ""
    """Type/zone/market, where something is to run."""
    numbers: dict[str, float] = {}
    """What the rule looked at; hours, money, truth values as 0 and 1."""


class Unknown(msgspec.Struct, tag="unknown", frozen=True):
    """An event of a kind that this version does not know: it keeps its number and changes nothing. Never
    written."""

    kind: str
    data: dict[str, Any]


Event = (
    AttemptClaimed
    | AttemptEnded
    | Notice
    | Advisory
    | CheckpointCommitted
    | CheckpointRetired
    | RunFinished
    | Note
    | Decided
    | Unknown
)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One journal object. ``n`` is its number, ``nonce`` unique to this very write."""

    n: _Count
    attempt: _Count
    claim: str
    """Nonce of the attempt's claim: two contenders for one attempt number differ here."""
    nonce: str
    at: float
    """Wall-clock seconds since the epoch."""
    origin: Origin
    event: Event
    format: int = FORMAT
    """What a reader must understand in order to go on past this entry."""


class _Head(msgspec.Struct):
    """As much of an entry as every format has."""

    event: dict[str, Any]
    format: int = FORMAT


_KNOWN = frozenset(str(kind.__struct_config__.tag) for kind in Event.__args__ if kind is not Unknown)
_ENTRY = msgspec.json.Decoder(Entry)
_HEAD = msgspec.json.Decoder(_Head)


def encode_entry(entry: Entry) -> bytes:
    """The bytes of a journal object."""
    return msgspec.json.encode(entry)


def decode_entry(data: bytes, key: str) -> Entry:
    """Read a journal object.

    Raises:
        FormatError: the entry was written in a newer format.
        DamagedError: the bytes are no entry.
    """
    try:
        head = _HEAD.decode(data)
        if head.format > FORMAT:
            raise FormatError(
                f"{key} was written in format {head.format}, and this version reads up to {FORMAT}",
                kind="newer-format",
                hint="Install a newer unbroken",
            )
        if head.event.get("type") in _KNOWN:
            return _ENTRY.decode(data)
        return _with_unknown_event(data, head.event)
    except msgspec.MsgspecError as error:
        raise DamagedError(
            f"{key} is not a journal entry ({error})",
            kind="journal-entry",
            hint="Restore the object from the bucket's versions; nothing in a journal may be changed",
        ) from error


def _with_unknown_event(data: bytes, event: dict[str, Any]) -> Entry:
    fields = msgspec.json.decode(data)
    rest = {name: value for name, value in event.items() if name != "type"}
    fields["event"] = {"type": "unknown", "kind": event.get("type"), "data": rest}
    return msgspec.convert(fields, Entry)
