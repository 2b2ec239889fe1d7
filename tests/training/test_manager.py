"""CheckpointManager: what was saved comes back, saves wait for nothing, and readers disturb nobody."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch

import unbroken
from unbroken import CheckpointManager
from unbroken.checkpoint import CheckpointWriter
from unbroken.errors import (
    ConfigError,
    DamagedError,
    DeadlineError,
    FencedError,
    MismatchError,
    NotFoundError,
    StoreError,
)
from unbroken.journal import Journal, Origin
from unbroken.store import open_store
from unbroken.testing import FakeClock, flip_bit


def model_of(value: float) -> torch.nn.Linear:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def value_of(model: torch.nn.Module) -> float:
    (value,) = {x for parameter in model.parameters() for x in parameter.detach().flatten().tolist()}
    return value


@pytest.fixture
def three(uri) -> str:
    """A run with checkpoints of steps 1, 2 and 3, whose model holds the step."""
    with CheckpointManager(uri) as manager:
        for step in (1, 2, 3):
            manager.save(step, {"model": model_of(step), "epoch": step}).wait(60)
    return str(uri)


class Gate:
    """Holds every write of a checkpoint until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()
        write = CheckpointWriter.write

        def held(writer, state, **options):
            self.begun.set()
            assert self.opened.wait(60)
            return write(writer, state, **options)

        monkeypatch.setattr(CheckpointWriter, "write", held)


@pytest.fixture
def gate(monkeypatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def break_saves(monkeypatch, error: Exception) -> None:
    def broken(writer, state, **options):
        raise error

    monkeypatch.setattr(CheckpointWriter, "write", broken)
    monkeypatch.setattr("unbroken.training.local_writer._FIRST_PAUSE", 0.0)


class TestRoundTrip:
    def test_objects_come_back_in_place_and_plain_values_in_the_dictionary(self, uri):
        model, optimizer = torch.nn.Linear(4, 4), None
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        order = torch.Generator().manual_seed(3)
        plain = {"epoch": 4, "names": ["a", "b"], "nested": {"best": 0.25, "ema": torch.arange(3.0), 7: (1, None)}}
        with CheckpointManager(uri) as manager:
            manager.save(12, {"model": model, "optimizer": optimizer, "order": order, "progress": plain, "seen": 99})

        fresh = torch.nn.Linear(4, 4)
        fresh_optimizer, fresh_order = torch.optim.AdamW(fresh.parameters()), torch.Generator()
        state = {"model": fresh, "optimizer": fresh_optimizer, "order": fresh_order, "progress": None, "seen": 0}
        assert CheckpointManager(uri).restore(state) == 12
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
        assert torch.equal(
            optimizer.state_dict()["state"][0]["exp_avg"], fresh_optimizer.state_dict()["state"][0]["exp_avg"]
        )
        assert torch.equal(order.get_state(), fresh_order.get_state())
        assert state["model"] is fresh
        assert state["seen"] == 99
        ema = state["progress"]["nested"].pop("ema")
        assert torch.equal(ema, torch.arange(3.0))
        assert state["progress"] == {"epoch": 4, "names": ["a", "b"], "nested": {"best": 0.25, 7: (1, None)}}

    def test_a_raw_state_dict_is_a_plain_value(self, uri):
        model = model_of(5.0)
        with CheckpointManager(uri) as manager:
            manager.save(1, {"weights": model.state_dict()})
        read = CheckpointManager(uri).read()
        assert isinstance(read["weights"], OrderedDict)
        model_of(0.0).load_state_dict(read["weights"])
        assert torch.equal(read["weights"]["weight"], model.weight)

    def test_read_gives_any_step_without_objects(self, three):
        assert [CheckpointManager(three).read(step)["epoch"] for step in (1, 2, 3)] == [1, 2, 3]
        assert CheckpointManager(three).read()["epoch"] == 3

    def test_restore_of_some_names_leaves_the_others_alone_and_unread(self, three):
        store = open_store(three)
        model = model_of(0.0)
        assert CheckpointManager(three).restore({"model": model}, step=2) == 2
        assert value_of(model) == 2.0
        for info in store.list("packs"):
            store.delete([info.key])
        state = {"epoch": 0}
        assert CheckpointManager(three).restore(state, step=1) == 1
        assert state == {"epoch": 1}

    def test_a_run_and_a_manager_read_each_other(self, uri, training):
        training(uri).train(5)
        fresh = training(str(uri) + "-other")
        assert CheckpointManager(uri).restore({"model": fresh.model, "loader": fresh.batches}) == 5
        assert fresh.batches.position == 5

    def test_generators_are_kept_only_when_asked_for(self, uri):
        torch.manual_seed(11)
        with CheckpointManager(uri, rng=True) as manager:
            manager.save(1, {"model": model_of(1.0)})
        drawn = torch.rand(3)
        CheckpointManager(uri).restore({"model": model_of(0.0)})
        assert not torch.equal(torch.rand(3), drawn)
        CheckpointManager(uri, rng=True).restore({"model": model_of(0.0)})
        assert torch.equal(torch.rand(3), drawn)

    def test_without_rng_the_checkpoint_holds_the_state_alone(self, three):
        assert set(CheckpointManager(three).read()) == {"model", "epoch"}


class TestSteps:
    def test_an_empty_run_has_no_steps_and_is_not_made_by_looking(self, uri, tmp_path):
        manager = CheckpointManager(uri)
        model = model_of(7.0)
        assert (manager.steps(), manager.latest_step(), manager.restore({"model": model})) == ([], None, None)
        assert value_of(model) == 7.0
        with pytest.raises(NotFoundError, match="no checkpoint yet"):
            manager.read()
        manager.close()
        assert list(tmp_path.iterdir()) == []

    def test_steps_of_another_process_are_seen(self, uri):
        reader = CheckpointManager(uri)
        assert reader.steps() == []
        with CheckpointManager(uri) as manager:
            manager.save(3, {"x": 1}).wait(60)
            assert (reader.steps(), reader.latest_step()) == ([3], 3)
            manager.save(8, {"x": 2}).wait(60)
            assert (reader.steps(), reader.latest_step()) == ([3, 8], 8)

    @pytest.mark.parametrize("step", [2, 3])
    def test_a_step_not_after_the_newest_one_is_refused_naming_both(self, three, step):
        manager = CheckpointManager(three)
        with pytest.raises(ConfigError, match=rf"step {step} is not after step 3, the newest checkpoint of .*run"):
            manager.save(step, {"epoch": 0})
        assert len(Journal.open(open_store(three)).state.attempts) == 1  # nobody was fenced for it

    def test_a_save_under_way_counts(self, uri, gate):
        manager = CheckpointManager(uri)
        manager.save(5, {"x": 1})
        with pytest.raises(ConfigError, match="step 5 is not after step 5, the newest save"):
            manager.save(5, {"x": 1})
        gate.opened.set()
        manager.close()

    def test_after_going_back_training_goes_on_from_the_older_checkpoint(self, three):
        with CheckpointManager(three) as manager:
            state = {"model": model_of(0.0), "epoch": 0}
            assert manager.restore(state, step=1) == 1
            with pytest.raises(ConfigError, match="step 1 is not after step 1, the restored checkpoint"):
                manager.save(1, state)
            manager.save(2, {"model": model_of(22.0), "epoch": 22}).wait(60)
        reader = CheckpointManager(three)
        assert (reader.steps(), reader.latest_step()) == ([1, 2, 3], 2)
        assert reader.read()["epoch"] == reader.read(2)["epoch"] == 22
        commits = Journal.open(open_store(three)).state.commits
        assert commits[-1].event.parent == commits[0].event.manifest

    def test_going_back_within_one_attempt_works_as_well(self, uri):
        with CheckpointManager(uri) as manager:
            manager.save(1, {"epoch": 1}).wait(60)
            manager.save(2, {"epoch": 2}).wait(60)
            manager.save(3, {"epoch": 3})  # nobody waits for it but the restore
            state = {"epoch": 0}
            assert manager.restore(state, step=2) == 2
            assert manager.steps() == [1, 2, 3]
            manager.save(3, {"epoch": 33}).wait(60)
        assert CheckpointManager(uri).read()["epoch"] == 33

    @pytest.mark.parametrize("step", [-1, True, 1.5, "3"])
    def test_what_is_no_step_is_refused(self, uri, step):
        with pytest.raises(ConfigError, match="no number of steps"):
            CheckpointManager(uri).save(step, {"x": 1})


class TestSaving:
    def test_save_returns_when_staged_and_the_state_may_change(self, uri, gate):
        model = model_of(1.0)
        manager = CheckpointManager(uri)
        pending = manager.save(1, {"model": model})
        assert gate.begun.wait(60)
        assert not pending.done
        with torch.no_grad():
            model.weight.fill_(9.0)
        gate.opened.set()
        pending.wait(60)
        assert pending.done
        fresh = model_of(0.0)
        assert manager.restore({"model": fresh}) == 1
        assert value_of(fresh) == 1.0
        manager.close()

    def test_a_wait_that_is_too_short_says_so_and_the_save_goes_on(self, uri, gate):
        manager = CheckpointManager(uri)
        pending = manager.save(1, {"x": 1})
        with pytest.raises(DeadlineError, match="step 1 was not durable within 0 s"):
            pending.wait(0)
        gate.opened.set()
        pending.wait()
        manager.close()
        assert manager.steps() == [1]

    @pytest.mark.parametrize(("keep", "warned"), [(None, True), ("last=3", False)])
    def test_auto_that_keeps_every_checkpoint_is_said(self, uri, caplog, keep, warned):
        with CheckpointManager(uri, every="auto", keep=keep) as manager:
            manager.save(1, {"x": 1}).wait(60)
        assert ("no checkpoint is ever deleted" in caplog.text) == warned

    def test_a_third_save_at_once_fails_instead_of_waiting(self, uri, gate, caplog):
        manager = CheckpointManager(uri)
        accepted = [manager.save(step, {"x": step}) for step in (1, 2)]
        refused = manager.save(3, {"x": 3})
        assert refused.done
        with pytest.raises(StoreError, match="two saves are still under way") as raised:
            refused.wait()
        assert raised.value.kind == "busy"
        assert "save of step 3 failed" in caplog.text
        gate.opened.set()
        for pending in accepted:
            pending.wait(60)
        manager.save(3, {"x": 3}).wait(60)
        manager.close()
        assert manager.steps() == [1, 2, 3]

    def test_a_failed_save_raises_from_wait_and_the_step_may_be_saved_again(self, uri, monkeypatch):
        manager = CheckpointManager(uri)
        manager.save(1, {"x": 1}).wait(60)
        with monkeypatch.context() as broken:
            break_saves(broken, StoreError("the bucket is on fire", kind="unavailable"))
            with pytest.raises(StoreError, match="on fire"):
                manager.save(2, {"x": 2}).wait(60)
        assert manager.steps() == [1]
        manager.save(2, {"x": 2}).wait(60)
        manager.close()
        assert manager.steps() == [1, 2]
        notes = [entry.event.topic for entry in Journal.open(open_store(uri)).state.notes]
        assert "save-failed" in notes

    def test_close_raises_what_nobody_was_told(self, uri, monkeypatch):
        manager = CheckpointManager(uri)
        break_saves(monkeypatch, StoreError("the bucket is on fire", kind="unavailable"))
        manager.save(1, {"x": 1})
        with pytest.raises(StoreError, match="on fire"):
            manager.close()

    def test_an_error_in_the_block_is_not_replaced_by_that_of_a_save(self, uri, monkeypatch):
        with pytest.raises(KeyError, match="mine"), CheckpointManager(uri) as manager:
            break_saves(monkeypatch, StoreError("the bucket is on fire", kind="unavailable"))
            manager.save(1, {"x": 1})
            raise KeyError("mine")
        (attempt,) = Journal.open(open_store(uri)).state.attempts.values()
        assert attempt.ended is not None
        assert (attempt.ended.cause, attempt.ended.last_step) == ("failed", 1)
        assert "KeyError" in attempt.ended.detail

    def test_no_room_in_memory_fails_the_save_and_not_the_program(self, uri, monkeypatch):
        from unbroken.link.arena import Slot

        def full(slot, length):
            raise MemoryError("no room")

        manager = CheckpointManager(uri)
        with monkeypatch.context() as broken:
            broken.setattr(Slot, "reserve", full)
            with pytest.raises(StoreError, match="step 1 was not saved: no room"):
                manager.save(1, {"x": 1}).wait(60)
        manager.save(1, {"x": 1}).wait(60)
        manager.close()

    def test_a_value_that_cannot_be_kept_is_refused_by_name_and_takes_no_slot(self, uri):
        manager = CheckpointManager(uri)
        manager.save(1, {"x": 1}).wait(60)
        for _ in range(3):
            with pytest.raises(ConfigError, match=r"\['odd'\]\['when'\] is a builtins.object"):
                manager.save(2, {"odd": {"when": object()}})
        manager.save(2, {"x": 2}).wait(60)
        manager.close()

    @pytest.mark.parametrize("name", ["", "a/b", "$x", "rng"])
    def test_a_name_that_cannot_be_used_is_refused(self, uri, name):
        with pytest.raises(ConfigError, match="cannot name a part of the state"):
            CheckpointManager(uri).save(1, {name: 1})

    def test_what_did_not_change_is_not_written_again_after_a_restore(self, three):
        big = torch.arange(100_000.0)
        with CheckpointManager(three) as manager:
            manager.save(4, {"big": big}).wait(60)
        with CheckpointManager(three) as manager:
            assert manager.restore({"big": torch.zeros(100_000)}) == 4
            manager.save(5, {"big": big}).wait(60)
        events = [record.event for record in Journal.open(open_store(three)).state.commits]
        assert events[-2].written > 400_000 > 10_000 > events[-1].written

    def test_a_closed_manager_refuses_and_closing_twice_is_nothing(self, uri):
        manager = CheckpointManager(uri)
        manager.save(1, {"x": 1})
        manager.close()
        manager.close()
        with pytest.raises(ConfigError, match="is closed"):
            manager.save(2, {"x": 2})


class TestDue:
    def test_without_a_cadence_every_step_is_due_but_while_a_save_is_under_way(self, uri, gate):
        manager = CheckpointManager(uri)
        assert manager.due(1)
        pending = manager.save(1, {"x": 1})
        assert not manager.due(2)
        gate.opened.set()
        pending.wait(60)
        assert manager.due(2)
        manager.close()

    def test_a_cadence_in_steps(self, uri):
        with CheckpointManager(uri, every=3) as manager:
            saved = []
            for step in range(1, 8):
                if manager.due(step):
                    manager.save(step, {"x": step}).wait(60)
                    saved.append(step)
        assert saved == [3, 6]

    def test_a_cadence_in_time(self, uri):
        clock = FakeClock()
        manager = CheckpointManager(uri, every="10min", clock=clock)
        assert not manager.due(1)
        clock.advance(601)
        assert manager.due(2)


class TestRestoring:
    def test_a_damaged_newest_checkpoint_is_passed_over(self, three, caplog):
        state = Journal.open(open_store(three)).state
        flip_bit(open_store(three), state.checkpoints[-1].event.manifest, 10)
        model = model_of(0.0)
        assert CheckpointManager(three).restore({"model": model}) == 2
        assert value_of(model) == 2.0
        assert "step 3 is damaged and passed over" in caplog.text

    def test_a_damaged_step_that_was_asked_for_is_not(self, three):
        state = Journal.open(open_store(three)).state
        flip_bit(open_store(three), state.checkpoints[-1].event.manifest, 10)
        model = model_of(0.0)
        with pytest.raises(DamagedError):
            CheckpointManager(three).restore({"model": model}, step=3)
        assert value_of(model) == 0.0

    def test_a_step_that_is_not_there(self, three):
        with pytest.raises(NotFoundError, match="no checkpoint of step 9"):
            CheckpointManager(three).restore({"model": model_of(0.0)}, step=9)

    def test_names_that_the_checkpoint_lacks_are_named(self, three):
        model = model_of(0.0)
        with pytest.raises(MismatchError, match="ema is not in the checkpoint"):
            CheckpointManager(three).restore({"model": model, "ema": model_of(0.0)})
        assert value_of(model) == 0.0

    def test_a_model_of_another_shape_is_refused_by_tensor(self, three):
        with pytest.raises(
            MismatchError, match=r"weight is float32\[2, 3\] in the checkpoint and float32\[5, 3\] here"
        ):
            CheckpointManager(three).restore({"model": torch.nn.Linear(3, 5)})


class TestOwnership:
    def test_reading_and_restoring_claim_nothing(self, uri):
        writer = CheckpointManager(uri)
        writer.save(1, {"model": model_of(1.0)}).wait(60)
        reader = CheckpointManager(uri)
        assert reader.restore({"model": model_of(0.0)}) == 1
        reader.close()
        writer.save(2, {"model": model_of(2.0)}).wait(60)  # not fenced
        writer.close()
        assert list(Journal.open(open_store(uri)).state.attempts) == [1]

    def test_the_first_save_claims_and_close_says_how_it_ended(self, three):
        with CheckpointManager(three) as manager:
            manager.restore({"model": model_of(0.0)})
            manager.save(4, {"model": model_of(4.0)})
        attempts = Journal.open(open_store(three)).state.attempts
        assert [(a.restored_step, a.ended.cause, a.ended.last_step) for a in attempts.values()] == [
            (-1, "left", 3),
            (3, "left", 4),
        ]

    def test_finish_journals_that_training_is_complete(self, uri):
        with CheckpointManager(uri) as manager:
            manager.save(4, {"x": 4})
            manager.finish()
        state = Journal.open(open_store(uri)).state
        assert state.finished_step == 4
        assert state.attempts[1].ended.cause == "finished"

    def test_finish_of_nothing_is_refused(self, uri):
        with CheckpointManager(uri) as manager, pytest.raises(ConfigError, match="nothing was saved"):
            manager.finish()

    def test_a_manager_that_was_replaced_is_fenced(self, uri):
        manager = CheckpointManager(uri)
        manager.save(1, {"x": 1}).wait(60)
        Journal.open(open_store(uri)).claim(Origin("other", 1))
        with pytest.raises(FencedError):
            manager.save(2, {"x": 2}).wait(60)
        with pytest.raises(FencedError):
            manager.save(3, {"x": 3})
        manager.close()
        assert manager.steps() == [1]

    def test_no_thread_is_left(self, uri):
        before = threading.active_count()
        with CheckpointManager(uri) as manager:
            manager.save(1, {"x": 1})
        assert threading.active_count() == before

    def test_it_is_exported(self):
        assert unbroken.CheckpointManager is CheckpointManager


class TestUnderAnAgent:
    SCRIPT = """
        import sys, torch, unbroken
        model = torch.nn.Linear(3, 3)
        with unbroken.CheckpointManager({uri!r}) as manager:
            step = manager.restore({{"model": model}}) or 0
            if step == 0 and manager.notice is not None:
                sys.exit("a notice before the first save")
            while step < 3:
                step += 1
                manager.save(step, {{"model": model}}).wait(60)
            {end}
        """

    def run(self, tmp_path, uri, end: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "own_loop.py"
        path.write_text(textwrap.dedent(self.SCRIPT.format(uri=uri, end=end)))
        command = [sys.executable, "-m", "unbroken", "run", "--", sys.executable, str(path)]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)

    def test_the_agent_claims_and_ends_the_attempt_of_a_manager(self, tmp_path, uri):
        done = self.run(tmp_path, uri, "manager.finish()")
        assert done.returncode == 0, done.stderr
        state = Journal.open(open_store(uri)).state
        assert [(a.ended.cause, a.ended.last_step) for a in state.attempts.values()] == [("finished", 3)]
        assert [record.step for record in state.commits] == [1, 2, 3]
        again = self.run(tmp_path, uri, "manager.finish()")
        assert again.returncode == 0, again.stderr

    def test_an_end_without_finish_is_not_taken_for_completion(self, tmp_path, uri):
        done = self.run(tmp_path, uri, "pass")
        assert done.returncode == 1, done.stderr
        assert Journal.open(open_store(uri)).state.attempts[1].ended.cause == "left"

    def test_a_notice_reaches_the_loop_that_asks_for_it(self, tmp_path, uri):
        path = tmp_path / "until_notice.py"
        path.write_text(
            textwrap.dedent(f"""
                import time, unbroken
                give_up = time.monotonic() + 60
                with unbroken.CheckpointManager({uri!r}) as manager:
                    manager.save(1, {{"x": 1}}).wait(60)
                    print("saved", flush=True)
                    while manager.notice is None and time.monotonic() < give_up:
                        time.sleep(0.01)
                    manager.save(2, {{"x": 2}}).wait(manager.notice.deadline - time.time())
                """)
        )
        command = [sys.executable, "-m", "unbroken", "run", "--grace", "60s", "--", sys.executable, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as agent:
            assert agent.stdout is not None
            assert any("saved" in line for line in agent.stdout)
            agent.terminate()
            _, err = agent.communicate(timeout=120)
        assert agent.returncode == 75, err
        state = Journal.open(open_store(uri)).state
        assert [record.step for record in state.commits] == [1, 2]
        assert state.attempts[1].ended.cause == "interrupted"
