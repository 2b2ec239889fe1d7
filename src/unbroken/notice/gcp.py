"""Interruption notices of Google Compute Engine, read from its metadata server."""

from __future__ import annotations

import os
from pathlib import Path

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.notice.answering import Answering
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.local_http import LocalService
from unbroken.notice.source import Announced, NoAnswer, Reach, poll_interval

HOST_VARIABLE = "GCE_METADATA_HOST"
"""Host, or host:port, of the metadata server, as Google's own libraries read it."""

_PREEMPTED_PATH = "/computeMetadata/v1/instance/preempted"
_MAINTENANCE_PATH = "/computeMetadata/v1/instance/maintenance-event"
_FLAVOR = "Metadata-Flavor"
_POLL_SECONDS = 1.0
_PREEMPTION_SECONDS = 30.0
_TERMINATION_SECONDS = 60.0
_GPU_TERMINATION_SECONDS = 3600.0
_GPU_DRIVER = Path("/proc/driver/nvidia")
_LOST = "Until it does, a preemption is heard only as a signal"


class GCPSource:
    """Polls ``preempted`` and ``maintenance-event``.

    Neither says when. A preemption leaves 30 s, a termination for maintenance 60 s, and an hour where there is a GPU;
    they are counted from when it was first heard. A live migration is an advisory.

    Args:
        endpoint: the server's URL; None takes ``GCE_METADATA_HOST``, else the server's own address.
        poll_seconds: time between polls; None takes ``UNBROKEN_NOTICE_POLL``, else 1 s.
        gpu: whether this machine has a GPU; None looks for a driver.
        clock: wall clock for deadlines.

    Raises:
        ConfigError: the endpoint or the time between polls is not usable.
    """

    name = "gcp"

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        poll_seconds: float | None = None,
        gpu: bool | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        # By address and not by name: a machine elsewhere would ask its name server, which may take long to say no.
        host = os.environ.get(HOST_VARIABLE) or "169.254.169.254"
        self._service = LocalService(endpoint or f"http://{host}", HOST_VARIABLE)
        seconds = poll_interval(poll_seconds, _POLL_SECONDS)
        self._answering = Answering(f"the GCP metadata server at {self._service.endpoint}", seconds, _LOST)
        self._gpu = _GPU_DRIVER.exists() if gpu is None else gpu
        self._clock = clock
        self._heard_at: dict[str, float] = {}
        self._announced: Announced = []

    def poll(self) -> Announced:
        """What the server announces now.

        Raises:
            SourceError: it answered before and has now failed three times in a row; said once.
        """
        try:
            preempted = self._get(_PREEMPTED_PATH, ("TRUE", "FALSE"))
            maintenance = self._get(
                _MAINTENANCE_PATH, ("NONE", "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE")
            )
        except NoAnswer as error:
            self._answering.failed(error)
            return self._announced
        self._answering.succeeded()
        self._announced = []
        if preempted == "TRUE":
            self._announce("preempted", "GCP preempts this instance", _PREEMPTION_SECONDS)
        if maintenance == "MIGRATE_ON_HOST_MAINTENANCE":
            self._announced.append(InterruptionAdvisory(self.name, "GCP will move this instance to another host"))
        if maintenance == "TERMINATE_ON_HOST_MAINTENANCE":
            seconds = _GPU_TERMINATION_SECONDS if self._gpu else _TERMINATION_SECONDS
            self._announce("maintenance", "GCP will stop this instance for maintenance of its host", seconds)
        else:
            self._heard_at.pop("maintenance", None)
        return self._announced

    def interval(self) -> float:
        return self._answering.interval()

    def reach(self) -> Reach:
        return self._answering.reach()

    def close(self) -> None:
        """Nothing is held between two polls."""

    def _announce(self, what: str, reason: str, seconds: float) -> None:
        deadline = self._heard_at.setdefault(what, self._clock.now()) + seconds
        self._announced.append(InterruptionNotice(self.name, reason, deadline))

    def _get(self, path: str, words: tuple[str, ...]) -> str:
        """One of ``words``, or "" where the server does not know the key."""
        reply = self._service.request("GET", path, {_FLAVOR: "Google"})
        if reply.headers.get(_FLAVOR.lower()) != "Google":
            raise NoAnswer(f"GET {path} was answered by something that is no Google metadata server")
        if reply.status == 404:
            return ""
        if reply.status != 200:
            raise NoAnswer(f"GET {path} was answered with status {reply.status}")
        text = reply.body.decode("latin-1").strip().upper()
        if text not in words:
            raise NoAnswer(f"GET {path} was answered with {reply.body[:40]!r}, which is none of {', '.join(words)}")
        return text
