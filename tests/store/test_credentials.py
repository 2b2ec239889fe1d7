"""Where credentials come from, and how soon their absence is said."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from unbroken.errors import AccessError, ConfigError
from unbroken.store import credentials, open_store
from unbroken.store.credentials import METADATA_PAUSES, METADATA_SECONDS

MARGIN = 5.0
"""Seconds that a loaded machine may add."""

_SETTINGS = ("AWS_", "GOOGLE_", "GCE_", "AZURE_", "IDENTITY_ENDPOINT")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(_SETTINGS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def silence() -> Iterator[str]:
    """The address of somebody who accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refused(uri: str) -> AccessError:
    with pytest.raises(AccessError) as caught:
        open_store(uri)
    assert caught.value.kind == "credentials"
    assert caught.value.hint
    return caught.value


def test_no_credentials_and_no_instance_role_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "AWS_ACCESS_KEY_ID" in refused("s3://bucket/run").hint


def test_a_metadata_service_that_never_answers_is_given_up(silence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://{silence}")
    monkeypatch.setenv("GCE_METADATA_HOST", silence)
    assert (len(METADATA_PAUSES) + 1) * METADATA_SECONDS + sum(METADATA_PAUSES) <= 8
    monkeypatch.setattr(credentials, "METADATA_SECONDS", 0.2)
    monkeypatch.setattr(credentials, "METADATA_PAUSES", (0.0, 0.0))
    for uri in ("s3://bucket/run", "gs://bucket/run"):
        begin = time.monotonic()
        refused(uri)
        assert time.monotonic() - begin < 3 * 0.2 + MARGIN


class MetadataService:
    """Gives its answers one after another, one to a connection, and then the last again; None is silence."""

    def __init__(self, server: socket.socket, answers: Sequence[int | None]) -> None:
        self.address = f"127.0.0.1:{server.getsockname()[1]}"
        self.asked = 0
        self._server = server
        self._answers = answers
        self._silent: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> MetadataService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        for connection in self._silent:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            answer = self._answers[min(self.asked, len(self._answers) - 1)]
            self.asked += 1
            if answer is None:
                self._silent.append(connection)
                continue
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {answer} X\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., MetadataService]]:
    """Starts a metadata service for AWS, which is then asked without pauses."""
    monkeypatch.setattr(credentials, "METADATA_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(credentials, "METADATA_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:

        def start(*answers: int | None) -> MetadataService:
            service = stack.enter_context(MetadataService(server, answers))
            monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://{service.address}")
            return service

        yield start


@pytest.mark.parametrize("trouble", [None, 429, 500, 503])
def test_a_metadata_service_that_is_busy_at_first_is_asked_again(
    metadata: Callable[..., MetadataService], trouble: int | None
) -> None:
    service = metadata(trouble, trouble, 200)
    assert open_store("s3://bucket/run").uri == "s3://bucket/run"
    assert service.asked == 3


@pytest.mark.parametrize("answer", [403, 404])
def test_a_metadata_service_that_says_no_is_asked_once(metadata: Callable[..., MetadataService], answer: int) -> None:
    service = metadata(answer, 200)
    refused("s3://bucket/run")
    assert service.asked == 1


def test_a_metadata_service_is_asked_three_times_and_no_more(metadata: Callable[..., MetadataService]) -> None:
    service = metadata(503)
    refused("s3://bucket/run")
    assert service.asked == 3


def test_where_nobody_listens_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(credentials, "METADATA_PAUSES", (3600.0,))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port}")
    refused("s3://bucket/run")


@pytest.mark.parametrize(
    "setting", ["AWS_ACCESS_KEY_ID", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_SKIP_SIGNATURE"]
)
def test_with_credentials_in_the_environment_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(setting, "true")
    if setting == "AWS_ACCESS_KEY_ID":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert open_store("s3://bucket/run").uri == "s3://bucket/run"


def test_half_a_pair_of_keys_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    with pytest.raises(ConfigError) as caught:
        open_store("s3://bucket/run")
    assert caught.value.kind == "store-config"
    assert "SecretAccessKey" in caught.value.message


def test_a_named_profile_that_does_not_exist_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError) as caught:
        open_store("s3://bucket/run")
    assert "nobody" in caught.value.message


def test_a_profile_file_without_credentials_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    refused("s3://bucket/run")
