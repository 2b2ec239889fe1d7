"""A save may fail at every one of its store calls: what a reader loads then is the old checkpoint or the new one."""

from __future__ import annotations

import contextlib
from itertools import product
from typing import NamedTuple

import pytest
from tests.checkpoint.conftest import Attempt, OrderedStore, Restored, restore

from unbroken.checkpoint import read_metrics, verify_checkpoint
from unbroken.errors import StoreError
from unbroken.journal import Journal
from unbroken.store import Store, open_store
from unbroken.testing import Crash, FaultyStore
from unbroken.testing.stores import Moment

OLD = {"frozen": b"f" * 400, "w": b"old" * 40}
NEW = {"frozen": b"f" * 400, "w": b"new" * 40, "extra": b"e"}
LATER = {"frozen": b"f" * 400, "w": b"later"}
CALLS = 5
"""Store calls of the save: pack and logged values, rank record and manifest, journal entry."""

ORDERS = [("packs", "metrics", "ranks", "manifests"), ("metrics", "packs", "manifests", "ranks")]
"""Two objects that are put at the same time take effect in one order or the other: both are visited."""


class Point(NamedTuple):
    """Where the save fails, and how."""

    order: tuple[str, ...]
    call: int
    moment: Moment
    crash: bool

    @property
    def takes_effect(self) -> bool:
        """Whether the commit is in the journal nevertheless."""
        return self.moment == "retried" or (self.moment == "after" and self.call == CALLS)


FAULTS: list[tuple[Moment, bool]] = [
    ("before", False), ("before", True), ("after", False), ("after", True), ("retried", False),
]  # fmt: skip
POINTS = [Point(order, call, *fault) for order, call, fault in product(ORDERS, range(1, CALLS + 1), FAULTS)]


def name_of(point: Point) -> str:
    return f"{point.order[0]}-first-call-{point.call}-{point.moment}-{'crash' if point.crash else 'error'}"


class Failed(NamedTuple):
    attempt: Attempt
    faulty: FaultyStore


def save_failing_at(store: Store, point: Point) -> Failed:
    """Commit OLD at step 100, and fail at ``point`` while committing NEW at step 200."""
    faulty = FaultyStore(store)
    ordered = OrderedStore(faulty)
    attempt = Attempt(ordered)
    attempt.save(100, OLD, {"loss": [(100, 1.0)]})
    ordered.arrange(*point.order)
    faulty.arm(point.call, moment=point.moment, crash=point.crash)
    try:
        attempt.save(200, NEW, {"loss": [(200, 2.0)]})
        assert point.moment == "retried"
    except StoreError:
        assert not point.crash
    except Crash:
        assert point.crash
    ordered.arrange()
    assert failed_where_told(faulty, point)
    if not point.crash:
        faulty.arm(None)
    return Failed(attempt, faulty)


def failed_where_told(faulty: FaultyStore, point: Point) -> bool:
    """Whether the call that failed is the one that is at this place of the order."""
    keys = [*point.order, "journal"]
    return faulty.calls[point.call - 1].key.startswith(keys[point.call - 1])


def load(store: Store) -> Restored:
    """What a fresh reader gets; everything in the journal must be sound, whatever went wrong before."""
    found = restore(store)
    assert found is not None
    assert found.passed_over == []
    for record in Journal.open(store).state.checkpoints:
        assert verify_checkpoint(store, record).problems == []
    return found


def curve(store: Store) -> list[tuple[int, float]]:
    state = Journal.open(store).state
    return read_metrics(store, state, state.checkpoints[-1])["loss"]


@pytest.mark.parametrize("order", ORDERS)
def test_the_sweep_visits_every_call_of_a_save(folder_store: Store, order: tuple[str, ...]) -> None:
    faulty = FaultyStore(folder_store)
    ordered = OrderedStore(faulty)
    attempt = Attempt(ordered)
    attempt.save(100, OLD, {"loss": [(100, 1.0)]})
    ordered.arrange(*order)
    faulty.arm(None)
    attempt.save(200, NEW, {"loss": [(200, 2.0)]})
    assert [call.key.split("/")[0] for call in faulty.calls] == [*order, "journal"]
    assert len(faulty.calls) == CALLS


@pytest.mark.parametrize("point", POINTS, ids=name_of)
def test_a_reader_loads_the_old_checkpoint_or_the_new_one_and_never_anything_else(store: Store, point: Point) -> None:
    save_failing_at(store, point)
    found = load(store)
    if point.takes_effect:
        assert (found.step, found.content) == (200, NEW)
        assert curve(store) == [(100, 1.0), (200, 2.0)]
    else:
        assert (found.step, found.content) == (100, OLD)
        assert curve(store) == [(100, 1.0)]


@pytest.mark.parametrize("point", [point for point in POINTS if not point.crash], ids=name_of)
def test_after_an_error_the_same_writer_saves_again(store: Store, point: Point) -> None:
    attempt, _ = save_failing_at(store, point)
    for again in (200, 300):
        attempt.save(again, NEW, {"loss": [(200, 2.0), *([(300, 3.0)] if again == 300 else [])]})
        found = load(store)
        assert (found.step, found.content) == (again, NEW)
    assert curve(store) == [(100, 1.0), (200, 2.0), (300, 3.0)]


@pytest.mark.parametrize("point", POINTS, ids=name_of)
def test_the_next_attempt_claims_restores_and_saves(store: Store, point: Point) -> None:
    save_failing_at(store, point)
    following = Attempt(store)
    restored = following.restore()
    assert restored is not None
    assert (restored.step, restored.content) in [(100, OLD), (200, NEW)]
    following.save(250, LATER, {"loss": [(250, 4.0)]})
    found = load(store)
    assert (found.step, found.content, found.manifest.attempt) == (250, LATER, 2)
    assert curve(store) == [(100, 1.0), *([(200, 2.0)] if point.takes_effect else []), (250, 4.0)]


@pytest.mark.parametrize("call", range(1, 10))
def test_a_claim_that_fails_anywhere_can_be_made_again(tmp_path: object, call: int) -> None:
    for moment, crash in FAULTS:
        store = open_store(f"{tmp_path}/{moment}-{crash}", create=True)
        Attempt(store).save(100, OLD)
        with contextlib.suppress(StoreError, Crash):
            Attempt(FaultyStore(store, fail_call=call, moment=moment, crash=crash)).restore()
        found = load(store)
        assert (found.step, found.content) == (100, OLD)
        following = Attempt(store)
        following.restore()
        following.save(300, NEW)
        assert load(store).content == NEW
