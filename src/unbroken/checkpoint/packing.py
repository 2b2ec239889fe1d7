"""Deciding what of a state must be written, while the first packs of it are already on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from unbroken.checkpoint.digest import DigestsOnTheWay, agree
from unbroken.checkpoint.manifest import Manifest, PackRecord, Slice, TensorRecord
from unbroken.checkpoint.packs import HostTensor, build_pack, plan_packs
from unbroken.checkpoint.uploads import Upload


class Packing:
    """The packs of one checkpoint: those of the parent in which unchanged tensors are found, and new ones.

    Args:
        tensors: of the state.
        parent: the checkpoint whose packs may be referred to; None for none.
        key: the key of a new pack, by its number from 0.
    """

    def __init__(self, tensors: Sequence[HostTensor], parent: Manifest | None, key: Callable[[int], str]) -> None:
        self._tensors = tensors
        self._parent_packs = parent.packs if parent else []
        self._key = key
        self._before = {record.name: record for record in parent.tensors} if parent else {}
        self._digests: dict[str, list[str]] = {tensor.name: [] for tensor in tensors}
        self._records: dict[str, TensorRecord] = {}
        self._places: dict[int, int] = {}
        """Index of a pack in the parent, and here."""
        self.packs: list[PackRecord] = []

    def uploads(self) -> Iterator[Upload]:
        """New packs, each as soon as it is known what belongs into it."""
        for number, group in enumerate(plan_packs(self._changed())):
            pack = build_pack(self._key(number), group, index=len(self.packs), digests=self._digests)
            self.packs.append(pack.record)
            self._records.update((record.name, record) for record in pack.tensors)
            digests = DigestsOnTheWay(
                [(tensor.data, self._digests[tensor.name]) for tensor in group], skip=pack.record.header_size
            )
            yield Upload(pack.record.key, pack.parts, digests)

    @property
    def refers(self) -> bool:
        """Whether anything lies in packs of the parent; known once every upload was put."""
        return bool(self._places)

    @property
    def tensors(self) -> list[TensorRecord]:
        """In the state's order; whole once every upload was put."""
        return [self._records[tensor.name] for tensor in self._tensors]

    def _changed(self) -> Iterator[HostTensor]:
        for tensor in self._tensors:
            old = self._before.get(tensor.name)
            piece = None if old is None else _same(old, tensor)
            # The first differing chunk ends it, so that a tensor that was trained is not digested twice.
            if piece is not None and agree(tensor.data, piece.digests, self._digests[tensor.name]):
                self._refer_to(piece, tensor)
            else:
                yield tensor

    def _refer_to(self, piece: Slice, tensor: HostTensor) -> None:
        if piece.pack not in self._places:
            self._places[piece.pack] = len(self.packs)
            self.packs.append(self._parent_packs[piece.pack])
        there = msgspec.structs.replace(piece, pack=self._places[piece.pack])
        self._records[tensor.name] = TensorRecord(tensor.name, tensor.dtype, list(tensor.tensor_shape), [there])


def _same(old: TensorRecord, new: HostTensor) -> Slice | None:
    """The slice of the parent's tensor that is the same box of the same tensor, if there is one."""
    if old.dtype != new.dtype or old.shape != list(new.tensor_shape):
        return None
    offset, shape = list(new.place), list(new.shape)
    return next((piece for piece in old.slices if piece.offset == offset and piece.shape == shape), None)
