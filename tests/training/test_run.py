"""The loop: resuming exactly, saving in the background, stopping in time, and never saving what is not whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import unbroken
from unbroken.checkpoint import load_manifest, read_metrics, verify_checkpoint
from unbroken.errors import (
    ConfigError,
    DeadlineError,
    FencedError,
    Interrupted,
    MismatchError,
    NotFoundError,
    StoreError,
)
from unbroken.journal import Journal, Origin
from unbroken.journal.events import CheckpointCommitted, Note
from unbroken.link.messages import SignalReceived
from unbroken.store import open_store
from unbroken.testing import flip_bit
from unbroken.training.agent_link import AgentLink
from unbroken.training.attempt import Attempt, farewell


def notes(journal: Journal, topic: str) -> list[Note]:
    events = [entry.event for entry in journal.state.notes]
    return [event for event in events if isinstance(event, Note) and event.topic == topic]


@pytest.mark.parametrize("stop_at", [0, 2, 3, 4, 9])
def test_resume_is_bit_identical_to_an_uninterrupted_run(training, uri, interrupt, truth, stop_at):
    with pytest.raises(Interrupted) as stopped:
        training(uri).train(11, {stop_at: interrupt})
    assert stopped.value.code == 75
    resumed = training(uri, seed=99).train(11)  # other weights and generators: all must come from the checkpoint
    assert resumed.bits() == truth
    assert resumed.run.attempt == 2


def test_each_batch_is_used_exactly_once_over_attempts(training, uri, interrupt):
    used: list[int] = []
    for stop_at in (1, 2, 6, None):
        attempt = training(uri, used=[])
        with contextlib.suppress(Interrupted):
            attempt.train(11, {} if stop_at is None else {stop_at: interrupt})
        used += attempt.used
    assert used == list(range(11))


def test_the_loop_goes_on_where_the_run_stands(training, uri, interrupt):
    seen = []
    with pytest.raises(Interrupted):
        training(uri).train(6, {2: interrupt})
    second = training(uri)
    with second.run as run:
        assert run.step == 3
        for step in run.steps(until=6):
            second.step()
            seen.append(step)
    assert seen == [3, 4, 5]
    assert second.run.step == 6


def test_a_finished_run_runs_no_step_again(training, uri, journal):
    training(uri).train(5)
    again = training(uri).train(5)
    assert again.used == []
    assert journal().state.finished_step == 5
    assert len(journal().state.commits) == 2  # of steps 4 and 5: the second attempt had nothing to save


def test_a_finished_run_goes_on_to_a_higher_step(training, uri, truth, journal):
    training(uri).train(5)
    assert training(uri, seed=3).train(11).bits() == truth
    assert journal().state.finished_step == 11


def test_logged_values_hold_each_step_once(training, uri, interrupt, journal, tmp_path):
    straight = training(str(tmp_path / "straight")).train(11)
    reference = Journal.open(open_store(straight.run.uri))
    for stop_at in (2, 5):
        with pytest.raises(Interrupted):
            training(uri).train(11, {stop_at: interrupt})
    training(uri).train(11)
    metrics = read_metrics(open_store(uri), journal().state, journal().state.checkpoints[-1])
    expected = read_metrics(open_store(straight.run.uri), reference.state, reference.state.checkpoints[-1])
    assert [step for step, _ in metrics["loss"]] == list(range(1, 12))
    assert metrics == expected


def test_break_saves_nothing_of_the_unfinished_step(training, uri, journal):
    attempt = training(uri)
    with attempt.run as run:
        for step in run.steps(until=11):
            attempt.step()
            attempt.settle()
            if step == 5:
                break
    assert [record.step for record in journal().state.checkpoints] == [4]
    assert journal().state.finished_step is None
    assert journal().state.attempts[1].ended.cause == "left"


def test_an_exception_saves_nothing_of_the_unfinished_step(training, uri, truth, journal):
    def fail() -> None:
        raise RuntimeError("a bug of the user's")

    with pytest.raises(RuntimeError, match="a bug"):
        training(uri).train(11, {6: fail})
    assert [record.step for record in journal().state.checkpoints] == [4]
    assert journal().state.attempts[1].ended.cause in ("crashed", "failed")
    assert training(uri, seed=5).train(11).bits() == truth


def test_finish_ends_the_run_with_the_step_under_way(training, uri, journal):
    attempt = training(uri)
    attempt.train(11, {5: attempt.run.finish})
    assert attempt.run.step == 6
    assert journal().state.finished_step == 6
    assert journal().state.checkpoints[-1].step == 6


def test_completion_outranks_interruption(training, uri, interrupt, journal):
    assert training(uri).train(5, {4: interrupt}).run.step == 5
    assert journal().state.finished_step == 5


def test_interruption_before_the_first_step_saves_nothing(training, uri, interrupt, journal):
    attempt = training(uri)
    with pytest.raises(Interrupted, match="before the first step"), attempt.run as run:
        interrupt()
        for _ in run.steps(until=3):
            pytest.fail("no step may begin after the notice")
    assert journal().state.commits == []


@pytest.mark.usefixtures("agent_here")
def test_the_loop_does_not_wait_for_the_upload(training, uri, monkeypatch, journal):
    held = threading.Event()
    from unbroken.checkpoint import CheckpointWriter

    write = CheckpointWriter.write
    monkeypatch.setattr(CheckpointWriter, "write", lambda *a, **k: (held.wait(60), write(*a, **k))[1])
    attempt = training(uri)
    seen = []
    with attempt.run as run:
        for step in run.steps(until=12):
            attempt.step()
            seen.append(step)
            if step == 10:
                assert journal().state.commits == []  # ten steps on, and the save of step 4 is still held up
                held.set()
    assert journal().state.finished_step == 12
    # the saves that fell due meanwhile were skipped, not queued
    assert [record.step for record in journal().state.commits] == [4, 12]


@pytest.mark.usefixtures("agent_here")
def test_the_state_of_the_boundary_is_stored_though_training_goes_on(training, uri, tmp_path, monkeypatch, journal):
    held = threading.Event()
    from unbroken.checkpoint import CheckpointWriter

    write = CheckpointWriter.write
    monkeypatch.setattr(CheckpointWriter, "write", lambda *a, **k: (held.wait(60), write(*a, **k))[1])
    training(uri).train(7, {6: held.set}, settle=False)
    monkeypatch.undo()
    store = open_store(uri)
    first = journal().state.commits[0]
    assert first.step == 4
    from unbroken.training.restore import load_state

    saved = load_state(store, load_manifest(store, first))
    reference = training(str(tmp_path / "reference")).train(4)
    for name, tensor in reference.model.state_dict().items():
        assert torch.equal(tensor, saved["model"][name])


def test_a_failed_save_warns_is_journalled_and_never_the_latest(
    training, uri, monkeypatch, caplog, journal, truth, agent_here
):
    from unbroken.checkpoint import CheckpointWriter

    write = CheckpointWriter.write
    failing = {"left": 3}

    def broken(self, state, **options):
        if state.step == 4 and failing["left"]:
            failing["left"] -= 1
            raise StoreError("the bucket is on fire", kind="unavailable")
        return write(self, state, **options)

    monkeypatch.setattr(CheckpointWriter, "write", broken)
    finished = training(uri).train(11)
    assert failing["left"] == 0
    assert "the save of step 4 failed, nothing is saved yet, another one follows" in caplog.text
    assert 4 not in [record.step for record in journal().state.commits]
    assert [note.data["step"] for note in notes(journal(), "save-failed")] == [4]
    assert finished.bits() == truth
    metrics = read_metrics(open_store(uri), journal().state, journal().state.checkpoints[-1])
    assert [step for step, _ in metrics["loss"]] == list(range(1, 12))  # nothing logged was lost with the save


@pytest.mark.usefixtures("agent_here")
def test_a_save_that_fails_once_is_written_again(training, uri, monkeypatch, journal):
    from unbroken.checkpoint import CheckpointWriter

    write = CheckpointWriter.write
    failed: list[int] = []

    def broken(self, state, **options):
        if state.step not in failed:
            failed.append(state.step)
            raise StoreError("a passing fault", kind="unavailable")
        return write(self, state, **options)

    monkeypatch.setattr(CheckpointWriter, "write", broken)
    training(uri).train(6)
    assert [record.step for record in journal().state.commits][-1] == 6
    assert notes(journal(), "save-failed") == []


def test_a_host_without_memory_for_staging_trains_on(training, uri, monkeypatch, caplog, journal):
    from unbroken.link.arena import Slot

    reserve, failures = Slot.reserve, []

    def full(self, length):
        if not failures:
            failures.append(1)
            raise MemoryError("no room")
        return reserve(self, length)

    monkeypatch.setattr(Slot, "reserve", full)
    training(uri).train(11)
    assert journal().state.finished_step == 11
    assert "no room" in caplog.text


def test_a_fenced_attempt_stops_and_leaves_the_other_undisturbed(training, uri, journal):
    other: list[Journal] = []

    def replace() -> None:
        other.append(Journal.create(open_store(uri)))
        other[0].claim(Origin("elsewhere", 1))

    attempt = training(uri)
    with pytest.raises(FencedError, match="replaced by attempt 2 on elsewhere") as fenced:
        attempt.train(400, {5: replace, **{step: lambda: time.sleep(0.01) for step in range(6, 400)}})
    assert fenced.value.exit_code == 11
    state = journal().state
    assert [record.step for record in state.checkpoints] == [4]
    assert state.owner.attempt == 2
    assert all(entry.attempt == 2 for entry in journal().entries[other[0].state.tail - 1 :])


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(training, uri, truth, caplog, journal):
    training(uri).train(9)
    store = open_store(uri)
    newest, older = journal().state.checkpoints[-1], journal().state.checkpoints[-2]
    flip_bit(store, load_manifest(store, newest).packs[-1].key, -3)  # the last pack is its own
    resumed = training(uri, seed=1)
    with resumed.run as run:
        assert run.step == older.step == 8
        for _ in run.steps(until=11):
            resumed.step()
    assert resumed.bits() == truth
    assert "checkpoint of step 9 is damaged and passed over" in caplog.text
    assert [note.data["step"] for note in notes(journal(), "damaged")] == [9]
    assert verify_checkpoint(store, journal().state.checkpoints[-1]).problems == []


def test_a_model_that_does_not_fit_is_refused_by_the_names_of_its_tensors(training, uri):
    training(uri).train(4)
    other = torch.nn.Sequential(torch.nn.Linear(6, 13), torch.nn.ReLU(), torch.nn.Linear(13, 6))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    attempt = training(uri)
    run = unbroken.Run(uri, state={**attempt.state, "model": other})
    with pytest.raises(MismatchError) as refused, run:
        pass
    assert "0.weight is float32[12, 6] in the checkpoint and float32[13, 6] here" in str(refused.value)
    assert "1.running_mean is only in the checkpoint" in str(refused.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_an_object_that_the_checkpoint_lacks_is_named(training, uri):
    training(uri).train(4)
    attempt = training(uri)
    run = unbroken.Run(uri, state={**attempt.state, "ema": torch.nn.Linear(2, 2)})
    with pytest.raises(MismatchError, match="ema is not in the checkpoint"), run:
        pass


@pytest.mark.usefixtures("agent_here")
def test_the_exit_of_a_stop_that_came_too_late_names_what_stands(
    training, uri, interrupt, monkeypatch, journal, caplog
):
    from unbroken.checkpoint import CheckpointWriter

    write = CheckpointWriter.write
    over = threading.Event()

    def slow(self, state, **options):
        if state.step > 4:
            over.wait(60)
            raise StoreError("given up", kind="unavailable")
        return write(self, state, **options)

    monkeypatch.setattr(CheckpointWriter, "write", slow)
    monkeypatch.setenv("UNBROKEN_GRACE", "5")
    attempt = training(uri)
    with pytest.raises(Interrupted, match="at step 7; durable is step 4") as late:
        attempt.train(11, {6: interrupt}, settle=False)
    over.set()
    assert isinstance(late.value.__cause__, DeadlineError)
    assert [record.step for record in journal().state.checkpoints] == [4]
    assert "unbroken: the agent has not made step 7 durable yet; it goes on" in caplog.messages
    assert [line for line in caplog.messages if "failed" in line] == []


@pytest.mark.usefixtures("agent_here")
@pytest.mark.parametrize("launched", [False, True])
def test_a_sigterm_of_torchruns_own_saves_and_is_no_notice_for_the_agent(
    training, uri, interrupt, monkeypatch, journal, launched
):
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    sent, send = [], AgentLink.send
    monkeypatch.setattr(AgentLink, "send", lambda link, message: (sent.append(message), send(link, message)))
    reason = "torchrun ends its ranks by SIGTERM" if launched else "SIGTERM"
    with pytest.raises(Interrupted, match=rf"\({reason}\); step 7 is durable"):
        training(uri).train(11, {6: interrupt})
    assert [type(message) for message in sent if isinstance(message, SignalReceived)] == (
        [] if launched else [SignalReceived]
    )
    assert journal().state.checkpoints[-1].step == 7


def test_the_advance_warning_of_a_scheduler_saves_and_stops(training, uri, journal):
    with pytest.raises(Interrupted, match=r"SIGUSR1\); step 7 is durable"):  # or by the agent: rank 0 received it
        training(uri).train(11, {6: lambda: os.kill(os.getpid(), signal.SIGUSR1)})
    [notice] = [notice for record in journal().state.trainings for notice in record.notices]
    assert notice.source == "sigusr1"


@pytest.mark.usefixtures("agent_here")
def test_a_last_save_that_can_never_succeed_is_not_repeated(training, uri, interrupt, monkeypatch, journal):
    from unbroken.checkpoint import CheckpointWriter

    def refused(*_, **__):
        raise MismatchError("loader is another on each rank", kind="shared", hint="Name it in per_rank=")

    monkeypatch.setattr(CheckpointWriter, "write", refused)
    with pytest.raises(ConfigError, match="loader is another on each rank") as final:
        training(uri, every=1000).train(3)
    assert (final.value.kind, final.value.hint) == ("shared", "Name it in per_rank=")
    with pytest.raises(Interrupted, match="at step 2; durable is nothing"):
        training(uri, every=1000).train(11, {1: interrupt})
    assert journal().state.checkpoints == []


def test_an_impatient_interrupt_of_the_last_wait_leaves_nothing_behind(training, uri, monkeypatch, journal):
    from torch.optim import optimizer

    def impatient(*_):
        raise KeyboardInterrupt

    def fail() -> None:
        monkeypatch.setattr("unbroken.training.saver.Saver.close", impatient)
        raise ValueError

    threads = set(threading.enumerate())
    hooks = len(optimizer._global_optimizer_pre_hooks)
    with pytest.raises(KeyboardInterrupt):
        training(uri).train(11, {6: fail})
    assert len(optimizer._global_optimizer_pre_hooks) == hooks
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert left <= {"unbroken-saver"}  # which the test has made immortal
    assert journal().state.checkpoints[-1].step == 4


def test_a_lost_agent_is_replaced_and_training_goes_on(training, uri, journal, truth):
    def kill_agent() -> None:
        attempt.run._opened.link._agent.kill()
        attempt.run._opened.link._agent.wait()

    attempt = training(uri)
    attempt.train(11, {5: kill_agent, 6: lambda: time.sleep(0.1)})
    assert attempt.bits() == truth
    state = journal().state
    assert state.finished_step == 11
    assert list(state.attempts) == [1]  # the new agent adopted the attempt
    assert state.attempts[1].ended is not None


def test_what_is_drawn_before_the_first_step_does_not_change_a_resumed_run(training, uri, interrupt, tmp_path):
    def train(attempt, stop_at=None):
        with attempt.run as run:
            torch.rand(3)
            torch.rand(3, generator=attempt.order)
            for step in run.steps(until=9):
                attempt.step()
                if step == stop_at:
                    interrupt()
        return attempt.bits()

    truth = train(training(str(tmp_path / "truth")))
    with pytest.raises(Interrupted):
        train(training(uri), stop_at=4)
    assert train(training(uri)) == truth


def test_a_folder_that_is_away_for_a_while_costs_saves_and_not_the_training(training, uri, truth, monkeypatch, journal):

    folder, away = Path(uri), Path(uri + ".away")
    moves = {2: lambda: folder.rename(away), 6: lambda: away.rename(folder)}
    finished = training(uri).train(11, moves)
    assert finished.bits() == truth
    assert journal().state.finished_step == 11
    assert [note.data["step"] for note in notes(journal(), "save-failed")] == [4]


@pytest.mark.usefixtures("agent_here")
def test_a_fault_in_the_saver_fails_one_save_and_no_more(training, uri, monkeypatch, caplog, journal):
    from unbroken.checkpoint import CheckpointWriter

    class Panic(BaseException):
        """What a Rust extension raises."""

    write = CheckpointWriter.write

    def broken(self, state, **options):
        if state.step == 4:
            raise Panic("boom")
        return write(self, state, **options)

    monkeypatch.setattr(CheckpointWriter, "write", broken)
    training(uri).train(11)
    assert "Panic: boom" in caplog.text
    assert [record.step for record in journal().state.commits][-1] == 11


def test_a_state_that_can_no_longer_be_kept_warns_and_the_final_save_says_what_it_is(training, uri, caplog, journal):
    attempt = training(uri)
    held = attempt.optimizer.param_groups[0]

    def spoil() -> None:
        held["lock"] = threading.Lock()

    with pytest.raises(ConfigError, match=r"\['lock'\] is a _thread.lock"):
        attempt.train(11, {5: spoil})
    assert attempt.run.step == 11  # training went on to its end
    assert "the save of step 8 failed, step 4 stands" in caplog.text
    assert [record.step for record in journal().state.commits] == [4]


def test_a_forked_child_still_dies_of_sigterm(script):
    body = """
    import multiprocessing, time
    with unbroken.Run(URI, state={"m": model}) as run:
        for step in run.steps(until=2):
            if step == 0:
                child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
                child.start()
    """
    done = script(body)  # multiprocessing ends its daemons by SIGTERM, and waits for them
    assert done.returncode == 0, done.stderr


def test_an_error_of_the_users_own_is_not_taken_for_one_of_ours():
    class NotFoundError(Exception):
        pass

    assert farewell(NotFoundError("mine"), step=1).error.endswith(".NotFoundError")
    assert farewell(NotFoundError("mine"), step=1).error != "NotFoundError"
    assert farewell(RuntimeError("a bug"), step=1).error == "RuntimeError"
    assert farewell(MismatchError("ours"), step=1).error == "MismatchError"


def test_a_clock_that_is_set_does_not_cut_a_stop_short(training, uri, interrupt, journal):
    class Jumping:
        """The machine's clock, set an hour forward once it is told so."""

        jump = 0.0
        now = lambda self: time.time() + self.jump  # noqa: E731
        monotonic = staticmethod(time.monotonic)
        sleep = staticmethod(time.sleep)
        wait = staticmethod(lambda event, seconds: event.wait(max(0.0, seconds)))

    clock = Jumping()
    attempt = training(uri)
    run = unbroken.Run(uri, every=100, state=attempt.state, clock=clock)

    def set_clock() -> None:
        deadline = time.monotonic() + 30
        while run._linked.stop is None and time.monotonic() < deadline:
            time.sleep(0.01)
        clock.jump = 3600.0

    run._grace = 3600.0  # what counts here is the deadline that the agent gave
    with pytest.raises(Interrupted, match="step 3 is durable"), run:
        for step in run.steps(until=11):
            attempt.step()
            if step == 2:
                run._linked.send(SignalReceived("SIGTERM", time.time()))
                set_clock()
    assert [record.step for record in journal().state.commits] == [3]


def test_an_error_is_told_in_words_with_the_line_of_the_program(script):
    done = script("unbroken.Run('s3://', state={'m': model})")
    assert done.returncode == 78
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("unbroken: 's3://'")
    assert "hint: " in done.stderr
    assert "train.py:4: unbroken.Run('s3://', state={'m': model})" in done.stderr


def test_a_killed_trainer_leaves_nothing_in_the_temporary_folder(uri, tmp_path):
    (tmp_path / "tmp").mkdir()
    path = tmp_path / "killed.py"
    path.write_text(
        "import os, signal, sys, torch, unbroken\n"
        "with unbroken.Run(sys.argv[1], state={'m': torch.nn.Linear(1, 1)}) as run:\n"
        "    for step in run.steps(until=9):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-m", "unbroken", "run", "--max-restarts", "0", "--", sys.executable, path, uri]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1, done.stderr
    assert list((tmp_path / "tmp").glob("unbroken-*")) == []


def test_nothing_is_left_behind(training, uri, interrupt):
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        training(uri).train(11, {5: interrupt})
    training(uri).train(11)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_handler_of_the_users_own_is_called_too(training, uri, interrupt):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with pytest.raises(Interrupted):
            training(uri).train(11, {5: interrupt})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]


def test_the_environment_outranks_the_script(training, uri, tmp_path, monkeypatch):
    monkeypatch.setenv("UNBROKEN_RUN", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("UNBROKEN_EVERY", "2")
    training(uri).train(5)
    assert not (tmp_path / "run").exists()
    elsewhere = Journal.open(open_store(str(tmp_path / "elsewhere")))
    assert [record.step for record in elsewhere.state.checkpoints] == [2, 4, 5]


def test_a_rule_of_keeping_in_the_environment_outranks_the_script(uri, journal, monkeypatch):
    monkeypatch.setenv("UNBROKEN_KEEP", "last=2")
    state = {"numbers": torch.zeros(3)}
    with unbroken.Run(uri, every=1, keep="every=1", state=state) as run:
        for step in run.steps(until=8):
            state["numbers"].fill_(step)
            deadline = time.monotonic() + 60  # the save of the step before is done, so that none is left out
            while run._attempt.durable_step < step - 1 and time.monotonic() < deadline:
                time.sleep(0.01)
    assert [record.step for record in journal().state.checkpoints] == [7, 8]


def test_saves_on_a_cadence_in_time(training, uri, journal):
    attempt = training(uri, every="100ms")
    attempt.train(4, {step: lambda: time.sleep(0.15) for step in range(4)})
    assert len(journal().state.checkpoints) >= 3


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "state is empty"),
        ({"model": object()}, "state\\['model'\\] is a builtins.object, which has no state_dict"),
        ({"loader": torch.utils.data.DataLoader([1, 2])}, "torchdata's StatefulDataLoader"),
        ({"rng": torch.nn.Linear(1, 1)}, "'rng' cannot name"),
        ({"a/b": torch.nn.Linear(1, 1)}, "'a/b' cannot name"),
        ({"model": torch.nn.Linear}, "which has no state_dict"),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused_by_name(uri, state, words):
    with pytest.raises(ConfigError, match=words):
        unbroken.Run(uri, state=state)


@pytest.mark.parametrize("until", [-1, 2.5, "10", True])
def test_until_must_be_a_number_of_steps(training, uri, until):
    with pytest.raises(ConfigError, match="is no number of steps"), training(uri).run as run:
        next(run.steps(until=until))


def test_the_loop_belongs_inside_the_run(training, uri):
    with pytest.raises(ConfigError, match="not open"):
        next(training(uri).run.steps(until=3))


def test_several_ranks_without_a_process_group_are_refused(uri, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = unbroken.Run(uri, state={"model": torch.nn.Linear(1, 1)})
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2") as raised, run:
        pass
    assert "init_process_group" in raised.value.hint


def test_a_value_that_no_checkpoint_can_hold_is_named_before_the_first_step(training, uri, monkeypatch):
    attempt = training(uri)
    monkeypatch.setattr(type(attempt.batches), "state_dict", lambda _: {"position": 0, "lock": threading.Lock()})
    run = unbroken.Run(uri, state=attempt.state)
    with pytest.raises(ConfigError, match=r"'loader'\]\['lock'\] is a _thread.lock"), run:
        pytest.fail("the loop must not begin")


def test_a_log_of_what_is_no_number_is_refused(training, uri):
    with pytest.raises(ConfigError, match=r"run.log\(text=...\) was given a str"), training(uri).run as run:
        for _ in run.steps(until=1):
            run.log(text="no")


def test_a_missing_bucket_is_an_error_that_says_so(s3_environment):
    run = unbroken.Run("s3://no-such-bucket-here/run", state={"model": torch.nn.Linear(1, 1)})
    with pytest.raises(NotFoundError, match="does not exist"), run:
        pass


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("with RUN as run:\n    for _ in run.steps(until=2): pass", 0),
        ("with RUN as run:\n    for _ in run.steps(until=9): stop()", 75),
        ("try:\n    with RUN as run:\n        for _ in run.steps(until=9): stop()\nexcept Exception: pass", 75),
        ("unbroken.Run('s3://', state={'m': model})", 78),
        ("unbroken.Run(URI, state={'m': 3})", 78),
        ("with RUN as run:\n    for _ in run.steps(until=2): 1 / 0", 1),
    ],
)
def test_a_script_on_its_own_leaves_with_the_exit_code_of_the_contract(script, body, code):
    stop = "def stop(): os.kill(os.getpid(), signal.SIGTERM)\n"
    done = script(stop + body.replace("RUN", "unbroken.Run(URI, state={'m': model})"))
    assert done.returncode == code, done.stderr


def test_the_stored_checkpoint_is_committed_by_one_entry_each(training, uri, journal):
    training(uri).train(9)
    events = [entry.event for entry in journal().entries if isinstance(entry.event, CheckpointCommitted)]
    assert [event.step for event in events] == [4, 8, 9]
    assert len({event.manifest for event in events}) == 3


def test_an_attempt_opens_with_the_error_that_its_agent_met(tmp_path):
    path = tmp_path / "file"
    path.write_text("not a folder")
    from unbroken.clock import SYSTEM_CLOCK
    from unbroken.training.objects import state_objects

    with pytest.raises(ConfigError, match="is a file, not a folder"):
        link = AgentLink(str(path), clock=SYSTEM_CLOCK)
        Attempt.open(link, state_objects({"m": torch.nn.Linear(1, 1)}), clock=SYSTEM_CLOCK)
