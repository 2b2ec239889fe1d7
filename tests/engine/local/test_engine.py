"""Jobs on this machine: launched once, stopped with their progress, gone on with, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from unbroken.engine.face import Standing, State
from unbroken.engine.local import LocalEngine
from unbroken.engine.local.folder import JOB_VARIABLE, JobFolder
from unbroken.engine.local.market import Market, check_market
from unbroken.errors import ConfigError, NotFoundError, UnbrokenError
from unbroken.job import Job
from unbroken.journal import Journal
from unbroken.journal.events import Decided
from unbroken.store import open_store

PATIENCE = 90.0
READY = "import time; print('ready', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
TRAINING = """
import time, torch, unbroken
model = torch.nn.Linear(2, 2)
with unbroken.Run("unused", every=5, state={"model": model}) as run:
    print("from", flush=True)
    for step in run.steps(until=%d):
        time.sleep(%f)
print("done", flush=True)
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    """An engine whose jobs are ended after the test."""
    root = tmp_path / "jobs"
    yield LocalEngine(root)
    for process in psutil.process_iter():
        try:
            if process.environ().get(JOB_VARIABLE, "").startswith(str(root)):
                process.kill()
        except (psutil.Error, OSError):
            continue
    if (pid := JobFolder(root, "job").pid()) is not None:
        os.kill(pid, signal.SIGKILL)


def job(folder: Path, code: str, **more: Any) -> Job:
    fields = {"name": "job", "run": str(folder / "run"), "command": [sys.executable, "-c", code], "grace": "5s"}
    environment = {"AWS_EC2_METADATA_DISABLED": "true", "UNBROKEN_NOTICES": "-ec2,-gcp,-azure,-kubernetes"}
    return Job.model_validate({**fields, "env": environment, "limits": {"max_restarts": 0}, **more})


def wait(until: Callable[[], Any]) -> Any:
    """What ``until`` gives once that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := until()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def prints(engine: LocalEngine, text: str) -> Callable[[], bool]:
    def there() -> bool:
        try:
            return text in list(engine.logs("job"))
        except NotFoundError:
            return False

    return there


def ended(engine: LocalEngine) -> Standing:
    def standing() -> Standing | None:
        found = engine.status("job")
        return found if found.state in (State.FINISHED, State.FAILED, State.STOPPED) else None

    result: Standing = wait(standing)
    return result


def test_a_job_that_nobody_launched_is_absent(engine: LocalEngine) -> None:
    assert engine.status("job").state == State.ABSENT
    with pytest.raises(NotFoundError, match="no job job"):
        engine.stop("job", timeout=1.0)
    with pytest.raises(NotFoundError, match="no job job"):
        list(engine.logs("job"))


def test_a_launched_job_is_launched_once_and_refuses_another_definition(engine: LocalEngine, tmp_path: Path) -> None:
    engine.launch(job(tmp_path, READY))
    wait(prints(engine, "ready"))
    again = engine.launch(job(tmp_path, READY))
    assert (again.state, len(again.places)) == (State.RUNNING, 1)
    with pytest.raises(ConfigError, match="every: None, now '5min'") as caught:
        engine.launch(job(tmp_path, READY, every="5min"))
    assert caught.value.kind == "changed"
    replaced = engine.launch(job(tmp_path, READY, every="5min"), replace=True)
    assert replaced.state in (State.WAITING, State.RUNNING)
    wait(lambda: len(engine.status("job").places) == 2)
    stopped = engine.stop("job", timeout=PATIENCE)
    assert (stopped.state, stopped.places[-1].state) == (State.STOPPED, "ended")


def test_a_job_that_fails_is_not_started_again(engine: LocalEngine, tmp_path: Path) -> None:
    engine.launch(job(tmp_path, "raise SystemExit('no such data')"))
    standing = ended(engine)
    assert (standing.state, standing.places[0].exit_code) == (State.FAILED, 1)
    assert "ended with 1" in standing.reason
    assert "no such data" in list(engine.logs("job"))


def test_what_does_not_leave_in_time_is_said_and_ends_later(engine: LocalEngine, tmp_path: Path) -> None:
    engine.launch(job(tmp_path, DEAF, grace="2s"))
    wait(prints(engine, "ready"))
    with pytest.raises(UnbrokenError, match="still runs") as caught:
        engine.stop("job", timeout=0.2)
    assert caught.value.kind == "timeout"
    assert ended(engine).state == State.STOPPED


def test_what_a_killed_supervisor_left_is_ended(engine: LocalEngine, tmp_path: Path) -> None:
    engine.launch(job(tmp_path, READY))
    wait(prints(engine, "ready"))
    pid = JobFolder(tmp_path / "jobs", "job").pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait(lambda: engine.status("job").state == State.FAILED)
    assert "without a word" in engine.status("job").reason
    left = [one for one in psutil.process_iter() if _of(one, tmp_path / "jobs" / "job")]
    assert left
    assert engine.stop("job", timeout=PATIENCE).state == State.STOPPED
    assert not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    engine.launch(job(tmp_path, READY))
    before, after = wait(lambda: places if len(places := engine.status("job").places) == 2 else None)
    assert (before.state, after.state) == ("ended", "running")
    assert "supervisor" in before.reason


def _of(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get(JOB_VARIABLE) == str(folder)
    except (psutil.Error, OSError):
        return False


def test_a_job_is_run_where_it_was_launched(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    engine.launch(job(tmp_path, "import os; print(os.getcwd()); raise SystemExit(3)"))
    ended(engine)
    assert str(tmp_path / "one") in list(engine.logs("job"))
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(ConfigError, match=r"directory: .*/one, now .*/two"):
        engine.launch(job(tmp_path, "import os; print(os.getcwd()); raise SystemExit(3)"))


@pytest.mark.slow
def test_a_stopped_training_goes_on_and_its_log_is_one(engine: LocalEngine, tmp_path: Path) -> None:
    training = job(tmp_path, TRAINING % (60, 0.05))
    engine.launch(training)
    run = tmp_path / "run"
    wait(lambda: list((run / "manifests").glob("*.json")) if run.exists() else None)
    assert engine.stop("job", timeout=PATIENCE).state == State.STOPPED
    durable = Journal.open(open_store(str(run))).state.checkpoints[-1].step
    engine.launch(training)
    printed = list(engine.logs("job", follow=True))
    assert [line for line in printed if line in ("from", "done")] == ["from", "from", "done"]
    assert engine.status("job").state == State.FINISHED
    assert [place.exit_code for place in engine.status("job").places] == [75, 0]
    state = Journal.open(open_store(str(run))).state
    assert (state.attempts[2].restored_step, state.finished_step) == (durable, 60)
    assert engine.launch(training).state == State.FINISHED
    assert len(engine.status("job").places) == 2


POOLS = [{"instance_type": "p4d", "zone": "a"}, {"instance_type": "p4d", "zone": "b"}]
PRICED = {
    "pools": POOLS, "prices": {"on_demand": 24.0, "spot": 8.0}, "expected_hours": 2, "steps": 100, "deadline": "12h",
}  # fmt: skip


def trace(path: Path, counts: list[int], gap: float = 0.25) -> str:
    path.write_text(json.dumps({"metadata": {"gap_seconds": gap * 3600.0}, "data": counts}))
    return str(path)


@pytest.mark.slow
def test_a_policy_takes_a_training_through_a_recorded_market_to_its_deadline(
    engine: LocalEngine, tmp_path: Path
) -> None:
    """An hour is 4 s. Spot is in a, then in b, then nowhere: on-demand ends it in time."""
    first = trace(tmp_path / "a.json", [1] * 8 + [0] * 400)
    second = trace(tmp_path / "b.json", [0] * 8 + [1] * 8 + [0] * 400)
    market = Market([first, second], "greedy", speed=900.0, changeover="15min")
    training = job(tmp_path, TRAINING % (100, 0.12), **PRICED)
    check_market(training, market)
    engine.launch(training, market=msgspec.to_builtins(market))
    standing = ended(engine)
    assert standing.state == State.FINISHED, standing
    state = Journal.open(open_store(str(tmp_path / "run"))).state
    assert state.finished_step == 100
    decided = [entry.event for entry in state.decisions if isinstance(entry.event, Decided)]
    assert {each.action for each in decided} >= {"spot", "idle"}
    assert decided[0].pool.startswith("p4d/")
    assert all({"slack", "done", "elapsed"} <= set(each.numbers) for each in decided)
    pools = [record.origin.pool for record in state.trainings]
    assert pools == [each.pool for each in decided if each.pool]  # what was decided is what was done
    prices = {record.origin.pool: record.origin.price for record in state.trainings}
    assert {record.origin.currency for record in state.trainings} == {"USD"}
    assert all(price == (24.0 if pool == "on-demand" else 8.0) for pool, price in prices.items())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"expected_hours": None}, "no expected_hours"),
        ({"deadline": None}, "no deadline"),
        ({"deadline": "2030-01-01T00:00:00Z"}, "is a moment"),
        ({"pools": POOLS[:1]}, "2 traces for 1 spot pools"),
        ({"pools": []}, "no spot pool"),
        ({"prices": None}, "has no price"),
    ],
)
def test_what_cannot_be_played_is_said_before_the_launch(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    files = [trace(tmp_path / name, [1, 0]) for name in ("a.json", "b.json")]
    fields = {key: value for key, value in {**PRICED, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=found):
        check_market(job(tmp_path, READY, **fields), Market(files, "greedy"))


def test_a_policy_that_does_not_exist_is_named(tmp_path: Path) -> None:
    files = [trace(tmp_path / name, [1, 0]) for name in ("a.json", "b.json")]
    with pytest.raises(ConfigError, match="no policy 'gready'"):
        check_market(job(tmp_path, READY, **PRICED), Market(files, "gready"))
    with pytest.raises(ConfigError, match="speed"):
        check_market(job(tmp_path, READY, **PRICED), Market(files, "greedy", speed=0.0))
