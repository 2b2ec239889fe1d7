"""A client for the EC2 instance metadata service, version 2, with no retries and short waits."""

from __future__ import annotations

import http.client
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from unbroken.clock import Clock
from unbroken.errors import ConfigError

ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
MODE_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"
DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"

_TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path, not a secret
_TTL = 21600
_REFRESH_BEFORE = 300.0
_CONNECT_TIMEOUT = 1.0
_READ_TIMEOUT = 2.0
_REPLY_LIMIT = 64 << 10


class NoAnswer(Exception):  # noqa: N818 - on most machines it is the normal state
    """The service did not answer, or not as the metadata service does. The message says what was found."""


@dataclass(frozen=True)
class _Token:
    text: str
    refresh_at: float


class MetadataClient:
    """Reads metadata documents. Never goes through a proxy: the address is local to the machine.

    Args:
        endpoint: the service's URL; None takes the environment's, as the AWS SDKs do.
        clock: tells when the token needs refreshing.

    Raises:
        ConfigError: the endpoint is no http URL of a host.
    """

    def __init__(self, endpoint: str | None, clock: Clock) -> None:
        self.endpoint = endpoint or _endpoint_of_environment()
        self._host, self._port = _address(self.endpoint)
        self._clock = clock
        self._token: _Token | None = None

    def get(self, path: str) -> bytes | None:
        """The document at ``path``, or None where the service says that there is none.

        Raises:
            NoAnswer: see there.
        """
        status, body = self._request("GET", path, {"X-aws-ec2-metadata-token": self._current_token()})
        if status == 401:  # expired early, or the machine slept and the token's age was misjudged
            self._token = None
            status, body = self._request("GET", path, {"X-aws-ec2-metadata-token": self._current_token()})
        if status == 404:
            return None
        if status != 200:
            raise NoAnswer(f"GET {path} was answered with status {status}")
        return body

    def _current_token(self) -> str:
        now = self._clock.monotonic()
        if self._token is None or now >= self._token.refresh_at:
            self._token = None
            self._token = _Token(self._new_token(), now + _TTL - _REFRESH_BEFORE)
        return self._token.text

    def _new_token(self) -> str:
        status, body = self._request("PUT", _TOKEN_PATH, {"X-aws-ec2-metadata-token-ttl-seconds": str(_TTL)})
        if status != 200:
            raise NoAnswer(f"the request for a token was answered with status {status}")
        text = body.decode("latin-1")
        # A captive portal or another cloud's service answers 200 to anything; its page is no token.
        if not text.isascii() or not text.isprintable() or not text.strip() or len(text) > 1024 or "<" in text:
            raise NoAnswer(f"{body[:40]!r} is no metadata token")
        return text

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_TIMEOUT)
        try:
            connection.connect()
            connection.sock.settimeout(_READ_TIMEOUT)
            connection.request(method, path, headers={**headers, "Connection": "close"})
            with connection.getresponse() as response:
                return response.status, response.read(_REPLY_LIMIT)
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{method} {path} failed ({type(error).__name__}: {error})") from error
        finally:
            connection.close()


def disabled() -> bool:
    """Whether the environment forbids asking the metadata service, by the AWS SDKs' variable."""
    return os.environ.get(DISABLED_VARIABLE, "").strip().lower() == "true"


def _endpoint_of_environment() -> str:
    if endpoint := os.environ.get(ENDPOINT_VARIABLE):
        return endpoint
    ipv6 = os.environ.get(MODE_VARIABLE, "").strip().lower() == "ipv6"
    return "http://[fd00:ec2::254]" if ipv6 else "http://169.254.169.254"


def _address(endpoint: str) -> tuple[str, int]:
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(
            f"{endpoint!r} is no endpoint of a metadata service",
            kind="metadata-endpoint",
            hint=f"Set {ENDPOINT_VARIABLE} to something like http://169.254.169.254, or unset it",
        )
    return host, port or 80
