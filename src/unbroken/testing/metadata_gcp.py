"""A local stand-in for the metadata server of Google Compute Engine, as far as interruptions need it."""

from __future__ import annotations

from typing import Literal, get_args

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import ConfigError
from unbroken.testing.metadata_server import GARBAGE, Answer, LocalServer, Request

MaintenanceEvent = Literal["NONE", "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"]

_ROOT = "/computeMetadata/v1/instance/"
_FLAVOR = {"Metadata-Flavor": "Google", "Content-Type": "application/text"}


class GCPMetadataService(LocalServer):
    """A server on 127.0.0.1 that answers as Google's metadata server does.

    Set ``GCE_METADATA_HOST`` to :attr:`host` in the environment of the process under test.

    Args:
        port: the port to listen on; 0 takes a free one.
        clock: as of the other services; nothing that is served here depends on it.
    """

    def __init__(self, *, port: int = 0, clock: Clock = SYSTEM_CLOCK) -> None:
        self._values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        super().__init__(port=port, clock=clock)

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``."""
        return self.endpoint.removeprefix("http://")

    def preempt(self) -> None:
        """Announce that this instance is preempted; there is no way back but :meth:`clear`."""
        with self._lock:
            self._values["preempted"] = "TRUE"

    def maintain(self, event: MaintenanceEvent = "TERMINATE_ON_HOST_MAINTENANCE") -> None:
        """Announce maintenance of the host, or with ``NONE`` that there is none any more.

        Raises:
            ConfigError: Google knows no such event.
        """
        if event not in get_args(MaintenanceEvent):
            raise ConfigError(f"{event!r} is no event", kind="event", hint=f"One of {get_args(MaintenanceEvent)}")
        with self._lock:
            self._values["maintenance-event"] = event

    def clear(self) -> None:
        """Become a new instance, of which nothing is announced."""
        with self._lock:
            self._values = {"preempted": "FALSE", "maintenance-event": "NONE"}

    def _respond(self, request: Request, *, garbled: bool) -> Answer:
        if request.headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in request.headers:
            return Answer(403)
        if request.method != "GET":
            return Answer(405, headers=_FLAVOR)
        if garbled:
            return Answer(200, GARBAGE, _FLAVOR)
        with self._lock:
            value = self._values.get(request.path.partition("?")[0].removeprefix(_ROOT))
        return Answer(404, headers=_FLAVOR) if value is None else Answer(200, value.encode(), _FLAVOR)
