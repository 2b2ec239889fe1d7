"""Whether a checkpoint is of the very state that lies in memory."""

from __future__ import annotations

from unbroken.checkpoint.digest import chunk_digests
from unbroken.checkpoint.manifest import Manifest, TensorRecord
from unbroken.checkpoint.packs import HostTensor
from unbroken.checkpoint.staged import HostState


def holds_state(manifest: Manifest, state: HostState) -> bool:
    """Whether a checkpoint holds this state: step, tree, and each tensor's type, shape and digests.

    Of one of several ranks it is asked whether the checkpoint holds that rank's part: its boxes as slices, and its own
    tree. What all ranks share is compared where the state has it.

    For whoever does not know whether a commit took effect. Steps alone do not tell: a program that went back to an
    older checkpoint comes to the same step with another state.
    """
    if (manifest.step, manifest.world_size) != (state.step, state.world_size):
        return False
    held = {tensor.name: tensor for tensor in manifest.tensors}
    if state.world_size == 1:
        if manifest.state != state.tree or held.keys() != {tensor.name for tensor in state.tensors}:
            return False
    elif not _holds_trees(manifest, state):
        return False
    return all(tensor.name in held and _holds_box(held[tensor.name], tensor) for tensor in state.tensors)


def _holds_trees(manifest: Manifest, state: HostState) -> bool:
    """What all ranks share may be with rank 0 alone; names of objects are with each."""
    if state.tree and state.tree != manifest.state:
        return False
    if state.shared and state.shared.keys() != manifest.state.keys():
        return False
    return state.rank < len(manifest.locals) and bool(manifest.locals[state.rank] == state.local)


def _holds_box(record: TensorRecord, tensor: HostTensor) -> bool:
    """Whether one of the slices is this box. Only then are digests taken."""
    if (record.dtype, record.shape) != (tensor.dtype, list(tensor.tensor_shape)):
        return False
    box = list(tensor.place), list(tensor.shape)
    same = [piece.digests for piece in record.slices if (piece.offset, piece.shape) == box]
    return bool(same) and chunk_digests(tensor.data) in same
