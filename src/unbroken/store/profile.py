"""Credentials from an AWS profile (shared files, SSO, assumed roles, credential processes), through
botocore."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from unbroken.errors import AccessError, ConfigError

_RECHECK = timedelta(minutes=1)
"""How long obstore may keep what botocore gave it. botocore refreshes by the real expiry each time it is
asked, so a short life here is cheap and never outlives the credentials."""


class ProfileCredentials:
    """A credential provider for ``obstore.store.S3Store`` over botocore's chain.

    Raises:
        ConfigError: boto3 is not installed, or the profile does not exist.
        AccessError: the chain found no credentials.
    """

    def __init__(self) -> None:
        try:
            import botocore.exceptions
            import botocore.session
        except ImportError as error:
            raise ConfigError(
                "AWS credentials are in a profile, and reading profiles needs boto3", kind="extra",
                hint="Install it with: pip install 'unbroken[aws]'",
            ) from error  # fmt: skip
        self._failures: type[Exception] = botocore.exceptions.BotoCoreError
        session = botocore.session.Session()
        try:
            self.region: str | None = session.get_config_variable("region")
            credentials: Any = session.get_credentials()
        except self._failures as error:
            raise ConfigError(
                f"the AWS profile cannot be used: {error}",
                kind="credentials",
                hint="Check AWS_PROFILE and ~/.aws",
            ) from error
        if credentials is None:
            raise AccessError(
                "no AWS credentials were found", kind="credentials",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, log in to a profile, or attach a role",
            )  # fmt: skip
        self._credentials = credentials

    def __call__(self) -> Any:
        try:
            frozen = self._credentials.get_frozen_credentials()
        except self._failures as error:
            raise AccessError(
                f"AWS credentials could not be refreshed: {error}", kind="credentials", hint="Log in again"
            ) from error
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _RECHECK,
        }
