"""Requests to a metadata service: to an address of this machine alone, with no retries and short waits."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from unbroken.errors import ConfigError
from unbroken.notice.source import NoAnswer

_CONNECT_TIMEOUT = 1.0
_READ_TIMEOUT = 2.0
_REPLY_LIMIT = 64 << 10


class SilentAnswer(NoAnswer):
    """It took the connection and the request, and then said nothing."""


@dataclass(frozen=True)
class Reply:
    """What came back; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class LocalService:
    """An HTTP service at ``endpoint``. Never goes through a proxy: the address is local to the machine.

    Args:
        endpoint: the service's URL, without a path.
        variable: the environment variable with which it can be set, for the error.

    Raises:
        ConfigError: the endpoint is no http URL of a host.
    """

    def __init__(self, endpoint: str, variable: str) -> None:
        self.endpoint = endpoint
        self._host, self._port = _address(endpoint, variable)

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        """Send one request.

        Raises:
            NoAnswer: nobody answered in time, or not by HTTP.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_TIMEOUT)
        sent = False
        try:
            connection.connect()
            connection.sock.settimeout(_READ_TIMEOUT)
            connection.request(method, path, body, headers={**(headers or {}), "Connection": "close"})
            sent = True
            with connection.getresponse() as response:
                found = {name.lower(): value for name, value in response.getheaders()}
                return Reply(response.status, found, response.read(_REPLY_LIMIT))
        except (OSError, http.client.HTTPException) as error:
            kind = SilentAnswer if sent and isinstance(error, TimeoutError) else NoAnswer
            raise kind(f"{method} {path} failed ({type(error).__name__}: {error})") from error
        finally:
            connection.close()


def _address(endpoint: str, variable: str) -> tuple[str, int]:
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(
            f"{endpoint!r} is no endpoint of a metadata service",
            kind="metadata-endpoint",
            hint=f"Set {variable} to something like http://169.254.169.254, or unset it",
        )
    return host, port or 80
