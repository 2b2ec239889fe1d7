"""Checkpoints as several ranks leave them, for tests of readers: tensors cut into boxes, each rank's in one pack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import msgspec
from hypothesis import strategies as st
from tests.checkpoint.conftest import tensor_of

from unbroken.checkpoint import Box, HostTensor, Manifest, PackRecord, Slice, TensorRecord, TensorRef, encode_tree
from unbroken.checkpoint.dtypes import KNOWN, item_size
from unbroken.checkpoint.manifest import SHARDED_FORMAT
from unbroken.checkpoint.packs import build_pack
from unbroken.store import Store

Cuts = Sequence[Sequence[int]]
"""Where each dimension is cut, in order; borders of the tensor are not named."""


def grid(shape: Sequence[int], cuts: Cuts) -> list[Box]:
    """The boxes into which a tensor is cut, row by row, without those that hold nothing: but for one of nothing."""
    axes = [list(pairwise([0, *at, length])) for length, at in zip(shape, cuts, strict=True)]
    boxes = [
        Box(tuple(start for start, _ in spans), tuple(end - start for start, end in spans)) for spans in product(*axes)
    ]
    return [box for box in boxes if box.size] or [Box.whole(shape)]


def cut(data: bytes, shape: Sequence[int], box: Box, item: int) -> bytes:
    """The bytes of a box, taken element by element: what is right, and slow."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    indices = product(*(range(start, start + count) for start, count in zip(box.offset, box.shape, strict=True)))
    places = (sum(i * stride for i, stride in zip(index, strides, strict=True)) for index in indices)
    return b"".join(data[place * item : (place + 1) * item] for place in places)


def boxed(whole: HostTensor, box: Box) -> HostTensor:
    """What a rank holds of a tensor."""
    data = cut(bytes(whole.data), whole.shape, box, item_size(whole.dtype))
    return HostTensor(whole.name, whole.dtype, box.shape, memoryview(data), box.offset, whole.shape)


def put_sharded(
    store: Store,
    ranks: Sequence[Sequence[HostTensor]],
    *,
    state: Mapping[str, Any] | None = None,
    locals_: Sequence[Mapping[str, Any]] | None = None,
    step: int = 1,
) -> Manifest:
    """Write each rank's tensors, one pack each, and give the manifest that names them all as slices."""
    slices: dict[str, list[Slice]] = {}
    records: dict[str, TensorRecord] = {}
    packs: list[PackRecord] = []
    for rank, tensors in enumerate(ranks):
        parts = [HostTensor(f"{n}", each.dtype, each.shape, each.data) for n, each in enumerate(tensors)]
        pack = build_pack(f"packs/1/{step}-{rank}-0-x.safetensors", parts, index=rank)
        store.put(pack.record.key, pack.parts)
        packs.append(pack.record)
        for each, found in zip(tensors, pack.tensors, strict=True):
            piece = msgspec.structs.replace(found.slices[0], offset=list(each.place))
            slices.setdefault(each.name, []).append(piece)
            records[each.name] = TensorRecord(each.name, each.dtype, list(each.tensor_shape), slices[each.name])
    own = [encode_tree(dict(part)) for part in locals_ or [{}] * len(ranks)]
    tree = encode_tree(dict(state or {"model": {name: TensorRef(name) for name in records}}))
    return Manifest(
        SHARDED_FORMAT, "run", step, 1, "x", 0.0, len(ranks), "", tree, list(records.values()), packs, [], locals=own
    )


@st.composite
def tensors(draw: st.DrawFn, name: str = "t") -> HostTensor:
    """Any tensor: no dimension, no elements, every element type."""
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    return tensor_of(name, draw(st.sampled_from(sorted(KNOWN))), shape, draw(st.integers(0, 255)))


@st.composite
def cuts_of(draw: st.DrawFn, shape: Sequence[int]) -> list[list[int]]:
    """Any grid over a tensor, uneven, with boxes that hold nothing."""
    return [sorted(draw(st.lists(st.integers(0, length), max_size=3))) for length in shape]


@st.composite
def box_of(draw: st.DrawFn, shape: Sequence[int]) -> Box:
    """Any box of a tensor."""
    spans = [sorted((draw(st.integers(0, length)), draw(st.integers(0, length)))) for length in shape]
    return Box(tuple(start for start, _ in spans), tuple(end - start for start, end in spans))
