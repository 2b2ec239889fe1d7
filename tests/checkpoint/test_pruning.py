"""Deleting checkpoints: what is kept stays whole, whatever fails, dies or comes back from the dead meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore
from tests.checkpoint.conftest import Attempt, Content, WatchedStore, restore

from unbroken.checkpoint import load_manifest, read_metrics, verify_checkpoint
from unbroken.checkpoint.maintenance import live_attempt, prune_run
from unbroken.checkpoint.pruning import Pruned, Pruner, plan_prune
from unbroken.checkpoint.retention import KeepBest, KeepEvery, KeepLast, Policy
from unbroken.errors import AccessError, FencedError, StoreError
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import AttemptEnded, Note
from unbroken.store import Store
from unbroken.store.objects import ObjectStore
from unbroken.testing import Crash, FaultyStore, flip_bit
from unbroken.testing.stores import Moment

FROZEN = b"f" * 300
PERSON = Origin("desk", 7)
FOLDERS = ("packs", "ranks", "manifests")


def memory_store() -> Store:
    return ObjectStore(MemoryStore(), "memory://run")


def content(step: int) -> Content:
    """Frozen tensors, one that changes with every step, and one that changes now and then."""
    return {"frozen": FROZEN, "w": f"{step:05d}".encode() * 20, "slow": f"{step // 300:05d}".encode() * 20}


def save(attempt: Attempt, *steps: int) -> None:
    for step in steps:
        attempt.save(step, content(step), {"loss": [(step, 1000.0 / step)]})


def pruner(attempt: Attempt, policy: Policy | None) -> Pruner:
    return Pruner(attempt.journal, attempt.lease, Origin("host", 1), policy)


def end(attempt: Attempt) -> None:
    attempt.journal.append(AttemptEnded("crashed"), Origin("host", 1), attempt.lease)


def kept(store: Store) -> list[CheckpointRecord]:
    return Journal.open(store).state.checkpoints


def steps(store: Store) -> list[int]:
    return [record.step for record in kept(store)]


def stored(store: Store) -> set[str]:
    """Everything that pruning may delete."""
    return {info.key for folder in FOLDERS for info in store.list(folder)}


def needed(store: Store) -> set[str]:
    """What the kept checkpoints need."""
    keys: set[str] = set()
    for record in kept(store):
        manifest = load_manifest(store, record)
        keys |= {record.event.manifest, *(pack.key for pack in manifest.packs), *(rank.key for rank in manifest.ranks)}
    return keys


def check_sound(store: Store) -> None:
    """Every kept checkpoint verifies, the newest restores, and no logged value is lost."""
    state = Journal.open(store).state
    for record in state.checkpoints:
        assert verify_checkpoint(store, record).problems == []
    found = restore(store)
    assert found is not None
    assert (found.step, found.content, found.passed_over) == (found.step, content(found.step), [])
    assert found.record.n == state.commits[-1].n
    read_metrics(store, state, found.record)


def test_a_prune_keeps_what_the_policy_says_and_nothing_else(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 300, 400, 500, 600)
    done = pruner(attempt, KeepLast(2) | KeepEvery(steps=300)).turn()
    assert (done.retired, done.complete, done.held) == (4 - 1, True, "")
    assert steps(store) == [300, 500, 600]
    assert stored(store) == needed(store)
    check_sound(store)
    state = Journal.open(store).state
    assert read_metrics(store, state, state.checkpoints[-1])["loss"] == [
        (step, 1000.0 / step) for step in range(100, 700, 100)
    ]


def test_a_pack_that_a_kept_checkpoint_shares_outlives_the_one_that_wrote_it(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 250)
    (first, *_) = kept(store)
    shared = {pack.key for pack in load_manifest(store, first).packs}
    pruner(attempt, KeepLast(1)).turn()
    assert steps(store) == [200, 250]
    assert shared <= stored(store)
    check_sound(store)


def test_best_by_a_logged_value_is_kept(store: Store) -> None:
    attempt = Attempt(store)
    for step, loss in ((100, 3.0), (200, 1.0), (300, 2.0), (400, 5.0), (500, 6.0)):
        attempt.save(step, content(step), {"loss": [(step - 1, 0.0), (step, loss)]})
    pruner(attempt, KeepBest("loss")).turn()
    assert steps(store) == [200, 400, 500]
    check_sound(store)


def test_the_entry_comes_before_the_deletes_and_the_manifest_goes_last(store: Store) -> None:
    watched = WatchedStore(store)
    attempt = Attempt(watched)
    save(attempt, 100, 200, 300)
    first = kept(store)[0].event.manifest
    seen: list[tuple[str, str]] = []
    watched.before = lambda method, key: seen.append((method, key))
    pruner(attempt, KeepLast(2)).turn()
    changes = [(method, key) for method, key in seen if method in ("create", "delete") and "may-this" not in key]
    assert [method for method, _ in changes] == ["create"] + ["delete"] * (len(changes) - 1)
    assert changes[-1] == ("delete", first)


def failed_save(attempt: Attempt, faulty: FaultyStore, step: int, call: int) -> None:
    faulty.arm(call)
    with pytest.raises(StoreError):
        save(attempt, step)
    faulty.arm(None)


def test_objects_of_a_failed_save_wait_for_a_later_attempt(store: Store) -> None:
    faulty = FaultyStore(store)
    attempt = Attempt(faulty)
    save(attempt, 100, 200)
    failed_save(attempt, faulty, 300, call=4)  # rank record or manifest, whichever comes second
    orphans = stored(store) - needed(store)
    assert len(orphans) == 2  # a pack, and a rank record or a manifest
    pruner(attempt, None).turn()
    assert stored(store) - needed(store) == orphans
    following = Attempt(store)
    following.restore()
    done = pruner(following, None).turn()
    assert (done.retired, done.objects) == (0, 2)
    assert stored(store) == needed(store)
    check_sound(store)


def test_what_has_another_form_than_our_keys_is_left_alone(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 300)
    for key in ("packs/1/notes.txt", "packs/readme", "ranks/1/mine.json", "manifests/backup.json"):
        store.put(key, [b"somebody's"])
    end(attempt)
    prune_run(store, KeepLast(2), PERSON)
    assert len(stored(store) - needed(store)) == 4


def test_the_writer_refers_to_no_pack_of_a_parent_that_was_retired(store: Store) -> None:
    attempt = Attempt(store)
    for step, weights in ((100, b"first"), (200, b"second"), (300, b"third")):
        attempt.save(step, {"w": weights})
    old = kept(store)[0]
    manifest = load_manifest(store, old)
    attempt.writer.continue_from(old, manifest)
    pruner(attempt, KeepLast(2)).turn()
    attempt.save(150, {"w": b"first"})  # as in the parent, whose pack is gone
    assert steps(store) == [200, 300, 150]
    found = restore(store)
    assert found is not None
    assert (found.content, found.passed_over) == ({"w": b"first"}, [])


def test_what_was_to_be_retired_and_is_kept_after_all_is_not_cleared_away(store: Store) -> None:
    faulty = FaultyStore(store)
    attempt = Attempt(faulty)
    for step, loss in ((100, 1.0), (200, 2.0), (300, 3.0), (400, 4.0)):
        attempt.save(step, content(step), {"loss": [(step, loss)]})
    retiring = pruner(attempt, KeepBest("loss"))
    faulty.arm(1, methods=["create"])
    with pytest.raises(StoreError):
        retiring.turn()  # of step 200, whose entry never came to be
    faulty.arm(None)
    best = Note("damaged", "bytes disagree", {"step": 100, "manifest": kept(store)[0].event.manifest})
    attempt.journal.append(best, Origin("host", 1), attempt.lease)
    assert retiring.turn().complete
    assert steps(store) == [100, 200, 300, 400]
    check_sound(store)


def test_with_a_damaged_manifest_among_the_kept_nothing_is_retired_or_deleted(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 300, 400, 500)
    damaged = kept(store)[2].event.manifest
    flip_bit(store, damaged, 40)
    before = stored(store)
    done = pruner(attempt, KeepLast(3)).turn()
    assert (done.retired, done.objects, done.complete) == (0, 0, False)
    assert "step 300" in done.held
    assert damaged in done.held
    assert (stored(store), len(kept(store))) == (before, 5)
    plan = plan_prune(Journal.open(store), KeepLast(3), below=2)
    assert (plan.held, plan.retired, plan.garbage) == (done.held, [], [])


def test_a_damaged_manifest_that_is_given_up_stands_in_nobodys_way(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 300, 400)
    flip_bit(store, kept(store)[0].event.manifest, 40)
    pruner(attempt, KeepLast(2)).turn()
    assert steps(store) == [300, 400]
    check_sound(store)
    end(attempt)
    prune_run(store, KeepLast(2), PERSON)
    assert stored(store) == needed(store)


def test_a_checkpoint_that_was_passed_over_does_not_count_as_something_to_fall_back_to(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 300)
    newest = kept(store)[-1]
    note = Note("damaged", "bytes disagree", {"step": 300, "manifest": newest.event.manifest})
    attempt.journal.append(note, Origin("host", 1), attempt.lease)
    pruner(attempt, KeepLast(1)).turn()
    assert steps(store) == [100, 200, 300]


def test_a_turn_gives_way_and_the_next_one_goes_on(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 300, 400, 500, 600)
    retiring = pruner(attempt, KeepLast(2))
    turns = 0
    done = Pruned()
    while not done.complete:
        turns += 1
        asked = iter(range(1000))
        done = retiring.turn(lambda asked=asked, turns=turns: next(asked) >= turns)  # type: ignore[misc]
        check_sound(store)
        assert turns < 100
    assert turns > 3
    assert steps(store) == [500, 600]
    assert stored(store) == needed(store)


@dataclass
class NoDelete:
    """A role that may do everything but delete."""

    store: Store
    denied: list[str] = field(default_factory=list)
    only: Callable[[str], bool] = lambda _key: True

    @property
    def uri(self) -> str:
        return self.store.uri

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            if self.only(key):
                self.denied.append(key)
                raise AccessError(f"delete of {key} was denied", kind="denied")


def test_a_role_that_may_not_delete_retires_nothing(store: Store) -> None:
    denying = NoDelete(store)
    attempt = Attempt(denying)  # type: ignore[arg-type]
    save(attempt, 100, 200, 300, 400)
    with pytest.raises(AccessError):
        pruner(attempt, KeepLast(2)).turn()
    assert len(denying.denied) == 1
    assert steps(store) == [100, 200, 300, 400]
    check_sound(store)


def test_objects_that_are_locked_one_by_one_harm_no_kept_checkpoint(store: Store) -> None:
    attempt = Attempt(NoDelete(store, only=lambda key: "may-this" not in key))  # type: ignore[arg-type]
    save(attempt, 100, 200, 300, 400)
    with pytest.raises(AccessError):
        pruner(attempt, KeepLast(2)).turn()
    assert steps(store) == [300, 400]
    check_sound(store)


def zombie_and_owner(store: Store) -> tuple[Attempt, Attempt]:
    zombie = Attempt(store, "old-host")
    save(zombie, 100, 200, 300, 400)
    owner = Attempt(store, "new-host")
    owner.restore()
    return zombie, owner


def test_a_zombie_deletes_nothing(store: Store) -> None:
    zombie, owner = zombie_and_owner(store)
    before = stored(store)
    for policy in (KeepLast(1), None):
        with pytest.raises(FencedError):
            pruner(zombie, policy).turn()
    assert stored(store) == before
    save(owner, 500)
    assert steps(store) == [100, 200, 300, 400, 500]
    check_sound(store)


def test_a_takeover_between_any_two_calls_of_a_prune_harms_nothing() -> None:
    calls = 0
    while True:
        calls += 1
        store = memory_store()
        watched = WatchedStore(store)
        attempt = Attempt(watched, "old-host")
        save(attempt, 100, 200, 300, 400)
        count = 0

        def before(_method: str, _key: str, store: Store = store, last: int = calls) -> None:
            nonlocal count
            count += 1
            if count == last:
                following = Attempt(store, "new-host")
                restored = following.restore()
                assert restored is not None
                assert (restored.step, restored.passed_over) == (400, [])
                save(following, 450, 500)

        watched.before = before
        with contextlib.suppress(FencedError):
            pruner(attempt, KeepLast(2)).turn()
        check_sound(store)
        if count < calls:
            break
        assert steps(store)[-4:] == [300, 400, 450, 500]
        following = Attempt(store)
        following.restore()
        pruner(following, KeepLast(2)).turn()
        assert steps(store) == [450, 500]
        assert stored(store) == needed(store)
        check_sound(store)
    assert calls > 12


FAULTS: list[tuple[Moment, bool]] = [
    ("before", False), ("before", True), ("after", False), ("after", True), ("retried", False),
]  # fmt: skip


def started(store: Store) -> None:
    """Two attempts; the first left a failed save behind, and both share packs."""
    faulty = FaultyStore(store)
    first = Attempt(faulty)
    save(first, 100, 200)
    failed_save(first, faulty, 250, call=3)
    second = Attempt(store)
    second.restore()
    save(second, 300, 400, 500)
    end(second)


@pytest.mark.parametrize(("moment", "crash"), FAULTS)
def test_a_prune_may_fail_at_every_store_call_and_the_next_one_finishes(moment: Moment, crash: bool) -> None:
    call = 0
    while True:
        call += 1
        store = memory_store()
        started(store)
        faulty = FaultyStore(store, fail_call=call, moment=moment, crash=crash)
        with contextlib.suppress(StoreError, Crash):
            prune_run(faulty, KeepLast(2), PERSON)
        check_sound(store)
        assert steps(store)[-2:] == [400, 500]
        prune_run(store, KeepLast(2), PERSON)
        assert steps(store) == [400, 500]
        assert stored(store) == needed(store)
        check_sound(store)
        if len(faulty.calls) < call:
            break
    assert call > 25


@pytest.mark.parametrize(("moment", "crash"), FAULTS)
def test_a_turn_of_a_training_may_fail_at_every_store_call_and_the_next_one_finishes(
    moment: Moment, crash: bool
) -> None:
    call = 0
    while True:
        call += 1
        store = memory_store()
        started(store)
        faulty = FaultyStore(store)
        attempt = Attempt(faulty)
        attempt.restore()
        save(attempt, 600, 700, 800)
        retiring = pruner(attempt, KeepLast(2))
        faulty.arm(call, moment=moment, crash=crash)
        with contextlib.suppress(StoreError, Crash):
            retiring.turn()
        calls = len(faulty.calls)
        check_sound(store)
        if crash:
            attempt = Attempt(store)
            attempt.restore()
            retiring = pruner(attempt, KeepLast(2))
        else:
            faulty.arm(None)
        save(attempt, 900)
        retiring.turn()
        assert steps(store) == [800, 900]
        assert stored(store) == needed(store)
        check_sound(store)
        if calls < call:
            break
    assert call > 25


def test_maintenance_is_refused_while_the_run_is_being_trained(store: Store) -> None:
    attempt = Attempt(store, "trainer-host")
    save(attempt, 100, 200, 300)
    before, tail = stored(store), attempt.journal.state.tail
    with pytest.raises(FencedError) as caught:
        prune_run(store, KeepLast(2), PERSON)
    assert caught.value.kind == "live"
    assert "attempt 1 on trainer-host" in caught.value.message
    assert (stored(store), Journal.open(store).state.tail) == (before, tail)
    save(attempt, 400)  # not fenced


def test_maintenance_takes_over_when_told_to_and_fences_who_still_lived(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 300)
    prune_run(store, KeepLast(2), PERSON, take_over=True)
    assert steps(store) == [200, 300]
    with pytest.raises(FencedError):
        save(attempt, 400)
    check_sound(store)


def test_a_training_that_begins_just_before_the_claim_of_maintenance_is_not_fenced(folder_store: Store) -> None:
    first = Attempt(folder_store)
    save(first, 100, 200, 300)
    end(first)
    watched = WatchedStore(folder_store)
    begun: list[Attempt] = []

    def before(method: str, key: str) -> None:
        if method == "create" and key.startswith("journal/") and not begun:
            begun.append(Attempt(folder_store, "new-host"))

    watched.before = before
    with pytest.raises(FencedError) as caught:
        prune_run(watched, KeepLast(2), PERSON)
    assert caught.value.kind == "live"
    begun[0].restore()
    save(begun[0], 400)
    assert steps(folder_store) == [100, 200, 300, 400]


def test_maintenance_counts_neither_for_nor_against_progress(store: Store) -> None:
    for _ in range(3):
        attempt = Attempt(store)
        end(attempt)
    prune_run(store, None, PERSON)
    state = Journal.open(store).state
    assert state.attempts_without_progress() == 3
    assert [record.attempt for record in state.trainings] == [1, 2, 3]
    assert state.owner is not None
    assert (state.owner.attempt, state.owner.purpose, state.owner.trains) == (4, "prune", False)
    assert state.owner.ended is not None
    assert state.owner.ended.cause == "maintenance"
    assert live_attempt(state) is None


def test_maintenance_that_died_holds_up_neither_the_next_one_nor_a_training(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 300)
    end(attempt)
    Journal.create(store).claim(PERSON, purpose="prune")
    prune_run(store, KeepLast(2), PERSON)
    assert steps(store) == [200, 300]
    following = Attempt(store)
    assert following.restore() is not None
    save(following, 400)
    assert following.lease.attempt == 4


class History:
    """A run to which things happen, and what its checkpoints held."""

    def __init__(self) -> None:
        self.store = memory_store()
        self.step = 0
        self.unnoticed: str | None = None
        """Manifest of the checkpoint whose damage no attempt has met yet."""
        self.begin()

    def begin(self) -> None:
        """A new attempt, which passes over what is damaged and says so."""
        self.faulty = FaultyStore(self.store)
        self.attempt = Attempt(self.faulty)
        self.pruners: dict[Policy | None, Pruner] = {}
        found = restore(self.store, self.attempt.journal)
        if found is None:
            self.step = 0
            return
        for record in self.attempt.journal.state.checkpoints:
            if record.step in [step for step, _ in found.passed_over] and record.n > found.record.n:
                note = Note("damaged", "no good", {"step": record.step, "manifest": record.event.manifest})
                self.attempt.journal.append(note, Origin("host", 1), self.attempt.lease)
                if record.event.manifest == self.unnoticed:
                    self.unnoticed = None
        self.attempt.writer.continue_from(found.record, found.manifest)
        self.step = found.step

    def save(self, steps_done: int) -> None:
        self.step += steps_done
        save(self.attempt, self.step)

    def fail(self, call: int, moment: Moment) -> None:
        """A save that ends in an error at one of its store calls, and may yet have taken effect."""
        self.step += 10
        self.faulty.arm(call, moment=moment)
        with contextlib.suppress(StoreError):
            save(self.attempt, self.step)
        self.faulty.arm(None)

    def damage(self) -> None:
        """What the newest checkpoint alone holds is damaged. No second time before an attempt has noticed: pruning
        reads no tensors, and one to fall back to is what it promises."""
        records = kept(self.store)
        if len(records) < 2 or self.unnoticed is not None:
            return
        self.unnoticed = records[-1].event.manifest
        manifest = load_manifest(self.store, records[-1])
        (piece,) = manifest.tensor("w").slices
        flip_bit(self.store, manifest.packs[piece.pack].key, piece.start)

    def prune(self, policy: Policy | None) -> None:
        self._checked(policy, self.pruners.setdefault(policy, pruner(self.attempt, policy)).turn)

    def maintain(self, policy: Policy | None) -> None:
        end(self.attempt)
        self._checked(policy, lambda: prune_run(self.store, policy, PERSON))
        assert stored(self.store) == needed(self.store)
        self.begin()

    def _checked(self, policy: Policy | None, work: Callable[[], Pruned]) -> None:
        """What verified before and is still kept verifies after, the newest and the next sound one among them."""
        before = kept(self.store)
        sound = {record.n for record in before if not verify_checkpoint(self.store, record).problems}
        assert work().complete
        after = kept(self.store)
        assert after[-2:] == before[-2:]
        assert policy is not None or after == before
        for record in after:
            assert (record.n in sound) == (verify_checkpoint(self.store, record).problems == [])
        if sound:
            found = restore(self.store)
            assert found is not None
            assert found.record.n == max(sound)
            assert found.content == content(found.step)
            read_metrics(self.store, Journal.open(self.store).state, found.record)


some_policy = st.sampled_from(
    [None, KeepLast(1), KeepLast(3), KeepEvery(steps=70), KeepBest("loss", mode="max"), KeepLast(2) | KeepBest("loss")]
)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("save"), st.integers(1, 120)),
        st.tuples(st.just("save"), st.integers(1, 120)),
        st.tuples(st.just("fail"), st.integers(1, 5), st.sampled_from(["before", "after", "retried"])),
        st.tuples(st.just("prune"), some_policy),
        st.tuples(st.just("maintain"), some_policy),
        st.tuples(st.just("damage")),
        st.tuples(st.just("begin")),
    ),
    min_size=3,
    max_size=16,
)


@settings(deadline=None, max_examples=80)
@example([("save", 1), ("save", 1), ("damage",), ("save", 1), ("begin",), ("damage",)])
@given(happenings)
def test_whatever_a_run_goes_through_pruning_takes_nothing_that_is_needed(
    story: list[tuple[str, *tuple[object, ...]]],
) -> None:
    history = History()
    for what, *arguments in story:
        getattr(history, what)(*arguments)
    history.maintain(KeepLast(2))


def test_a_lease_without_a_claim_may_not_prune(store: Store) -> None:
    attempt = Attempt(store)
    save(attempt, 100, 200, 300)
    forged = Pruner(attempt.journal, Lease(1, "somebody else's"), PERSON, KeepLast(2))
    with pytest.raises(FencedError):
        forged.turn()
    assert steps(store) == [100, 200, 300]
