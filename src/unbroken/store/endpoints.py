"""Endpoints of clouds and of servers that speak as they do, as the environment names them."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from unbroken.errors import ConfigError

_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"),
}
"""By the scheme of the run URI; the first that is set is used."""


def endpoint_of(scheme: str) -> str:
    """The user's own endpoint for a cloud; empty for the cloud's.

    Every variable that is set is checked: obstore reads them by itself, and panics at the first request where
    one is no URL.

    Raises:
        ConfigError: of the kind ``store-config``: a variable holds no http or https URL.
    """
    given = [(name, os.environ[name]) for name in _VARIABLES[scheme] if name in os.environ]
    for name, value in given:
        _check(name, value)
    return given[0][1] if given else ""


def _check(name: str, value: str) -> None:
    try:
        parts = urlsplit(value)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    # urlsplit drops line breaks and takes any letter; obstore does neither.
    if sound and value.isascii() and value.isprintable() and " " not in value and "@" not in value:
        return
    # What stands before an @ may be a password.
    found = "a URL with a user or password" if "@" in value else repr(value) if value else "nothing"
    raise ConfigError(
        f"{name} must be a URL that begins with http:// or https:// and names a host, and holds {found}",
        kind="store-config",
        hint=f"Set it like {name}={_example(value)}, or unset it to use the cloud's own endpoint",
    )


def _example(value: str) -> str:
    """What was probably meant, where a host and port were written without their scheme."""
    bare = value.isascii() and value.replace(":", "").replace(".", "").replace("-", "").isalnum()
    return f"http://{value}" if bare else "http://localhost:9000"
