"""Interruption notices of EC2 spot instances, read from the instance metadata service."""

from __future__ import annotations

import json

from unbroken.clock import SYSTEM_CLOCK, Clock, parse_time
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.imds import MetadataClient, NoAnswer
from unbroken.notice.source import SourceError, poll_interval

_ACTION_PATH = "/latest/meta-data/spot/instance-action"
_REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
_POLL_SECONDS = 2.0
_NOTICE_SECONDS = 120.0
_FAILURES = 3
_ELSEWHERE_SECONDS = 60.0


class EC2Source:
    """Polls ``spot/instance-action`` and the rebalance recommendation over IMDSv2.

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
        self._seconds = poll_interval(poll_seconds, _POLL_SECONDS)
        self._clock = clock
        self._answered = False
        self._failures = 0
        self._advised = False
        self._garbled_deadline: float | None = None

    @property
    def answered(self) -> bool:
        """Whether the metadata service has ever answered here."""
        return self._answered

    def poll(self) -> list[InterruptionNotice | InterruptionAdvisory]:
        """What EC2 announces now; an advisory once.

        Raises:
            SourceError: the service answered before and has now failed three times in a row; said once.
        """
        found: list[InterruptionNotice | InterruptionAdvisory] = []
        try:
            action = self._client.get(_ACTION_PATH)
            self._answered, self._failures = True, 0
            if action is not None:
                found.append(self._notice(action))
            if not self._advised and self._client.get(_REBALANCE_PATH) is not None:
                self._advised = True
                # No moment in the reason: some stand-ins move it with each poll, and it would look new each time.
                found.append(InterruptionAdvisory(self.name, "EC2 recommends rebalancing: the risk is elevated"))
        except NoAnswer as error:
            self._failures += 1
            if self._answered and self._failures == _FAILURES and not found:
                raise SourceError(
                    f"the EC2 metadata service at {self._client.endpoint} answered before and does no more: {error}",
                    kind="metadata", hint="Until it does, a spot interruption is heard only as a signal",
                ) from error  # fmt: skip
        return found

    def interval(self) -> float:
        elsewhere = not self._answered and self._failures >= _FAILURES
        return max(self._seconds, _ELSEWHERE_SECONDS) if elsewhere else self._seconds

    def _notice(self, document: bytes) -> InterruptionNotice:
        try:
            fields = json.loads(document)
            action, deadline = str(fields["action"]), parse_time(fields["time"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return self._garbled(document)
        return InterruptionNotice(self.name, f"EC2 will {action} this spot instance", deadline)

    def _garbled(self, document: bytes) -> InterruptionNotice:
        """Something is announced that we cannot read: stopping in vain costs minutes, ignoring it costs the work."""
        if self._garbled_deadline is None:
            self._garbled_deadline = self._clock.now() + _NOTICE_SECONDS
        reason = (
            f"EC2 announces an interruption that cannot be read ({document[:60]!r}); "
            f"{_NOTICE_SECONDS:.0f} s of notice are assumed"
        )
        return InterruptionNotice(self.name, reason, self._garbled_deadline)
