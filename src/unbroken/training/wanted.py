"""What a rank wants of a checkpoint, and where it probably is: for reading no more of the manifest than that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from unbroken.checkpoint import Box, Manifest, TensorRecord, Wanted
from unbroken.training.objects import StateObject
from unbroken.training.ownership import dealer_of
from unbroken.training.placing import place
from unbroken.training.rank_part import rank_part
from unbroken.training.ranks import Ranks
from unbroken.training.restore import tensors_of
from unbroken.training.sharding import held_part, stager


def wanted_of(head: Manifest, objects: Sequence[StateObject], ranks: Ranks) -> Wanted:
    """What of a checkpoint is read into these objects; of sharded tensors this rank's part.

    Args:
        head: the manifest without tensors, with the trees (``locals``) of rank 0 and of this rank, if there was one.

    Raises:
        MismatchError: as of :func:`~unbroken.training.rank_part.rank_part`.
    """
    tree = rank_part(head, objects, ranks).tree
    held = {item.name: tree[item.name] for item in objects if item.name in tree}
    placed_tree, placed = place(held, list(objects))
    likes: dict[str, list[torch.Tensor]] = defaultdict(list)
    whole = set[str]()
    for key, name in tensors_of(placed_tree, placed).items():
        if key in placed:
            likes[name].append(placed[key].like)
        else:
            whole.add(name)

    def boxes(record: TensorRecord) -> Sequence[Box]:
        name, live = record.name, likes[record.name]
        if name in whole or any(list(like.shape) != record.shape for like in live):
            return [Box.whole(record.shape)]
        parts = [held_part(like, name) for like in live]
        return [Box(part.offset, part.shape) for part in parts]

    def probable(name: str) -> Iterable[int]:
        if name in whole:
            yield dealer_of(name, head.world_size)
        for like in likes[name]:
            if (rank := stager(name, like, name)) is not None:
                yield from _scaled(rank, ranks.world_size, head.world_size)

    return Wanted([*dict.fromkeys([*whole, *likes])], boxes, probable)


def _scaled(rank: int, world_size: int, before: int) -> range:
    """The ranks of another number of them that had the place of this one."""
    first = rank * before // world_size
    return range(first, max(first + 1, -(-(rank + 1) * before // world_size)))
