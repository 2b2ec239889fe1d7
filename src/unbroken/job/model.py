"""The job: what to run, where its state lives, where it may run, and what that costs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from unbroken.clock import parse_duration, parse_time
from unbroken.errors import ConfigError
from unbroken.job.kubernetes import Kubernetes
from unbroken.job.part import Part
from unbroken.job.torchrun import split_training
from unbroken.job.values import (
    Bytes,
    Cadence,
    Deadline,
    Keep,
    ObjectName,
    Positive,
    RunURI,
    Seconds,
    Text,
    VariableName,
    Word,
)

Source = Literal["ec2", "gcp", "azure", "kubernetes"]
Market = Literal["spot", "on-demand"]


def _script(value: str) -> str:
    try:
        parts = shlex.split(value)
    except ValueError as error:
        raise ConfigError(f"{value!r} is not a script with arguments: {error}") from error
    if not parts:
        raise ConfigError("the script is empty", hint="Write it as: script: train.py --lr 3e-4")
    return value


class Ranks(Part):
    """How many processes train. More than one are started by torchrun, which must not stand in the command."""

    nodes: int = Field(default=1, ge=1, le=10000)
    """Machines; more than one are a gang that starts and stops together."""
    per_node: int = Field(default=1, ge=1, le=1024)
    """Processes on each, as a rule one for each GPU."""

    @property
    def total(self) -> int:
        return self.nodes * self.per_node


class Resources(Part):
    """What each node needs. Sizes are bytes once read."""

    cpu: Positive | None = None
    """Cores."""
    memory: Bytes | None = None
    """Host memory of the training itself, without what Unbroken adds for `state`."""
    state: Bytes | None = None
    """Size of what one node saves: weights, optimizer and all. More than twice as much is added to `memory`."""
    gpu: int = Field(default=0, ge=0)
    """GPUs."""
    gpu_type: Word | None = None
    """Name of the GPU as the platform's node labels have it, such as `a100`."""
    shm: Bytes = 2 * 1024**3
    """Size of /dev/shm, for DataLoader workers and NCCL; added to `memory`."""
    scratch: Bytes = 10 * 1024**3
    """Size of /tmp."""


class Notices(Part):
    """Where interruptions are heard from, besides signals."""

    off: list[Source] = Field(default=[])
    """Sources that are not asked."""
    poll: Annotated[Seconds, Field(ge=0.01, le=60)] | None = None
    """Between two questions to a source."""


class Limits(Part):
    """When to stop trying."""

    max_restarts: int | None = Field(default=None, ge=0)
    """Restarts in place of a crashed command by one agent; 100 by default."""
    no_progress: int | None = Field(default=None, ge=1)
    """Attempts in a row that committed nothing; 5 by default."""


class Pool(Part):
    """Machines of one instance type in one zone on one market."""

    instance_type: Word
    """As the provider writes it, such as `p4d.24xlarge`."""
    zone: Word | None = None
    """Such as `us-east-1a`; any by default."""
    market: Market = "spot"
    """`spot` or `on-demand`."""
    price: Positive | None = None
    """Of an hour, in the currency of `prices`."""

    def __str__(self) -> str:
        return "/".join(part for part in (self.instance_type, self.zone, self.market) if part)


class Prices(Part):
    """What a node costs an hour on each market, where it does not depend on the pool."""

    on_demand: Positive
    """On demand."""
    spot: Positive
    """On the spot market."""
    currency: Word = "USD"
    """Of all prices in the file."""


class EC2(Part):
    """Settings of the engine `ec2`."""

    region: Word
    """Such as `us-east-1`."""
    ami: Word
    """Machine image, with the training, Unbroken and the AWS command line in it."""
    instance_profile: Word
    """With the permissions of the training."""
    subnets: list[Word] = Field(min_length=1)
    """One for each zone that may be used."""
    security_groups: list[Word] = Field(min_length=1)
    """Of the machines."""
    user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$")] = "ec2-user"
    """Who trains on the machine."""
    folder: Annotated[Word, Field(pattern=r"^/")] = "/"
    """Where the command runs."""
    path: Word = "/usr/local/bin:/usr/bin:/bin"
    """PATH of the agent and of the training; a virtual environment's `bin` first."""
    root_device: Word = "/dev/xvda"
    """As the image calls its root disk: Amazon's `/dev/xvda`, Ubuntu's `/dev/sda1`."""
    volume: Bytes = 200 * 1024**3
    """Size of the root disk, which is encrypted and goes with the machine."""
    key_name: Word | None = None
    """For ssh."""
    tags: dict[str, Text] = Field(default={})
    """Of everything that is made."""


_ONE_COMMAND: JsonDict = {"oneOf": [{"required": ["command"]}, {"required": ["script"]}]}


class Job(Part):
    """A training to run. Durations are seconds and sizes bytes once read."""

    model_config = ConfigDict(json_schema_extra=_ONE_COMMAND)

    name: ObjectName
    """Lower-case letters, digits and dashes; names what an engine makes."""
    run: RunURI
    """URI of the run: where its checkpoints and its journal live."""
    command: list[Text] | None = Field(default=None, min_length=1)
    """What starts the training, word by word; no shell reads it."""
    script: Annotated[str, AfterValidator(_script)] | None = None
    """Instead of `command`: a Python script with its arguments. No shell reads it."""
    image: Word | None = None
    """Container image with the training and Unbroken in it."""
    ranks: Ranks = Ranks()
    """How many processes train."""
    resources: Resources = Resources()
    """What each node needs."""
    env: dict[VariableName, Text] = Field(default={})
    """Environment variables of the training."""
    every: Cadence | None = None
    """How often to save: steps, a duration, or `auto` (as `auto,cap=1%,loss=15min`); outranks the script's."""
    keep: Keep | None = None
    """Which checkpoints to keep, such as `last=3,every=10000,best=loss`; outranks the script's."""
    grace: Seconds | None = None
    """From a stop signal to the kill; 100 s on Kubernetes, elsewhere 30 s by default."""
    notices: Notices = Notices()
    """Where interruptions are heard from."""
    limits: Limits = Limits()
    """When to stop trying."""
    on_lost_node: Literal["wait", "continue"] = "wait"
    """Of a gang that loses a node: `wait` until all are there again, or `continue` with what is left."""
    deadline: Deadline | None = None
    """When it must be finished: a moment with its time zone, or a duration from the start of the run."""
    expected_hours: Positive | None = None
    """Hours of training without any interruption."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the whole training. With `expected_hours` it tells how much work a checkpoint is worth."""
    pools: list[Pool] = Field(default=[])
    """Where it may run."""
    prices: Prices | None = None
    """What a node costs."""
    kubernetes: Kubernetes = Kubernetes()
    """Settings of the engine `kubernetes`."""
    ec2: EC2 | None = None
    """Settings of the engine `ec2`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Job:
        if self.command is not None and self.script is not None:
            raise _conflict("script", "command and script are both given", "Leave one of them out")
        if self.command is None and self.script is None:
            raise _conflict("", "there is no command", "Write command: [python, train.py], or script: train.py")
        if self.ranks.total > 1:
            try:
                split_training(self.argv)
            except ConfigError as error:
                raise _conflict("command" if self.command else "script", error.message, error.hint) from error
        seen = set()
        for index, pool in enumerate(self.pools):
            if str(pool) in seen:
                raise _conflict(("pools", index), f"the pool {pool} is given twice", "Leave one of them out")
            seen.add(str(pool))
        return self

    @property
    def argv(self) -> list[str]:
        """What starts the training, word by word, as for one rank."""
        return list(self.command) if self.command is not None else ["python", *shlex.split(self.script or "")]

    @property
    def currency(self) -> str:
        """Of all prices in the file."""
        return self.prices.currency if self.prices else "USD"

    def price_of(self, pool: Pool) -> float | None:
        """Of an hour of a node in that pool: its own, or that of its market; None where neither is said."""
        if pool.price is not None or self.prices is None:
            return pool.price
        return self.prices.spot if pool.market == "spot" else self.prices.on_demand

    def deadline_at(self, began_at: float) -> float | None:
        """The deadline in seconds since the epoch, of a run that began at ``began_at``; None where there is none."""
        if self.deadline is None:
            return None
        if self.deadline[:4].isdigit() and self.deadline[4:5] == "-":
            return parse_time(self.deadline)
        return began_at + parse_duration(self.deadline)


def _conflict(at: str | Sequence[int | str], text: str, hint: str) -> PydanticCustomError:
    path = [at] if isinstance(at, str) else list(at)
    return PydanticCustomError(
        "conflict", "{text}", {"text": text, "hint": hint, "at": [part for part in path if part != ""]}
    )
