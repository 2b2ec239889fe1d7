"""What the checks of a store find, and that they leave it as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unbroken.doctor import CHECKS, Place, examine, exit_code_of, probe, store_bandwidth
from unbroken.errors import EXIT_DENIED, EXIT_IO, AccessError, StoreError
from unbroken.store import open_store

_STORE_CHECKS = [check for check in CHECKS if check.name in ("store", "clock", "bandwidth")]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which not even root can write."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"root without the right to mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class _Altered:
    """A store with some methods of another kind."""

    def __init__(self, store: Any, **methods: Any) -> None:
        self._store = store
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _alter(monkeypatch: pytest.MonkeyPatch, **methods: Any) -> None:
    monkeypatch.setattr(probe, "open_store", lambda uri, **options: _Altered(open_store(uri, **options), **methods))


def test_a_store_that_allows_everything_is_sound_and_left_as_it_was(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_bandwidth, "_SIZES", (1 << 20, 9 << 20))
    monkeypatch.setattr(store_bandwidth, "_ENOUGH", 1e6)
    store = open_store(store_uri, create=True)
    store.put("packs/1", [b"x"])
    before = list(store.list(""))
    found = examine(Place(uri=store_uri, state=1000), _STORE_CHECKS)
    assert [(one.check, one.severity) for one in found] == [("store", "ok"), ("clock", "ok"), ("bandwidth", "ok")]
    assert "an object of 9.4 MB" in found[2].found
    assert list(store.list("")) == before
    if store_uri.startswith("/"):
        assert sorted(path.name for path in Path(store_uri).rglob("*")) == ["1", "packs"]


def test_a_folder_that_was_not_there_is_not_there_afterwards(tmp_path: Path) -> None:
    assert examine(Place(uri=str(tmp_path / "a/b")), _STORE_CHECKS[:1])[0].severity == "ok"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_ends_with_77(read_only: Path) -> None:
    found = examine(Place(uri=str(read_only)), _STORE_CHECKS)
    assert exit_code_of(found) == EXIT_DENIED
    denied = [one for one in found if one.severity == "error"]
    assert [one.found.partition(" of ")[0] for one in denied] == ["put", "put"]
    assert all(one.why and one.todo for one in denied)
    assert [one.found for one in found if one.check in ("clock", "bandwidth")] == [
        "not looked at: mend first what store found"
    ] * 2


def test_wrong_credentials_end_with_77_and_are_not_shown(s3_environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-of-the-user")
    found = examine(Place(uri=f"s3://{s3_environment.bucket}/some/run"), _STORE_CHECKS)
    assert exit_code_of(found) == EXIT_DENIED
    assert "wrong-secret-of-the-user" not in str(found)
    assert "may be left" not in str(found)


def test_a_bucket_that_is_not_there_is_said(s3_environment: Any) -> None:
    found = examine(Place(uri="s3://no-such-bucket/run"), _STORE_CHECKS[:1])
    assert exit_code_of(found) == 10
    assert "the bucket of s3://no-such-bucket/run does not exist" in found[0].found


def test_a_store_that_overwrites_by_a_create_only_put_ends_with_74(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(key: str, data: bytes) -> bool:
        open_store(str(tmp_path)).put(key, [data])
        return True

    _alter(monkeypatch, create=create)
    found = examine(Place(uri=str(tmp_path)), _STORE_CHECKS[:1])
    assert [one.severity for one in found] == ["error"]
    assert "replaced an object" in found[0].found
    assert exit_code_of(found) == EXIT_IO
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_lost_reply_to_a_create_only_put_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(key: str, data: bytes) -> bool:
        open_store(str(tmp_path)).create(key, data)
        return False

    _alter(monkeypatch, create=create)
    assert [one.severity for one in examine(Place(uri=str(tmp_path)), _STORE_CHECKS[:1])] == ["ok"]


def test_a_role_that_may_not_delete_is_a_warning_that_names_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete(keys: list[str]) -> None:
        raise AccessError("delete was denied")

    _alter(monkeypatch, delete=delete)
    found = examine(Place(uri=str(tmp_path)), _STORE_CHECKS)
    assert [one.severity for one in found] == ["warning", "note", "note"]
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == 2  # and no object of the bandwidth
    assert all(key in found[0].found for key in left)
    assert exit_code_of(found) == 0


def test_a_listing_that_lacks_what_was_put_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _alter(monkeypatch, list=lambda prefix: iter([]))
    found = examine(Place(uri=str(tmp_path)), _STORE_CHECKS[:1])
    assert "lacks objects" in found[0].found
    assert exit_code_of(found) == EXIT_IO


def test_without_a_run_the_store_s_checks_say_so() -> None:
    assert [one.severity for one in examine(Place(), _STORE_CHECKS)] == ["note"] * 3


def test_a_store_that_cannot_be_reached_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StoreError("nobody is there")

    _alter(monkeypatch, put=fail, create=fail, get_range=fail, list=fail, delete=fail)
    found = examine(Place(uri=str(tmp_path)), _STORE_CHECKS[:1])
    assert [(one.severity, one.found) for one in found] == [("error", "nobody is there")]
    assert exit_code_of(found) == EXIT_IO
    assert found[0].todo


def test_a_clock_that_the_store_refuses_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AccessError("put failed: access was denied (RequestTimeTooSkewed: the difference is too large)")

    _alter(monkeypatch, put=refuse)
    (found,) = examine(Place(uri=str(tmp_path)), _STORE_CHECKS[:1])
    assert (found.severity, found.exit_code) == ("error", EXIT_DENIED)
    assert "clock by NTP" in found.todo
