"""Telling an object of a newer format from one that is damaged."""

from __future__ import annotations

import msgspec

from unbroken.checkpoint.manifest import FORMAT
from unbroken.errors import DamagedError, FormatError


class _Version(msgspec.Struct):
    format: int


def require_format(data: bytes, key: str, *, newest: int = FORMAT) -> None:
    """Refuse an object of a newer format than ``newest``, whatever else it holds.

    Raises:
        FormatError: a newer version wrote it.
        DamagedError: it is JSON of nothing that this program ever wrote.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).format
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedError(f"{key} names no format ({error})", kind="no-format") from error
    if version > newest:
        raise FormatError(
            f"{key} has format {version}, and this version reads up to {newest}",
            kind="newer-format", hint="Install a newer unbroken",
        )  # fmt: skip
