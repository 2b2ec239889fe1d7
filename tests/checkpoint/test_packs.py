"""Packs: valid safetensors files, without gaps, every tensor aligned."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence
from unittest import mock

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from tests.checkpoint.conftest import state_of, tensor, tensor_of

from unbroken.checkpoint import HostTensor, Manifest, read_tensors
from unbroken.checkpoint.chunks import Chunk, batch_range, batches, header_chunk, tensor_chunks
from unbroken.checkpoint.digest import CHUNK, digest
from unbroken.checkpoint.dtypes import KNOWN, item_size, safetensors_name
from unbroken.checkpoint.packs import Pack, build_pack, plan_packs
from unbroken.checkpoint.staged import check_state

_shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
_described = st.tuples(st.text(max_size=6), st.sampled_from(sorted(KNOWN)), _shapes)
_tensor_lists = st.lists(_described, min_size=1, max_size=12, unique_by=lambda each: each[0]).map(
    lambda found: [tensor_of(*each, seed) for seed, each in enumerate(found)]
)


class Memory:
    """As much of a store as a reader of packs needs."""

    uri = "memory"

    def __init__(self, packs: Sequence[Pack]) -> None:
        self.objects = {pack.record.key: b"".join(pack.parts) for pack in packs}
        self.requests: list[tuple[str, int, int]] = []

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        self.requests.append((key, start, length))
        return memoryview(self.objects[key])[start : start + length]


def packed(tensors: Sequence[HostTensor], pack_size: int) -> list[Pack]:
    plan = plan_packs(tensors, pack_size=pack_size)
    return [build_pack(f"packs/1/{index}", group, index=index) for index, group in enumerate(plan)]


def manifest_of(packs: Sequence[Pack]) -> Manifest:
    tensors = [record for pack in packs for record in pack.tensors]
    return Manifest(1, "run", 1, 1, "x", 0.0, 1, "", None, tensors, [pack.record for pack in packs], [])


@given(tensors=_tensor_lists, pack_size=st.integers(1, 2000))
@example(tensors=[tensor_of("empty", "float32", (0, 3))], pack_size=10)
@example(tensors=[tensor_of("large", "float32", (9,)), tensor_of("empty", "float32", (0,))], pack_size=10)
@example(tensors=[tensor_of("", "bool", ()), tensor_of('\0\U0001f600\u2028"\\', "complex128", ())], pack_size=10)
def test_every_pack_opens_with_the_safetensors_library_and_holds_the_same_bytes(
    tensors: list[HostTensor], pack_size: int
) -> None:
    packs = packed(tensors, pack_size)
    found = {}
    for pack in packs:
        for name, entry in deserialize(b"".join(pack.parts)):
            found[name] = bytes(entry["data"]), tuple(entry["shape"]), entry["dtype"]
    assert len(found) == len(tensors)
    for each in tensors:
        known = safetensors_name(each.dtype)
        shape = each.shape if known else (len(each.data),)
        assert found[each.name] == (bytes(each.data), shape, known or "U8")


@given(tensors=_tensor_lists, pack_size=st.integers(1, 2000))
def test_header_and_slices_cover_a_pack_without_gaps_and_every_tensor_is_aligned(
    tensors: list[HostTensor], pack_size: int
) -> None:
    for pack in packed(tensors, pack_size):
        data = b"".join(pack.parts)
        record = pack.record
        assert record.size == len(data)
        assert record.header_size == 8 + struct.unpack("<Q", data[:8])[0]
        assert record.header_size % 64 == 0
        assert record.header_digest == digest(data[: record.header_size])
        end = record.header_size
        for each in pack.tensors:
            (piece,) = each.slices
            assert piece.start == end
            assert piece.start % item_size(each.dtype) == 0
            assert piece.length == math.prod(each.shape) * item_size(each.dtype)
            end += piece.length
        assert end == len(data)


@given(tensors=_tensor_lists, pack_size=st.integers(1, 2000))
def test_no_pack_is_fuller_than_asked_except_for_one_large_tensor(tensors: list[HostTensor], pack_size: int) -> None:
    plan = list(plan_packs(tensors, pack_size=pack_size))
    assert sorted(each.name for group in plan for each in group) == sorted(each.name for each in tensors)
    for group in plan:
        filled = [each for each in group if len(each.data)]
        assert len(filled) <= 1 or sum(len(each.data) for each in filled) <= pack_size


def test_in_a_large_pack_whatever_fills_pages_begins_at_one() -> None:
    page = 4096
    sizes = {"step": 4, "a": 16 * 1024 * 1024, "norm": 2 * page, "bias": 24, "b": 3 * page, "none": 0, "odd": page + 8}
    tensors = [tensor(name, bytes(size), "float64" if name == "bias" else "float32") for name, size in sizes.items()]
    (pack,) = packed(tensors, 256 << 20)
    starts = {each.name: each.slices[0].start for each in pack.tensors}
    assert pack.record.header_size % page == 0
    assert [name for name, start in starts.items() if start % page == 0][:3] == ["a", "norm", "b"]
    assert starts["bias"] % 8 == 0
    assert (pack.record.size - sum(sizes.values())) < 0.001 * pack.record.size


def test_small_tensors_lie_side_by_side_so_that_all_of_them_are_one_request() -> None:
    tensors = [t for n in range(50) for t in (tensor(f"{n}/step", bytes(4), "float32"), tensor(f"{n}/w", bytes(5000)))]
    (pack,) = packed(tensors, 256 << 20)
    starts = sorted(each.slices[0].start for each in pack.tensors if each.name.endswith("step"))
    assert starts == list(range(starts[0], starts[0] + 200, 4))


def test_a_small_pack_is_not_blown_up() -> None:
    (pack,) = packed([tensor("a", bytes(4096)), tensor("b", bytes(8192))], 256 << 20)
    assert pack.record.header_size < 512


def test_tensors_share_packs() -> None:
    tensors = [tensor_of(f"t{i}", "float32", (4,)) for i in range(100)]
    assert len(list(plan_packs(tensors, pack_size=800))) == 2
    assert len(list(plan_packs(tensors))) == 1
    assert list(plan_packs([])) == []


@settings(max_examples=50)
@given(tensors=_tensor_lists, pack_size=st.integers(1, 2000), chunk=st.sampled_from([1, 7, 16, 64]))
def test_tensors_come_back_whatever_the_borders_of_packs_and_chunks(
    tensors: list[HostTensor], pack_size: int, chunk: int
) -> None:
    with mock.patch("unbroken.checkpoint.digest.CHUNK", chunk), mock.patch("unbroken.checkpoint.chunks.CHUNK", chunk):
        check_state(state_of(1, tensors))
        packs = packed(tensors, pack_size)
        manifest = msgspec.json.decode(msgspec.json.encode(manifest_of(packs)), type=Manifest)
        read = read_tensors(Memory(packs), manifest)  # type: ignore[arg-type]
    assert {name: bytes(data) for name, data in read.items()} == {each.name: bytes(each.data) for each in tensors}


def test_tensors_come_back_across_the_real_border_of_chunks() -> None:
    sizes = {"under": CHUNK - 1, "exact": CHUNK, "over": CHUNK + 1}
    content = {name: random.Random(size).randbytes(size) for name, size in sizes.items()}
    packs = packed([tensor(name, data) for name, data in content.items()], 256 << 20)
    store = Memory(packs)
    read = read_tensors(store, manifest_of(packs))  # type: ignore[arg-type]
    assert all(read[name] == data for name, data in content.items())
    assert max(length for _, _, length in store.requests) <= CHUNK


def test_small_neighbours_are_read_with_one_request() -> None:
    packs = packed([tensor_of(f"t{i}", "float32", (4,)) for i in range(1000)], 256 << 20)
    store = Memory(packs)
    assert len(read_tensors(store, manifest_of(packs))) == 1000  # type: ignore[arg-type]
    assert len(store.requests) == 1


def test_tensors_that_are_no_neighbours_are_read_apart() -> None:
    packs = packed([tensor_of(f"t{i}", "float32", (4,)) for i in range(5)], 256 << 20)
    store = Memory(packs)
    read_tensors(store, manifest_of(packs), ["t0", "t1", "t4"])  # type: ignore[arg-type]
    assert sorted(length for _, _, length in store.requests) == [16, 32]


def test_a_batch_is_never_longer_than_a_chunk(small_chunks: int) -> None:
    packs = packed([tensor_of(f"t{i}", "uint8", (size,)) for i, size in enumerate([60, 4, 1, 63, 65, 200])], 1 << 20)
    manifest = manifest_of(packs)
    chunks = [chunk for each in manifest.tensors for chunk in tensor_chunks(manifest, each)]
    found = [batch_range(batch)[2] for batch in batches([*chunks, header_chunk(packs[0].record)])]
    assert sum(found) == packs[0].record.size
    assert max(found[1:]) <= small_chunks  # the header comes first, and has one digest whatever its length


def test_a_batch_never_reaches_from_one_pack_into_another() -> None:
    first, second = Chunk("a", 0, "packs/1", 64, 8, ""), Chunk("b", 0, "packs/2", 72, 8, "")
    assert list(batches([second, first])) == [[first], [second]]
