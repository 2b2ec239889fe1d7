"""Which attempt a trainer of several ranks is given, and which trainers are refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from unbroken.agent import claims, roster
from unbroken.agent.events import Departed, Told, Trouble
from unbroken.clock import SYSTEM_CLOCK
from unbroken.journal import Journal, Lease, Origin
from unbroken.link.messages import Bye, Refused, Stop, Welcome
from unbroken.store import open_store

MakeNode = Callable[..., Any]
STOP = Stop("ec2", "terminate", 2_000_000_000.0)


def refusal(trainer: Any) -> tuple[str, str]:
    assert isinstance(trainer.answer, Refused), trainer.answer
    return trainer.answer.error, trainer.answer.kind


def ended(node: Any, attempt: int) -> str:
    record = node.journal().state.attempts[attempt]
    return record.ended.cause if record.ended else ""


def part(node: Any, *trainers: Any) -> None:
    for trainer in trainers:
        trainer.channel.close()
        node.until(Departed)


def test_ranks_of_all_nodes_join_the_attempt_of_rank_0(make_node: MakeNode) -> None:
    here, there = make_node(), make_node()
    first = here.join(0, 4)
    others = [here.join(1, 4, first.lease), there.join(2, 4, first.lease), there.join(3, 4, first.lease)]
    assert {trainer.answer for trainer in others} == {first.answer}
    assert list(here.journal().state.attempts) == [1]
    assert [(node.session.heard().leads, node.session.heard().world_size) for node in (here, there)] == [
        (True, 4),
        (False, 4),
    ]
    assert [hello.rank for hello in there.session.trainers()] == [2, 3]


def test_agent_whose_rank_0_joins_after_another_rank_leads(make_node: MakeNode) -> None:
    node = make_node()
    journal = Journal.create(open_store(node.uri, create=True))
    lease = journal.claim(Origin("here", 1))
    node.join(1, 2, lease, joining=False)
    assert not node.session.heard().leads
    node.join(0, 2, lease, joining=False)
    assert node.session.heard().leads


def test_agent_of_one_rank_serves_it_alone(make_node: MakeNode) -> None:
    """Without a launcher each rank starts an agent for itself."""
    nodes = [make_node() for _ in range(3)]
    trainers = [nodes[0].join(0, 3)]
    trainers += [node.join(rank, 3, trainers[0].lease) for rank, node in enumerate(nodes) if rank]
    for trainer in trainers:
        trainer.save(4)
    assert {trainer.committed().event.step for trainer in trainers} == {4}
    assert nodes[0].steps() == [4]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"rank": 1, "world_size": 4}, "no-attempt"),
        ({"rank": 4, "world_size": 4}, "rank"),
        ({"rank": -1, "world_size": 4}, "rank"),
    ],
)
def test_rank_that_cannot_be_is_refused(make_node: MakeNode, fields: dict[str, int], kind: str) -> None:
    assert refusal(make_node().hello(**fields)) == ("ConfigError", kind)


def test_second_trainer_of_a_rank_of_the_attempt_is_refused(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "DEPARTURE_SECONDS", 0.01)
    node = make_node()
    lease = node.join(0, 2).lease
    node.join(1, 2, lease)
    again = node.hello(rank=1, world_size=2, attempt=lease.attempt, claim=lease.claim, joining=True)
    assert refusal(again) == ("ConfigError", "second-trainer")
    assert refusal(node.hello(rank=0, world_size=2)) == ("ConfigError", "second-trainer")


@pytest.mark.parametrize("world_size", [1, 3])
def test_other_world_size_in_one_attempt_is_refused(make_node: MakeNode, world_size: int) -> None:
    node = make_node()
    lease = node.join(1, 4, node.join(0, 4).lease).lease
    fields = {"rank": 2, "attempt": lease.attempt, "claim": lease.claim} if world_size > 1 else {"rank": 2}
    assert refusal(node.hello(world_size=world_size, **fields)) == ("ConfigError", "world-size")
    assert list(node.journal().state.attempts) == [1]


def test_trainers_started_again_under_a_claim_from_elsewhere_begin_that_attempt_here(make_node: MakeNode) -> None:
    here, there = make_node(), make_node()
    first = here.join(0, 2)
    second = there.join(1, 2, first.lease)
    part(here, first)
    part(there, second)
    third = here.join(0, 2)
    assert third.lease.attempt == 2
    assert ended(there, 1) == "crashed"  # by the agent of rank 0
    fourth = there.join(1, 2, third.lease)
    assert fourth.lease == third.lease
    for trainer in (third, fourth):
        trainer.save(4)
    assert third.committed() == fourth.committed()
    assert there.claims.attempts == [1, 2]


def test_agent_without_rank_0_writes_no_end_though_rank_0_comes_to_it_next(make_node: MakeNode) -> None:
    here, there = make_node(), make_node()
    first = here.join(0, 2)
    second = there.join(1, 2, first.lease)
    part(there, second)
    assert there.join(0, 2).lease.attempt == 2
    assert ended(there, 1) == ""


def test_rank_0_begins_anew_while_others_of_the_last_attempt_are_still_dying(make_node: MakeNode) -> None:
    node = make_node()
    first = node.join(0, 2)
    dying = node.join(1, 2, first.lease)
    part(node, first)
    again = node.join(0, 2)
    assert again.lease.attempt == 2
    node.join(1, 2, again.lease)
    dying.channel.send(Bye("failed", 4, "RuntimeError", "lost its peers"))
    node.until(Told)
    assert node.session.heard().byes == ()  # it is no word about this attempt
    assert len(node.session.trainers()) == 3


def test_trainer_left_behind_by_its_attempt_is_refused_and_disturbs_nobody(make_node: MakeNode) -> None:
    here, there = make_node(), make_node()
    stale = here.join(0, 2).lease
    part(here, here.trainers[0])
    fresh = here.join(0, 2)
    there.join(1, 2, fresh.lease)
    late = there.hello(rank=0, world_size=2, attempt=stale.attempt, claim=stale.claim, joining=True)
    assert refusal(late) == ("FencedError", "fenced")
    assert there.session.claim.lease == fresh.lease
    assert there.session.stop(STOP)


def test_claim_that_cannot_be_seen_yet_is_waited_for(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "ab" * count)
    looked = threading.Event()

    class Looking:
        def __getattr__(self, name: str) -> Any:
            return getattr(SYSTEM_CLOCK, name)

        def sleep(self, seconds: float) -> None:
            if not looked.is_set():
                looked.set()
                Journal.create(open_store(node.uri, create=True)).claim(Origin("elsewhere", 1))

    node = make_node(clock=Looking())
    trainer = node.join(1, 2, Lease(1, "ab" * 8))
    assert trainer.lease == Lease(1, "ab" * 8)
    assert looked.is_set()


def test_attempt_that_nobody_claimed_is_refused(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "VISIBLE_SECONDS", 0.0)
    node = make_node()
    invented = node.hello(rank=1, world_size=2, attempt=1, claim="invented", joining=True)
    assert refusal(invented) == ("FencedError", "no-claim")
    assert list(node.journal().state.attempts) == []


def test_joining_counts_as_no_attempt_without_progress(make_node: MakeNode) -> None:
    node = make_node()
    journal = Journal.create(open_store(node.uri, create=True))
    for _ in range(9):
        lease = journal.claim(Origin("here", 1))
    assert isinstance(node.join(1, 2, lease).answer, Welcome)
    assert refusal(make_node().hello(rank=0, world_size=2)) == ("UnbrokenError", "stopped-no-progress")


def test_rank_that_joins_gets_the_memory_of_its_rank_and_one_that_changes_its_agent_none(make_node: MakeNode) -> None:
    node = make_node()
    for rank in (0, 1):
        lease = node.trainers[0].lease if rank else None
        node.join(rank, 2, lease).save(4)
    for trainer in node.trainers:
        trainer.committed()
    part(node, *node.trainers)
    first = node.join(0, 2)
    second = node.join(1, 2, first.lease)
    assert (first.answer.slots, second.answer.slots) == (1, 1)
    part(node, second)
    changed = node.join(1, 2, first.lease, joining=False)
    assert changed.answer.slots == 0


def test_leftover_of_a_replaced_attempt_ends_no_command_whose_trainers_are_gone(make_node: MakeNode) -> None:
    here, there = make_node(), make_node()
    first = here.join(0, 2)
    second = there.join(1, 2, first.lease)
    second.save(4)
    there.gather(1)
    part(there, second)
    part(here, first)
    third = here.join(0, 2)
    assert "was replaced by attempt 2" in there.until(Trouble).text
    assert not there.session.heard().fenced
    assert isinstance(there.join(1, 2, third.lease).answer, Welcome)


def test_trainers_that_still_train_a_replaced_attempt_are_fenced(make_node: MakeNode) -> None:
    here, there = make_node(), make_node()
    first = here.join(0, 2)
    there.join(1, 2, first.lease)
    here.journal().claim(Origin("elsewhere", 1))
    there.trainers[0].save(4)
    assert there.trainers[0].failure().error == "FencedError"
    assert there.session.heard().fenced


def test_save_that_waits_for_a_dying_rank_keeps_no_new_attempt_waiting(make_node: MakeNode) -> None:
    here, there = make_node(), make_node(upload_patience=600.0)
    first = here.join(0, 3)
    waiting = there.join(1, 3, first.lease)
    there.join(2, 3, first.lease)  # neither stages nor leaves
    waiting.save(4)
    there.gather(1)
    part(here, first)
    third = here.join(0, 3)
    there.join(1, 3, third.lease)
    assert waiting.failure().kind == "abandoned"
