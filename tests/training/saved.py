"""Saving states for the tests of restores, and asking what may be read in place."""

from __future__ import annotations

from typing import Any

import torch

from unbroken import CheckpointManager
from unbroken.checkpoint import Manifest, load_manifest
from unbroken.journal import Journal
from unbroken.store import open_store
from unbroken.training.live import live_tensors
from unbroken.training.objects import StateObject, adapt


def objects_of(state: dict[str, Any]) -> list[StateObject]:
    """As a restore takes them, without the random number generators."""
    return [item for name, value in state.items() if (item := adapt(name, value)) is not None]


def save(uri: str, state: dict[str, Any], step: int = 1) -> Manifest:
    """Commit a state; its manifest."""
    with CheckpointManager(uri) as manager:
        manager.save(step, state).wait(60)
    journal = Journal.open(open_store(uri))
    return load_manifest(journal.store, journal.state.checkpoints[-1])


def in_place(state: dict[str, Any], manifest: Manifest) -> set[str]:
    """Names of the tensors that would be read in place."""
    return set(live_tensors(objects_of(state), manifest))


def trained(seed: int = 0, *, width: int = 4) -> dict[str, Any]:
    """A model with buffers, an optimizer that has stepped, and a plain tensor."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.BatchNorm1d(width))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(8, width)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer, "scale": torch.rand(3)}


def bits(state: dict[str, Any]) -> dict[str, list[Any]]:
    """Every tensor of :func:`trained`, by name."""
    found = dict(state["model"].state_dict()) | {"scale": state["scale"]}
    for number, parts in state["optimizer"].state_dict()["state"].items():
        found |= {f"{number} {key}": value for key, value in parts.items()}
    return {name: tensor.tolist() for name, tensor in found.items()}
