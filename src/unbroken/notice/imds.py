"""A client for the EC2 instance metadata service, version 2."""

from __future__ import annotations

import os
from dataclasses import dataclass

from unbroken.clock import Clock
from unbroken.notice.local_http import LocalService, SilentAnswer
from unbroken.notice.source import NoAnswer

ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
MODE_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"
DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"

_TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path, not a secret
_ANY_PATH = "/latest/meta-data/"
_TTL = 21600
_REFRESH_BEFORE = 300.0


class HopLimitTooLow(NoAnswer):
    """The answer with the token is lost on its way: it may cross fewer networks than lie between."""


@dataclass(frozen=True)
class _Token:
    text: str
    refresh_at: float


class MetadataClient:
    """Reads metadata documents.

    Args:
        endpoint: the service's URL; None takes the environment's, as the AWS SDKs do.
        clock: tells when the token needs refreshing.

    Raises:
        ConfigError: the endpoint is no http URL of a host.
    """

    def __init__(self, endpoint: str | None, clock: Clock) -> None:
        self._service = LocalService(endpoint or _endpoint_of_environment(), ENDPOINT_VARIABLE)
        self._clock = clock
        self._token: _Token | None = None

    @property
    def endpoint(self) -> str:
        """Where it asks."""
        return self._service.endpoint

    def get(self, path: str) -> bytes | None:
        """The document at ``path``, or None where the service says that there is none.

        Raises:
            HopLimitTooLow: see there.
            NoAnswer: see there.
        """
        reply = self._service.request("GET", path, {"X-aws-ec2-metadata-token": self._current_token()})
        if reply.status == 401:  # expired early, or the machine slept and the token's age was misjudged
            self._token = None
            reply = self._service.request("GET", path, {"X-aws-ec2-metadata-token": self._current_token()})
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise NoAnswer(f"GET {path} was answered with status {reply.status}")
        return reply.body

    def _current_token(self) -> str:
        now = self._clock.monotonic()
        if self._token is None or now >= self._token.refresh_at:
            self._token = None
            self._token = _Token(self._new_token(), now + _TTL - _REFRESH_BEFORE)
        return self._token.text

    def _new_token(self) -> str:
        try:
            reply = self._service.request("PUT", _TOKEN_PATH, {"X-aws-ec2-metadata-token-ttl-seconds": str(_TTL)})
        except SilentAnswer as error:
            raise self._explained(error) from error
        if reply.status != 200:
            raise NoAnswer(f"the request for a token was answered with status {reply.status}")
        text = reply.body.decode("latin-1")
        # A captive portal or another cloud's service answers 200 to anything; its page is no token.
        if not text.isascii() or not text.isprintable() or not text.strip() or len(text) > 1024 or "<" in text:
            raise NoAnswer(f"{reply.body[:40]!r} is no metadata token")
        return text

    def _explained(self, error: NoAnswer) -> NoAnswer:
        """The hop limit holds for answers with tokens alone: where a request without one is refused, it is that."""
        try:
            refused = self._service.request("GET", _ANY_PATH).status in (200, 401)
        except NoAnswer:
            return error
        return HopLimitTooLow("requests arrive, and tokens do not come back: the hop limit is 1") if refused else error


def disabled() -> bool:
    """Whether the environment forbids asking the metadata service, by the AWS SDKs' variable."""
    return os.environ.get(DISABLED_VARIABLE, "").strip().lower() == "true"


def _endpoint_of_environment() -> str:
    if endpoint := os.environ.get(ENDPOINT_VARIABLE):
        return endpoint
    ipv6 = os.environ.get(MODE_VARIABLE, "").strip().lower() == "ipv6"
    return "http://[fd00:ec2::254]" if ipv6 else "http://169.254.169.254"
