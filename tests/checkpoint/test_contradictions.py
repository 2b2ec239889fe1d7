"""Manifests whose digest agrees and which nevertheless cannot be true."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoint.conftest import Attempt, restore, state_of, tensor_of

from unbroken.checkpoint import Manifest, verify_checkpoint
from unbroken.checkpoint.committed import decode_manifest
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.manifest import FORMAT
from unbroken.errors import DamagedError, FormatError, UnbrokenError
from unbroken.journal import Origin
from unbroken.journal.events import CheckpointCommitted
from unbroken.store import Store

Change = Callable[[dict[str, Any]], None]


def sound() -> dict[str, Any]:
    piece = {"offset": [0, 0], "shape": [2, 3], "pack": 0, "start": 128, "length": 24, "digests": ["ab" * 16]}
    empty = {"offset": [0], "shape": [0], "pack": 0, "start": 152, "length": 0, "digests": []}
    return {
        "format": 1, "run": "r", "step": 5, "attempt": 1, "nonce": "n", "created_at": 1.0, "world_size": 1,
        "parent": "",
        "state": {"w": {"$tensor": "w"}, "e": {"$ndarray": "e"}},
        "tensors": [
            {"name": "w", "dtype": "float32", "shape": [2, 3], "slices": [piece]},
            {"name": "e", "dtype": "float32", "shape": [0], "slices": [empty]},
        ],
        "packs": [{"key": "packs/1/a", "size": 152, "header_size": 128, "header_digest": "cd" * 16}],
        "ranks": [],
    }  # fmt: skip


def put(value: Any, *path: str | int) -> Change:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


def decode(document: Any) -> Manifest:
    return decode_manifest(json.dumps(document).encode(), "manifests/x.json", no_record)


def no_record(key: str, sha256: str) -> bytes:
    raise DamagedError(f"{key} is missing", kind="missing")


PIECE = ("tensors", 0, "slices", 0)


def test_a_sound_manifest_is_read_and_fields_that_we_do_not_know_are_passed_over() -> None:
    manifest = decode({**sound(), "later": 1})
    assert [each.name for each in manifest.tensors] == ["w", "e"]
    assert manifest.size == 24


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put(-1, "step"), "step -1"),
        (put(0, "attempt"), "attempt 0"),
        (put(0, "world_size"), "world size 0"),
        (put(1, *PIECE, "pack"), "pack 1 of 1"),
        (put(-1, *PIECE, "pack"), "pack -1 of 1"),
        (put([], "packs"), "pack 0 of 0"),
        (put(-8, *PIECE, "start"), "outside its data"),
        (put(0, *PIECE, "start"), "outside its data"),
        (put(132, *PIECE, "start"), "outside its data"),
        (put(-24, *PIECE, "length"), "its slice -24"),
        (put(20, *PIECE, "length"), "its slice 20"),
        (put([], *PIECE, "digests"), "0 digests"),
        (put(["ab" * 16] * 2, *PIECE, "digests"), "2 digests"),
        (put([-2, -3], "tensors", 0, "shape"), "[-2, -3]"),
        (put("float64", "tensors", 0, "dtype"), "48 bytes"),
        (put("e", "tensors", 0, "name"), "e is listed 2 times"),
        (put("v", "state", "w", "$tensor"), "v, which is in no pack"),
        (put("v", "state", "e", "$ndarray"), "v, which is in no pack"),
        (put("run.json", "packs", 0, "key"), "'run.json'"),
        (put("packs/../../secret", "packs", 0, "key"), "packs/../../secret"),
        (put("/packs/a", "packs", 0, "key"), "'/packs/a'"),
        (put("packs", "packs", 0, "key"), "'packs'"),
        (put(7, "packs", 0, "header_size"), "7 of them before"),
        (put(153, "packs", 0, "header_size"), "153 of them before"),
        (put(-1, "packs", 0, "size"), "-1 bytes"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_damage_and_names_what(change: Change, named: str) -> None:
    document = sound()
    change(document)
    with pytest.raises(DamagedError) as caught:
        decode(document)
    assert (caught.value.kind, caught.value.exit_code) == ("manifest", 12)
    assert named in caught.value.message
    assert "manifests/x.json" in caught.value.message


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "no-format"),
        (b"[]", "no-format"),
        (b"\xff", "no-format"),
        (b'{"format": "1"}', "no-format"),
        (b"[" * 100_000, "no-format"),
        (b'{"format": 1}', "manifest"),
        (json.dumps({**sound(), "tensors": None}).encode(), "manifest"),
        (b'{"format": 1, "state": ' + b"[" * 100_000, "manifest"),
    ],
)
def test_bytes_that_are_no_manifest_are_damage(data: bytes, kind: str) -> None:
    with pytest.raises(DamagedError) as caught:
        decode_manifest(data, "manifests/x.json", no_record)
    assert caught.value.kind in (kind, "no-format")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (put(FORMAT + 1, "format"), "newer-format"),
        (put("float3", "tensors", 0, "dtype"), "dtype"),
        (put([], "tensors", 0, "slices"), "slices"),
        (put([1, 3], *PIECE, "shape"), "slices"),
        (put([1, 0], *PIECE, "offset"), "slices"),
        (lambda document: document["tensors"][0]["slices"].append(document["tensors"][0]["slices"][0]), "slices"),
    ],
)
def test_what_a_later_format_may_allow_is_no_damage(change: Change, kind: str) -> None:
    document = sound()
    change(document)
    with pytest.raises(FormatError) as caught:
        decode(document)
    assert (caught.value.kind, caught.value.exit_code) == (kind, 13)
    assert "newer" in caught.value.hint


_odd = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(-3, 300), max_size=3) | st.just({})
_paths = st.sampled_from(
    [(name,) for name in sound()]
    + [("tensors", 0, name) for name in sound()["tensors"][0]]
    + [(*PIECE, name) for name in sound()["tensors"][0]["slices"][0]]
    + [("packs", 0, name) for name in sound()["packs"][0]]
)


@given(path=_paths, value=_odd)
def test_whatever_stands_in_a_manifest_leads_to_an_error_of_ours(path: tuple[str | int, ...], value: Any) -> None:
    document = sound()
    put(value, *path)(document)
    try:
        manifest = decode(document)
    except UnbrokenError:
        return
    for each in manifest.tensors:
        (piece,) = each.slices
        assert 0 <= piece.start <= piece.start + piece.length <= manifest.packs[piece.pack].size


def test_a_committed_manifest_that_contradicts_itself_is_passed_over_and_reported(store: Store) -> None:
    attempt = Attempt(store)
    commit_document(attempt, put(9, *PIECE, "pack"))
    found = restore(store)
    assert found is not None
    assert found.step == 2
    assert [step for step, _ in found.passed_over] == [3]
    (problem,) = verify_checkpoint(store, attempt.journal.state.checkpoints[-1]).problems
    assert "pack 9 of 1" in problem


def test_a_manifest_of_a_newer_format_stops_a_restore_instead_of_being_passed_over(store: Store) -> None:
    attempt = Attempt(store)
    commit_document(attempt, put(FORMAT + 1, "format"))
    with pytest.raises(FormatError) as caught:
        restore(store)
    assert (caught.value.kind, caught.value.exit_code) == ("newer-format", 13)
    (problem,) = verify_checkpoint(store, attempt.journal.state.checkpoints[-1]).problems
    assert f"format {FORMAT + 1}" in problem


def commit_document(attempt: Attempt, change: Change) -> None:
    """Commit step 2, and then step 3 as a program would that writes something else than ours."""
    tensors = [tensor_of("w", "float32", (2, 3))]
    event = attempt.writer.write(state_of(2, tensors))
    document = json.loads(attempt.store.get(event.manifest))
    change(document)
    data = json.dumps(document).encode()
    attempt.store.put("manifests/changed.json", [data])
    changed = CheckpointCommitted(3, "manifests/changed.json", sha256(data), 0, 0)
    attempt.journal.append(changed, Origin("host", 1), attempt.lease)
