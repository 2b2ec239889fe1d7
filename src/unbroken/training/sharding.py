"""Tensors that are spread over ranks (torch's DTensor): what this rank holds of one, found out without a message.

torch's module of them takes long to import and is not needed by a program that has none: they are known by their looks.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from unbroken.errors import ConfigError
from unbroken.training.ownership import Cut, Part, dealt_to, part_of, takes_turn


def is_sharded(tensor: object) -> bool:
    """Whether it is a tensor of several ranks, each of which holds a part, or all of it."""
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of it: the tensor itself where it is an ordinary one."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        local: Any = tensor.detach().to_local()  # type: ignore[attr-defined]
    # Of a collective that is under way: this waits, and begins none.
    return local.wait() if hasattr(local, "wait") else local  # type: ignore[no-any-return]


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """The very tensor in which a live one has its values: its version counter moves where they are changed directly."""
    return getattr(tensor, "_local_tensor", tensor)


def held_part(tensor: torch.Tensor, path: str) -> Part:
    """Which box of the whole this rank holds; an empty one where it holds nothing, all where there is nothing to hold.

    Args:
        tensor: a sharded one.
        path: its name in error messages.

    Raises:
        ConfigError: it holds something else than a box, or a part of a sum.
    """
    whole = tuple(tensor.shape)
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    cuts = _cuts(tensor, path)
    coordinate = mesh.get_coordinate()
    if 0 in whole:
        return Part((0,) * len(whole), whole, whole)
    if coordinate is None:
        return Part((0,) * len(whole), (0,) * len(whole), whole)
    part = part_of(whole, tuple(mesh.shape), tuple(coordinate), cuts)
    local = tuple(local_of(tensor).shape)
    if part is None or (part.shape != local and not (part.empty and 0 in local)):
        found = "rows that are no neighbours" if part is None else f"a part of shape {list(local)}"
        raise ConfigError(
            f"{path}, a tensor of shape {list(whole)} placed by {_text(tensor)} on a mesh of {list(mesh.shape)}, has "
            f"{found} on this rank",
            kind="sharded", hint="Checkpoints hold parts that are boxes, cut as torch.chunk does",
        )  # fmt: skip
    return part


def stages(name: str, tensor: torch.Tensor, path: str) -> bool:
    """Whether it is for this rank to stage what it holds of a sharded tensor; of equal parts just one rank does.

    Args:
        name: of the tensor in the checkpoint.
        path: its name in error messages.
    """
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return False
    alike, spare = _alike(tensor, path), _spare(mesh)
    sizes = [*(mesh.shape[at] for at in alike), *(size for size, _ in spare)]
    return takes_turn(name, sizes, [*(coordinate[at] for at in alike), *(at for _, at in spare)])


def stager(name: str, tensor: torch.Tensor, path: str) -> int | None:
    """The rank that stages what this rank holds of a sharded tensor; None where this one holds nothing.

    Args:
        name: of the tensor in the checkpoint.
        path: its name in error messages.
    """
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return None
    alike = _alike(tensor, path)
    place = [dealt_to(name, mesh.shape[at]) if at in alike else own for at, own in enumerate(coordinate)]
    rank = int(mesh.mesh[tuple(place)])
    root = _root(mesh)
    if not (lacking := _lacking(mesh)):
        return rank
    (at,) = (root.mesh == rank).nonzero().tolist()
    there = [dealt_to(name, root.size(dim)) if dim in lacking else at[dim] for dim in range(root.mesh.dim())]
    return int(root.mesh[tuple(there)])


def _alike(tensor: torch.Tensor, path: str) -> list[int]:
    """The dimensions of its mesh along which ranks hold the same."""
    nothing = tensor.numel() == 0  # of which every rank has all
    return [at for at, cut in enumerate(_cuts(tensor, path)) if cut is None or nothing]


def _cuts(tensor: torch.Tensor, path: str) -> tuple[Cut | None, ...]:
    return tuple(_cut(placement, tensor, path) for placement in tensor.placements)  # type: ignore[attr-defined]


def _cut(placement: Any, tensor: torch.Tensor, path: str) -> Cut | None:
    """By the names of torch's classes, which stand in one module or another from version to version."""
    names = {kind.__name__ for kind in type(placement).__mro__}
    if "_StridedShard" in names:
        return Cut(placement.dim % tensor.dim(), placement.split_factor)
    if "Shard" in names:
        return Cut(placement.dim % tensor.dim())
    if "Replicate" in names:
        return None
    raise ConfigError(
        f"{path} is placed by {_text(tensor)}: what a rank holds is no part of its values", kind="sharded",
        hint="Sums of several ranks are to be reduced before they are saved: tensor.redistribute()",
    )  # fmt: skip


def _text(tensor: torch.Tensor) -> str:
    return ", ".join(str(placement) for placement in tensor.placements)  # type: ignore[attr-defined]


def _spare(mesh: Any) -> list[tuple[int, int]]:
    """Size and own coordinate of each dimension that a mesh lacks of the one that it was sliced from.

    Ranks along these have the same parts, as have the data-parallel ranks of a training with tensor parallelism.
    """
    root = _root(mesh)
    own = root.get_coordinate()
    return [(root.size(dim), own[dim]) for dim in _lacking(mesh)] if own is not None else []


@lru_cache(maxsize=256)
def _lacking(mesh: Any) -> list[int]:
    """The dimensions of the mesh that this one was sliced from along which there are copies of this one."""
    root = _root(mesh)
    if root is mesh:
        return []
    ranks = mesh.mesh.flatten().tolist()
    inside = [at[0].tolist() for rank in ranks if len(at := (root.mesh == rank).nonzero())]
    lacking = [dim for dim in range(root.mesh.dim()) if len({at[dim] for at in inside}) == 1]
    copies = math.prod(root.size(dim) for dim in lacking)
    return lacking if copies * len(ranks) == root.mesh.numel() else []


def _root(mesh: Any) -> Any:
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh()
    from torch.distributed.device_mesh import _mesh_resources

    return _mesh_resources.get_root_mesh(mesh)
