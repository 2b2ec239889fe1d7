"""Whether a checkpoint is of the very state that lies in memory."""

from __future__ import annotations

from unbroken.checkpoint.digest import chunk_digests
from unbroken.checkpoint.manifest import Manifest
from unbroken.checkpoint.staged import HostState


def holds_state(manifest: Manifest, state: HostState) -> bool:
    """Whether a checkpoint holds this state: step, tree, and each tensor's type, shape and digests.

    For whoever does not know whether a commit took effect. Steps alone do not tell: a program that went back to an
    older checkpoint comes to the same step with another state.
    """
    if (manifest.step, manifest.state) != (state.step, state.tree):
        return False
    held = {tensor.name: tensor for tensor in manifest.tensors}
    if held.keys() != {tensor.name for tensor in state.tensors}:
        return False
    for tensor in state.tensors:
        record = held[tensor.name]
        if record.dtype != tensor.dtype or record.shape != list(tensor.shape) or len(record.slices) != 1:
            return False
        if record.slices[0].digests != chunk_digests(tensor.data):
            return False
    return True
