"""The main loop's decisions, with a tree, a session and a clock that the test holds."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from unbroken.agent.arena import Arena
from unbroken.agent.ending import Ending
from unbroken.agent.events import Admitted, Fenced, Mailbox, NoticeHeard, Told
from unbroken.agent.interruption import Interruption
from unbroken.agent.options import AgentOptions
from unbroken.agent.process_tree import Tree
from unbroken.agent.runtime import RuntimeFolder
from unbroken.agent.session import Heard, Session
from unbroken.agent.view import View
from unbroken.agent.watch import Surroundings, Watch
from unbroken.journal import Origin
from unbroken.link.messages import LOST_RANK, PROTOCOL, Bye, Hello, Restored, Restoring, Stop
from unbroken.notice import InterruptionNotice
from unbroken.testing.clock import FakeClock


@dataclass
class Said:
    lines: list[str] = field(default_factory=list)
    view: View = field(default_factory=View)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def show(self, view: View) -> None:
        self.view = view

    def close(self) -> None:
        pass


@dataclass
class Process:
    """A tree that does not die."""

    pid: int = 1
    returncode: int | None = None
    signals: list[str] = field(default_factory=list)

    def ended(self) -> bool:
        return False

    def terminate(self) -> None:
        self.signals.append("TERM")

    def kill(self) -> list[int]:
        self.signals.append("KILL")
        return [self.pid]

    def clear(self, grace: float) -> list[int]:
        self.signals.append("clear")
        return []


@dataclass
class Trainers:
    """What the loop asks of a session."""

    clock: FakeClock
    byes: tuple[Bye, ...] = ()
    attempt: int = 2

    @property
    def claim(self) -> Any:
        journal = SimpleNamespace(state=SimpleNamespace(checkpoints=[]))
        return SimpleNamespace(uri="/run", lease=SimpleNamespace(attempt=self.attempt), journal=journal)

    def heard(self) -> Heard:
        return Heard(hellos=1, byes=self.byes)

    def connected(self) -> bool:
        self.clock.advance(0.05)  # a turn of the loop takes a while
        return not self.byes

    def trainers(self) -> list[Any]:
        return []

    def unsaved(self) -> tuple[int, ...]:
        return ()

    def stop(self, stop: Stop) -> bool:
        return not self.byes

    def record(self, event: object) -> None:
        pass


@dataclass
class Scene:
    around: Surroundings
    tree: Process
    session: Trainers
    clock: FakeClock
    said: Said

    def watch(self, *, attached: bool = False) -> Watch:
        return Watch(self.around, cast(Tree, self.tree), cast(Session, self.session), forward_signal=not attached)

    def notice(self, seconds: float) -> None:
        self.around.mailbox.post(NoticeHeard(InterruptionNotice("ec2", "terminate", self.clock.now() + seconds)))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    clock, mailbox, said = FakeClock(), Mailbox(), Said()
    folder = RuntimeFolder(tmp_path)
    interruption = Interruption([], mailbox, 30.0, clock)
    around = Surroundings(AgentOptions(), Origin("here", 1), clock, mailbox, interruption, said, folder, Arena())
    yield Scene(around, Process(), Trainers(clock), clock, said)
    folder.close()


def test_fencing_of_an_earlier_attempt_leaves_the_trainer_of_this_one_alone(scene: Scene) -> None:
    watch = scene.watch()
    scene.around.mailbox.post(Fenced("attempt 1 was replaced", 1))
    watch.turn(0)
    assert scene.tree.signals == []
    scene.around.mailbox.post(Fenced("attempt 2 was replaced", 2))
    watch.turn(0)
    assert scene.tree.signals == ["clear"]


def test_kill_at_the_deadline_is_said_once(scene: Scene) -> None:
    watch = scene.watch()
    scene.notice(10)
    watch.turn(0)
    scene.clock.advance(10)
    for _ in range(3):
        watch.turn(0)
    assert scene.tree.signals == ["KILL"] * 3
    assert [line for line in scene.said.lines if "killing" in line] == ["the deadline is here: killing the command"]


@pytest.mark.parametrize("seconds", [9.0, 10.0])
def test_attached_agent_does_not_press_a_trainer_that_said_goodbye(scene: Scene, seconds: float) -> None:
    attached, owner = scene.watch(attached=True), scene.watch()
    scene.notice(10)
    attached.turn(0)
    scene.session.byes = (Bye("interrupted", 4),)
    scene.clock.advance(seconds)
    attached.turn(0)
    assert scene.tree.signals == []
    owner.turn(0)
    assert scene.tree.signals != []


def test_settling_ends_with_the_deadline(scene: Scene) -> None:
    watch = scene.watch()
    scene.notice(0.4)
    watch.turn(0)
    began = scene.clock.monotonic()
    Ending(scene.around, cast(Tree, scene.tree), cast(Session, scene.session), watch).settle()
    assert scene.clock.monotonic() - began < 0.6


def test_grace_counts_from_when_the_trainer_heard_the_signal(scene: Scene) -> None:
    now = scene.clock.now()
    interruption = scene.around.interruption
    with interruption:
        interruption.signalled(signal.SIGTERM, "rank 0", now - 12)
        event = scene.around.mailbox.take(10)
    assert isinstance(event, NoticeHeard)
    assert event.notice.deadline == now - 12 + 30


def ranks(scene: Scene, *, restarts: bool = False) -> Watch:
    """Two of four ranks have become the second attempt."""
    watch = scene.watch()
    for rank in (0, 1):
        hello = Hello(PROTOCOL, "/run", 10 + rank, rank, 4, restarts=restarts, joining=rank > 0, attempt=2 * rank)
        scene.around.mailbox.post(Admitted(hello, 2, rank == 0))
    watch.turn(0)
    scene.said.lines.clear()
    return watch


def test_restore_of_all_ranks_here_is_on_the_status_line_until_training_goes_on(scene: Scene) -> None:
    watch = ranks(scene)
    for rank, done in ((0, 1_000_000_000), (1, 400_000_000), (0, 2_600_000_000)):
        scene.around.mailbox.post(Told(rank, Restoring(done, 4_000_000_000)))
    watch.turn(0)
    assert scene.said.view.phase == "restoring 3.0 GB of 8.0 GB"
    scene.around.mailbox.post(Told(0, Restored(6, 0.5, 100)))
    scene.around.mailbox.post(Told(1, Restoring(4_000_000_000, 4_000_000_000)))
    watch.turn(0)
    assert scene.said.view.phase == ""


def test_what_every_rank_says_is_said_once_for_each_attempt(scene: Scene) -> None:
    watch = ranks(scene)
    lost = Bye("failed", 8, "ChildError", "rank 3 (b) was not heard of for 60 s", 1, kind=LOST_RANK)
    for rank in (1, 0):
        scene.around.mailbox.post(Told(rank, Restored(6, 0.5, 100)))
        scene.around.mailbox.post(Told(rank, lost))
    watch.turn(0)
    said = [
        "training goes on from step 6 (0.5s)",
        "rank 1 failed after step 8: ChildError: rank 3 (b) was not heard of for 60 s",
    ]
    assert scene.said.lines == said
    hello = Hello(PROTOCOL, "/run", 20, 0, 4)
    scene.around.mailbox.post(Admitted(hello, 3, True))
    scene.around.mailbox.post(Told(0, Restored(6, 0.5, 100)))
    watch.turn(0)
    assert scene.said.lines[-1] == said[0]


@pytest.mark.parametrize("restarts", [False, True])
def test_launcher_that_would_start_ranks_again_is_ended_when_they_have_left_for_a_notice(
    scene: Scene, restarts: bool
) -> None:
    watch = ranks(scene, restarts=restarts)
    scene.notice(30)
    watch.turn(0)
    scene.around.mailbox.post(Told(1, Bye("interrupted", 8, exit_code=75)))
    watch.turn(0)
    assert scene.tree.signals == []  # the other one is still saving
    scene.session.byes = (Bye("interrupted", 8, exit_code=75),)
    scene.around.mailbox.post(Told(0, Bye("interrupted", 8, exit_code=75)))
    watch.turn(0)
    assert scene.tree.signals == (["TERM"] if restarts else [])


def test_launcher_that_ended_its_ranks_for_others_is_left_alone(scene: Scene) -> None:
    watch = ranks(scene, restarts=True)
    scene.session.byes = (Bye("interrupted", 8, exit_code=75),)
    scene.around.mailbox.post(Told(0, Bye("interrupted", 8, exit_code=75)))
    watch.turn(0)
    assert scene.tree.signals == []
