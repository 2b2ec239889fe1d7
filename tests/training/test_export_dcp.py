"""Exporting what several ranks wrote for ``torch.distributed.checkpoint``: whole tensors, and rank 0's own state."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.conftest import tensor_of
from tests.checkpoint.sharded import boxed, grid, put_sharded
from torch.distributed import checkpoint as dcp

from unbroken.checkpoint import Manifest, TensorRef
from unbroken.errors import DamagedError
from unbroken.store import Store, open_store
from unbroken.testing import flip_bit
from unbroken.training.export_dcp import export_dcp

WEIGHT = tensor_of("model/w", "int32", (9, 6))
PAIR = tensor_of("extra/pair/0", "int16", (5,))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"), create=True)


@pytest.fixture
def manifest(store: Store) -> Manifest:
    boxes = [boxed(WEIGHT, box) for box in grid(WEIGHT.shape, [[4], [2, 5]])]
    halves = [boxed(PAIR, box) for box in grid(PAIR.shape, [[2]])]
    own = [tensor_of(f"rank{rank}/rng/torch", "uint8", (5,), seed=rank) for rank in range(2)]
    return put_sharded(
        store,
        [[*boxes[:2], halves[0], own[0]], [*boxes[2:], halves[1], own[1]]],
        state={"model": {"w": TensorRef("model/w")}, "extra": {"pair": (TensorRef("extra/pair/0"), 3)}},
        locals_=[{"rng": {"torch": TensorRef(each.name), "rank": rank}} for rank, each in enumerate(own)],
    )


def test_slices_are_put_together_and_rank_0s_own_state_goes_with_them(
    store: Store, manifest: Manifest, tmp_path: Path
) -> None:
    done = export_dcp(store, manifest, ["model", "extra", "rng"], tmp_path / "out")
    assert done.tensors == 3
    state: dict[str, Any] = {
        "model": {"w": torch.zeros(9, 6, dtype=torch.int32)}, "extra": {"pair": None},
        "rng": {"torch": torch.zeros(5, dtype=torch.uint8), "rank": -1},
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of a single process
        dcp.load(state, checkpoint_id=tmp_path / "out", no_dist=True)
    assert state["model"]["w"].numpy().tobytes() == WEIGHT.data
    assert state["extra"]["pair"][0].numpy().tobytes() == PAIR.data
    assert state["rng"]["torch"].numpy().tobytes() == tensor_of("rank0", "uint8", (5,), seed=0).data
    assert state["rng"]["rank"] == 0


def test_damage_in_one_ranks_slice_leaves_nothing(store: Store, manifest: Manifest, tmp_path: Path) -> None:
    piece = manifest.tensor("model/w").slices[-1]
    flip_bit(store, manifest.packs[piece.pack].key, piece.start)
    with pytest.raises(DamagedError, match="model/w"):
        export_dcp(store, manifest, ["model"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
