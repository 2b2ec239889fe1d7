"""A trainer without torch: speaks the link's protocol and commits checkpoints that are journal entries alone.

Usage: trainer.py JSON, where JSON gives the fields of :class:`Plan`. Prints what happens, a line each.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import msgspec

from unbroken import errors
from unbroken.journal import Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted, RunFinished
from unbroken.link.channel import connect
from unbroken.link.messages import (
    PROTOCOL,
    Bye,
    Committed,
    Hello,
    Refused,
    Restored,
    SignalReceived,
    Stop,
    StopAgreed,
    Stopping,
    Welcome,
)
from unbroken.link.progress import ProgressPage
from unbroken.store import open_store


class Plan(msgspec.Struct):
    uri: str
    until: int = 3
    """Steps of the whole run; 0: goes on until told to stop."""
    commits: bool = True
    """Whether every step is committed."""
    on_stop: str = "save"
    """``save``: commit a step and leave with 75; ``exit-0``: leave at once with 0; ``ignore``: SIGTERM too."""
    crash_at: int = -1
    """Step after which the process kills itself, in the first attempt of the run only."""
    exit_code: int = 0
    """With which to leave a finished run."""
    fail: str = ""
    """Error class with which the loop fails at once."""
    leave: bool = False
    """Leave with 0 after the first step."""
    bye: bool = True
    signal_self: bool = False
    """Report a SIGTERM of our own after the first step."""
    agree: float = 0.0
    """Say after the first step that all ranks have agreed to stop for a notice with as many seconds left."""
    after: float = 0.0
    """Seconds of work after the loop, without a connection."""


class Trainer:
    def __init__(self, plan: Plan, path: Path) -> None:
        self.plan = plan
        self.stop: Stop | None = None
        self.stopped = threading.Event()
        self.page = ProgressPage(path.parent / f"progress-{os.getpid()}", create=True)
        self.channel = connect(path, timeout=10)
        hello = Hello(PROTOCOL, plan.uri, os.getpid(), progress=str(self.page.path))
        self.channel.send(hello)
        self.messages = self.channel.messages()
        answer = next(self.messages)
        if isinstance(answer, Refused):
            self.channel.close()
            say(f"refused {answer.error} {answer.kind}")
            sys.exit(getattr(errors, answer.error, errors.UnbrokenError).exit_code)
        assert isinstance(answer, Welcome)
        say(f"welcome {answer.attempt}")
        self.lease = Lease(answer.attempt, answer.claim)
        self.origin = Origin(socket.gethostname(), os.getpid())
        self.journal = Journal.open(open_store(plan.uri))
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        for message in self.messages:
            if isinstance(message, Stop):
                self.stop = message
                say(f"stop {message.source} {message.deadline!r}")
                self.stopped.set()

    def train(self) -> int:
        plan = self.plan
        step = max([record.step for record in self.journal.state.checkpoints], default=0)
        self.channel.send(Restored(step, 0.0, 0))
        if plan.fail:
            return self.leave("failed", step, plan.fail, 3)
        while plan.until == 0 or step < plan.until:
            step += 1
            self.page.write(step, plan.until or 10**6, time.time(), 0.0, -1, time.time())
            if plan.commits:
                self.commit(step)
            say(f"step {step}")
            if step == plan.crash_at and self.lease.attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if plan.leave:
                return self.leave("left", step, "", 0)
            if plan.signal_self and step == 1:
                self.channel.send(SignalReceived("SIGTERM"))
            if plan.agree and step == 1:
                self.channel.send(StopAgreed("ec2", "terminate", time.time() + plan.agree))
            if plan.until == 0 and self.stopped.wait(60):
                if plan.on_stop == "ignore":
                    threading.Event().wait(60)
                return self.obey(step)
        self.journal.append(RunFinished(step), self.origin, self.lease)
        return self.leave("finished", step, "", plan.exit_code)

    def obey(self, step: int) -> int:
        if self.plan.on_stop == "exit-0":
            return 0
        self.channel.send(Stopping(step + 1))
        self.page.write(step + 1, 10**6, time.time(), 0.0, -1, time.time())
        self.commit(step + 1)
        return self.leave("interrupted", step + 1, "", 75)

    def commit(self, step: int) -> None:
        manifest = f"manifests/{step}-{self.lease.attempt}.json"
        self.journal.append(CheckpointCommitted(step, manifest, "0" * 64, 1, 1), self.origin, self.lease)
        self.channel.send(Committed(step, 0.01, 0.0, 1))

    def leave(self, outcome: str, step: int, error: str, code: int) -> int:
        if self.plan.bye:
            self.channel.send(Bye(outcome, step, error, "made to fail" if error else "", code))
        self.channel.close()
        return code


def say(text: str) -> None:
    sys.stdout.write(f"trainer: {text}\n")
    sys.stdout.flush()


def main() -> int:
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    if plan.on_stop == "ignore":
        signal.signal(signal.SIGTERM, lambda *_: say("SIGTERM"))
    code = Trainer(plan, Path(os.environ["UNBROKEN_SOCKET"])).train()
    if plan.after:
        say("after")
        time.sleep(plan.after)
    return code


if __name__ == "__main__":
    sys.exit(main())
