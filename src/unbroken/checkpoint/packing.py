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
    def tensors(self) -> list[TensorRecord]:
        """In the state's order; whole once every upload was put."""
        return [self._records[tensor.name] for tensor in self._tensors]

    def _changed(self) -> Iterator[HostTensor]:
        for tensor in self._tensors:
            old = self._before.get(tensor.name)
            if old is not None and _same(old, tensor, self._digests[tensor.name]):
                self._refer_to(old)
            else:
                yield tensor

    def _refer_to(self, old: TensorRecord) -> None:
        slices = []
        for piece in old.slices:
            if piece.pack not in self._places:
                self._places[piece.pack] = len(self.packs)
                self.packs.append(self._parent_packs[piece.pack])
            slices.append(msgspec.structs.replace(piece, pack=self._places[piece.pack]))
        self._records[old.name] = msgspec.structs.replace(old, slices=slices)


def _same(old: TensorRecord, new: HostTensor, digests: list[str]) -> bool:
    """Whether the parent holds the very same tensor, whole in one slice. ``digests`` receives those that it took to
    find out: the first differing chunk ends it, so that a tensor that was trained is not digested twice."""
    match old.slices:
        case [Slice(digests=known)]:
            return old.dtype == new.dtype and old.shape == list(new.shape) and agree(new.data, known, digests)
    return False
