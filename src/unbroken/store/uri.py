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
from unbroken.store.credentials import aws_needs_profile, require_aws, require_azure, require_google
from unbroken.store.endpoints import endpoint_of
from unbroken.store.folder import FolderStore, sync_folder
from unbroken.store.objects import ObjectStore
from unbroken.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import ClientConfig, RetryConfig, S3Config

    _Connect = Callable[[ClientConfig], Any]

_BUCKET_SCHEMES = {"s3": "S3 bucket", "gs": "Google Cloud Storage bucket", "az": "Azure Blob container"}
_EXAMPLES = "Write s3://bucket/path, gs://bucket/path, az://account/container/path, file:///path or a plain path"

# obstore's read timeout counts from the start of a request to the beginning of its answer, and then anew with each
# read: a stalled download ends after it however long a healthy one may take, but an upload must have been sent by then.
_CLIENT: ClientConfig = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(seconds=180),
}
_UPLOADS: ClientConfig = {**_CLIENT, "read_timeout": timedelta(seconds=90)}
"""A part of 16 MiB then needs 0.2 MB/s, and a stalled one is sent again while most notices still run."""
_RETRY: RetryConfig = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=180),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
}


@dataclass(frozen=True)
class StoreURI:
    """A run URI taken apart. ``account`` is for Azure alone; a folder has an empty ``bucket`` and an
    absolute ``path``."""

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
    if not text.isprintable():
        raise ConfigError(f"{text!r} holds characters that cannot be printed", kind="uri", hint=_EXAMPLES)
    if "://" not in text:
        return _folder_uri(text, text)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ConfigError("the run URI is not well formed", kind="uri", hint=_EXAMPLES) from error
    if "@" in parts.netloc or (parts.scheme in _BUCKET_SCHEMES and ":" in parts.netloc):
        raise ConfigError(  # the text may hold a secret: do not repeat it
            f"the {parts.scheme} URI holds a user, password or port",
            kind="uri",
            hint="Credentials and endpoints come from the environment, never from the URI",
        )
    if parts.scheme not in (*_BUCKET_SCHEMES, "file"):
        raise ConfigError(f"{text!r} has the unknown scheme {parts.scheme!r}", kind="uri", hint=_EXAMPLES)
    if "?" in text or "#" in text:
        raise ConfigError(
            f"the {parts.scheme} URI has a query or fragment",
            kind="uri",
            hint="Set endpoints and regions in the environment instead",
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(
                f"{text!r} names the host {parts.netloc!r}",
                kind="uri",
                hint="A folder needs three slashes: file:///path",
            )
        return _folder_uri(text, unquote(parts.path))
    return _bucket_uri(text, parts.scheme, parts.netloc, parts.path)


def _folder_uri(text: str, path: str) -> StoreURI:
    try:
        folder = os.path.abspath(Path(path).expanduser()) if path else "/"  # noqa: PTH100 - takes out ".."
    except RuntimeError as error:
        raise ConfigError(f"{text!r} names the home of an unknown user", kind="uri") from error
    if folder.strip("/") == "" or "\0" in folder:
        raise ConfigError(f"{text!r} names no folder of its own", kind="uri", hint=_EXAMPLES)
    return StoreURI("file", "", folder)


def _bucket_uri(text: str, scheme: str, host: str, path: str) -> StoreURI:
    what = _BUCKET_SCHEMES[scheme]
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
        AccessError: the folder may not be made, or no credentials for the cloud were found.
    """
    where = parse_uri(uri)
    if where.scheme == "file":
        return _open_folder(where, create=create)
    try:
        return _open_bucket(where)
    except BaseError as error:
        raise ConfigError(
            f"{where} cannot be opened: {str(error).splitlines()[0]}", kind="store-config",
            hint="Check the cloud's environment variables (endpoint, region, account)",
        ) from error  # fmt: skip


def _open_folder(where: StoreURI, *, create: bool) -> Store:
    folder = Path(where.path)
    try:
        # In this order: a folder that another process makes meanwhile must not look like a file.
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file, not a folder", kind="uri", hint="Name a folder for the run")
        if not folder.exists():
            if not create:
                raise NotFoundError(f"there is no folder {folder}", kind="folder", hint="Check the path of the run")
            _make_folder(folder)
    except OSError as error:
        raise AccessError(
            f"the folder {folder} cannot be opened or made ({error.strerror})", kind="folder",
            hint="Choose a folder that this user may write",
        ) from error  # fmt: skip
    return FolderStore(folder)


def _make_folder(folder: Path) -> None:
    """Make it with all parents, and have their names on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def _open_bucket(where: StoreURI) -> ObjectStore:
    endpoint = endpoint_of(where.scheme)
    connect = {"s3": _s3, "gs": _gcs, "az": _azure}[where.scheme](where, endpoint)
    backend, uploads = (connect(_allowing_http(client, endpoint)) for client in (_CLIENT, _UPLOADS))
    return ObjectStore(backend, str(where), uploads=uploads)


def _s3(where: StoreURI, endpoint: str) -> _Connect:
    config: S3Config = {}
    if not _is_plain(endpoint):
        # TLS already protects the body on its way; signing its hash as well costs four times the CPU.
        config["unsigned_payload"] = True
    options: dict[str, Any] = {"retry_config": _RETRY}
    if aws_needs_profile():
        from unbroken.store.profile import ProfileCredentials

        profile = ProfileCredentials()
        if profile.region and not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
            config["region"] = profile.region
        options["credential_provider"] = profile
    else:
        require_aws()
    return lambda client: obs.S3Store(
        where.bucket, prefix=where.path, config=config or None, client_options=client, **options
    )


def _gcs(where: StoreURI, _endpoint: str) -> _Connect:
    require_google()
    return lambda client: obs.GCSStore(where.bucket, prefix=where.path, client_options=client, retry_config=_RETRY)


def _azure(where: StoreURI, _endpoint: str) -> _Connect:
    require_azure()
    return lambda client: obs.AzureStore(
        where.bucket, prefix=where.path, account_name=where.account, client_options=client, retry_config=_RETRY
    )


def _is_plain(endpoint: str) -> bool:
    return endpoint.lower().startswith("http://")


def _allowing_http(client: ClientConfig, endpoint: str) -> ClientConfig:
    """Plain http is allowed exactly where the user's own endpoint asks for it."""
    return {**client, "allow_http": True} if _is_plain(endpoint) else client
