"""Committing what several ranks made durable: only the whole of it, and only once."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.checkpoint.conftest import WatchedStore, tensor, tensor_of
from tests.checkpoint.ranks import Gang, box_of, rank_state, reassembled, rows, truth

from unbroken.checkpoint import (
    HostTensor,
    RankDurable,
    commit_ranks,
    find_rank_records,
    load_manifest,
    missing,
)
from unbroken.checkpoint.digest import sha256
from unbroken.errors import DamagedError, FencedError, FormatError, MismatchError, StoreError
from unbroken.journal import Journal, Origin
from unbroken.journal.events import CheckpointCommitted, CheckpointRetired
from unbroken.store import Store
from unbroken.testing import FakeClock, FaultyStore, flip_bit

WHOLE = tensor_of("w", "float32", (6, 2))


def halves() -> list[list[HostTensor]]:
    return [[part] for part in rows(WHOLE, 4, 2)]


def commits(store: Store) -> list[CheckpointCommitted]:
    """Every commit entry of the journal, counted or not."""
    return [e.event for e in Journal.open(store).entries if isinstance(e.event, CheckpointCommitted)]


def changed(durable: RankDurable, **fields: Any) -> RankDurable:
    return replace(durable, record=msgspec.structs.replace(durable.record, **fields))


def rewrite(store: Store, key: str, **fields: Any) -> None:
    store.put(key, [json.dumps({**json.loads(store.get(key)), **fields}).encode()])


def test_records_are_found_by_anybody_and_those_that_are_known_are_not_read(store: Store) -> None:
    watched = WatchedStore(store)
    gang = Gang(watched, 2)
    assert find_rank_records(watched, 1, 5, 2, {}) == {}
    zero = gang.writers[0].write(gang.states(5, halves())[0])
    assert find_rank_records(watched, 1, 5, 2, {}) == {0: zero}
    assert missing({0: zero}, 2) == [1]
    one = gang.writers[1].write(gang.states(5, halves())[1])
    read: list[str] = []
    watched.before = lambda method, key: read.append(key) if method == "get" else None
    assert find_rank_records(watched, 1, 5, 2, {0: zero}) == {0: zero, 1: one}
    assert read == [one.ref.key]
    assert missing({0: zero, 1: one}, 2) == []


def test_records_of_other_saves_and_other_objects_are_not_taken(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    for step in (5, 50):
        gang.write(step, halves())
    folder_store.put("ranks/1/5/0-abcd.json.partial", [b"x"])
    folder_store.put("ranks/1/5/7-abcd.json", [b"x"])
    found = find_rank_records(folder_store, 1, 5, 2, {})
    assert {each.record.step for each in found.values()} == {5}
    assert find_rank_records(folder_store, 1, 4, 2, {}) == {}


def test_of_a_rank_that_was_written_twice_everybody_takes_the_same_record(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    tries = [gang.write(5, halves())[1] for _ in range(3)]
    greatest = max(tries, key=lambda each: each.ref.key)
    assert find_rank_records(folder_store, 1, 5, 2, {})[1] == greatest
    flip_bit(folder_store, greatest.ref.key, 0)  # it does not read: the next one says the same
    left = max((each for each in tries if each is not greatest), key=lambda each: each.ref.key)
    assert find_rank_records(folder_store, 1, 5, 2, {})[1] == left


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"rank": 0}, DamagedError, "rank 0 of 2 in format 2, where rank 1 of 2 belongs"),
        ({"world_size": 3}, DamagedError, "rank 1 of 3"),
        ({"step": 6}, DamagedError, "step 6"),
        ({"attempt": 2}, DamagedError, "attempt 2"),
        ({"format": 1}, DamagedError, "format 1"),
        ({"tensors": 7}, DamagedError, "is no rank record"),
        ({"packs": []}, DamagedError, "in pack 0 of 0"),
        ({"format": 3}, FormatError, "reads up to 2"),
        ({"format": 3, "tensors": 7}, FormatError, "reads up to 2"),
    ],
)
def test_a_record_that_cannot_be_is_said_to_be_so(
    folder_store: Store, fields: dict[str, Any], error: type[Exception], text: str
) -> None:
    gang = Gang(folder_store, 2)
    one = gang.write(5, halves())[1]
    rewrite(folder_store, one.ref.key, **fields)
    with pytest.raises(error, match=text):
        find_rank_records(folder_store, 1, 5, 2, {})


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_manifest_follows_from_the_records_alone(folder_store: Store, order: tuple[int, ...]) -> None:
    gang = Gang(folder_store, 3)
    durable = gang.write(5, [[part] for part in rows(WHOLE, 1, 2, 3)])
    gang.clock.advance(1000)
    event = gang.commit({rank: durable[rank] for rank in order})
    refs = "".join(durable[rank].ref.sha256 for rank in range(3))
    assert event.manifest == f"manifests/00000000005-1-{sha256(refs.encode())[:8]}.json"
    document = json.loads(folder_store.get(event.manifest))
    assert (document["format"], document["world_size"], document["tensors"], document["packs"]) == (2, 3, [], [])
    assert document["created_at"] == max(each.record.created_at for each in durable.values())
    assert [ref["key"] for ref in document["ranks"]] == [durable[rank].ref.key for rank in range(3)]
    assert "locals" not in document


def test_sizes_and_times_are_those_of_all_ranks(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    durable = gang.write(5, halves(), {"loss": [(5, 1.0)]})
    durable = {rank: changed(each, seconds=float(rank)) for rank, each in durable.items()}
    event = gang.commit(durable)
    packs = sum(info.size for info in folder_store.list("packs"))
    metrics = sum(info.size for info in folder_store.list("metrics"))
    assert event.size == 48 + 2 * 2
    assert event.written == packs + metrics + len(folder_store.get(event.manifest))
    assert (event.stall, event.seconds) == (0.1, 1.0)
    began = gang.clock.monotonic()
    gang.clock.advance(3)
    assert gang.commit(gang.write(6, halves()), began_at=began).seconds == 3.0


def test_two_that_commit_at_once_commit_the_same_thing_once(store: Store) -> None:
    gang = Gang(store, 2)
    durable = gang.write(5, halves())
    both_there = threading.Barrier(2, timeout=60)
    watched = WatchedStore(store)
    events: list[CheckpointCommitted] = []
    errors: list[BaseException] = []

    waited: list[threading.Thread] = []

    def meet(method: str, key: str) -> None:
        """Let nobody add an entry before both are about to."""
        me = threading.current_thread()
        if method == "create" and key.startswith("journal/") and me not in waited:
            waited.append(me)
            both_there.wait()

    watched.before = meet

    def commit(known: int) -> None:
        try:
            found = find_rank_records(watched, 1, 5, 2, {known: durable[known]})
            journal = Journal.open(watched, clock=FakeClock())
            events.append(commit_ranks(journal, gang.lease, Origin(f"node{known}", 1), found))
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(known,)) for known in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(waited) == 2
    assert events[0] == events[1]
    assert commits(store) == [events[0]]
    assert sum(1 for _ in store.list("manifests")) == 1


def test_a_second_commit_of_a_step_gives_the_first_one_even_from_other_records(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    first = gang.commit(gang.write(5, halves()))
    assert gang.commit(gang.write(5, halves())) == first
    assert commits(folder_store) == [first]


@pytest.mark.parametrize("moment", ["before", "after", "retried"])
def test_a_commit_that_failed_anywhere_may_be_made_again(folder_store: Store, moment: Any) -> None:
    for number in itertools.count(1):
        gang = Gang(folder_store, 2)
        durable = gang.write(number, halves())
        faulty = FaultyStore(folder_store, fail_call=number, moment=moment)
        journal = Journal(faulty, gang.journal.info, clock=gang.clock)
        journal.state, journal.entries = gang.journal.state, gang.journal.entries
        failed = False
        try:
            event = commit_ranks(journal, gang.lease, gang.origin, durable, clock=gang.clock)
        except StoreError:
            failed = True
            event = commit_ranks(journal, gang.lease, gang.origin, durable, clock=gang.clock)
        assert [each for each in commits(folder_store) if each.step == number] == [event]
        record = Journal.open(folder_store).state.checkpoints[-1]
        assert reassembled(folder_store, load_manifest(folder_store, record))["w"] == truth([WHOLE])["w"]
        if number > 3:
            assert not failed
            return


def test_a_fenced_attempt_cannot_commit(store: Store) -> None:
    old = Gang(store, 2)
    durable = old.write(5, halves())
    new = Gang(store, 2)
    with pytest.raises(FencedError):
        old.commit(durable)
    assert commits(store) == []
    with pytest.raises(MismatchError) as caught:  # nor can a newer one commit what an older one wrote
        new.commit(durable)
    assert caught.value.kind == "ranks"


def refused(gang: Gang, durable: dict[int, RankDurable], kind: str, text: str) -> str:
    """The hint of the error with which a commit ends."""
    with pytest.raises(MismatchError) as caught:
        gang.commit(durable)
    assert (caught.value.kind, caught.value.exit_code) == (kind, 14)
    assert text in caught.value.message
    assert commits(gang.store) == []
    assert list(gang.store.list("manifests")) == []
    return caught.value.hint


def test_nothing_is_committed_while_a_rank_is_missing(folder_store: Store) -> None:
    gang = Gang(folder_store, 8)
    durable = gang.write(5, [[] for _ in range(8)])
    refused(gang, {0: durable[0]}, "ranks", "7 of 8 ranks have nothing durable of step 5: 1, 2, 3, 4, 5, ...")
    refused(gang, {rank: each for rank, each in durable.items() if rank != 3}, "ranks", "1 of 8 ranks")
    refused(gang, {}, "ranks", "no rank")


def test_records_of_two_saves_make_no_checkpoint(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    refused(gang, {0: gang.write(5, halves())[0], 1: gang.write(6, halves())[1]}, "ranks", "rank 1 has a record of")


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"model": "1", "loader": "2"}, "loader of step 5 is not one thing on rank 0 and rank 1: they have it unlike"),
        ({"model": "1"}, "loader of step 5 is not one thing on rank 0 and rank 1: rank 1 has none"),
        (
            {"model": "1", "loader": "1", "more": "1"},
            "more of step 5 is not one thing on rank 0 and rank 1: rank 0 has",
        ),
    ],
)
def test_ranks_that_have_a_shared_object_unlike_have_no_checkpoint(
    folder_store: Store, second: dict[str, str], text: str
) -> None:
    gang = Gang(folder_store, 2)
    shared = [{"model": "1", "loader": "1"}, second]
    durable = {
        rank: gang.writers[rank].write(rank_state(5, rank, 2, halves()[rank], ["w"], shared=shared[rank]))
        for rank in range(2)
    }
    name = text.partition(" ")[0]
    assert f'Run(per_rank=("{name}",))' in refused(gang, durable, "shared", text)


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (
            [[WHOLE], [WHOLE]],
            "w of shape [6, 2]: [0:6, 0:2] and [0:6, 0:2] have elements in common (rank 0 and rank 1)",
        ),
        (
            [[box_of(WHOLE, (0, 0), (4, 2))], [box_of(WHOLE, (3, 0), (3, 2))]],
            "[0:4, 0:2] and [3:6, 0:2] have elements in common (rank 0 and rank 1)",
        ),
        ([[box_of(WHOLE, (0, 0), (4, 2))], []], "w of shape [6, 2]: its slices hold 8 of 12 elements"),
        ([[box_of(WHOLE, (0, 0), (4, 2))], rows(tensor_of("w", "int32", (6, 2)), 4, 2)[1:]], "w is a int32"),
        ([[box_of(WHOLE, (0, 0), (4, 2))], rows(tensor_of("w", "float32", (7, 2)), 4, 3)[1:]], "of shape [7, 2]"),
    ],
)
def test_slices_that_do_not_make_up_a_tensor_are_not_committed(
    folder_store: Store, held: list[list[HostTensor]], text: str
) -> None:
    gang = Gang(folder_store, 2)
    refused(gang, gang.write(5, held), "coverage", text)


def test_a_tensor_of_the_state_that_no_rank_has_is_named(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    durable = {r: gang.writers[r].write(rank_state(5, r, 2, [], ["w"])) for r in range(2)}
    refused(gang, durable, "coverage", "no rank has the tensor w of the state")


def test_a_save_that_was_overtaken_is_given_up(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    late = gang.write(5, halves())
    gang.save(6, halves())
    other = Journal.open(folder_store)
    with pytest.raises(MismatchError) as caught:
        commit_ranks(other, gang.lease, gang.origin, late)
    assert caught.value.kind == "overtaken"
    assert [event.step for event in commits(folder_store)] == [6]


def test_what_refers_to_packs_of_a_checkpoint_retired_meanwhile_is_not_committed(folder_store: Store) -> None:
    frozen = tensor("frozen", b"f" * 99)
    gang = Gang(folder_store, 2)
    first = gang.save(1, [[frozen], []])
    behind = Journal.open(folder_store)  # another node's, which does not know of what comes now
    durable = gang.write(2, [[frozen], []])
    gang.journal.append(CheckpointRetired(first.manifest, 1), gang.origin, gang.lease)
    with pytest.raises(MismatchError) as caught:
        commit_ranks(behind, gang.lease, gang.origin, durable)
    assert (caught.value.kind, "rank 0 refers" in caught.value.message) == ("retired", True)
    assert len(commits(folder_store)) == 1
    again = gang.commit(gang.write(2, [[frozen], []]))  # written anew, where it is known
    assert again.parent == first.manifest
    assert load_manifest(folder_store, gang.journal.state.checkpoints[-1]).packs[0].key.startswith("packs/1/2-0-")
