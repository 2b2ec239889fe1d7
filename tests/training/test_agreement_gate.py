"""The gate and the rounds together, in every order in which their parts can meet; no thread, no network, no time."""

from __future__ import annotations

import random
import threading
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unbroken.clock import SYSTEM_CLOCK
from unbroken.errors import StoreError
from unbroken.testing.clock import FakeClock
from unbroken.training.agreement_gate import Gate, Outcome
from unbroken.training.agreement_messages import Answer, Bye, Ended, Opened, Propose
from unbroken.training.agreement_rounds import Rounds


@dataclass
class _Rank:
    number: int
    gate: Gate
    step: int = 0
    doing: str = "boundary"  # then "flag", then "step" or "held"; "left" or "done" at the end
    changed: threading.Event | None = None
    notes: deque[Answer | Bye | Propose] = field(default_factory=deque)
    mails: deque[Opened | Ended] = field(default_factory=deque)
    acted: dict[str, int] = field(default_factory=dict)

    @property
    def begun(self) -> int:
        """The step that it is truly in or has completed."""
        return self.step + (self.doing == "step")


class _World:
    """Ranks, messages on their way and a host, moved one small action at a time."""

    def __init__(self, ranks: int, until: int, *, collective: bool) -> None:
        self.ranks = [_Rank(number, Gate(0, clock=SYSTEM_CLOCK, wait_seconds=0.0)) for number in range(ranks)]
        self.rounds = Rounds(ranks, answer_seconds=10.0)
        self.until = until
        self.collective = collective

    def actions(self) -> list[tuple[_Rank, str]]:
        """All that can happen now."""
        found = []
        for rank in self.ranks:
            found += [(rank, "note")] * bool(rank.notes) + [(rank, "mail")] * bool(rank.mails)
            if self._can_go_on(rank):
                found.append((rank, "loop"))
        return found

    def do(self, rank: _Rank, action: str) -> None:
        """Let it happen."""
        if action == "note":
            self._to_host(rank.notes.popleft())
        elif action == "mail":
            self._to_rank(rank, rank.mails.popleft())
        else:
            self._loop(rank)

    def _can_go_on(self, rank: _Rank) -> bool:
        if rank.doing == "held":
            assert rank.changed is not None
            return rank.changed.is_set()
        if rank.doing == "step" and self.collective:
            return all(other.begun > rank.step for other in self.ranks)
        return rank.doing not in {"left", "done"}

    def _loop(self, rank: _Rank) -> None:
        if rank.doing == "boundary":
            rank.gate.begun = rank.step + 1
            rank.doing = "flag"
        elif rank.doing in {"flag", "held"}:
            self._enter(rank)
        else:
            rank.step += 1
            rank.doing = "boundary"
            if rank.step == self.until:
                rank.gate.finished(rank.step)
                self._leave(rank, "done")

    def _enter(self, rank: _Rank) -> None:
        if rank.doing == "flag" and not rank.gate.flag:
            rank.doing = "step"
            return
        decision, rank.changed = rank.gate.look(rank.step)
        if decision == "wait":
            rank.doing = "held"
        elif decision is None:
            rank.doing = "step"
        else:
            assert isinstance(decision, Outcome)
            self._act(rank, decision)

    def _act(self, rank: _Rank, outcome: Outcome) -> None:
        name = outcome.data["name"]
        assert outcome.agreed
        assert outcome.step == rank.step
        assert name not in rank.acted
        rank.acted[name] = rank.step
        for other in self.ranks:
            assert other.begun <= rank.step or name in other.acted, "somebody is beyond what was agreed"
        rank.doing = "boundary"
        if outcome.kind == "stop":
            self._leave(rank, "left")

    def _leave(self, rank: _Rank, doing: str) -> None:
        rank.doing = doing
        rank.notes.append(Bye(rank.number, rank.step))

    def _to_host(self, note: Answer | Bye | Propose) -> None:
        if isinstance(note, Propose):
            sent = self.rounds.propose(note.kind, note.data, 0.0)
        elif isinstance(note, Answer):
            sent = self.rounds.answer(note.round, note.rank, note.step, 0.0)
        else:
            sent = self.rounds.leave(note.rank, note.step, 0.0)
        for rank in self.ranks:
            rank.mails.extend(sent)

    def _to_rank(self, rank: _Rank, mail: Opened | Ended) -> None:
        if isinstance(mail, Opened):
            rank.notes.append(Answer(mail.round, rank.number, rank.gate.open_round(mail.round, mail.kind, mail.data)))
        else:
            assert mail.step is not None, "nobody was silent"
            rank.gate.end_round(mail.round, mail.step, mail.data)


@settings(max_examples=400)
@example(seed=0, ranks=2, until=3, wanted=[(0, "save"), (1, "stop")], collective=False)
@given(
    seed=st.integers(0, 2**32),
    ranks=st.integers(1, 5),
    until=st.integers(1, 9),
    wanted=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["save", "stop"])), max_size=5),
    collective=st.booleans(),
)
def test_all_ranks_act_at_one_step_that_nobody_has_passed_and_none_hangs(
    seed: int, ranks: int, until: int, wanted: list[tuple[int, str]], collective: bool
) -> None:
    choose = random.Random(seed)
    world = _World(ranks, until, collective=collective)
    pending = [
        Propose(kind, {"name": f"{kind}{number}", "rank": rank % ranks}) for number, (rank, kind) in enumerate(wanted)
    ]
    favourite = choose.choice(world.ranks)  # one that is often let go first runs far ahead, or is far behind
    while True:
        actions = world.actions()
        if pending and (not actions or choose.random() < 0.1):
            note = pending.pop()
            world.ranks[0 if note.kind == "save" else note.data["rank"]].notes.append(note)
            continue
        if not actions:
            break
        preferred = [each for each in actions if each[0] is favourite and each[1] == "loop"]
        world.do(*choose.choice(preferred if preferred and choose.random() < 0.5 else actions))
    _check(world, until)


def _check(world: _World, until: int) -> None:
    for rank in world.ranks:
        assert rank.doing in {"left", "done"}, f"rank {rank.number} hangs at {rank.step}: {rank.doing}"
    assert len({rank.step for rank in world.ranks}) == 1, "they did not end after the same step"
    for name in {name for rank in world.ranks for name in rank.acted}:
        steps = [rank.acted.get(name) for rank in world.ranks]
        assert len(set(steps)) == 1, f"{name}: {steps}"
        assert steps[0] != until, "completion outranks what is agreed for the last step"


def _gate(step: int = 0, clock: FakeClock | None = None) -> Gate:
    return Gate(step, clock=clock or FakeClock(), wait_seconds=70.0)


def test_a_round_opened_between_the_two_lines_of_the_loop_is_settled_either_way() -> None:
    gate = _gate(3)
    assert gate.open_round(1, "save", {}) == 3  # before the loop wrote begun
    gate.begun = 4
    assert gate.look(3)[0] == "wait"
    later = _gate(3)
    later.begun = 4
    assert later.open_round(1, "save", {}) == 4  # after it
    assert later.look(3)[0] is None
    assert later.begun == 4


def test_a_rank_that_is_behind_trains_on_to_the_agreed_step() -> None:
    gate = _gate(2)
    gate.open_round(1, "save", {})
    gate.end_round(1, 4, {"why": "cadence"})
    assert [gate.enter(2), gate.enter(3)] == [None, None]
    assert gate.flag
    assert gate.enter(4) == Outcome("save", 4, {"why": "cadence"})
    assert gate.enter(4) is None
    assert not gate.flag


def test_a_gate_whose_result_never_comes_opens_after_its_bound_and_a_stop_is_not_agreed() -> None:
    clock = FakeClock()
    gate = _gate(2, clock)
    gate.open_round(1, "save", {})
    gate.open_round(2, "stop", {"source": "ec2"})
    began = clock.monotonic()
    assert gate.enter(2) == Outcome("stop", 2, {"source": "ec2"}, agreed=False)
    assert clock.monotonic() - began == pytest.approx(70.0)
    assert gate.left_out == 1


def test_a_stop_that_ends_without_result_lets_the_rank_leave_where_it_is() -> None:
    gate = _gate(2)
    gate.begun = 3
    gate.open_round(1, "stop", {})
    gate.end_round(1, None, {"until": 5.0}, (1, 4))
    assert gate.enter(3) == Outcome("stop", 3, {"until": 5.0}, agreed=False, missing=(1, 4))


def test_an_error_is_raised_at_the_next_boundary_but_a_stop_comes_first() -> None:
    gate = _gate(2)
    gate.open_round(1, "stop", {})
    gate.go_alone(StoreError("rank 3 is gone", kind="ranks"))
    outcome = gate.enter(2)
    assert outcome is not None
    assert not outcome.agreed
    assert gate.flag
    with pytest.raises(StoreError, match="rank 3 is gone"):
        gate.enter(2)


def test_with_an_error_the_loop_still_goes_to_a_stop_that_was_agreed() -> None:
    gate = _gate(2)
    gate.open_round(1, "stop", {})
    gate.end_round(1, 3, {})
    gate.go_alone(StoreError("rank 3 is gone", kind="ranks"))
    assert gate.enter(2) is None
    assert gate.enter(3) == Outcome("stop", 3, {})


def test_after_the_last_step_rounds_are_answered_with_it_and_hold_nobody_back() -> None:
    gate = _gate(8)
    gate.begun = 9
    gate.finished(9)
    assert gate.open_round(1, "stop", {}) == 9
    assert not gate.flag
