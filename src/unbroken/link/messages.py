"""The messages between a trainer and its agent: one JSON object a line on a Unix stream socket.

The trainer speaks first (:class:`Hello`); the agent answers :class:`Welcome` or :class:`Refused`. After that each
side sends when it has something to say. :class:`SlotOffered` and :class:`SlotReturned` come with a descriptor. All
moments named ``*_at`` and ``deadline`` are wall-clock seconds since the epoch; both ends live on one machine, so they
share that clock.
"""

from __future__ import annotations

import msgspec

from unbroken.journal.events import CheckpointCommitted

PROTOCOL = 4

SOCKET_VARIABLE = "UNBROKEN_SOCKET"
"""Environment variable in which the agent gives its children the socket's path."""

RUN_VARIABLE = "UNBROKEN_RUN"
"""Environment variable with a run URI that outranks the one in the script."""

EVERY_VARIABLE = "UNBROKEN_EVERY"
"""Environment variable with a save cadence that outranks the one in the script."""

KEEP_VARIABLE = "UNBROKEN_KEEP"
"""Environment variable with a rule for which checkpoints to keep that outranks the one in the script."""


LOST_RANK = "lost-rank"
"""Kind of the error of a rank that ends because another one has."""


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """Trainer: I am here, and this is the run I want to train.

    ``attempt`` and ``claim`` are 0 and "" for a trainer that has no attempt yet; a trainer whose agent died gives
    its own, and the new agent adopts them instead of claiming. Of several ranks only rank 0 comes without; the others
    come with what rank 0 was given.
    """

    protocol: int
    uri: str
    pid: int
    rank: int = 0
    world_size: int = 1
    progress: str = ""
    """Path of the trainer's progress page."""
    attempt: int = 0
    claim: str = ""
    joining: bool = False
    """Attempt and claim were given to me by rank 0 just now: I have no memory of my own, and take what an earlier
    trainer of my rank left."""
    restarts: bool = False
    """A launcher starts me again when I have left."""


class Welcome(msgspec.Struct, tag="welcome", frozen=True):
    """Agent: you are this attempt of the run."""

    attempt: int
    claim: str
    slots: int = 0
    """How many :class:`SlotReturned` follow at once."""


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """Agent: the run cannot be opened. Carries an error of :mod:`unbroken.errors` by class name."""

    error: str
    message: str
    kind: str = ""
    hint: str = ""


class Restoring(msgspec.Struct, tag="restoring", frozen=True):
    """Trainer: so much of the state has been read, in bytes; sent now and then."""

    done: int
    total: int


class Restored(msgspec.Struct, tag="restored", frozen=True):
    """Trainer: training goes on from this step (0: from the start)."""

    step: int
    seconds: float
    bytes: int
    manifest: str = ""
    """Key of the checkpoint that training goes on from: the parent of the next one; "" at the start."""
    from_memory: bool = False
    """Whether it still lay in this node's memory, so that it was not read from the store."""


class SlotOffered(msgspec.Struct, tag="slot-offered", frozen=True):
    """Trainer: this is the memory of one of my slots; comes with its descriptor. It is offered once on a connection,
    and grows without being offered again."""

    slot: int


class Sealed(msgspec.Struct, tag="sealed", frozen=True):
    """Trainer: this slot holds the state of this step; make it durable. Until the answer (:class:`SlotCommitted`,
    :class:`SlotFailed`) it is not written to."""

    slot: int
    step: int


class SlotCommitted(msgspec.Struct, tag="slot-committed", frozen=True):
    """Agent: what this slot holds is committed."""

    slot: int
    event: CheckpointCommitted


class SlotFailed(msgspec.Struct, tag="slot-failed", frozen=True):
    """Agent: what this slot holds was given up. Carries an error of :mod:`unbroken.errors` by class name."""

    slot: int
    step: int
    error: str
    message: str
    kind: str = ""
    hint: str = ""


class SlotReturned(msgspec.Struct, tag="slot-returned", frozen=True):
    """Agent: memory of an earlier trainer on this node, for yours; comes with its descriptor, after the welcome."""

    slot: int
    manifest: str = ""
    """Key of the checkpoint that it holds; "" where it is only memory."""


class Committed(msgspec.Struct, tag="committed", frozen=True):
    """Trainer: the checkpoint of this step is durable; I have written it myself."""

    step: int
    seconds: float
    """From the step boundary to the commit."""
    stall: float
    """How long the loop stood still for it."""
    bytes: int
    """Bytes written to the store."""


class SaveFailed(msgspec.Struct, tag="save-failed", frozen=True):
    """Trainer: the save of this step did not become durable; training goes on."""

    step: int
    message: str


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Agent: finish the step, save, and leave before the deadline."""

    source: str
    reason: str
    deadline: float


class Advice(msgspec.Struct, tag="advice", frozen=True):
    """Agent: an interruption has become likely; save soon and go on."""

    source: str
    reason: str


class SignalReceived(msgspec.Struct, tag="signal", frozen=True):
    """Trainer: somebody sent me a stop signal myself; the agent turns it into a notice with a deadline."""

    signal: str
    at: float = 0.0
    """When the trainer's handler heard it; 0: not known."""


class StopAgreed(msgspec.Struct, tag="stop-agreed", frozen=True):
    """Trainer: all ranks stop because of a notice that another rank heard. The agent keeps to its deadline as if it had
    heard it itself; whoever heard it has journalled it."""

    source: str
    reason: str
    deadline: float


class Stopping(msgspec.Struct, tag="stopping", frozen=True):
    """Trainer: this is the last step of this attempt; its save is under way."""

    step: int


class Bye(msgspec.Struct, tag="bye", frozen=True):
    """Trainer: this is how the attempt ended as far as the loop knows.

    ``outcome`` is ``finished``, ``interrupted``, ``left`` (the loop was left early) or ``failed``; a failure carries
    the error's class name and message.
    """

    outcome: str
    step: int
    error: str = ""
    message: str = ""
    exit_code: int = 0
    rank: int = 0
    """Whose word it is; the agent fills it in."""
    kind: str = ""
    """Of the error. :data:`LOST_RANK`: it is only what the end of another rank has brought about."""


FromTrainer = (
    Hello
    | Restoring
    | Restored
    | SlotOffered
    | Sealed
    | Committed
    | SaveFailed
    | SignalReceived
    | StopAgreed
    | Stopping
    | Bye
)
FromAgent = Welcome | Refused | SlotReturned | SlotCommitted | SlotFailed | Stop | Advice
Message = FromTrainer | FromAgent
