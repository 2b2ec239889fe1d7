"""Where credentials come from, and how soon their absence is said."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unbroken.errors import AccessError, ConfigError
from unbroken.store import open_store
from unbroken.store.credentials import METADATA_SECONDS

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
    for uri in ("s3://bucket/run", "gs://bucket/run"):
        begin = time.monotonic()
        refused(uri)
        assert time.monotonic() - begin < METADATA_SECONDS + MARGIN


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
