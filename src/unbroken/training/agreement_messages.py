"""What the threads of an agreement say to each other: *notes* go to rank 0's host, *mails* come from it. JSON."""

from __future__ import annotations

from typing import Any

import msgspec


class Propose(msgspec.Struct, tag="propose", frozen=True):
    """Note: let all ranks do this at one step."""

    kind: str
    data: dict[str, Any]


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """Note: my loop has begun ``step``, and begins none after it before this round has ended."""

    round: int
    rank: int
    step: int


class Bye(msgspec.Struct, tag="bye", frozen=True):
    """Note: this rank leaves in order, after ``step``; or because of an error, where ``reason`` is not empty."""

    rank: int
    step: int
    reason: str = ""


class Halt(msgspec.Struct, tag="halt", frozen=True):
    """Note of rank 0 to its own host: nobody is left, read no more."""


Note = Propose | Answer | Bye | Halt


class Opened(msgspec.Struct, tag="opened", frozen=True):
    """Mail: a round begins; answer it."""

    round: int
    kind: str
    data: dict[str, Any]


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """Mail: the round's result: act after ``step``; or, where that is None, nothing was agreed."""

    round: int
    kind: str
    step: int | None
    data: dict[str, Any]
    missing: tuple[int, ...] = ()
    """Ranks that gave no answer in time."""


class Lost(msgspec.Struct, tag="lost", frozen=True):
    """Mail: the attempt cannot go on."""

    reason: str


class HostLeaves(msgspec.Struct, tag="host-leaves", frozen=True):
    """Mail: rank 0 leaves in order before you do; nothing can be agreed from now on."""


class Farewell(msgspec.Struct, tag="farewell", frozen=True):
    """Mail: your :class:`Bye` was heard; nothing more comes to you."""


Mail = Opened | Ended | Lost | HostLeaves | Farewell

_NOTES: msgspec.json.Decoder[Note] = msgspec.json.Decoder(Note)
_MAILS: msgspec.json.Decoder[Mail] = msgspec.json.Decoder(Mail)


def encode(message: Note | Mail) -> bytes:
    """The JSON of it."""
    return msgspec.json.encode(message)


def decode_note(text: bytes) -> Note:
    """Back from :func:`encode`."""
    return _NOTES.decode(text)


def decode_mail(text: bytes) -> Mail:
    """Back from :func:`encode`."""
    return _MAILS.decode(text)
