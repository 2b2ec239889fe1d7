"""What of a checkpoint a rank loads: what all share, and what is its own; also where the number of ranks is another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unbroken.checkpoint import Manifest, decode_tree
from unbroken.errors import MismatchError
from unbroken.training.generators import fits_devices, seed_of
from unbroken.training.objects import RNG, StateObject
from unbroken.training.ranks import Ranks
from unbroken.training.wrappers import without_prefixes


@dataclass(frozen=True)
class RankPart:
    """One rank's part of a checkpoint.

    Args:
        tree: by object name, decoded: to be read.
        seeded: by object name, the state of generators that the checkpoint knows nothing of.
    """

    tree: dict[str, Any]
    seeded: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """The objects that it holds, those of the checkpoint that the program lacks included."""
        return [*self.tree, *self.seeded]


def rank_part(manifest: Manifest, objects: Sequence[StateObject], ranks: Ranks) -> RankPart:
    """The part of a rank in a checkpoint that was written by as many ranks, or by more or fewer.

    With another number of ranks, rank ``r`` takes the generators that rank ``r`` had; ranks beyond the old number get
    generators seeded by run, step and rank.

    Raises:
        MismatchError: another number of ranks wrote it, and it holds what belongs to each of them alone and is no
            generator (kind ``"per-rank"``); names the object.
    """
    shared, own = dict(manifest.state), _own(manifest, ranks.rank)
    if ranks.world_size != manifest.world_size:
        if manifest.world_size == 1:  # it does not say what belongs to a rank
            own = {item.name: shared.pop(item.name) for item in objects if item.per_rank and item.name in shared}
            own = own if ranks.rank == 0 else dict.fromkeys(own)
        return _of_another_world(manifest, objects, ranks, shared, own)
    return RankPart(_decoded({**shared, **own}, objects), {})


def _own(manifest: Manifest, rank: int) -> dict[str, Any]:
    """The trees of what is the rank's own; None in the place of each where it was not there."""
    if not manifest.locals:
        return {}
    if rank < len(manifest.locals):
        return dict(manifest.locals[rank])
    return dict.fromkeys(manifest.locals[0])


def _of_another_world(
    manifest: Manifest, objects: Sequence[StateObject], ranks: Ranks, shared: dict[str, Any], own: dict[str, Any]
) -> RankPart:
    by_name = {item.name: item for item in objects}
    kept, seeded = {}, {}
    for name, tree in own.items():
        item = by_name.get(name)
        if item is not None and item.seeded is None:
            raise MismatchError(
                f"the checkpoint of step {manifest.step} was written by {_count(manifest.world_size)}, each with "
                f"{name} of its own, and this training has {_count(ranks.world_size)}",
                kind="per-rank",
                hint="Go on with as many ranks; or keep the order of the data in unbroken.data.ResumableSampler, which "
                "does not depend on their number",
            )
        if item is None or (tree is not None and _usable(name, tree)):
            kept[name] = tree
        elif item.seeded is not None:
            seeded[name] = item.seeded(seed_of(manifest.run, manifest.step, ranks.rank, name))
    return RankPart(_decoded({**shared, **kept}, objects), seeded)


def _usable(name: str, tree: Any) -> bool:
    return name != RNG or fits_devices(decode_tree(tree))


def _decoded(tree: Mapping[str, Any], objects: Sequence[StateObject]) -> dict[str, Any]:
    decoded: dict[str, Any] = decode_tree(dict(tree))
    for item in objects:
        part = decoded.get(item.name)
        if isinstance(item.value, torch.nn.Module) and isinstance(part, Mapping):
            decoded[item.name] = without_prefixes(part, item.read())
    return decoded


def _count(ranks: int) -> str:
    return f"{ranks} ranks" if ranks > 1 else "1 rank"
