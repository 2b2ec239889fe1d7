"""Reading the small objects that the journal, or a manifest, names with their SHA-256."""

from __future__ import annotations

import msgspec

from unbroken.checkpoint.contradictions import contradictions
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.manifest import FORMAT, Manifest
from unbroken.errors import DamagedError, FormatError, NotFoundError, StoreError
from unbroken.journal import CheckpointRecord
from unbroken.store import Store

_MANIFEST = msgspec.json.Decoder(Manifest)


class _Version(msgspec.Struct):
    format: int


def get_committed(store: Store, key: str, expected: str) -> bytes:
    """The bytes of an object whose SHA-256 is known.

    Raises:
        DamagedError: it is not there, or its bytes are not those that were committed.
    """
    try:
        data = store.get(key)
    except NotFoundError as error:
        if error.kind != "object":  # the bucket or the folder itself is away, which says nothing of the object
            raise
        raise DamagedError(f"{key} is missing from {store.uri}, though it was committed", kind="missing") from error
    except StoreError as error:
        if error.kind != "key":
            raise
        raise DamagedError(error.message, kind="key") from error
    if sha256(data) != expected:
        raise DamagedError(f"{key} in {store.uri} is not what was committed (SHA-256 differs)", kind="sha256")
    return data


def require_format(data: bytes, key: str) -> None:
    """Refuse an object of a newer format, whatever else it holds.

    Raises:
        FormatError: a newer version wrote it.
        DamagedError: it is JSON of nothing that this program ever wrote.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).format
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedError(f"{key} names no format ({error})", kind="no-format") from error
    if version > FORMAT:
        raise FormatError(
            f"{key} has format {version}, and this version reads up to {FORMAT}",
            kind="newer-format", hint="Install a newer unbroken",
        )  # fmt: skip


def load_manifest(store: Store, record: CheckpointRecord) -> Manifest:
    """Read the manifest that a journal entry committed.

    Raises:
        DamagedError: it is not there, its bytes are not those that were committed, or it contradicts itself.
        FormatError: a newer version wrote it.
    """
    key = record.event.manifest
    return decode_manifest(get_committed(store, key, record.event.sha256), key)


def decode_manifest(data: bytes, key: str) -> Manifest:
    """Read manifest bytes. What is returned can be followed blindly: no index or size in it leads astray.

    Raises:
        DamagedError: the bytes are no manifest, or what they say cannot be true.
        FormatError: a newer version wrote it.
    """
    require_format(data, key)
    try:
        manifest = _MANIFEST.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedError(f"{key} is no manifest ({error})", kind="manifest") from error
    for found in contradictions(manifest):
        raise DamagedError(f"{key} contradicts itself: {found}", kind="manifest")
    return manifest
