"""The rendered Job, obeyed with real processes: an interrupted training ends as one that was not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.render.pod_runner import Disruption, Outcome, Watch, run_job

from unbroken.errors import NotFoundError
from unbroken.job import read_job
from unbroken.journal import Journal
from unbroken.render import render_kubernetes
from unbroken.store import open_store

TRAINING = """
import json, sys, time
from pathlib import Path
import torch, unbroken

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Dropout(0.1), torch.nn.Linear(32, 8))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
uri, result = sys.argv[1:3]
with unbroken.Run(uri, every=5, state={"model": model, "optimizer": optimizer}) as run:
    for step in run.steps(until=600):
        rows = torch.randn(16, 8)
        loss = (model(rows) - rows).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(0.005)  # so that it can be interrupted at all
tensors = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
Path(result).write_text(json.dumps(tensors))
"""


def job_document(folder: Path, command: list[str], **fields: object) -> dict[str, object]:
    """The Job of a job file with its run in a claim that is mounted at ``folder``."""
    data = {
        "name": "pods", "run": f"{folder}/run", "image": "train:1", "command": command, "grace": "60s",
        "resources": {"memory": "1GiB"}, "kubernetes": {"volumes": [{"claim": "a", "path": str(folder)}]},
    } | fields  # fmt: skip
    (found,) = (
        document
        for text in (each.text for each in render_kubernetes(read_job(yaml.safe_dump(data))))
        if (document := yaml.safe_load(text))["kind"] == "Job"
    )
    return found  # type: ignore[no-any-return]


def durable_step(uri: str) -> int:
    """Of the newest checkpoint; -1 where there is none."""
    try:
        checkpoints = Journal.open(open_store(uri)).state.checkpoints
    except NotFoundError:
        return -1
    return checkpoints[-1].step if checkpoints else -1


def disrupting(uri: str, plan: list[tuple[Disruption, int]]) -> Watch:
    """Each pod meets the next of the plan once the step, or a later one, is durable."""
    left: Iterator[tuple[Disruption, int]] = iter(plan)

    def watch(pod: subprocess.Popen[bytes]) -> Disruption | None:
        kind, step = next(left, (None, 0))
        deadline = time.monotonic() + 120
        while kind is not None and pod.poll() is None and durable_step(uri) < step:
            assert time.monotonic() < deadline, f"step {step} is not durable"
            time.sleep(0.02)
        return kind if pod.poll() is None else None

    return watch


def run(folder: Path, document: dict[str, object], plan: list[tuple[Disruption, int]]) -> Outcome:
    return run_job(document, disrupting(f"{folder}/run", plan), folder / "output")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_evicted_and_a_lost_pod_are_replaced_and_the_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    (tmp_path / "undisturbed").mkdir()
    alone = tmp_path / "undisturbed/result"
    subprocess.run([sys.executable, script, alone.with_name("run"), alone], check=True, timeout=120)
    command = ["python", str(script), f"{tmp_path}/run", f"{tmp_path}/result"]
    outcome = run(tmp_path, job_document(tmp_path, command), [("evict", 20), ("lose", 100), ("evict", 150)])
    assert outcome == Outcome("Complete", "", [75, 137, 75, 0]), (tmp_path / "output").read_text()
    assert json.loads((tmp_path / "result").read_text()) == json.loads(alone.read_text())


def test_a_command_that_is_not_there_fails_the_job_at_its_first_pod(tmp_path: Path) -> None:
    assert run(tmp_path, job_document(tmp_path, ["no-such-command"]), []) == Outcome("Failed", "PodFailurePolicy", [78])


def test_a_command_that_always_fails_ends_the_job_after_its_limit(tmp_path: Path) -> None:
    volumes = [{"claim": "a", "path": str(tmp_path)}]
    document = job_document(
        tmp_path, ["sh", "-c", "exit 3"], limits={"max_restarts": 0},
        kubernetes={"volumes": volumes, "backoff_limit": 1},
    )  # fmt: skip
    assert run(tmp_path, document, []) == Outcome("Failed", "BackoffLimitExceeded", [1, 1])


def test_words_that_look_like_variables_reach_the_training_as_they_were_typed(tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text("import os, sys; print(sys.argv[1:], os.environ['TEXT']); sys.exit(1)")
    document = job_document(
        tmp_path, ["python", str(script), "$(HOME)", "$$", "a: b"], env={"TEXT": "$(PATH)"}, limits={"max_restarts": 0}
    )
    run_job(document, lambda _: None, tmp_path / "output")
    assert "['$(HOME)', '$$', 'a: b'] $(PATH)" in (tmp_path / "output").read_text()
