"""``torch.distributed.checkpoint`` to S3 through the writer and reader of s3torchconnector."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from method import Place
from s3torchconnector import S3ClientConfig
from s3torchconnector.dcp import S3StorageReader, S3StorageWriter
from servers import BUCKET, s3_client
from training_state import Training
from with_dcp import Dcp

_THREADS = 2


class S3Connector(Dcp):
    """A prefix for each checkpoint. It leaves bodies unsigned by itself.

    Args:
        place: where to.
        training: what.
        how: ``"save"`` or ``"thread"``.
    """

    def __init__(self, place: Place, training: Training, how: str) -> None:
        super().__init__(place, training, how)
        self._region = os.environ["AWS_REGION"]
        self._config = S3ClientConfig(force_path_style=True)

    def writer(self, step: int) -> Any:
        path = f"s3://{BUCKET}/dcp/{step:06d}/"
        return S3StorageWriter(self._region, path, s3client_config=self._config, thread_count=_THREADS)

    def reader(self) -> Any:
        with contextlib.closing(s3_client(dict(os.environ))) as client:
            listed = client.list_objects_v2(Bucket=BUCKET, Prefix="dcp/")["Contents"]
        newest = max(found["Key"] for found in listed if found["Key"].endswith("/.metadata"))
        path = f"s3://{BUCKET}/{newest.removesuffix('.metadata')}"
        return S3StorageReader(self._region, path, s3client_config=self._config)
