"""One trial: made from a seed, run to its end, and judged by its ledger and its journal."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from kills import PLAN_VARIABLE, Kill, Ledger, Plan, processes
from tensor_digest import digest

from unbroken.checkpoint import load_manifest, read_tensors, verify_checkpoint
from unbroken.errors import NotFoundError
from unbroken.journal import Journal
from unbroken.store import open_store

HERE = Path(__file__).parent
_PATIENCE = 90.0
_STARTS = 12
_DESCRIPTORS = 6
"""Of slots, in one process: two, twice for the mapped ones, and what an upload still reads or is being exchanged."""
_OLDER = 3
"""How many checkpoints are read whole beside the newest."""

_SAVING = [
    "capture", "reserve", "copy", "piece", "hold", "seal", "sequence", "sealed", "announce", "heard", "answered",
    "committed", "step",
]  # fmt: skip
_UPLOADING = ["offer", "take", "write", "continue", "put", "create", "append", "answer"]
_ENDING = ["part", "rescue", "conclude", "claim", "welcome", "inherit", "append", "create"]
_LAST = ["part", "rescue", "conclude"]
_RARE = [*_LAST, "claim", "welcome", "inherit", "rescue-before-next"]
_STARTING = ["hello", "restore", "prepare", "connected", "capture"]
_OFTEN = {"piece": 40, "sequence": 8, "put": 12, "create": 12, "capture": 4}
"""How many such calls a few saves make; of others, one each."""
_ONCE = ["offer", "inherit", "rescue", "conclude", "claim", "welcome", "part", *_STARTING]


def make_plan(seed: int, folder: Path, uri: str, *, slow: bool, most: int) -> Plan:
    """The trial of a seed.

    Args:
        slow: whether the store takes long for a save.
        most: how many kills there may be, and perhaps one more.
    """
    dice = random.Random(seed)
    supervised = dice.random() < 0.7
    restarts_itself = dice.random() < 0.7
    kills: list[Kill] = []
    wanted = dice.randint(2, most) if restarts_itself else dice.randint(1, 2)
    while len(kills) < wanted:
        kills += _some_kills(dice, supervised=supervised, restarts_itself=restarts_itself)
    return Plan(
        str(folder), uri, supervised, restarts_itself, impatient=dice.random() < 0.5, pace=0.02 if slow else 0.005,
        away=dice.choice([0.0, 0.0, 0.1, 0.3]),
        kills=tuple(kills),
    )  # fmt: skip


def _some_kills(dice: random.Random, *, supervised: bool, restarts_itself: bool) -> list[Kill]:
    kind = dice.choices(["saving", "uploading", "ending", "starting"], [5, 5, 2, 1])[0]
    if kind == "saving":
        victims = dice.choices([("trainer",), ("trainer", "agent"), ("agent",)], [6, 3, 2])[0]
        return [_kill(dice, "trainer", dice.choice(_SAVING), victims)]
    if kind == "uploading":
        victims = dice.choices([("agent",), ("agent", "trainer"), ("trainer",)], [5, 3, 3])[0]
        return [_kill(dice, "agent", dice.choice([point for point in _UPLOADING if point != "offer"]), victims)]
    # What happens after a trainer's end is met after a kill of one.
    first = _kill(dice, "trainer", dice.choice(_SAVING), ("trainer",))
    if kind == "starting":
        victims = dice.choices([("trainer",), ("trainer", "agent"), ("agent",)], [4, 2, 2])[0]
        return [first, _kill(dice, "trainer", dice.choice(_STARTING), victims)]
    points = [*_ENDING, "rescue-before-next"] if supervised and restarts_itself else _ENDING
    if supervised and restarts_itself:  # its command does not end
        points = [point for point in points if point not in ("rescue", "conclude")]
    return [first, _kill(dice, "agent", dice.choice(points), ("agent",), nth=1)]


def _kill(dice: random.Random, role: str, point: str, victims: tuple[str, ...], nth: int = 0) -> Kill:
    most = 1 if point in _ONCE else _OFTEN.get(point, 4)
    delay = 0.0 if dice.random() < 0.6 else round(dice.uniform(0.0005, 0.03), 4)
    if point in _LAST:
        delay = 0.0  # the process would be gone
    return Kill(role, point, dice.random() < 0.5, nth or dice.randint(1, most), delay, victims)


@dataclass
class Promises:
    """What a ledger lets us expect of the newest checkpoint."""

    sure: int = 0
    """Step that is durable whatever comes."""
    left: int = 0
    """Step that a killed trainer announced to an agent that lives: durable, if the agent lives on."""
    announced: dict[int, int] = field(default_factory=dict)
    """By trainer: the newest step that it announced."""
    held: dict[int, int] = field(default_factory=dict)
    """By trainer: the newest step that an agent that lives knows of."""
    contested: bool = False
    """Whether two commands run: what one announced is lost when the other one claims the run."""

    def read(self, line: dict[str, Any]) -> None:
        """Take in the next line; a training that began too early is an error."""
        pid = line["pid"]
        match line["what"]:
            case "start":
                self.contested = line["contested"]
                if self.contested:
                    self.left, self.held = 0, {}
            case "began":
                assert line["step"] >= self.expected(), f"went on from step {line['step']} after {self}"
                assert max(line["slots"]) <= _DESCRIPTORS, f"{line['slots']} slots are open in trainer and agent"
                self.sure, self.left = max(self.sure, line["step"]), 0
            case "connected":
                self.held[pid] = self.announced.get(pid, 0)
            case "announced":
                self.announced[pid] = line["step"]
                if pid in self.held:
                    self.held[pid] = line["step"]
            case "committed":
                self.sure = max(self.sure, line["step"])
            case "kill":
                self._killed(line["victims"])

    def expected(self) -> int:
        return self.sure if self.contested else max(self.sure, self.left)

    def _killed(self, victims: dict[str, list[int]]) -> None:
        if victims["agent"]:
            self.left, self.held = 0, {}
        for pid in victims["trainer"]:
            self.left = max(self.left, self.held.pop(pid, 0))


class Trial:
    """Runs a plan; :meth:`close` ends what is left of it."""

    def __init__(self, plan: Plan, truth: list[dict[str, str]]) -> None:
        self.plan = plan
        self._truth = truth
        self._folder = Path(plan.folder)
        self._path = self._folder / "plan"
        self._path.write_bytes(msgspec.json.encode(plan))
        (self._folder / "tmp").mkdir()
        self._write_python()
        self._ledger = Ledger(plan)
        self._output = (self._folder / "output").open("ab")
        self._promises = Promises()
        self._read = 0
        self._started: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Start the command until the training is finished after all kills; check what is stored after each start."""
        for _ in range(_STARTS):
            code = self._start()
            struck = self._ledger.strikes() >= len(self.plan.kills)
            if struck or not self.plan.impatient:
                self._await(lambda: not processes(self._path), "processes are left")
                self._check()
            if struck and self._finished(code):
                break
        else:
            raise AssertionError(f"{_STARTS} starts, and not finished")
        self._check_end()

    def close(self) -> None:
        """Kill what still runs."""
        for pid in processes(self._path):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self._started:
            process.wait(10)
        self._output.close()
        self._ledger.close()

    def report(self) -> str:
        """What its processes said, and what happened when."""
        output = (self._folder / "output").read_text(errors="replace")[-4000:]
        lines = ({**line, "digests": "..."} if "digests" in line else line for line in self._ledger.lines()[-60:])
        ledger = "\n".join(str(line) for line in lines)
        return f"{self.plan}\n--- ledger\n{ledger}\n--- output\n{output}"

    def _write_python(self) -> None:
        """The interpreter that a trainer starts its agent with."""
        path = self._folder / "python"
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "agent.py"} "$@"\n')
        path.chmod(0o755)

    def _start(self) -> int:
        train = [sys.executable, str(HERE / "train.py")]
        supervised = [sys.executable, str(HERE / "agent.py"), "run", "--", *train]
        self._ledger.add("start", contested=bool(processes(self._path)))
        process = subprocess.Popen(
            supervised if self.plan.supervised else train,
            stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT, env=self._environment(),
        )  # fmt: skip
        self._started.append(process)
        self._await(lambda: process.poll() is not None, "the command does not end")
        return process.returncode

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ, PLAN_VARIABLE: str(self._path), "TMPDIR": str(self._folder / "tmp"),
            "AWS_EC2_METADATA_DISABLED": "true", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip

    def _await(self, done: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not done():
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.02)

    def _check(self) -> None:
        """Nothing runs: the newest checkpoint is the one that may be expected, and each is the truth of its step."""
        lines = self._ledger.lines()
        for line in lines[self._read :]:
            self._promises.read(line)
            if line["what"] == "began" and line["step"]:
                restored = line["digests"]
                assert restored == self._truth[line["step"] - 1], f"step {line['step']} was restored wrongly"
            rare = self.plan.supervised and line.get("point") in _RARE  # and its agent may be dead
            assert line["what"] not in ("stuck", "missed") or rare, f"kill {line.get('kill')} did not strike"
        self._read = len(lines)
        journal = self._journal()
        records = journal.state.commits if journal is not None else []
        steps = [record.step for record in records]
        assert all(before < after for before, after in itertools.pairwise(steps)), steps
        newest = steps[-1] if steps else 0
        assert newest >= self._promises.expected(), f"newest {newest}, {self._promises}"
        self._promises = Promises(sure=newest)
        older = random.Random(newest).sample(records[:-1], min(_OLDER, len(records[:-1])))
        for record in [*older, *records[-1:]]:
            assert journal is not None
            assert verify_checkpoint(journal.store, record).problems == []
            held = read_tensors(journal.store, load_manifest(journal.store, record))
            truth = self._truth[record.step - 1]
            assert {name: digest(data) for name, data in held.items() if name in truth} == truth, record.step

    def _finished(self, code: int) -> bool:
        """Whether the training came to its end, be it without the ``unbroken run`` that was killed."""
        if code != -signal.SIGKILL:
            return code == 0
        since_start = "".join(line["what"][0] for line in self._ledger.lines()).rpartition("s")[2]
        return "f" in since_start

    def _check_end(self) -> None:
        journal = self._journal()
        assert journal is not None
        finished = [line for line in self._ledger.lines() if line["what"] == "finished"][-1]
        assert finished["digests"] == self._truth[finished["step"] - 1]
        assert journal.state.finished_step == finished["step"] == journal.state.commits[-1].step
        killed = sum(len(pids) for line in self._ledger.lines() if line["what"] == "kill"
                     for pids in line["victims"].values())  # fmt: skip
        left = [path.name for path in (self._folder / "tmp").iterdir() if not path.name.startswith("torchinductor_")]
        assert len(left) <= killed, left  # the folders of processes that could not clear up
        assert all(name.startswith("unbroken-") for name in left), left

    def _journal(self) -> Journal | None:
        try:
            return Journal.open(open_store(self.plan.uri))
        except NotFoundError:
            return None
