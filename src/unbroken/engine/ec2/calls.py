"""Asking AWS: clients with deadlines and few retries, and its refusals as our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.parsers import ResponseParserError

from unbroken.errors import AccessError, ConfigError, UnbrokenError

_DENIED = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "AuthFailure", "InvalidClientTokenId")


def client(service: str, region: str, endpoint: str | None = None) -> Any:
    """A client that answers within some tens of seconds, or fails."""
    settings = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 5, "mode": "standard"})
    session = boto3.session.Session()
    return session.client(service, region_name=region, endpoint_url=endpoint, config=settings)


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Around calls that do ``what``.

    Raises:
        AccessError: AWS refuses it to these credentials; names the action.
        ConfigError: there are no credentials, or AWS finds the definition wrong.
        UnbrokenError: AWS does not answer, or answers with a failure of its own (kind ``engine``).
    """
    try:
        yield
    except NoCredentialsError as error:
        hint = "Set up a profile, an instance role, or AWS_ACCESS_KEY_ID"
        raise ConfigError("there are no AWS credentials here", kind="credentials", hint=hint) from error
    except ClientError as error:
        said, status = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        words = f"{what}: {error.operation_name} was answered with {said.get('Code')}: {said.get('Message', '')}"
        if said.get("Code") in _DENIED:
            hint = f"Allow {error.operation_name} to whoever launches"
            raise AccessError(words, kind="engine", hint=hint) from error
        if int(status.get("HTTPStatusCode", 500)) < 500:
            raise ConfigError(words, kind="ec2", hint="Mend the field ec2 or pools of the job file") from error
        raise UnbrokenError(words, kind="engine", hint="Say it again later") from error
    except (BotoCoreError, ResponseParserError) as error:
        raise UnbrokenError(
            f"{what}: {error}", kind="engine", hint="Is the network up, and the region right?"
        ) from error
