"""What only a folder can get wrong: disks that are full, read-only or lose power, and odd file systems."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unbroken.errors import AccessError, ConfigError, NotFoundError, StoreError
from unbroken.store import Store, open_store
from unbroken.store.folder import PARTIAL

MiB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def store(folder: Path) -> Store:
    return open_store(str(folder), create=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs root: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestDurability:
    @pytest.mark.parametrize("write", ["create", "put", "put-over"])
    def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(
        self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, write: str
    ) -> None:
        if write == "put-over":
            store.put("packs/1/a", [b"old"])
        done: list[str] = []
        fsync, link, replace = os.fsync, os.link, Path.replace

        def note_fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            done.append(str(path.relative_to(folder)) if path.is_dir() else "bytes")
            fsync(descriptor)

        def note_link(*args: Any, **options: Any) -> None:
            link(*args, **options)
            done.append("name")

        def note_replace(source: Path, target: Path) -> Path:
            done.append("new name")
            return replace(source, target)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "link", note_link)
        monkeypatch.setattr(Path, "replace", note_replace)
        if write == "create":
            assert store.create("packs/1/a", b"x")
        else:
            store.put("packs/1/a", [b"x", b"y"])
        named = ["name", "new name"] if write == "put-over" else ["name"]
        assert done == ["bytes", *named, "packs/1", "packs", "."]

    def test_a_new_run_folder_has_its_name_on_the_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[str] = []
        fsync = os.fsync

        def note(descriptor: int) -> None:
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        open_store(str(tmp_path / "a" / "b"), create=True)
        assert sorted(synced) == [str(tmp_path), str(tmp_path / "a")]

    @pytest.mark.parametrize("size", [9, 40 * MiB + 9])
    def test_a_write_cut_short_leaves_nothing(self, store: Store, folder: Path, size: int) -> None:
        def cut_short(piece: int) -> None:
            told.append(piece)
            if sum(told) == 2 * size:
                raise KeyboardInterrupt

        store.put("p", [b"old"])
        for key in ("p", "q"):
            told: list[int] = []
            with pytest.raises(KeyboardInterrupt):
                store.put(key, [bytes(size), bytes(size), bytes(size)], on_piece=cut_short)
        assert store.get("p") == b"old"
        assert files_below(folder) == ["p"]


class TestOddFileSystems:
    def test_without_unnamed_files_objects_are_whole_and_no_partial_is_listed(
        self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        during: list[list[str]] = []
        listed: list[list[str]] = []
        open_file, fsync = os.open, os.fsync

        def refuse_unnamed(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return open_file(path, flags, *args, **options)

        def look(descriptor: int) -> None:
            during.append([name for name in files_below(folder) if name.startswith(PARTIAL)])
            listed.append([info.key for info in store.list("")])
            fsync(descriptor)

        monkeypatch.setattr(os, "open", refuse_unnamed)
        monkeypatch.setattr(os, "fsync", look)
        assert store.create("a/b", b"one")
        assert not store.create("a/b", b"two")
        store.put("a/b", [b"three"])
        assert len(during[0]) == 1
        assert listed[0] == []
        assert store.get("a/b") == b"three"
        assert files_below(folder) == ["a/b"]

    def test_without_hard_links_a_create_is_refused(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **options: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        with pytest.raises(StoreError) as caught:
            store.create("run.json", b"x")
        assert caught.value.kind == "create-only"
        assert list(store.list("")) == []


class TestDisks:
    def test_a_full_disk_is_said_and_shows_no_half_written_object(self, small_disk: Path) -> None:
        store = open_store(str(small_disk / "run"), create=True)
        store.put("small", [bytes(MiB)])
        writes: list[Callable[[], object]] = [
            lambda: store.put("large", [bytes(512 << 10), bytes(2 * MiB)]),
            lambda: store.create("entry", bytes(2 * MiB)),
            lambda: store.put("small", [bytes(3 * MiB)]),
        ]
        for write in writes:
            with pytest.raises(StoreError) as caught:
                write()
            assert caught.value.kind == "full"
            assert "No space left" in caught.value.message
        assert files_below(small_disk) == ["run/small"]
        assert store.get("small") == bytes(MiB)
        store.put("after", [bytes(512 << 10)])  # what failed gave its space back

    def test_a_read_only_disk_is_read_and_refuses_writes(self, small_disk: Path) -> None:
        store = open_store(str(small_disk / "run"), create=True)
        store.put("there", [b"x"])
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        writes: list[Callable[[], object]] = [
            lambda: store.create("new", b"x"),
            lambda: store.put("new/deep", [b"x"]),
            lambda: store.delete(["there"]),
        ]
        for write in writes:
            with pytest.raises(AccessError) as caught:
                write()
            assert caught.value.kind == "denied"
        assert store.get("there") == b"x"
        with pytest.raises(AccessError) as caught:
            open_store(str(small_disk / "other"), create=True)
        assert caught.value.kind == "folder"

    def test_a_folder_that_went_away_is_not_taken_for_an_empty_run(self, store: Store, folder: Path) -> None:
        folder.rename(folder.with_name("elsewhere"))
        calls: list[Callable[[], object]] = [
            lambda: store.get("run.json"),
            lambda: store.create("run.json", b"x"),
            lambda: store.put("a/b", [b"x"]),
            lambda: list(store.list("journal")),
        ]
        for call in calls:
            with pytest.raises(NotFoundError) as caught:
                call()
            assert caught.value.kind == "folder"
        assert not folder.exists()


class TestOpening:
    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ConfigError, match="is a file"):
            open_store(str(tmp_path / "file"), create=True)
        with pytest.raises(AccessError) as caught:
            open_store(str(tmp_path / "file" / "below"), create=True)
        assert caught.value.kind == "folder"

    def test_a_missing_folder_is_made_only_where_asked(self, folder: Path) -> None:
        with pytest.raises(NotFoundError) as caught:
            open_store(str(folder))
        assert caught.value.kind == "folder"
        assert not folder.exists()
        assert open_store(folder.as_uri(), create=True).uri == str(folder)
        assert folder.is_dir()
