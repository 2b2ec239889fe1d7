"""Run URIs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.store import StoreURI, open_store, parse_uri

SECRET = "not-a-real-secret"

_name = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=3, max_size=20)
_component = st.text(
    st.characters(categories=["L", "N"], include_characters=" -_.=+%~@:"), min_size=1, max_size=12
).filter(lambda part: part not in (".", "..") and part.isprintable())
_path = st.lists(_component, min_size=1, max_size=5).map("/".join)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("s3://bucket/run", StoreURI("s3", "bucket", "run")),
        ("s3://bucket/a/b/run/", StoreURI("s3", "bucket", "a/b/run")),
        ("S3://bucket/Run", StoreURI("s3", "bucket", "Run")),
        ("gs://bucket/run", StoreURI("gs", "bucket", "run")),
        ("az://account/container/a/run", StoreURI("az", "container", "a/run", account="account")),
        ("/data/run", StoreURI("file", "", "/data/run")),
        ("/data/other/../run/", StoreURI("file", "", "/data/run")),
        ("file:///data/run", StoreURI("file", "", "/data/run")),
        ("file://localhost/data/my%20run", StoreURI("file", "", "/data/my run")),
    ],
)
def test_uri_is_taken_apart(text: str, uri: StoreURI) -> None:
    assert parse_uri(text) == uri


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("s3://", "names no S3 bucket"),
        ("s3:///run", "names no S3 bucket"),
        ("s3://bucket", "names no path"),
        ("s3://bucket/", "names no path"),
        ("az://account", "names no Azure"),
        ("az://account/container", "names no path"),
        ("s3://bucket/a/../b", "'..'"),
        ("s3://bucket/./b", "'.'"),
        ("s3://bucket/a//b", "empty"),
        ("s3://bucket/run?versionId=1", "query"),
        ("s3://bucket/run?", "query"),
        ("s3://bucket/run#part", "fragment"),
        ("file:///data/run?x=1", "query"),
        ("s3://bucket:9000/run", "port"),
        ("s3://[::1/run", "not well formed"),
        ("ftp://host/run", "unknown scheme 'ftp'"),
        ("https://bucket.s3.amazonaws.com/run", "unknown scheme 'https'"),
        ("://run", "unknown scheme ''"),
        ("file://host/run", "names the host 'host'"),
        ("file://", "no folder of its own"),
        ("file:///", "no folder of its own"),
        ("/", "no folder of its own"),
        ("file:///run%00", "no folder of its own"),
        ("s3://bucket/a\nb", "cannot be printed"),
        ("/run\0", "cannot be printed"),
        ("~no-such-user/run", "unknown user"),
    ],
)
def test_bad_uri_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_uri(text)
    assert reason in caught.value.message
    assert (caught.value.kind, caught.value.exit_code) == ("uri", 78)


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIAEXAMPLE:{SECRET}@bucket/run",
        f"s3://{SECRET}@bucket/run?x=1",
        f"https://user:{SECRET}@host/run",
        f"az://account/container/run?sv=2024&sig={SECRET}",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(text)
    assert SECRET not in str(caught.value)
    assert caught.value.kind == "uri"


def test_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_uri("runs/a") == StoreURI("file", "", str(tmp_path / "runs/a"))
    assert parse_uri("../a").path == str(tmp_path.parent / "a")
    assert parse_uri(".").path == str(tmp_path)


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_uri("~/run").path == str(tmp_path / "run")


@given(scheme=st.sampled_from(["s3", "gs"]), bucket=_name, path=_path)
def test_bucket_uri_comes_back_as_it_was_written(scheme: str, bucket: str, path: str) -> None:
    uri = StoreURI(scheme, bucket, path)
    assert parse_uri(str(uri)) == uri
    assert str(uri) == f"{scheme}://{bucket}/{path}"


@given(account=_name, container=_name, path=_path)
def test_azure_uri_comes_back_as_it_was_written(account: str, container: str, path: str) -> None:
    uri = StoreURI("az", container, path, account=account)
    assert parse_uri(str(uri)) == uri


@given(path=_path)
def test_folder_comes_back_as_it_was_written(path: str) -> None:
    uri = parse_uri("/" + path)
    assert uri == StoreURI("file", "", "/" + path)
    assert parse_uri(str(uri)) == uri


@given(text=st.text())
def test_any_text_is_a_uri_or_a_configuration_error(text: str) -> None:
    try:
        uri = parse_uri(text)
    except ConfigError:
        return
    assert uri.path
    assert ".." not in uri.path.split("/")
    assert parse_uri(str(uri)) == uri
