"""Saves of several ranks on several nodes: one commit, or a clear answer why there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unbroken.agent import gathering
from unbroken.agent.common_save import LONGEST
from unbroken.agent.events import Departed, Durable, Fenced, Trouble
from unbroken.agent.local_ranks import LocalRanks
from unbroken.checkpoint import RankWriter, load_manifest, read_tensors, verify_checkpoint
from unbroken.errors import StoreError
from unbroken.journal import CheckpointRecord, Origin
from unbroken.link.messages import Sealed, Stop
from unbroken.store import open_store
from unbroken.testing import FakeClock

MakeNode = Callable[..., Any]


def two_nodes(make_node: MakeNode, **options: Any) -> tuple[Any, Any, list[Any]]:
    """Ranks 0 and 1 on one node, 2 and 3 on the other."""
    here, there = make_node(**options), make_node(**options)
    first = here.join(0, 4)
    others = [here.join(1, 4, first.lease), there.join(2, 4, first.lease), there.join(3, 4, first.lease)]
    return here, there, [first, *others]


def sound(node: Any, step: int) -> CheckpointRecord:
    """The newest checkpoint, which is of this step, verified and compared with what was staged."""
    journal = node.journal()
    record = journal.state.checkpoints[-1]
    assert record.step == step
    assert verify_checkpoint(journal.store, record).problems == []
    manifest = load_manifest(journal.store, record)
    world_size = manifest.world_size
    held = read_tensors(journal.store, manifest)
    assert bytes(held["weight"]) == b"".join(bytes([(step + rank) % 251]) * 1000 for rank in range(world_size))
    return record


def test_ranks_of_two_nodes_become_one_checkpoint_that_is_committed_once(make_node: MakeNode) -> None:
    here, there, trainers = two_nodes(make_node)
    for trainer in trainers:
        trainer.save(4)
    events = [trainer.committed().event for trainer in trainers]
    assert events == [sound(here, 4).event] * 4
    assert here.steps() == [4]
    for node in (here, there):
        assert node.until(Durable) == Durable(events[0], 1)
        assert node.session.heard().committed_step == 4
        assert node.session.unsaved() == ()


def test_next_checkpoint_continues_the_one_before_and_writes_what_changed(make_node: MakeNode) -> None:
    here, _, trainers = two_nodes(make_node)
    for step, number in ((4, 0), (8, 1), (12, 0)):
        for trainer in trainers:
            trainer.save(step, number)
        for trainer in trainers:
            trainer.committed()
    records = [record.event for record in here.journal().state.commits]
    assert [record.parent for record in records] == ["", records[0].manifest, records[1].manifest]
    sound(here, 12)
    packs = list((Path(here.uri) / "packs" / "1").glob("12-*"))
    assert len(packs) == 4  # one of each rank: what is frozen is of the first checkpoint
    frozen = load_manifest(here.journal().store, here.journal().state.commits[-1])
    assert "/4-0-" in frozen.packs[frozen.tensor("frozen").slices[0].pack].key


def test_memory_of_each_rank_is_known_to_hold_the_checkpoint(make_node: MakeNode) -> None:
    here, there, trainers = two_nodes(make_node)
    for trainer in trainers:
        trainer.save(4)
    manifest = {trainer.committed().event.manifest for trainer in trainers}
    for node, rank in ((here, 0), (here, 1), (there, 2), (there, 3)):
        assert {slot.manifest for slot in node.arena.inherit(object(), rank)} == manifest


def test_node_that_has_all_ranks_lists_nothing(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(*_: object) -> None:
        raise AssertionError("the records of others were looked for")

    monkeypatch.setattr(gathering, "find_rank_records", listed)
    monkeypatch.setattr(gathering, "list_rank_records", listed)
    node = make_node()
    first = node.join(0, 2)
    second = node.join(1, 2, first.lease)
    for trainer in (first, second):
        trainer.save(4)
    assert first.committed().event == second.committed().event
    sound(node, 4)


def test_last_record_may_come_late_and_keeps_no_upload_waiting(make_node: MakeNode) -> None:
    here, _, trainers = two_nodes(make_node)
    for trainer in trainers[:3]:
        trainer.save(4)
    held = Path(here.uri) / "ranks" / "1"
    for trainer in trainers[:2]:
        trainer.save(8, 1)
    await_files(held / "8", 2)  # the upload thread went on
    assert here.steps() == []
    assert here.session.unsaved() == (4, 8)
    trainers[3].save(4)
    assert [trainer.committed().event.step for trainer in trainers] == [4] * 4
    for trainer in trainers[2:]:
        trainer.save(8, 1)
    assert [trainer.committed().event.step for trainer in trainers] == [8] * 4
    assert here.steps() == [4, 8]


def test_older_step_is_given_up_once_a_newer_one_is_committed(make_node: MakeNode) -> None:
    here, there, trainers = two_nodes(make_node)
    for trainer in trainers[:2]:
        trainer.save(4)
    for trainer in trainers:
        trainer.save(8, 1)
    for trainer in trainers[:2]:
        heard = [trainer.hear(), trainer.hear()]
        assert {type(message).__name__ for message in heard} == {"SlotCommitted", "SlotFailed"}
        failure = next(message for message in heard if type(message).__name__ == "SlotFailed")
        assert (failure.slot, failure.step, failure.kind) == (0, 4, "abandoned")
        assert "step 8 was committed" in failure.message
    assert [trainer.committed().event.step for trainer in trainers[2:]] == [8, 8]
    assert here.steps() == [8]
    assert here.session.unsaved() == there.session.unsaved() == ()


def test_rank_that_cannot_be_saved_ends_the_save_for_the_others_of_its_node(make_node: MakeNode) -> None:
    here, _, trainers = two_nodes(make_node)
    trainers[0].save(4)
    here.gather(1)
    trainers[1].save(4, rank=3)
    assert trainers[1].failure().kind == "slot"
    failure = trainers[0].failure()
    assert (failure.step, failure.kind) == (4, "abandoned")
    assert "rank 1 could not be saved" in failure.message


def test_rank_that_comes_after_another_has_failed_is_given_up_as_well(make_node: MakeNode) -> None:
    _, _, trainers = two_nodes(make_node)
    trainers[1].save(4, rank=3)
    assert trainers[1].failure().kind == "slot"
    trainers[0].save(4)
    assert "rank 1 could not be saved" in trainers[0].failure().message


def test_step_that_all_ranks_stage_again_after_a_failure_is_committed(make_node: MakeNode) -> None:
    here, _, trainers = two_nodes(make_node)
    trainers[1].save(4, rank=3)
    trainers[1].failure()
    trainers[0].save(4)
    trainers[0].failure()
    for trainer in (*trainers[1::-1], *trainers[2:]):
        trainer.save(4)
    assert {trainer.committed().event.step for trainer in trainers} == {4}
    sound(here, 4)


def test_trainer_that_ends_before_it_staged_the_step_ends_the_save(make_node: MakeNode) -> None:
    _, _, trainers = two_nodes(make_node)
    trainers[0].save(4)
    trainers[1].channel.close()
    assert "the trainer of rank 1 ended before it staged the step" in trainers[0].failure().message


def test_ranks_that_disagree_hear_it_each_time_and_people_once(make_node: MakeNode) -> None:
    node = make_node()
    first = node.join(0, 2)
    second = node.join(1, 2, first.lease)
    for step, number in ((4, 0), (8, 1)):
        first.save(step, number)
        second.save(step, number, shared="other")
        for trainer in (first, second):
            failure = trainer.failure()
            assert (failure.step, failure.error, failure.kind) == (step, "MismatchError", "shared")
            assert "per_rank=" in failure.hint
    node.session.close(10)
    said = [event.text for event in node.events.queue if isinstance(event, Trouble)]
    assert len([text for text in said if "model" in text]) == 1, said
    assert node.steps() == []


def test_replaced_attempt_commits_nothing_and_its_trainers_hear_of_it(make_node: MakeNode) -> None:
    here, there, trainers = two_nodes(make_node)
    for trainer in trainers[:3]:
        trainer.save(4)
    here.gather(2)
    there.gather(1)
    here.journal().claim(Origin("elsewhere", 1))
    trainers[3].save(4)
    assert {trainer.failure().error for trainer in trainers[:2]} == {"FencedError"}
    assert {here.until(Fenced).attempt, there.until(Fenced).attempt} == {1}
    assert here.steps() == []


def test_commit_is_tried_again_while_the_storage_is_away(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()
    commit = gathering.commit_ranks

    def fails_once(*given: Any, **named: Any) -> Any:
        if not tried.is_set():
            tried.set()
            raise StoreError("away", kind="unavailable")
        return commit(*given, **named)

    monkeypatch.setattr(gathering, "commit_ranks", fails_once)
    node = make_node()
    first = node.join(0, 2)
    for trainer in (first, node.join(1, 2, first.lease)):
        trainer.save(4)
    first.committed()
    assert tried.is_set()


class Waiting:
    """A node with ranks 2 and 3 that waits for the agent of rank 0, on a clock that the test holds."""

    def __init__(self, make_node: MakeNode, ranks: Any, *, written: tuple[int, ...]) -> None:
        self.clock = FakeClock(manual=True)
        self.node = make_node(clock=self.clock)
        journal = ranks.Journal.create(open_store(self.node.uri, create=True))
        lease = journal.claim(Origin("lost", 1))
        for rank in written:  # by an agent that is lost before it commits
            writer = RankWriter(journal, lease, Origin("lost", 1), rank=rank, world_size=4)
            writer.write(ranks.part(4, rank, 4))
        self.trainers = [self.node.join(rank, 4, lease) for rank in (2, 3)]
        for trainer in self.trainers:
            trainer.save(4)
        self.node.gather(2)
        self.began = self.clock.monotonic()

    def advance(self, until: Callable[[], Any], longest: float) -> float:
        """Let time pass until that is so; the seconds that it took."""
        while not until():
            assert self.clock.monotonic() - self.began <= longest, "it takes too long"
            try:
                self.clock.until_waiting(1, timeout=0.2)
            except TimeoutError:
                continue  # it is at work, and may have come to its end
            self.clock.advance(0.5)
        return self.clock.monotonic() - self.began


def test_commit_is_taken_over_when_the_agent_of_rank_0_is_lost(make_node: MakeNode, ranks: Any) -> None:
    waiting = Waiting(make_node, ranks, written=(0, 1))
    took = waiting.advance(waiting.node.steps, 60)
    assert took >= gathering.TAKE_OVER
    assert {trainer.committed().event.step for trainer in waiting.trainers} == {4}
    sound(waiting.node, 4)


def test_who_waits_for_the_agent_of_rank_0_reads_no_record_before_it_takes_over(
    make_node: MakeNode, ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[float] = []
    find = gathering.find_rank_records

    def found(*given: Any) -> Any:
        read.append(waiting.clock.monotonic() - waiting.began)
        return find(*given)

    monkeypatch.setattr(gathering, "find_rank_records", found)
    waiting = Waiting(make_node, ranks, written=(0, 1))
    waiting.advance(waiting.node.steps, 60)
    assert len(read) == 1
    assert read[0] >= gathering.TAKE_OVER


@pytest.mark.parametrize(
    ("here", "turn"),
    [((8, 9), 3), ((4, 5), 2), ((31,), 5), ((24, 25, 26, 27, 28, 29, 30, 31), 2), ((2, 3), 1), ((1016, 1017), 9)],
)
def test_agents_take_over_one_after_another_and_not_a_hundred_at_once(here: tuple[int, ...], turn: int) -> None:
    ranks = LocalRanks(None, 1024, FakeClock())  # type: ignore[arg-type]
    for rank in here:
        ranks.join(rank)
    assert ranks.turn == turn


def test_all_of_a_thousand_agents_have_taken_their_turn_before_a_save_is_given_up() -> None:
    ranks = LocalRanks(None, 1024, FakeClock())  # type: ignore[arg-type]
    ranks.join(1023)
    assert ranks.turn * gathering.TAKE_OVER < LONGEST


def test_commit_is_taken_over_soon_while_a_notice_runs(make_node: MakeNode, ranks: Any) -> None:
    waiting = Waiting(make_node, ranks, written=(0, 1))
    waiting.node.session.stop(Stop("ec2", "terminate", waiting.clock.now() + 60))
    took = waiting.advance(waiting.node.steps, 30)
    assert gathering.TAKE_OVER_PRESSED <= took < gathering.TAKE_OVER


def test_save_is_given_up_after_five_minutes(make_node: MakeNode, ranks: Any) -> None:
    waiting = Waiting(make_node, ranks, written=(0,))
    took = waiting.advance(lambda: not waiting.node.session.unsaved(), 320)
    assert took >= 299
    for trainer in waiting.trainers:
        assert "nothing is there of rank 1 after 300 s" in trainer.failure().message


def test_save_is_given_up_at_the_deadline(make_node: MakeNode, ranks: Any) -> None:
    waiting = Waiting(make_node, ranks, written=())
    stop = Stop("ec2", "terminate", waiting.clock.now() + 30)
    waiting.node.session.stop(stop)
    took = waiting.advance(lambda: not waiting.node.session.unsaved(), 40)
    assert 28 <= took <= 30
    for trainer in waiting.trainers:
        assert trainer.hear() == stop
        assert "nothing is there of rank 0 and 1 more, and the deadline is here" in trainer.failure().message


def test_save_without_trainers_is_waited_for_a_little_and_then_said_to_be_lost(make_node: MakeNode, ranks: Any) -> None:
    waiting = Waiting(make_node, ranks, written=(0,))
    for trainer in waiting.trainers:
        trainer.channel.close()
        waiting.node.until(Departed)
    took = waiting.advance(lambda: not waiting.node.session.unsaved(), 60)
    assert 9 <= took <= 13
    while "after the last trainer left" not in waiting.node.until(Trouble).text:
        pass


def test_save_without_trainers_that_lacks_nothing_is_waited_for_until_it_is_taken_over(
    make_node: MakeNode, ranks: Any
) -> None:
    waiting = Waiting(make_node, ranks, written=(0, 1))
    for trainer in waiting.trainers:
        trainer.channel.close()
        waiting.node.until(Departed)
    assert waiting.advance(waiting.node.steps, 60) >= gathering.TAKE_OVER
    sound(waiting.node, 4)


def test_another_agent_commits_what_the_lost_one_left_and_the_step_is_not_written_again(
    make_node: MakeNode, ranks: Any
) -> None:
    here, _, trainers = two_nodes(make_node)
    for trainer in trainers:
        trainer.save(4)
    event = trainers[0].committed().event
    packs = sorted((Path(here.uri) / "packs").rglob("*"))
    again = make_node()
    for rank in (2, 3):  # their agent died before it told them
        trainer = again.join(rank, 4, trainers[0].lease, joining=False)
        for slot in trainers[rank].slots.values():
            trainer.channel.send(ranks.SlotOffered(slot.number), slot.descriptor)
        trainer.channel.send(Sealed(0, 4))
        assert trainer.committed().event == event
    assert sorted((Path(here.uri) / "packs").rglob("*")) == packs
    assert again.steps() == [4]
    assert {trainer.committed().event for trainer in trainers[2:]} == {event}


def test_agent_that_replaces_another_completes_its_saves(make_node: MakeNode, ranks: Any) -> None:
    here, _, trainers = two_nodes(make_node)
    for trainer in trainers[:2]:
        trainer.save(4)
    here.gather(2)
    slots = [trainer.slots for trainer in trainers[:2]]
    for trainer in trainers[:2]:
        trainer.channel.close()
    here.session.close(10)  # without a word to anybody
    again = make_node()
    replaced = [again.join(rank, 4, trainers[2].lease, joining=False) for rank in (0, 1)]
    for trainer, held in zip(replaced, slots, strict=True):
        trainer.channel.send(ranks.SlotOffered(0), held[0].descriptor)
        trainer.channel.send(Sealed(0, 4))
    for trainer in trainers[2:]:
        trainer.save(4)
    assert {trainer.committed().event.step for trainer in (*replaced, *trainers[2:])} == {4}
    assert again.steps() == [4]
    sound(again, 4)
    assert again.session.heard().leads


def await_files(folder: Path, count: int) -> None:
    deadline = threading.Event()
    for _ in range(1000):
        if folder.is_dir() and len(list(folder.glob("*.json"))) >= count:
            return
        deadline.wait(0.02)
    raise AssertionError(f"{count} files were not written to {folder}")
