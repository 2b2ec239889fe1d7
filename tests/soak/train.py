"""The command of a trial: trains, and is killed where the plan says so."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from pathlib import Path

from kills import PLAN_VARIABLE, Ledger, Moments, Plan, processes, read_plan
from small_training import Training

import unbroken
import unbroken.training.copying
import unbroken.training.saves
from unbroken.link.arena import Slot
from unbroken.training import agent_link
from unbroken.training.agent_link import AgentLink
from unbroken.training.attempt import Attempt
from unbroken.training.copying import CopyingThread, DeferredCopy
from unbroken.training.remote_writer import RemoteWriter

LAST = 400
"""No trial comes so far: it ends some steps after its last kill."""
_TAIL = 3
_PATIENCE = 30.0
_AHEAD, _SLOWER = 10, 0.05
"""So many steps before the newest checkpoint, each takes so many seconds more: kills need saves, not steps."""

_LONGEST = 100
"""Steps for which a kill is waited for."""
_CONNECT_SECONDS = 3.0
"""For how long a trainer asks for an agent that was killed in the meantime."""

agents: list[int] = []
"""The agent that this process speaks to."""


def main() -> None:
    plan = read_plan()
    ledger = Ledger(plan)
    if plan.restarts_itself:
        launch(plan, ledger)
    sys.executable = str(Path(plan.folder, "python"))  # with which an agent is started
    agent_link._CONNECT_SECONDS = _CONNECT_SECONDS
    training = Training()
    make_moments(plan, ledger, training)
    with unbroken.Run(plan.uri, every=1, state=training.state) as run:
        slots = [count_slots(pid) for pid in (os.getpid(), *agents)]
        ledger.add("began", attempt=run.attempt, step=run.step, slots=slots, digests=training.digests())
        left, attempt, patience = _TAIL, run._attempt, Patience(plan, ledger)
        for step in run.steps(until=LAST):
            time.sleep(plan.pace * (step % 3) / 2)  # sometimes the next step comes before the copy is complete
            training.step()
            time.sleep(plan.pace * (1 - step % 3 / 2))
            if attempt.busy and step - attempt.durable_step > _AHEAD:
                time.sleep(_SLOWER)
            left -= patience.over()
            if left <= 0:
                run.finish()
            elif step == LAST - 2:
                await_strikes(plan, ledger)
    ledger.add("finished", step=run.step, digests=training.digests())


class Patience:
    """Passes over a kill whose moment cannot come any more, as where its agent is no longer there."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self._plan = plan
        self._ledger = ledger
        self._struck = ledger.strikes()
        self._steps = 0

    def over(self) -> bool:
        """Asked once a step: whether all kills are behind us."""
        struck = self._ledger.strikes()
        self._steps = self._steps + 1 if struck == self._struck else 0
        self._struck = struck
        if struck < len(self._plan.kills) and self._steps > _LONGEST:
            self._ledger.add("missed", kill=struck, point=self._plan.kills[struck].point)
            self._ledger.strike()
        return struck >= len(self._plan.kills)


def count_slots(pid: int) -> int:
    """Descriptors of slots that a process holds."""
    count = 0
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            count += "memfd:unbroken-slot" in str(path.readlink())
        except OSError:  # closed meanwhile
            continue
    return count


def launch(plan: Plan, ledger: Ledger) -> None:
    """Start the trainer and start it again when it is killed; returns in the trainer alone."""
    Training().step()  # loads what torch loads when it is used first
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot fork"
    while True:
        seen = len(ledger.lines())
        pid = os.fork()
        if not pid:
            return
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        lost_agent = any(line["what"] == "kill" and line["victims"]["agent"] for line in ledger.lines()[seen:])
        if code >= 0 or (plan.supervised and lost_agent):
            os._exit(abs(code))
        if not plan.supervised:  # what the trainer announced is its agent's, until another one begins
            await_alone()


def await_alone() -> None:
    deadline = time.monotonic() + _PATIENCE
    while processes(Path(os.environ[PLAN_VARIABLE])):
        assert time.monotonic() < deadline, "the agent does not leave"
        time.sleep(0.01)


def make_moments(plan: Plan, ledger: Ledger, training: Training) -> None:
    moments = Moments(plan, ledger, "trainer", lambda: list(agents))
    moments.around(AgentLink, "_say_hello", "hello", lambda link, _: meet(link))
    moments.around(unbroken.training.saves, "capture", "capture")
    moments.around(Slot, "reserve", "reserve")
    moments.around(DeferredCopy, "_copy", "copy")
    moments.around(unbroken.training.copying, "_address", "piece")
    moments.around(CopyingThread, "hold_step", "hold")
    moments.around(Slot, "seal", "seal")
    moments.around(Slot, "_write_sequence", "sequence")
    moments.around(RemoteWriter, "_say_sealed", "sealed")
    moments.around(RemoteWriter, "announce", "announce", lambda _, pending: ledger.add("announced", step=pending.step))
    moments.around(RemoteWriter, "connected", "connected", lambda *_: ledger.add("connected"))
    moments.around(RemoteWriter, "heard", "heard")
    moments.around(RemoteWriter, "write", "answered")
    moments.around(Attempt, "_committed", "committed", lambda _, event: ledger.add("committed", step=event.step))
    moments.around(Attempt, "restore", "restore")
    moments.around(Attempt, "prepare", "prepare")
    moments.around(Attempt, "finish", "finish")
    moments.around(training.optimizer, "zero_grad", "step")


def meet(link: AgentLink) -> None:
    """Find out who the agent is."""
    assert link._channel is not None
    peer = link._channel._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    agents[:] = [struct.unpack("iii", peer)[0]]


def await_strikes(plan: Plan, ledger: Ledger) -> None:
    deadline = time.monotonic() + _PATIENCE
    while (struck := ledger.strikes()) < len(plan.kills):
        if time.monotonic() > deadline:
            ledger.add("stuck", kill=struck)
            sys.exit(3)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
