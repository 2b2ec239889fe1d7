"""Where each cloud's credentials come from, asked before the first request so that their absence is said at
once.

obstore looks in the environment and then asks the machine's metadata service, and where there is none it
tries for minutes. So where the environment gives nothing, that service is asked when the store is opened, a few
times with a short deadline each: on a busy machine one question may stay unanswered, and "no credentials" ends a
training for good.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from unbroken.clock import SYSTEM_CLOCK
from unbroken.errors import AccessError

METADATA_SECONDS = 2.0
"""How long a metadata service may take to answer; it is on the same machine and takes milliseconds."""

METADATA_PAUSES = (0.5, 1.0)
"""Seconds between the tries to get an answer: 7.5 s in all where nobody ever answers."""

_METADATA = "http://169.254.169.254"
_AWS_GIVEN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_GOOGLE_DEFAULT = "~/.config/gcloud/application_default_credentials.json"


def aws_needs_profile() -> bool:
    """Whether credentials are in a profile, which obstore's own chain does not read.

    The order is the AWS SDKs': keys in the environment, then a profile, then web identity, container and
    instance roles; but a profile that was not named is used only where nothing in the environment gives
    credentials.
    """
    if os.environ.get("AWS_PROFILE"):
        return True
    if any(os.environ.get(name) for name in _AWS_GIVEN):
        return False
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    return any(Path(name).expanduser().is_file() for name in files)


def require_aws() -> None:
    """Raise AccessError where neither the environment nor an instance role gives credentials for S3."""
    if any(os.environ.get(name) for name in _AWS_GIVEN):
        return
    disabled = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    endpoint = os.environ.get("AWS_METADATA_ENDPOINT") or _METADATA
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    if disabled or not _answers("PUT", f"{endpoint}/latest/api/token", ttl):
        raise _no_credentials(
            "AWS", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, log in to a profile, or attach a role"
        )


def require_google() -> None:
    """Raise AccessError where neither the environment, a login nor an instance's account gives credentials
    for GCS."""
    if _any_variable("GOOGLE_") or Path(_GOOGLE_DEFAULT).expanduser().is_file():
        return
    host = os.environ.get("GCE_METADATA_HOST") or os.environ.get("GCE_METADATA_IP")
    endpoint = f"http://{host}" if host else _METADATA
    if not _answers("GET", f"{endpoint}/computeMetadata/v1/", {"Metadata-Flavor": "Google"}):
        raise _no_credentials(
            "Google Cloud",
            "Set GOOGLE_APPLICATION_CREDENTIALS, log in with: gcloud auth application-default login, "
            "or attach a service account",
        )


def require_azure() -> None:
    """Raise AccessError where neither the environment nor a managed identity gives credentials for Azure."""
    if _any_variable("AZURE_", but="AZURE_STORAGE_ACCOUNT_NAME") or os.environ.get("IDENTITY_ENDPOINT"):
        return
    if not _answers("GET", f"{_METADATA}/metadata/instance?api-version=2021-02-01", {"Metadata": "true"}):
        raise _no_credentials(
            "Azure",
            "Set AZURE_STORAGE_ACCOUNT_KEY or the AZURE_CLIENT_ variables, or attach a managed identity",
        )


def _any_variable(prefix: str, *, but: str = "") -> bool:
    return any(value and name.startswith(prefix) and name != but for name, value in os.environ.items())


def _answers(method: str, url: str, headers: Mapping[str, str]) -> bool:
    """Whether a metadata service is there and says yes. Silence, and an answer that the service is overloaded, are
    asked again; a refused connection and any other answer are final."""
    for pause in METADATA_PAUSES:
        answer = _ask(method, url, headers)
        if answer is not None:
            return answer
        SYSTEM_CLOCK.sleep(pause)
    return _ask(method, url, headers) is True


def _ask(method: str, url: str, headers: Mapping[str, str]) -> bool | None:
    """One question; None where it is worth asking again. Never through a proxy: the address is this machine's
    own."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=METADATA_SECONDS)
    try:
        connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=dict(headers))
        status = connection.getresponse().status
    except TimeoutError:
        return None
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    overloaded = status == http.HTTPStatus.TOO_MANY_REQUESTS or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR
    return None if overloaded else status == http.HTTPStatus.OK


def _no_credentials(cloud: str, hint: str) -> AccessError:
    return AccessError(f"no {cloud} credentials were found", kind="credentials", hint=hint)
