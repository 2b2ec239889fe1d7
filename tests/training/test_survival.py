"""A training that is killed: what it had staged becomes a checkpoint, and the next start takes it out of memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

from unbroken import CheckpointManager
from unbroken.journal import Journal
from unbroken.store import open_store

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch, unbroken

uri, killed = sys.argv[1], Path(sys.argv[2])
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.BatchNorm1d(512), torch.nn.Linear(512, 1))
optimizer = torch.optim.AdamW(model.parameters())
run = unbroken.Run(uri, every=1, state={"model": model, "optimizer": optimizer})
with run:
    for step in run.steps(until=6):
        optimizer.zero_grad()
        model(torch.randn(16, 256)).square().mean().backward()
        optimizer.step()
        save = run._opened.newest_save
        assert save is None or save.done.wait(60)
        if step == 3 and not killed.exists():
            killed.touch()
            BEFORE_THE_KILL
            os.kill(os.getpid(), signal.SIGKILL)
"""


def train(folder: Path, name: str, before: str = "pass", *, killed: bool = False) -> tuple[str, str]:
    """Run the script under ``unbroken run``; the URI and what the agent said."""
    script, mark, uri = folder / f"{name}.py", folder / f"{name}.killed", str(folder / name)
    script.write_text(textwrap.dedent(SCRIPT).replace("BEFORE_THE_KILL", before))
    if not killed:
        mark.touch()
    command = ["-m", "unbroken", "run", "--", sys.executable, str(script), uri, str(mark)]
    done = subprocess.run(
        [sys.executable, *command], check=False, capture_output=True, text=True, timeout=200, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return uri, done.stderr


def bits(uri: str) -> dict[str, bytes]:
    state = CheckpointManager(uri).read()
    tensors = {f"model/{name}": value for name, value in state["model"].items()}
    for number, values in state["optimizer"]["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value for name, value in values.items()}
    return {name: bytes(t.contiguous().view(torch.uint8).numpy().data) if t.dim() else t for name, t in tensors.items()}


def test_a_restart_on_the_same_node_takes_the_state_out_of_memory_without_the_store(tmp_path):
    truth, _ = train(tmp_path, "undisturbed")
    # The packs are out of reach when the trainer starts again: nothing of them can have been read.
    away = "Path(uri, 'packs').rename(uri + '.packs'); Path(uri, 'packs').mkdir()"
    uri, said = train(tmp_path, "killed", away, killed=True)
    assert "training goes on from step 3, from this node's memory" in said
    for pack in Path(uri + ".packs").rglob("*.safetensors"):
        back = Path(uri, "packs", pack.relative_to(uri + ".packs"))
        back.parent.mkdir(exist_ok=True)
        pack.rename(back)
    assert bits(uri) == bits(truth)
    journal = Journal.open(open_store(uri))
    assert [record.step for record in journal.state.commits] == [1, 2, 3, 4, 5, 6]


def test_memory_that_was_written_to_is_not_believed(tmp_path):
    truth, _ = train(tmp_path, "undisturbed")
    flip = (
        "slot = save.slot; s = slot._sequence; slot._mapped[4096 + 100] ^= 1; "
        "assert slot._sequence == s  # still sealed as before"
    )
    uri, said = train(tmp_path, "killed", flip, killed=True)
    assert "training goes on from step 3" in said
    assert "differs" in said or "disagree" in said
    assert bits(uri) == bits(truth)
