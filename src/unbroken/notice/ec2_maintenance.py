"""EC2's list of scheduled maintenance."""

from __future__ import annotations

import json

from unbroken.clock import Clock
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.moments import parse_moment
from unbroken.notice.source import Announced

_STOPPING = {
    "instance-stop": "will stop this instance",
    "instance-retirement": "will retire this instance",
    "instance-reboot": "will reboot this instance",
    "system-reboot": "will reboot the host of this instance",
}


class MaintenanceList:
    """What the newest list announces. An event keeps the meaning with which it was first heard.

    One that was to begin before it was first heard of is an advisory: a machine may stay on the list after its reboot,
    and a notice would end each new start of the training there.
    """

    def __init__(self, source: str, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._advised: set[str] = set()
        self.events: Announced = []

    def read(self, document: bytes | None) -> None:
        """Take the list as it stands now; None where there is none."""
        try:
            entries = json.loads(document or b"[]")
            self.events = [self._event(entry) for entry in entries if entry["State"] == "active"]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            reason = f"EC2 lists maintenance that cannot be read ({(document or b'')[:60]!r})"
            self.events = [InterruptionAdvisory(self._source, reason)]

    def _event(self, entry: dict[str, str]) -> InterruptionNotice | InterruptionAdvisory:
        code, event = entry["Code"], entry["EventId"]
        begins = parse_moment(entry["NotBefore"])
        if code not in _STOPPING:
            return InterruptionAdvisory(self._source, f"EC2 schedules {code} ({event})")
        notice = InterruptionNotice(self._source, f"EC2 {_STOPPING[code]} ({event})", begins)
        if notice not in self.events and (event in self._advised or begins <= self._clock.now()):
            self._advised.add(event)
            return InterruptionAdvisory(self._source, f"{notice.reason}; the time for it has begun")
        return notice
