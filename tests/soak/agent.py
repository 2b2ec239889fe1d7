"""An agent of a trial: the real ``unbroken run``, or the agent that a trainer starts, killed where the plan says so.

Usage: agent.py run ... or agent.py -m unbroken.agent ...
"""

from __future__ import annotations

import runpy
import sys
import time
from typing import Any

from kills import Ledger, Moments, read_plan

import unbroken.agent.supervisor
from unbroken.agent import slot_answers
from unbroken.agent.admission import Admission
from unbroken.agent.arena import Arena
from unbroken.agent.attempt_writer import AttemptWriter
from unbroken.agent.claims import Claims
from unbroken.agent.ending import Ending
from unbroken.agent.session import Session
from unbroken.journal import Journal
from unbroken.link.messages import Hello
from unbroken.store.folder import FolderStore
from unbroken.store.objects import ObjectStore

_LIMIT = 100
"""Attempts in a row that may commit nothing: kills come before the first commit, too."""

trainers: list[int] = []
"""The trainer that this process has welcomed last."""


def main() -> None:
    plan = read_plan()
    moments = Moments(plan, Ledger(plan), "agent", lambda: list(trainers))
    moments.around(Session, "_admit", "welcome", meet)
    moments.around(Claims, "begin", "claim")
    moments.around(Arena, "inherit", "inherit")
    moments.around(Arena, "offer", "offer")
    moments.around(Arena, "take", "take")
    moments.around(AttemptWriter, "write", "write")
    moments.around(AttemptWriter, "_continue", "continue", lambda *_: time.sleep(plan.away))
    for store in (FolderStore, ObjectStore):
        moments.around(store, "put", "put")
        moments.around(store, "create", "create")
    moments.around(Journal, "append", "append")
    moments.around(slot_answers, "_send", "answer")
    moments.around(Session, "_part", "part")
    moments.around(Admission, "_rescue", "rescue-before-next")
    moments.around(Ending, "_rescue", "rescue")
    moments.around(Ending, "conclude", "conclude")
    unbroken.agent.supervisor.backoff = lambda *_: 0.02
    begin = Claims.__init__
    Claims.__init__ = lambda claims, origin, command, _, clock: begin(claims, origin, command, _LIMIT, clock)
    if sys.argv[1] == "-m":
        module, sys.argv = sys.argv[2], sys.argv[2:]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        from unbroken.cli import main as command

        sys.exit(command())


def meet(_session: Session, _channel: Any, hello: Hello, _answer: Any) -> None:
    trainers[:] = [hello.pid]


if __name__ == "__main__":
    main()
