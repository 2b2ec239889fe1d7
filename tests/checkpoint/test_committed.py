"""Reading the checkpoints of several ranks: what their records say together must be true."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoint.conftest import WatchedStore, restore, tensor, tensor_of
from tests.checkpoint.ranks import Gang, rows

from unbroken.checkpoint import Manifest, load_manifest, load_rank_part, verify_checkpoint
from unbroken.checkpoint.committed import decode_manifest
from unbroken.errors import DamagedError, FormatError, UnbrokenError
from unbroken.store import Store
from unbroken.testing import flip_bit

Documents = list[dict[str, Any]]
"""The manifest, and the record of each rank."""
Change = Callable[[Documents], None]


def sound() -> Documents:
    def record(rank: int) -> dict[str, Any]:
        half = {"offset": [rank, 0], "shape": [1, 3], "pack": 0, "start": 64, "length": 12, "digests": ["ab" * 16]}
        own = {"offset": [], "shape": [], "pack": 0, "start": 76, "length": 1, "digests": ["ab" * 16]}
        pack = {"key": f"packs/1/{rank}", "size": 77, "header_size": 64, "header_digest": "cd" * 16}
        return {
            "format": 2, "step": 5, "attempt": 1, "rank": rank, "world_size": 2,
            "tensors": [
                {"name": "w", "dtype": "float32", "shape": [2, 3], "slices": [half]},
                {"name": f"rank{rank}/g", "dtype": "uint8", "shape": [], "slices": [own]},
            ],
            "packs": [pack], "local": {"rng": {"$tensor": f"rank{rank}/g"}},
        }  # fmt: skip

    manifest = {
        "format": 2, "run": "r", "step": 5, "attempt": 1, "nonce": "n", "created_at": 1.0, "world_size": 2,
        "parent": "", "state": {"w": {"$tensor": "w"}}, "tensors": [], "packs": [],
        "ranks": [{"key": f"ranks/{rank}", "sha256": ""} for rank in range(2)],
    }  # fmt: skip
    return [manifest, record(0), record(1)]


def put(value: Any, *path: Any) -> Change:
    def change(documents: Documents) -> None:
        place: Any = documents
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


def decode(documents: Documents) -> Manifest:
    def get(key: str, _: str) -> bytes:
        if not key.startswith("ranks/"):
            raise DamagedError(f"{key} is missing", kind="missing")
        return json.dumps(documents[1 + int(key[6:])]).encode()

    return decode_manifest(json.dumps(documents[0]).encode(), "manifests/x.json", get)


def test_the_parts_of_all_ranks_make_one_manifest() -> None:
    manifest = decode(sound())
    assert [tensor.name for tensor in manifest.tensors] == ["w", "rank0/g", "rank1/g"]
    assert [(piece.offset, piece.pack) for piece in manifest.tensors[0].slices] == [([0, 0], 0), ([1, 0], 1)]
    assert [pack.key for pack in manifest.packs] == ["packs/1/0", "packs/1/1"]
    assert manifest.size == 26
    assert manifest.state_of(1) == {"w": {"$tensor": "w"}, "rng": {"$tensor": "rank1/g"}}
    with pytest.raises(IndexError):
        manifest.state_of(2)


def test_a_pack_that_two_ranks_list_is_there_once() -> None:
    documents = sound()
    documents[2]["packs"] = [documents[1]["packs"][0]]
    manifest = decode(documents)
    assert [pack.key for pack in manifest.packs] == ["packs/1/0"]
    assert {piece.pack for tensor in manifest.tensors for piece in tensor.slices} == {0}


W = ("tensors", 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put([1], 0, "tensors"), "is no manifest"),
        (put([sound()[1]["packs"][0]], 0, "packs"), "belong into the records"),
        (put([{}], 0, "locals"), "belong into the records"),
        (put(3, 0, "world_size"), "2 records of 3 ranks"),
        (put([sound()[0]["ranks"][0]] * 2, 0, "ranks"), "1 records of 2 ranks"),
        (put([], 0, "ranks"), "0 records of 2 ranks"),
        (put("run.json", 0, "ranks", 0, "key"), "'run.json' is no key of a rank record"),
        (put(-1, 0, "step"), "where rank 0 of 2 belongs"),
        (put([], 0, "state"), "no dictionary"),
        (put(7, 1, "local"), "no dictionary"),
        (put({"v": {"$tensor": "v"}}, 0, "state"), "names the tensor v"),
        (put({"v": {"$tensor": "v"}}, 2, "local"), "names the tensor v"),
        (put(0, 2, "rank"), "where rank 1 of 2 belongs"),
        (put(6, 2, "step"), "step 6"),
        (put(2, 2, "attempt"), "attempt 2"),
        (put(3, 2, "world_size"), "rank 1 of 3"),
        (put(1, 2, "format"), "format 1"),
        (put(None, 2, "tensors"), "ranks/1 is no rank record"),
        (put(1, 2, *W, "slices", 0, "pack"), "pack 1 of 1"),
        (put(-1, 2, *W, "slices", 0, "pack"), "pack -1 of 1"),
        (put(66, 2, *W, "slices", 0, "start"), "outside its data"),
        (put(8, 2, *W, "slices", 0, "length"), "its slice 8"),
        (put([], 2, *W, "slices", 0, "digests"), "0 digests"),
        (put([0, 0], 2, *W, "slices", 0, "offset"), "w of shape [2, 3]: [0:1, 0:3] and [0:1, 0:3] have elements"),
        (put([2, 0], 2, *W, "slices", 0, "offset"), "[2:3, 0:3] is outside"),
        (put([1], 2, *W, "slices", 0, "offset"), "as many dimensions"),
        (put([], 2, *W, "slices"), "hold 3 of 6"),
        (put([3, 3], 2, *W, "shape"), "w is a float32 of shape [3, 3] on rank 1"),
        (put("int32", 2, *W, "dtype"), "w is a int32"),
        (put("rank0/g", 2, "tensors", 1, "name"), "rank0/g of shape []"),
        (put("../x", 2, "packs", 0, "key"), "no key of a pack"),
        (put({**sound()[1]["packs"][0], "size": 99}, 2, "packs", 0), "not alike"),
    ],
)
def test_parts_that_contradict_each_other_are_damage_and_it_is_said_what(change: Change, named: str) -> None:
    documents = sound()
    change(documents)
    with pytest.raises(DamagedError) as caught:
        decode(documents)
    assert named in caught.value.message


@pytest.mark.parametrize("change", [put(3, 1, "format"), put("float3", 1, *W, "dtype")])
def test_a_record_of_a_newer_format_is_no_damage(change: Change) -> None:
    documents = sound()
    change(documents)
    with pytest.raises(FormatError):
        decode(documents)


_odd = st.none() | st.integers(-3, 300) | st.text(max_size=3) | st.lists(st.integers(-3, 300), max_size=3) | st.just({})
_paths = st.sampled_from(
    [(0, name) for name in sound()[0]]
    + [(2, name) for name in sound()[2]]
    + [(2, *W, name) for name in ("name", "dtype", "shape", "slices")]
    + [(2, *W, "slices", 0, name) for name in sound()[2]["tensors"][0]["slices"][0]]
    + [(2, "packs", 0, name) for name in ("key", "size", "header_size")]
)


@given(path=_paths, value=_odd)
def test_whatever_stands_in_a_record_leads_to_an_error_of_ours(path: tuple[Any, ...], value: Any) -> None:
    documents = sound()
    put(value, *path)(documents)
    try:
        manifest = decode(documents)
    except UnbrokenError:
        return
    for each in manifest.tensors:
        for piece in each.slices:
            assert 0 <= piece.start <= piece.start + piece.length <= manifest.packs[piece.pack].size


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_checkpoint_with_a_damaged_record_is_passed_over_for_the_one_before(store: Store, damage: str) -> None:
    gang = Gang(store, 2)
    whole = tensor_of("w", "float32", (4, 2))
    for step in (1, 2):
        gang.save(step, [[part] for part in rows(whole, 2, 2)])
    record = gang.journal.state.checkpoints[-1]
    assert verify_checkpoint(store, record).problems == []
    key = load_manifest(store, record).ranks[1].key
    if damage == "flipped":
        flip_bit(store, key, 100)
    else:
        store.delete([key])
    with pytest.raises(DamagedError, match=key):
        load_manifest(store, record)
    with pytest.raises(DamagedError, match=key):
        load_rank_part(store, record, 1)
    assert load_rank_part(store, record, 0).tensors[0].name == "w"
    found = restore(store)
    assert found is not None
    assert (found.step, [step for step, _ in found.passed_over]) == (1, [2])
    assert found.content["w"] == bytes(whole.data)


def test_the_part_of_a_rank_costs_two_requests(folder_store: Store) -> None:
    gang = Gang(folder_store, 4)
    gang.save(1, [[tensor(f"t{rank}", b"1")] for rank in range(4)])
    read: list[str] = []
    watched = WatchedStore(folder_store, lambda method, key: read.append(key) if method == "get" else None)
    part = load_rank_part(watched, gang.journal.state.checkpoints[-1], 2)
    assert [each.name for each in part.tensors] == ["t2", "rank2/rng"]
    assert read == [gang.journal.state.checkpoints[-1].event.manifest, part.ranks[2].key]
