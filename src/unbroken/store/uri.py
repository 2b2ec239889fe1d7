"""Run URIs and how each becomes a store, with the credentials of each cloud's usual chain."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from obstore import store as obs
from obstore.exceptions import BaseError

from unbroken.errors import AccessError, ConfigError, NotFoundError
from unbroken.store.objects import FolderStore, ObjectStore
from unbroken.store.store import Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_BUCKET_SCHEMES = {"s3": "S3 bucket", "gs": "Google Cloud Storage bucket", "az": "Azure Blob container"}
_EXAMPLES = "Write s3://bucket/path, gs://bucket/path, az://account/container/path, file:///path or a plain path"

# obstore's own default of 30 s bounds a whole request: too short for a 16 MiB part on a slow line.
_CLIENT: ClientConfig = {"timeout": timedelta(seconds=180), "connect_timeout": timedelta(seconds=5)}
_RETRY: RetryConfig = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=180),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
}


@dataclass(frozen=True)
class StoreURI:
    """A run URI taken apart. ``account`` is for Azure alone; a folder has an empty ``bucket`` and an absolute ``path``."""

    scheme: str
    bucket: str
    path: str
    account: str = ""

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.path
        place = "/".join(part for part in (self.account, self.bucket, self.path) if part)
        return f"{self.scheme}://{place}"


def parse_uri(text: str) -> StoreURI:
    """Take a run URI apart.

    Raises:
        ConfigError: unknown scheme, no bucket, no path below the bucket, or parts that a run URI cannot have.
    """
    if not text.strip():
        raise ConfigError("the run URI is empty", kind="uri", hint=_EXAMPLES)
    if "://" not in text:
        return StoreURI("file", "", str(Path(text).expanduser().absolute()))
    parts = urlsplit(text)
    if parts.query or parts.fragment:
        raise ConfigError(
            f"{text!r} has a query or fragment", kind="uri", hint="Set endpoints and regions in the environment instead"
        )
    if parts.scheme == "file":
        return _folder_uri(text, parts.netloc, unquote(parts.path))
    if parts.scheme not in _BUCKET_SCHEMES:
        raise ConfigError(f"{text!r} has the unknown scheme {parts.scheme!r}", kind="uri", hint=_EXAMPLES)
    return _bucket_uri(text, parts.scheme, parts.netloc, parts.path)


def _folder_uri(text: str, host: str, path: str) -> StoreURI:
    if host not in ("", "localhost") or not path:
        raise ConfigError(
            f"{text!r} names the host {host!r}", kind="uri", hint="A folder needs three slashes: file:///path"
        )
    return StoreURI("file", "", path.rstrip("/") or "/")


def _bucket_uri(text: str, scheme: str, host: str, path: str) -> StoreURI:
    what = _BUCKET_SCHEMES[scheme]
    if "@" in host or ":" in host:
        raise ConfigError(
            f"the {what} in the URI holds a user, password or port", kind="uri",
            hint="Credentials and endpoints come from the environment, never from the URI",
        )  # fmt: skip
    path = path.strip("/")
    account = ""
    if scheme == "az":
        account, (host, _, path) = host, path.partition("/")
    if not host or (scheme == "az" and not account):
        raise ConfigError(f"{text!r} names no {what}", kind="uri", hint=_EXAMPLES)
    if not path:
        raise ConfigError(
            f"{text!r} names no path below the {what}", kind="uri",
            hint=f"Give each run a prefix of its own, such as {text.rstrip('/')}/my-run",
        )  # fmt: skip
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ConfigError(f"{text!r} has an empty, '.' or '..' path component", kind="uri", hint=_EXAMPLES)
    return StoreURI(scheme, host, path, account)


def open_store(uri: str, *, create: bool = False) -> Store:
    """Open the store that ``uri`` names. Buckets must exist.

    Args:
        uri: see :func:`parse_uri`.
        create: make the folder of a ``file`` URI where it is missing.

    Raises:
        ConfigError: the URI, or the environment's configuration for it, is wrong.
        NotFoundError: a folder that is not there, with ``create`` false.
        AccessError: the folder may not be made, or the cloud's credentials cannot be loaded.
    """
    where = parse_uri(uri)
    if where.scheme == "file":
        return _open_folder(where, create=create)
    try:
        return ObjectStore(_open_bucket(where), str(where))
    except BaseError as error:
        raise ConfigError(
            f"{where} cannot be opened: {str(error).splitlines()[0]}", kind="store-config",
            hint="Check the cloud's environment variables (endpoint, region, account)",
        ) from error  # fmt: skip


def _open_folder(where: StoreURI, *, create: bool) -> Store:
    folder = Path(where.path)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a folder", kind="uri", hint="Name a folder for the run")
    if not folder.is_dir():
        if not create:
            raise NotFoundError(f"there is no folder {folder}", kind="folder", hint="Check the path of the run")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AccessError(
                f"the folder {folder} cannot be made ({error.strerror})", kind="folder",
                hint="Choose a folder that this user may write",
            ) from error  # fmt: skip
    return FolderStore(obs.LocalStore(folder), str(where), folder)


def _open_bucket(where: StoreURI) -> Any:
    if where.scheme == "s3":
        return _open_s3(where)
    if where.scheme == "gs":
        return obs.GCSStore(
            where.bucket, prefix=where.path, client_options=_allowing_http(_gcs_endpoint()), retry_config=_RETRY
        )
    return obs.AzureStore(
        where.bucket, prefix=where.path, account_name=where.account,
        client_options=_allowing_http(os.environ.get("AZURE_ENDPOINT", "")), retry_config=_RETRY,
    )  # fmt: skip


def _open_s3(where: StoreURI) -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT", "")
    config: dict[str, Any] = {}
    if not endpoint.startswith("http://"):
        # TLS already protects the body on its way; signing its hash as well costs four times the CPU.
        config["unsigned_payload"] = True
    options = {"client_options": _allowing_http(endpoint), "retry_config": _RETRY}
    if _needs_profile():
        from unbroken.store.profile import ProfileCredentials

        profile = ProfileCredentials()
        if profile.region and not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
            config["region"] = profile.region
        options["credential_provider"] = profile
    return obs.S3Store(where.bucket, prefix=where.path, config=config or None, **options)  # type: ignore[arg-type]


def _needs_profile() -> bool:
    """Whether credentials are in a profile, which obstore's own chain does not read.

    The order is the AWS SDKs': keys in the environment, then a profile, then web identity, container and instance roles; but a
    profile that was not named is used only where nothing in the environment gives credentials.
    """
    if os.environ.get("AWS_PROFILE"):
        return True
    given = (
        "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )  # fmt: skip
    if any(os.environ.get(name) for name in given) or os.environ.get("AWS_SKIP_SIGNATURE"):
        return False
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    return any(Path(name).expanduser().is_file() for name in files)


def _gcs_endpoint() -> str:
    return os.environ.get("GOOGLE_BASE_URL", "")


def _allowing_http(endpoint: str) -> ClientConfig:
    """Plain http is allowed exactly where the user's own endpoint asks for it."""
    return {**_CLIENT, "allow_http": True} if endpoint.startswith("http://") else _CLIENT
