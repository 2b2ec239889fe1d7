"""Interruption notices of EC2, read from the instance metadata service."""

from __future__ import annotations

import json

from unbroken.clock import SYSTEM_CLOCK, Clock, parse_time
from unbroken.notice.answering import Answering
from unbroken.notice.ec2_maintenance import MaintenanceList
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.imds import HopLimitTooLow, MetadataClient
from unbroken.notice.source import Announced, NoAnswer, Reach, SourceError, poll_interval

_ACTION_PATH = "/latest/meta-data/spot/instance-action"
_REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
_LIFECYCLE_PATH = "/latest/meta-data/autoscaling/target-lifecycle-state"
_MAINTENANCE_PATH = "/latest/meta-data/events/maintenance/scheduled"
_POLL_SECONDS = 2.0
_MAINTENANCE_SECONDS = 30.0
_NOTICE_SECONDS = 120.0
_LOST = "Until it does, a spot interruption is heard only as a signal"
_HOP_HINT = (
    "Interruptions are heard as SIGTERM, or from the Node object (docs/notices.md). A higher limit would hand the"
    " node's credentials to every pod on it: let the owner of the cluster decide that"
)


class EC2Source:
    """Polls the spot action, the rebalance recommendation, the Auto Scaling group's wish and the scheduled maintenance.

    Where no metadata service ever answered, it soon asks once a minute and says nothing: this is no EC2
    instance. Where it answered before and stops, :meth:`poll` raises once, and goes on asking.

    Args:
        endpoint: the service's URL; None takes ``AWS_EC2_METADATA_SERVICE_ENDPOINT``, else EC2's own address.
        poll_seconds: time between polls; None takes ``UNBROKEN_NOTICE_POLL``, else 2 s (EC2 asks for at most 5).
        clock: wall clock for deadlines that the service does not say, monotonic time for the token's age.

    Raises:
        ConfigError: the endpoint or the time between polls is not usable.
    """

    name = "ec2"

    def __init__(
        self, endpoint: str | None = None, *, poll_seconds: float | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._client = MetadataClient(endpoint, clock)
        seconds = poll_interval(poll_seconds, _POLL_SECONDS)
        self._answering = Answering(f"the EC2 metadata service at {self._client.endpoint}", seconds, _LOST)
        self._clock = clock
        self._advised = False
        self._hop_limit_said = False
        self._maintenance = MaintenanceList(self.name, clock)
        self._maintenance_due = clock.monotonic()
        self._assumed: dict[str, float] = {}
        """Deadlines that EC2 did not say, by what they are for; they must not move with each poll."""
        self._action: Announced = []
        self._rest: Announced = []

    @property
    def answered(self) -> bool:
        """Whether the metadata service has ever answered here."""
        return self._answering.answered

    def poll(self) -> Announced:
        """What EC2 announces now; the rebalance recommendation once.

        Raises:
            SourceError: the service answered before and has now failed three times in a row; said once. Or its answers
                cannot arrive, because of its hop limit; said once.
        """
        try:
            action = self._client.get(_ACTION_PATH)
            self._answering.succeeded()
            self._action = [] if action is None else [self._notice(action)]
            self._rest = self._others()
        except HopLimitTooLow as error:
            self._answering.failed(error)
            self._say_hop_limit(error)
        except NoAnswer as error:
            self._answering.failed(error)
        return [*self._action, *self._rest]

    def interval(self) -> float:
        return self._answering.interval()

    def reach(self) -> Reach:
        return self._answering.reach()

    def close(self) -> None:
        """Nothing is held between two polls."""

    def _say_hop_limit(self, error: HopLimitTooLow) -> None:
        if self._hop_limit_said or not self._answering.given_up:
            return
        self._hop_limit_said = True
        raise SourceError(
            f"the EC2 metadata service at {self._client.endpoint} cannot be heard from this container: {error}",
            kind="hop-limit",
            hint=_HOP_HINT,
        ) from error

    def _others(self) -> Announced:
        found: Announced = []
        if not self._advised and self._client.get(_REBALANCE_PATH) is not None:
            self._advised = True
            # No moment in the reason: some stand-ins move it with each poll, and it would look new each time.
            found.append(InterruptionAdvisory(self.name, "EC2 recommends rebalancing: the risk is elevated"))
        if (state := self._client.get(_LIFECYCLE_PATH)) is not None and state.strip() == b"Terminated":
            reason = "the Auto Scaling group terminates this instance"
            found.append(InterruptionNotice(self.name, reason, self._deadline("lifecycle")))
        else:
            self._assumed.pop("lifecycle", None)
        if self._clock.monotonic() >= self._maintenance_due:
            self._maintenance.read(self._client.get(_MAINTENANCE_PATH))
            self._maintenance_due = self._clock.monotonic() + _MAINTENANCE_SECONDS
        return [*found, *self._maintenance.events]

    def _deadline(self, what: str) -> float:
        return self._assumed.setdefault(what, self._clock.now() + _NOTICE_SECONDS)

    def _notice(self, document: bytes) -> InterruptionNotice:
        try:
            fields = json.loads(document)
            action, deadline = str(fields["action"]), parse_time(fields["time"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return self._garbled(document)
        return InterruptionNotice(self.name, f"EC2 will {action} this spot instance", deadline)

    def _garbled(self, document: bytes) -> InterruptionNotice:
        """Something is announced that we cannot read: stopping in vain costs minutes, ignoring it costs the work."""
        reason = (
            f"EC2 announces an interruption that cannot be read ({document[:60]!r}); "
            f"{_NOTICE_SECONDS:.0f} s of notice are assumed"
        )
        return InterruptionNotice(self.name, reason, self._deadline("garbled"))
