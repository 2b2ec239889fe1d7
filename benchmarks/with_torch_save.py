"""The naive recipe: the loop waits for ``torch.save`` to a file, and for boto3 to upload it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from boto3.s3.transfer import TransferConfig
from servers import BUCKET, s3_client
from training_state import Training

_BASELINE_STEPS = 10
_STEPS_BETWEEN = 2
_NAME = "checkpoint.pt"
_TUNED_PART = 32 << 20


class Place(Protocol):
    """Where the file goes; both return when it is there whole."""

    def upload(self, path: Path) -> None: ...

    def download(self, path: Path) -> None: ...


class _Bucket:
    """boto3, as it comes or tuned: larger parts, and no checksum of its own."""

    def __init__(self, *, tuned: bool, signed: bool) -> None:
        checksums: dict[str, Any] = {
            "request_checksum_calculation": "when_required", "response_checksum_validation": "when_required",
        }  # fmt: skip
        signing = {"payload_signing_enabled": signed}
        self._client = s3_client(dict(os.environ), s3=signing, **(checksums if tuned else {}))
        self._config = TransferConfig(multipart_chunksize=_TUNED_PART) if tuned else TransferConfig()

    def upload(self, path: Path) -> None:
        with path.open("rb") as file:
            self._client.upload_fileobj(file, BUCKET, _NAME, Config=self._config)

    def download(self, path: Path) -> None:
        with path.open("wb") as file:
            self._client.download_fileobj(BUCKET, _NAME, file, Config=self._config)


class _Folder:
    """Another file, which replaces the older one when its bytes are on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def upload(self, path: Path) -> None:
        _sync(path)
        shutil.move(path, self._folder / _NAME)
        _sync(self._folder)

    def download(self, path: Path) -> None:
        path.symlink_to(self._folder / _NAME)  # torch.load reads it where it is


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _scratch(folder: str) -> Iterator[Path]:
    """A file's path beside the folder store, so that a move is a rename; or in the usual place for a bucket."""
    with tempfile.TemporaryDirectory(prefix="naive-", dir=folder or None) as name:
        yield Path(name, _NAME)


def _place(folder: str, *, tuned: bool, signed: bool) -> Place:
    return _Folder(Path(folder, "naive")) if folder else _Bucket(tuned=tuned, signed=signed)


def save(folder: str, training: Training, saves: int, *, tuned: bool, signed: bool) -> dict[str, Any]:
    """Train two steps and save, ``saves`` times; ``folder`` is "" for the bucket."""
    place = _place(folder, tuned=tuned, signed=signed)
    baseline = training.baseline(_BASELINE_STEPS)
    done: list[dict[str, Any]] = []
    digests: list[str] = []
    for _ in range(saves):
        for _ in range(_STEPS_BETWEEN):
            took = training.timed_step()
            if done:
                done[-1]["lost"] += took - baseline
        digests = training.newest_digests
        with _scratch(folder) as path:
            done.append(_save_once(place, path, training))
    done[-1]["lost"] = None  # no step came after it
    training.step()
    return {"saves": done, "baseline_step": baseline, "digests": digests}


def _save_once(place: Place, path: Path, training: Training) -> dict[str, Any]:
    began = time.monotonic()
    torch.save(training.state(), path)
    written, stored = time.monotonic(), path.stat().st_size
    place.upload(path)
    stall = time.monotonic() - began
    return {"stall": stall, "durable": stall, "lost": stall, "torch_save": written - began, "stored": stored}


def restore(folder: str, training: Training, *, tuned: bool, signed: bool) -> dict[str, Any]:
    """Download, ``torch.load``, ``load_state_dict``."""
    began = time.monotonic()
    place = _place(folder, tuned=tuned, signed=signed)
    ready = time.monotonic()
    with _scratch(folder) as path:
        place.download(path)
        training.load(torch.load(path, map_location="cpu", weights_only=True))
        ended = time.monotonic()
    return {"restore": ended - ready, "open_and_restore": ended - began, "digests": training.digests()}
