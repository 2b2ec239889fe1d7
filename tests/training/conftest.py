"""A tiny training whose state has every kind of part, and whose batches are told apart."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import unbroken
from unbroken.agent import uploader
from unbroken.agent.arena import Arena
from unbroken.agent.claims import Claims
from unbroken.agent.session import Session
from unbroken.clock import SYSTEM_CLOCK
from unbroken.journal import Journal, Origin
from unbroken.link.messages import SOCKET_VARIABLE
from unbroken.store import open_store


class Batches:
    """A loader with state: hands out the numbers 0, 1, 2, ... each once."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> int:
        self.position += 1
        return self.position - 1

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


@dataclass
class Training:
    """Model with dropout and buffers, optimizer, scheduler, scaler, loader, and draws from every global generator."""

    uri: str
    every: int | str = 4
    seed: int = 7
    used: list[int] = field(default_factory=list)
    """Batches that were used, in order."""

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        numpy.random.seed(self.seed)
        random.seed(self.seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(6, 12), torch.nn.BatchNorm1d(12), torch.nn.Dropout(0.3), torch.nn.Linear(12, 6)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50)
        self.scaler = torch.amp.GradScaler("cpu")
        self.batches = Batches()
        self.order = torch.Generator().manual_seed(self.seed)
        self.run = unbroken.Run(self.uri, every=self.every, state=self.state)

    @property
    def state(self) -> dict[str, Any]:
        return {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler,
            "loader": self.batches, "order": self.order,
        }  # fmt: skip

    def step(self) -> float:
        number = next(self.batches)
        self.used.append(number)
        x = torch.randn(8, 6, generator=self.order) + number + random.random() + float(numpy.random.rand())
        loss = torch.nn.functional.mse_loss(self.model(x), x)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return float(loss.detach())

    def settle(self) -> None:
        """Wait for the save under way: steps are so short here that the next one would find it busy and be skipped."""
        pending = self.run._opened.newest_save
        assert pending is None or pending.done.wait(60)

    def train(self, until: int, at: dict[int, Callable[[], Any]] | None = None, *, settle: bool = True) -> Training:
        """Run to ``until``; ``at[n]`` is called in the body of the step after ``n`` completed ones."""
        with self.run:
            for step in self.run.steps(until=until):
                loss = self.step()
                if settle:
                    self.settle()
                if at and step in at:
                    at[step]()
                self.run.log(loss=loss, batch=self.used[-1])
        return self

    def bits(self) -> dict[str, bytes]:
        """Everything that makes up the state, as bytes."""
        found = {name: _bits(tensor) for name, tensor in self.model.state_dict().items()}
        for number, parts in self.optimizer.state_dict()["state"].items():
            found.update({f"optimizer {number} {key}": _bits(value) for key, value in parts.items()})
        found["groups"] = repr(self.optimizer.state_dict()["param_groups"]).encode()
        found["scheduler"] = repr(self.scheduler.state_dict()).encode()
        found["scaler"] = repr(self.scaler.state_dict()).encode()
        found["order"] = _bits(self.order.get_state())
        found["torch"] = _bits(torch.get_rng_state())
        found["python"] = repr(random.getstate()).encode()
        kind, keys, *rest = numpy.random.get_state()
        found["numpy"] = repr([kind, keys.tolist(), *rest]).encode()
        found["loader"] = repr(self.batches.position).encode()
        return found


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def sigterm() -> None:
    """Send this process what a scheduler sends."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def training(uri: str) -> type[Training]:
    return Training


@pytest.fixture
def interrupt() -> Callable[[], None]:
    return sigterm


@pytest.fixture
def journal(uri: str) -> Callable[[], Journal]:
    """Reads the run's journal afresh."""
    return lambda: Journal.open(open_store(uri))


@pytest.fixture(autouse=True)
def _quiet_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No agent, run or cadence of the environment, no metadata service; and the exit hook does not outlive a test."""
    for name in ("UNBROKEN_SOCKET", "UNBROKEN_RUN", "UNBROKEN_EVERY", "UNBROKEN_KEEP", "UNBROKEN_GRACE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    hook = sys.excepthook
    yield
    sys.excepthook = hook


@pytest.fixture
def script(tmp_path: Path, uri: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``body`` in a process of its own; it sees ``URI``, os, signal, torch, unbroken and a model."""

    def run(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "train.py"
        path.write_text(
            f"URI = {uri!r}\nimport os, signal, torch, unbroken\nmodel = torch.nn.Linear(3, 3)\n"
            + textwrap.dedent(body)
        )
        given = {**os.environ, **environment}
        return subprocess.run(
            [sys.executable, path], check=False, capture_output=True, text=True, timeout=120, env=given
        )

    return run


@pytest.fixture
def agent_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """An agent in this very process, so that a test can break what it does."""
    monkeypatch.setattr(uploader, "_FIRST_PAUSE", 0.0)
    arena = Arena()
    with tempfile.TemporaryDirectory(prefix="ub-") as folder:
        path = Path(folder, "agent.sock")
        claims = Claims(Origin("here", os.getpid()), ["train"], 5, SYSTEM_CLOCK)
        session = Session(path, claims, arena, lambda _: None, SYSTEM_CLOCK)
        monkeypatch.setenv(SOCKET_VARIABLE, str(path))
        yield session
        session.close()
        arena.close()


@pytest.fixture
def truth(training, tmp_path):
    """The final bits of 11 steps that nobody interrupted."""
    return training(str(tmp_path / "truth")).train(11).bits()
