"""An attempt that goes on after its replacement began: it finds out, and changes nothing that a reader believes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import combinations_with_replacement

import pytest
from tests.checkpoint.conftest import Attempt, WatchedStore, restore

from unbroken.checkpoint import read_metrics, verify_checkpoint
from unbroken.errors import FencedError
from unbroken.journal import Entry, Journal, Origin
from unbroken.journal.events import CheckpointCommitted, CheckpointRetired, RunFinished, encode_entry
from unbroken.journal.journal import entry_key
from unbroken.store import Store, open_store

START = {"frozen": b"f" * 99, "w": b"start"}
OLD = {"frozen": b"f" * 99, "w": b"zombie"}
NEW = {"frozen": b"f" * 99, "w": b"owner"}
CALLS = 5
"""Store calls of a save."""


def started(store: Store) -> tuple[Attempt, WatchedStore]:
    """An attempt that has committed step 100, behind a store in which things can happen between its calls."""
    watched = WatchedStore(store)
    attempt = Attempt(watched, "old-host")
    attempt.save(100, START, {"loss": [(100, 1.0)]})
    return attempt, watched


def at_calls(watched: WatchedStore, happenings: dict[int, list[Callable[[], object]]]) -> None:
    """Let things happen just before the given calls, counted from 1, while every further call waits."""
    count = 0
    turn = threading.Lock()

    def before(_method: str, _key: str) -> None:
        nonlocal count
        with turn:
            count += 1
            for happen in happenings.pop(count, []):
                happen()

    watched.before = before


def check_only_the_owner_counts(store: Store) -> None:
    found = restore(store)
    assert found is not None
    assert (found.step, found.content, found.passed_over) == (150, NEW, [])
    state = Journal.open(store).state
    assert [(record.attempt, record.step) for record in state.checkpoints] == [(1, 100), (2, 150)]
    assert read_metrics(store, state, state.checkpoints[-1])["loss"] == [(100, 1.0), (150, 2.0)]
    for record in state.checkpoints:
        assert verify_checkpoint(store, record).problems == []


def take_over(store: Store) -> Attempt:
    attempt = Attempt(store, "new-host")
    restored = attempt.restore()
    assert restored is not None
    assert (restored.step, restored.content) == (100, START)
    return attempt


def test_a_zombie_is_fenced_at_its_next_save_and_at_every_later_one(store: Store) -> None:
    zombie, _ = started(store)
    owner = take_over(store)
    for step in (200, 300):
        with pytest.raises(FencedError) as caught:
            zombie.save(step, OLD)
        assert (caught.value.kind, caught.value.exit_code) == ("fenced", 11)
        assert "attempt 2 on new-host" in caught.value.message
        found = restore(store)
        assert found is not None
        assert (found.step, found.content) == (100, START)
    owner.save(150, NEW, {"loss": [(150, 2.0)]})
    check_only_the_owner_counts(store)


@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_a_takeover_between_any_two_calls_of_a_save_fences_it(store: Store, call: int) -> None:
    zombie, watched = started(store)
    at_calls(watched, {call: [lambda: take_over(store).save(150, NEW, {"loss": [(150, 2.0)]})]})
    with pytest.raises(FencedError):
        zombie.save(200, OLD, {"loss": [(200, 9.0)]})
    check_only_the_owner_counts(store)


@pytest.mark.parametrize(
    ("claimed", "saved"), [*combinations_with_replacement(range(1, CALLS + 1), 2)], ids=lambda call: f"before-{call}"
)
def test_claim_and_save_of_the_owner_fall_anywhere_into_a_save_of_the_zombie(
    folder_store: Store, claimed: int, saved: int
) -> None:
    zombie, watched = started(folder_store)
    owners: list[Attempt] = []
    happenings: dict[int, list[Callable[[], object]]] = {claimed: [lambda: owners.append(take_over(folder_store))]}
    happenings.setdefault(saved, []).append(lambda: owners[0].save(150, NEW, {"loss": [(150, 2.0)]}))
    at_calls(watched, happenings)
    with pytest.raises(FencedError):
        zombie.save(200, OLD, {"loss": [(200, 9.0)]})
    check_only_the_owner_counts(folder_store)


@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_saves_of_a_zombie_between_any_two_calls_of_the_owners_change_nothing(store: Store, call: int) -> None:
    zombie, _ = started(store)
    watched = WatchedStore(store)
    owner = Attempt(watched, "new-host")
    owner.restore()

    def haunt() -> None:
        with pytest.raises(FencedError):
            zombie.save(200, OLD, {"loss": [(200, 9.0)]})

    at_calls(watched, {call: [haunt]})
    owner.save(150, NEW, {"loss": [(150, 2.0)]})
    check_only_the_owner_counts(store)


def test_a_save_that_was_committed_before_the_takeover_stands(store: Store) -> None:
    first, _ = started(store)
    first.save(200, OLD)
    second = Attempt(store)
    restored = second.restore()
    assert restored is not None
    assert (restored.step, restored.content) == (200, OLD)


def test_a_zombie_that_breaks_the_protocol_is_not_believed(store: Store) -> None:
    zombie, _ = started(store)
    owner = take_over(store)
    owner.save(150, NEW, {"loss": [(150, 2.0)]})
    kept = owner.journal.state.checkpoints[-1].event
    tail = owner.journal.state.tail
    forged = (
        CheckpointCommitted(200, "manifests/forged.json", "0" * 64, 0, 0),
        CheckpointRetired(kept.manifest, 150),
        RunFinished(200),
    )
    for n, event in enumerate(forged, start=tail + 1):
        entry = Entry(n, zombie.lease.attempt, zombie.lease.claim, str(n), 0.0, Origin("old-host", 1), event)
        assert store.create(entry_key(n), encode_entry(entry))
    check_only_the_owner_counts(store)
    assert Journal.open(store).state.finished_step is None


def test_of_two_attempts_that_claim_at_the_same_moment_one_saves(tmp_path: object) -> None:
    for call in range(1, 8):
        store = open_store(f"{tmp_path}/{call}", create=True)
        started(store)
        watched = WatchedStore(store)
        rivals: list[Attempt] = []
        at_calls(watched, {call: [lambda store=store, rivals=rivals: rivals.append(take_over(store))]})
        both = [Attempt(watched), *rivals]
        if not rivals:
            assert call > 4
            continue
        believed = []
        for attempt in both:
            attempt.restore()
            try:
                attempt.save(150, NEW, {"loss": [(150, 2.0)]})
            except FencedError:
                continue
            believed.append(attempt.lease)
        found = restore(store)
        assert found is not None
        assert [found.record.attempt] == [lease.attempt for lease in believed]
