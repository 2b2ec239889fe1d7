"""Interruption notices of Azure: the Scheduled Events of its metadata service."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.notice.answering import Answering
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.local_http import LocalService
from unbroken.notice.moments import parse_moment
from unbroken.notice.source import Announced, NoAnswer, Reach, SourceError, poll_interval

ENDPOINT_VARIABLE = "UNBROKEN_AZURE_METADATA"
"""URL of the metadata service, where it is not Azure's own address."""
ACKNOWLEDGE_VARIABLE = "UNBROKEN_AZURE_ACKNOWLEDGE"
"""``true`` lets Azure begin an event of this machine alone as soon as everything is saved."""

EVENTS_PATH = "/metadata/scheduledevents?api-version=2020-07-01"
NAME_PATH = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
_METADATA = {"Metadata": "true"}
_POLL_SECONDS = 1.0
_LEAST_SECONDS = 30.0
_STOPPING = {
    "preempt": "preempt", "terminate": "delete", "reboot": "reboot", "redeploy": "move to another host and restart",
}  # fmt: skip
_LOST = "Until it does, an eviction is heard only as a signal"


@dataclass(frozen=True)
class ScheduledEvent:
    """One entry of the document."""

    id: str
    type: str
    """In lower case: ``preempt``, ``terminate``, ``reboot``, ``redeploy``, ``freeze``, or one that we do not know."""
    status: str
    """In lower case: ``scheduled``, ``started``, ``completed`` or ``canceled``."""
    resources: tuple[str, ...]
    """Names of virtual machines."""
    not_before: float
    """Wall-clock seconds; not a number where the document does not say it, as for events that have started."""


def parse_events(document: bytes) -> list[ScheduledEvent]:
    """Read the document of scheduled events.

    Raises:
        ValueError: it is none; it says what was found.
    """
    try:
        return [_event(entry) for entry in json.loads(document)["Events"]]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{document[:60]!r} is no document of scheduled events") from error


def _event(entry: dict[str, object]) -> ScheduledEvent:
    resources = entry.get("Resources") or []
    if not isinstance(resources, list):
        raise TypeError("Resources is no list")
    moment = str(entry.get("NotBefore") or "").strip()
    return ScheduledEvent(
        str(entry["EventId"]),
        str(entry["EventType"]).lower(),
        str(entry.get("EventStatus", "Scheduled")).lower(),
        tuple(str(name) for name in resources),
        parse_moment(moment) if moment else math.nan,
    )


class AzureSource:
    """Polls the scheduled events and takes those of this virtual machine.

    Preempt, Terminate, Reboot and Redeploy are notices, Freeze (a pause of seconds) is an advisory. The first answer
    may take Azure two minutes: it begins to watch a machine when it is first asked.

    Args:
        endpoint: the service's URL; None takes ``UNBROKEN_AZURE_METADATA``, else Azure's own address.
        poll_seconds: time between polls; None takes ``UNBROKEN_NOTICE_POLL``, else 1 s.
        acknowledging: whether :meth:`acknowledge` does anything; None takes ``UNBROKEN_AZURE_ACKNOWLEDGE``.
        clock: wall clock for deadlines that the service does not say.

    Raises:
        ConfigError: the endpoint or the time between polls is not usable.
    """

    name = "azure"

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        poll_seconds: float | None = None,
        acknowledging: bool | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        where = endpoint or os.environ.get(ENDPOINT_VARIABLE) or "http://169.254.169.254"
        self._service = LocalService(where, ENDPOINT_VARIABLE)
        seconds = poll_interval(poll_seconds, _POLL_SECONDS)
        self._answering = Answering(f"the Azure metadata service at {where}", seconds, _LOST)
        asked = os.environ.get(ACKNOWLEDGE_VARIABLE, "").strip().lower() == "true"
        self._acknowledging = asked if acknowledging is None else acknowledging
        self._clock = clock
        self._machine = ""
        self._deadlines: dict[str, float] = {}
        """By event; one that has started says none any more."""
        self._mine: list[ScheduledEvent] = []
        self._announced: Announced = []

    def poll(self) -> Announced:
        """What Azure announces now for this machine.

        Raises:
            SourceError: the service answered before and has now failed three times in a row; said once.
        """
        try:
            events = parse_events(self._get(EVENTS_PATH))
        except (NoAnswer, ValueError) as error:
            self._answering.failed(error if isinstance(error, NoAnswer) else NoAnswer(str(error)))
            return self._announced
        self._answering.succeeded()
        if events and not self._machine:
            self._machine = self._name_of_machine()
        self._mine = [event for event in events if self._concerns_us(event)]
        self._announced = [self._told(event) for event in self._mine]
        return self._announced

    def interval(self) -> float:
        return self._answering.interval()

    def reach(self) -> Reach:
        return self._answering.reach()

    def close(self) -> None:
        """Nothing is held between two polls."""

    def acknowledge(self) -> None:
        """Let Azure begin the events of this machine alone, where that was asked for.

        Raises:
            SourceError: the service did not take it.
        """
        alone = [event for event in self._mine if len(event.resources) == 1 and event.status == "scheduled"]
        ids = [event.id for event in alone if event.type in _STOPPING]
        if not self._acknowledging or not ids:
            return
        body = json.dumps({"StartRequests": [{"EventId": each} for each in ids]}).encode()
        try:
            reply = self._service.request("POST", EVENTS_PATH, {**_METADATA, "Content-Type": "application/json"}, body)
            if reply.status != 200:
                raise NoAnswer(f"POST {EVENTS_PATH} was answered with status {reply.status}")
        except NoAnswer as error:
            raise SourceError(f"Azure did not take the acknowledgement: {error}", kind="metadata") from error

    def _concerns_us(self, event: ScheduledEvent) -> bool:
        """All machines of a scale set see the events of each. Names differ in case between services."""
        if event.status in ("canceled", "cancelled", "completed"):
            return False
        if not self._machine or not event.resources:
            return True  # who it is about is not known: stopping in vain costs less than the work
        return self._machine.casefold() in {name.casefold() for name in event.resources}

    def _name_of_machine(self) -> str:
        try:
            return self._get(NAME_PATH).decode("utf-8", "replace").strip()
        except NoAnswer:
            return ""

    def _told(self, event: ScheduledEvent) -> InterruptionNotice | InterruptionAdvisory:
        if event.type not in _STOPPING:
            return InterruptionAdvisory(self.name, f"Azure schedules {event.type} of this machine ({event.id})")
        if math.isfinite(event.not_before):
            self._deadlines[event.id] = event.not_before
        deadline = self._deadlines.setdefault(event.id, self._clock.now() + _LEAST_SECONDS)
        reason = f"Azure will {_STOPPING[event.type]} this machine ({event.id})"
        return InterruptionNotice(self.name, reason, deadline)

    def _get(self, path: str) -> bytes:
        reply = self._service.request("GET", path, _METADATA)
        if reply.status != 200:
            raise NoAnswer(f"GET {path} was answered with status {reply.status}")
        return reply.body
