"""Credentials from an AWS profile, against a real server."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from unbroken.errors import AccessError
from unbroken.store import open_store


@pytest.fixture
def profile(s3_environment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The server's keys in a credentials file, under the name ``training``, and nowhere else."""
    file = tmp_path / "credentials"
    file.write_text(
        f"[training]\naws_access_key_id = {s3_environment.access_key}\n"
        f"aws_secret_access_key = {s3_environment.secret_key}\nregion = us-east-1\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    return file


def test_a_named_profile_opens_the_bucket(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "training")
    store = open_store(f"s3://unbroken-tests/{uuid.uuid4().hex}/run")
    assert store.create("a", b"x")
    assert store.get("a") == b"x"


def test_the_default_profile_is_used_where_nothing_else_is_given(profile: Path) -> None:
    profile.write_text(profile.read_text().replace("[training]", "[default]"))
    store = open_store(f"s3://unbroken-tests/{uuid.uuid4().hex}/run")
    assert store.create("a", b"x")


def test_keys_in_the_environment_outrank_an_unnamed_profile(
    profile: Path, s3_environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile.write_text("[default]\naws_access_key_id = someone\naws_secret_access_key = else\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_environment.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_environment.secret_key)
    assert open_store(f"s3://unbroken-tests/{uuid.uuid4().hex}/run").create("a", b"x")


def test_a_profile_with_the_wrong_secret_is_denied(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "not-the-secret-of-this-server"
    kept = [line for line in profile.read_text().splitlines() if "secret" not in line]
    profile.write_text("\n".join([*kept, f"aws_secret_access_key = {secret}"]))
    monkeypatch.setenv("AWS_PROFILE", "training")
    with pytest.raises(AccessError) as caught:
        open_store("s3://unbroken-tests/run").create("a", b"x")
    assert caught.value.kind == "denied"
    assert secret not in str(caught.value)
