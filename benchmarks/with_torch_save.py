"""The naive recipe: the loop waits for ``torch.save`` to a file, and for boto3 to upload it."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from boto3.s3.transfer import TransferConfig
from method import Place
from servers import BUCKET, s3_client
from training_state import Training

_NAME = "checkpoint-{:06d}.pt"
_TUNED_PART = 32 << 20


class TorchSave:
    """``torch.save`` in the loop.

    Args:
        place: where to.
        training: what.
        tuned: boto3 with larger parts and without checksums of its own, instead of as it comes.
    """

    def __init__(self, place: Place, training: Training, *, tuned: bool = False) -> None:
        self._place = place
        self._training = training
        self._tuned = tuned
        self._durable: list[float] = []

    def open(self, every: int) -> None:  # noqa: ARG002 - the loop says when
        if not self._place.folder:
            self._client, self._config = _boto3(tuned=self._tuned, signed=self._place.signed)

    def boundary(self, step: int, *, due: bool) -> bool:
        if due:
            self._save(step)
            self._durable.append(time.time())
        return due

    def _save(self, step: int) -> None:
        state, name = self._training.state(), _NAME.format(step)
        if self._place.folder:
            save_durably(state, Path(self._place.folder, name))
            return
        with tempfile.TemporaryDirectory(prefix="naive-") as folder:
            path = Path(folder, name)
            torch.save(state, path)
            with path.open("rb") as file:
                self._client.upload_fileobj(file, BUCKET, name, Config=self._config)

    def close(self) -> list[float]:
        return self._durable

    def restore(self) -> dict[str, Any]:
        began = time.monotonic()
        self.open(0)
        ready = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="naive-") as folder:
            path = self._newest(Path(folder))
            self._training.load(torch.load(path, map_location="cpu", weights_only=True))
            ended = time.monotonic()
        return {"restore": ended - ready, "open_and_restore": ended - began}

    def _newest(self, scratch: Path) -> Path:
        if self._place.folder:
            return max(Path(self._place.folder).glob(_NAME.format(0).replace("000000", "*")))
        listed = self._client.list_objects_v2(Bucket=BUCKET)["Contents"]
        path = scratch / "checkpoint.pt"
        with path.open("wb") as file:
            name = max(found["Key"] for found in listed)
            self._client.download_fileobj(BUCKET, name, file, Config=self._config)
        return path


def _boto3(*, tuned: bool, signed: bool) -> tuple[Any, TransferConfig]:
    checksums: dict[str, Any] = {
        "request_checksum_calculation": "when_required", "response_checksum_validation": "when_required",
    }  # fmt: skip
    client = s3_client(dict(os.environ), s3={"payload_signing_enabled": signed}, **(checksums if tuned else {}))
    return client, TransferConfig(multipart_chunksize=_TUNED_PART) if tuned else TransferConfig()


def save_durably(state: dict[str, Any], path: Path) -> None:
    """``torch.save`` beside the path, fsync, rename, fsync of the folder."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    torch.save(state, unfinished)
    _sync(unfinished)
    unfinished.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
