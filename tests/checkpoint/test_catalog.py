"""Which checkpoint is the newest, and what is passed over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.checkpoint.conftest import Attempt, WatchedStore, restore

from unbroken.checkpoint import newest_first
from unbroken.errors import DamagedError, StoreError
from unbroken.journal import Entry, Journal, Origin
from unbroken.journal.events import CheckpointCommitted, CheckpointRetired, encode_entry
from unbroken.journal.journal import entry_key
from unbroken.store import Store
from unbroken.testing import FaultyStore, flip_bit, truncate


def test_a_run_without_a_commit_has_nothing_to_restore(store: Store) -> None:
    Attempt(store)
    assert restore(store) is None


def test_the_newest_is_the_last_commit_and_not_the_highest_step(store: Store) -> None:
    first = Attempt(store)
    for step in (100, 200, 300):
        event = first.save(step, {"w": b"old %d" % step})
    flip_bit(store, event.manifest, 100)
    second = Attempt(store)
    restored = second.restore()
    assert restored is not None
    assert restored.step == 200
    second.save(250, {"w": b"new 250"})
    store.put(event.manifest, [b"{}"])  # 300 was written to later than 250
    found = restore(store)
    assert found is not None
    assert (found.step, found.content, found.passed_over) == (250, {"w": b"new 250"}, [])
    assert [record.step for record in newest_first(Journal.open(store).state)] == [250, 300, 200, 100]


def test_objects_that_the_journal_does_not_name_are_never_loaded(store: Store) -> None:
    attempt = Attempt(store)
    real = attempt.save(100, {"w": b"real"})
    manifest = store.get(real.manifest)
    for decoy in (
        "manifests/99999999999-1-x.json",
        "manifests/00000000100-1-ffffffff.json",
        "manifests/latest",
        "step-100.backup",
        "step-999.backup/manifest.json",
        "journal/00000000003.json.backup",
        "journal/3.json",
        "journal/backup/00000000003.json",
    ):
        store.put(decoy, [manifest.replace(b'"step":100', b'"step":999')])
    found = restore(store)
    assert found is not None
    assert (found.step, found.record.event.manifest) == (100, real.manifest)
    assert [record.step for record in newest_first(Journal.open(store).state)] == [100]


def test_a_copy_written_later_does_not_become_the_newest(store: Store) -> None:
    attempt = Attempt(store)
    old, new = attempt.save(100, {"w": b"old"}), attempt.save(200, {"w": b"new"})
    store.put(old.manifest, [store.get(old.manifest)])  # its LastModified is now the latest of all
    found = restore(store)
    assert found is not None
    assert found.record.event.manifest == new.manifest


def test_every_damaged_checkpoint_is_passed_over_and_reported(store: Store) -> None:
    attempt = Attempt(store)
    events = [attempt.save(step, {"w": b"%d" % step}) for step in (1, 2, 3, 4)]
    store.delete([events[3].manifest])
    truncate(store, events[2].manifest, 10)
    flip_bit(store, f"packs/1/{2}-0-0-{events[1].manifest[-13:-5]}.safetensors", -1)
    found = restore(store)
    assert found is not None
    assert (found.step, found.content) == (1, {"w": b"1"})
    assert [(step, error.kind) for step, error in found.passed_over] == [(4, "missing"), (3, "sha256"), (2, "digest")]


def test_when_all_are_damaged_nothing_is_started_from_scratch(store: Store) -> None:
    attempt = Attempt(store)
    for step in (1, 2):
        truncate(store, attempt.save(step, {"w": b"%d" % step}).manifest, 10)
    with pytest.raises(DamagedError) as caught:
        restore(store)
    assert (caught.value.kind, caught.value.exit_code) == ("all-damaged", 12)
    assert "all 2 checkpoints" in caught.value.message


@pytest.mark.parametrize("method", ["get", "get_range"])
def test_a_failing_store_passes_nothing_over(folder_store: Store, method: str) -> None:
    attempt = Attempt(folder_store)
    attempt.save(1, {"w": b"1"})
    attempt.save(2, {"w": b"2"})
    faulty = FaultyStore(folder_store)
    journal = Journal.open(faulty)
    faulty.arm(1, methods={method})  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        restore(faulty, journal)


def test_a_retired_checkpoint_is_not_restored(folder_store: Store) -> None:
    attempt = Attempt(folder_store)
    attempt.save(1, {"w": b"1"})
    event = attempt.save(2, {"w": b"2"})
    attempt.journal.append(CheckpointRetired(event.manifest, 2), Origin("host", 1), attempt.lease)
    found = restore(folder_store)
    assert found is not None
    assert found.step == 1


def test_more_checkpoints_than_a_page_of_a_listing_are_all_found(store: Store) -> None:
    attempt = Attempt(store)
    attempt.save(1, {"w": b"1"})
    count = 1050
    tail = attempt.journal.state.tail

    def commit(number: int) -> None:
        event = CheckpointCommitted(number, f"manifests/{number}", "0" * 64, 0, 0)
        n, lease = tail + number, attempt.lease
        entry = Entry(n, lease.attempt, lease.claim, str(number), 0.0, Origin("host", 1), event)
        assert store.create(entry_key(n), encode_entry(entry))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(commit, range(1, count + 1)))
    found = list(newest_first(Journal.open(store).state))
    assert [record.step for record in found] == [*range(count, 0, -1), 1]


def test_a_checkpoint_is_not_visible_before_its_bytes(store: Store) -> None:
    watched = WatchedStore(store)
    attempt = Attempt(watched)
    attempt.save(100, {"frozen": b"f", "w": b"old"}, {"loss": [(100, 1.0)]})
    seen: list[int] = []

    def look(method: str, key: str) -> None:
        found = restore(store)
        assert found is not None
        assert (found.content, found.passed_over) == ({"frozen": b"f", "w": b"old"}, [])
        seen.append(found.step)

    watched.before = look
    attempt.save(200, {"frozen": b"f", "w": b"new"}, {"loss": [(200, 2.0)]})
    assert seen == [100] * 5
    found = restore(store)
    assert found is not None
    assert (found.step, found.content, found.passed_over) == (200, {"frozen": b"f", "w": b"new"}, [])
