"""A local stand-in for the EC2 instance metadata service, version 2, as far as interruptions need it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from email.utils import formatdate
from typing import Literal, get_args

from unbroken.clock import SYSTEM_CLOCK, Clock, format_time
from unbroken.errors import ConfigError
from unbroken.testing.metadata_server import GARBAGE, Answer, LocalServer, Request

Action = Literal["terminate", "stop", "hibernate"]
MaintenanceCode = Literal[
    "instance-stop", "instance-retirement", "instance-reboot", "system-reboot", "system-maintenance"
]

_TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path, not a secret
_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105
_MAX_TTL = 21600
_ACTION_PATH = "/latest/meta-data/spot/instance-action"
_REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
_LIFECYCLE_PATH = "/latest/meta-data/autoscaling/target-lifecycle-state"
_MAINTENANCE_PATH = "/latest/meta-data/events/maintenance/scheduled"
_INSTANCE_PATH = "/latest/meta-data/instance-id"


class EC2MetadataService(LocalServer):
    """A server on 127.0.0.1 that answers as IMDSv2 does where tokens are required.

    Set ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` to :attr:`endpoint` in the environment of the process under
    test. A context manager; the server runs from the constructor to :meth:`close`. All methods are safe to
    call from any thread.

    Args:
        port: the port to listen on; 0 takes a free one.
        clock: what tells token ages and the moments in the documents.
    """

    def __init__(self, *, port: int = 0, clock: Clock = SYSTEM_CLOCK) -> None:
        self._tokens: dict[str, float] = {}
        self._documents: dict[str, bytes] = {}
        self._become_instance()
        super().__init__(port=port, clock=clock)

    @property
    def instance_id(self) -> str:
        with self._lock:
            return self._documents[_INSTANCE_PATH].decode()

    def interrupt(self, action: Action = "terminate", seconds: float = 120.0) -> float:
        """Announce that this instance is taken in ``seconds``.

        Returns:
            The announced moment, in wall-clock seconds; it has whole seconds, as EC2's, and never moves.

        Raises:
            ConfigError: EC2 knows no such action.
        """
        if action not in get_args(Action):
            raise ConfigError(
                f"{action!r} is no spot instance action", kind="action", hint=f"One of {get_args(Action)}"
            )
        deadline = float(int(self._clock.now() + seconds))
        document = {"action": action, "time": _whole_seconds(deadline)}
        with self._lock:
            self._documents[_ACTION_PATH] = json.dumps(document).encode()
        return deadline

    def recommend_rebalance(self) -> None:
        """Announce that this instance is at elevated risk."""
        document = {"noticeTime": _whole_seconds(self._clock.now())}
        with self._lock:
            self._documents[_REBALANCE_PATH] = json.dumps(document).encode()

    def target_lifecycle_state(self, state: str) -> None:
        """Say what the Auto Scaling group wants of this instance, such as ``InService`` or ``Terminated``."""
        with self._lock:
            self._documents[_LIFECYCLE_PATH] = state.encode()

    def schedule_maintenance(self, code: MaintenanceCode, seconds: float, *, state: str = "active") -> float:
        """Put maintenance that begins in ``seconds`` on the list; what is there of this code is replaced.

        Returns:
            When it begins, in wall-clock seconds.

        Raises:
            ConfigError: EC2 knows no such code.
        """
        if code not in get_args(MaintenanceCode):
            raise ConfigError(f"{code!r} is no maintenance", kind="code", hint=f"One of {get_args(MaintenanceCode)}")
        begins = float(int(self._clock.now() + seconds))
        event = {
            "NotBefore": _ec2_date(begins), "NotAfter": _ec2_date(begins + 7200), "Code": code,
            "Description": f"scheduled {code}", "EventId": f"instance-event-{code}", "State": state,
        }  # fmt: skip
        with self._lock:
            events = json.loads(self._documents.get(_MAINTENANCE_PATH, b"[]"))
            kept = [other for other in events if other["Code"] != code]
            self._documents[_MAINTENANCE_PATH] = json.dumps([*kept, event]).encode()
        return begins

    def clear(self) -> None:
        """Become a new instance: another id, nothing announced, no token valid."""
        with self._lock:
            self._tokens.clear()
            self._become_instance()

    def expire_tokens(self) -> None:
        """Let every token given out so far be refused with 401."""
        with self._lock:
            self._tokens.clear()

    def _become_instance(self) -> None:
        self._documents = {_INSTANCE_PATH: f"i-{secrets.token_hex(9)[:17]}".encode()}

    def _respond(self, request: Request, *, garbled: bool) -> Answer:
        if request.method == "PUT":
            return self._give_token(request.headers) if request.path == _TOKEN_PATH else Answer(405)
        return self._give_document(request.path, request.headers, garbled=garbled)

    def _give_token(self, headers: Mapping[str, str]) -> Answer:
        if "x-forwarded-for" in headers:
            return Answer(403)  # IMDSv2 refuses tokens to anything that came through a proxy
        lifetime = headers.get(_TTL_HEADER.lower(), "")
        if not lifetime.isdecimal() or not 1 <= int(lifetime) <= _MAX_TTL:
            return Answer(400)
        token = secrets.token_urlsafe(40)
        with self._lock:
            self._tokens[token] = self._clock.monotonic() + int(lifetime)
        return Answer(200, token.encode())

    def _give_document(self, path: str, headers: Mapping[str, str], *, garbled: bool) -> Answer:
        with self._lock:
            expires_at = self._tokens.get(headers.get(_TOKEN_HEADER.lower(), ""))
            document = self._documents.get(path)
        if expires_at is None or self._clock.monotonic() >= expires_at:
            return Answer(401)
        if garbled:
            return Answer(200, GARBAGE)
        return Answer(404) if document is None else Answer(200, document)


def _whole_seconds(at: float) -> str:
    return format_time(int(at)).replace(".000Z", "Z")


def _ec2_date(at: float) -> str:
    return formatdate(at, usegmt=True).partition(", ")[2]  # EC2 leaves the day of the week out
