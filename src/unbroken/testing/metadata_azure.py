"""A local stand-in for the Azure instance metadata service, as far as interruptions need it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, urlsplit

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import ConfigError, NotFoundError
from unbroken.testing.metadata_server import GARBAGE, Answer, LocalServer, Request

EventType = Literal["Preempt", "Terminate", "Reboot", "Redeploy", "Freeze"]

_EVENTS_PATH = "/metadata/scheduledevents"
_NAME_PATH = "/metadata/instance/compute/name"


class AzureMetadataService(LocalServer):
    """A server on 127.0.0.1 that answers as Azure's metadata service does.

    Set ``UNBROKEN_AZURE_METADATA`` to :attr:`endpoint` in the environment of the process under test.

    Args:
        machine: name of the virtual machine that asks.
        port: the port to listen on; 0 takes a free one.
        clock: what tells the moments in the documents.
    """

    def __init__(self, machine: str = "vm-0", *, port: int = 0, clock: Clock = SYSTEM_CLOCK) -> None:
        self.machine = machine
        self._incarnation = 1
        self._events: dict[str, dict[str, Any]] = {}
        self._acknowledged: list[str] = []
        super().__init__(port=port, clock=clock)

    @property
    def acknowledged(self) -> list[str]:
        """Ids of the events that were acknowledged, in their order."""
        with self._lock:
            return list(self._acknowledged)

    def schedule(
        self, event_type: EventType = "Preempt", seconds: float = 30.0, *, resources: Sequence[str] | None = None
    ) -> str:
        """Announce an event in ``seconds``.

        Args:
            resources: names of the machines that it is about; None for this one.

        Returns:
            the event's id.

        Raises:
            ConfigError: Azure knows no such event.
        """
        if event_type not in get_args(EventType):
            raise ConfigError(f"{event_type!r} is no event", kind="event", hint=f"One of {get_args(EventType)}")
        event = str(uuid.uuid4()).upper()
        with self._lock:
            self._incarnation += 1
            self._events[event] = {
                "EventId": event, "EventType": event_type, "ResourceType": "VirtualMachine",
                "Resources": [self.machine] if resources is None else list(resources), "EventStatus": "Scheduled",
                "NotBefore": formatdate(int(self._clock.now() + seconds), usegmt=True), "Description": "",
                "EventSource": "Platform", "DurationInSeconds": -1,
            }  # fmt: skip
        return event

    def start(self, event: str) -> None:
        """Let an event begin: it has no moment any more.

        Raises:
            NotFoundError: there is no such event.
        """
        with self._lock:
            self._find(event).update(EventStatus="Started", NotBefore="")
            self._incarnation += 1

    def cancel(self, event: str) -> None:
        """Take an event off the list, as Azure does with those that are over or cancelled.

        Raises:
            NotFoundError: there is no such event.
        """
        with self._lock:
            self._find(event)
            del self._events[event]
            self._incarnation += 1

    def clear(self) -> None:
        """Become a new machine, of which nothing is announced."""
        with self._lock:
            self._events.clear()
            self._acknowledged.clear()

    def _find(self, event: str) -> dict[str, Any]:
        if event not in self._events:
            raise NotFoundError(f"there is no event {event!r}", kind="event")
        return self._events[event]

    def _respond(self, request: Request, *, garbled: bool) -> Answer:
        parts = urlsplit(request.path)
        if request.headers.get("metadata") != "true" or "api-version" not in parse_qs(parts.query):
            return Answer(400, b'{"error": "Bad request. Required metadata header not specified"}')
        if garbled:
            return Answer(200, GARBAGE)
        if parts.path == _NAME_PATH and request.method == "GET":
            return Answer(200, self.machine.encode())
        if parts.path != _EVENTS_PATH:
            return Answer(404)
        return self._start_requests(request.body) if request.method == "POST" else self._document()

    def _document(self) -> Answer:
        with self._lock:
            document = {"DocumentIncarnation": self._incarnation, "Events": list(self._events.values())}
            return Answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _start_requests(self, body: bytes) -> Answer:
        try:
            ids = [str(entry["EventId"]) for entry in json.loads(body)["StartRequests"]]
        except (ValueError, KeyError, TypeError):
            return Answer(400)
        with self._lock:
            if any(each not in self._events for each in ids):
                return Answer(400)
            self._acknowledged += ids
        for each in ids:
            self.start(each)
        return Answer(200)
