"""A sealed slot holds the state of its boundary, whatever the loop does meanwhile; or the snapshot is thrown away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from unbroken.checkpoint import HostState, HostTensor
from unbroken.clock import SYSTEM_CLOCK
from unbroken.link.arena import Slot, SlotOwner, read_slot
from unbroken.testing.clock import FakeClock
from unbroken.training.capture import Captured, capture
from unbroken.training.memory import Room
from unbroken.training.objects import StateObject, state_objects
from unbroken.training.staging import SnapshotSpoiled, StagingArea

OWNER = SlotOwner("file:///run", 3, "claim")
PATIENCE = 30.0
PLENTY = Room(1 << 50, "a lot")


class Gate:
    """Holds the copying thread before each tensor until it is opened."""

    def __init__(self) -> None:
        self._turns = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)
        self._open = False

    def __call__(self) -> None:
        self.arrived.release()
        if not self._open:
            assert self._turns.acquire(timeout=PATIENCE), "nobody opened the gate"

    def let(self, count: int) -> None:
        """Let ``count`` tensors be copied; returns when the next one waits."""
        for _ in range(count):
            assert self.arrived.acquire(timeout=PATIENCE)
            self._turns.release()
        assert self.arrived.acquire(timeout=PATIENCE)
        self.arrived.release()

    def open(self) -> None:
        self._open = True
        self._turns.release(1000)


class Outcome:
    """What ``done`` was called with."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self.results: list[HostState | Exception] = []
        self.threads: list[str] = []

    def __call__(self, result: HostState | Exception) -> None:
        self.results.append(result)
        self.threads.append(threading.current_thread().name)
        self._came.set()

    def wait(self) -> HostState | Exception:
        assert self._came.wait(PATIENCE), "done was never called"
        (result,) = self.results
        return result


class Bench:
    """A staging area and a way to use it."""

    def __init__(self, objects: list[StateObject], **options: Any) -> None:
        self.said: list[str] = []
        self.gate = Gate()
        options = {"room": lambda: PLENTY, "worth_deferring": 1, "clock": SYSTEM_CLOCK, **options}
        self.area = StagingArea(say=self.said.append, gate=self.gate, **options)
        self.objects = objects

    def prepare(self, *adopted: Slot) -> Bench:
        self.area.prepare(self.objects, adopted)
        return self

    def stage(self, step: int = 1, *, eager: bool = False) -> tuple[Slot, dict[str, bytes], Outcome]:
        """Stage; returns the slot, the bytes at this boundary by tensor, and what comes of it."""
        slot = self.area.take()
        assert slot is not None
        captured, outcome = capture(self.objects), Outcome()
        expected = {name: bits(tensor) for name, tensor in captured.tensors.items()}
        self.area.stage(slot, captured, described(captured, step), OWNER, outcome, eager=eager)
        return slot, expected, outcome


def described(captured: Captured, step: int) -> Callable[[list[HostTensor], float], HostState]:
    return lambda tensors, stall: HostState(step, captured.tree, tensors, stall=stall)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def held(slot: Slot) -> dict[str, bytes]:
    found = read_slot(slot.descriptor)
    assert found is not None, "not sealed"
    return {tensor.name: bytes(tensor.data) for tensor in found[1].tensors}


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(objects: list[StateObject], **options: Any) -> Bench:
        made.append(Bench(objects, **options))
        return made[-1]

    yield make
    for one in made:
        one.gate.open()
        one.area.close(PATIENCE)
    names = [thread.name for thread in threading.enumerate()]
    assert not {"unbroken-staging", "unbroken-prefault"} & set(names)
    from torch.optim.optimizer import _global_optimizer_pre_hooks

    assert not _global_optimizer_pre_hooks


class Training:
    """A small model with buffers, and copies of its parameters that are averaged by hand."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer], **options: Any) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))
        self.optimizer = make(self.model.parameters(), **options)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        self.objects = state_objects({"model": self.model, "optimizer": self.optimizer, "average": self.average})
        self.step()

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(5, 6)).square().sum().backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()
        self.average.update_parameters(self.model)


OPTIMIZERS = {
    "adamw-for": (torch.optim.AdamW, {"foreach": False}),
    "adamw-foreach": (torch.optim.AdamW, {"foreach": True}),
    "adamw-fused": (torch.optim.AdamW, {"fused": True}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd-fused": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "rmsprop": (torch.optim.RMSprop, {"centered": True, "momentum": 0.5}),
    "adagrad": (torch.optim.Adagrad, {}),
}


@pytest.mark.parametrize("which", OPTIMIZERS)
def test_steps_beginning_at_any_point_of_the_copy_change_nothing_of_the_snapshot(bench, which):
    make, options = OPTIMIZERS[which]
    training = Training(make, **options)
    one = bench(training.objects).prepare()
    slot, expected, outcome = one.stage()
    assert not outcome.results
    total = sum(tensor.numel() > 0 for group in training.optimizer.param_groups for tensor in group["params"])
    for point in range(total):  # half-way at every point: forward and backward run, the step is held back
        training.backward()
        one.gate.let(1 if point else 0)
    stepping = threading.Thread(target=training.step)
    stepping.start()
    one.gate.let(1)
    assert stepping.is_alive()
    assert read_slot(slot.descriptor) is None
    one.gate.open()
    stepping.join(PATIENCE)
    state = outcome.wait()
    assert isinstance(state, HostState)
    assert held(slot) == expected
    assert {tensor.name: bytes(tensor.data) for tensor in state.tensors} == expected
    assert outcome.threads == ["unbroken-staging"]
    now = {name: bits(tensor) for name, tensor in capture(training.objects).tensors.items()}
    assert now["model/0.weight"] != expected["model/0.weight"]
    assert one.said == []


def test_buffers_and_averages_may_change_at_once(bench):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects).prepare()
    slot, expected, outcome = one.stage()
    with torch.no_grad():
        training.model[1].running_mean.add_(7)
        for parameter in training.average.parameters():
            parameter.mul_(2)
            parameter.data.mul_(2)
    torch.manual_seed(99)
    one.gate.open()
    assert isinstance(outcome.wait(), HostState)
    assert held(slot) == expected


@pytest.mark.parametrize("copied_before", range(4))
def test_a_parameter_changed_behind_the_optimizer_s_back_spoils_the_snapshot(bench, copied_before):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects).prepare()
    slot, _, outcome = one.stage()
    one.gate.let(copied_before)
    with torch.no_grad():
        training.model[0].weight.add_(1)
    one.gate.open()
    error = outcome.wait()
    assert isinstance(error, SnapshotSpoiled)
    assert error.kind == "spoiled"
    assert "model/0.weight" in error.message
    assert read_slot(slot.descriptor) is None
    one.area.give_back(slot)
    (said,) = one.said
    assert "model/0.weight" in said
    assert "copied at once" in said
    again, expected, second = one.stage()
    assert second.threads == [threading.current_thread().name]
    assert isinstance(second.wait(), HostState)
    assert held(again) == expected
    assert len(one.said) == 1


def test_optimizer_state_changed_by_hand_spoils_the_snapshot(bench):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects).prepare()
    _, _, outcome = one.stage()
    training.optimizer.state[training.model[0].weight]["exp_avg"].zero_()
    one.gate.open()
    assert isinstance(outcome.wait(), SnapshotSpoiled)


def test_an_embedding_that_normalises_itself_spoils_the_snapshot(bench):
    model = torch.nn.Embedding(10, 4, max_norm=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    one = bench(state_objects({"model": model, "optimizer": optimizer})).prepare()
    _, _, outcome = one.stage()
    model(torch.arange(10))
    one.gate.open()
    assert isinstance(outcome.wait(), SnapshotSpoiled)


def test_writes_through_data_need_the_eager_mode_and_are_right_there(bench):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects, overlap=False).prepare()
    slot, expected, outcome = one.stage()
    assert isinstance(outcome.wait(), HostState)
    for parameter in training.model.parameters():
        parameter.data.mul_(3)
    assert held(slot) == expected


def test_writes_through_data_move_no_counter(bench):
    training = Training(torch.optim.AdamW)  # why the mode above exists
    one = bench(training.objects).prepare()
    slot, expected, outcome = one.stage()
    training.model[0].weight.data.mul_(3)
    one.gate.open()
    assert isinstance(outcome.wait(), HostState)
    assert held(slot) != expected


def test_one_staging_can_be_eager(bench):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects).prepare()
    slot, expected, outcome = one.stage(eager=True)
    assert outcome.threads == [threading.current_thread().name]
    assert held(slot) == expected


def test_the_time_that_a_step_was_held_back_counts_as_stall(bench):
    training = Training(torch.optim.AdamW)
    clock = FakeClock(manual=True)
    one = bench(training.objects, clock=clock).prepare()
    _, _, outcome = one.stage()
    training.backward()
    clock.advance(100)  # the copy alone costs the loop nothing
    entered, hold = threading.Event(), one.area._copying.hold_step

    def watched() -> None:
        entered.set()
        hold()

    one.area._guard._hold = watched
    stepping = threading.Thread(target=training.optimizer.step)
    stepping.start()
    assert entered.wait(PATIENCE)
    waiting = one.area._copying._under_way[0]
    for _ in range(int(PATIENCE / 0.01)):
        if waiting._waiting_since is not None:
            break
        threading.Event().wait(0.01)
    clock.advance(7)
    one.gate.open()
    state = outcome.wait()
    stepping.join(PATIENCE)
    assert isinstance(state, HostState)
    assert state.stall == 7


def test_frozen_and_thawed_parameters_and_new_groups_are_looked_at_anew(bench):
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(first.parameters())
    one = bench(state_objects({"first": first, "second": second, "optimizer": optimizer})).prepare()
    _, _, outcome = one.stage()
    with torch.no_grad():
        second.weight.add_(1)  # no optimizer holds it: copied at once
    one.gate.open()
    assert isinstance(outcome.wait(), HostState)
    optimizer.add_param_group({"params": list(second.parameters())})
    first.weight.requires_grad_(False)
    one.gate = one.area._gate = Gate()
    _, _, outcome = one.stage()
    with torch.no_grad():
        second.weight.add_(1)
    one.gate.open()
    assert isinstance(outcome.wait(), SnapshotSpoiled)


def test_any_optimizer_of_several_waits(bench):
    models = [torch.nn.Linear(4, 4) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), fused=True) for model in models]
    parts = {"m0": models[0], "m1": models[1], "o0": optimizers[0], "o1": optimizers[1]}
    for model, optimizer in zip(models, optimizers, strict=True):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    one = bench(state_objects(parts)).prepare()
    for optimizer in optimizers:
        one.gate = one.area._gate = Gate()
        slot, expected, outcome = one.stage()
        threads = [threading.Thread(target=optimizer.step), threading.Thread(target=optimizers[0].step)]
        for thread in threads:
            thread.start()
        one.gate.let(1)
        assert all(thread.is_alive() for thread in threads)
        one.gate.open()
        for thread in threads:
            thread.join(PATIENCE)
        assert isinstance(outcome.wait(), HostState)
        assert held(slot) == expected
        one.area.give_back(slot)


def test_gradient_accumulation_saves_twice_without_a_step_between(bench):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects).prepare()
    staged = [one.stage(1)]
    training.model(torch.randn(5, 6)).sum().backward()
    staged.append(one.stage(2))
    assert one.area.take() is None
    stepping = threading.Thread(target=training.step)
    stepping.start()
    one.gate.let(3)
    assert stepping.is_alive()
    one.gate.open()
    stepping.join(PATIENCE)
    for slot, expected, outcome in staged:
        assert isinstance(outcome.wait(), HostState)
        assert held(slot) == expected


def test_lbfgs_calls_its_closure_many_times_in_one_step(bench):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    inputs = torch.randn(8, 4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    one = bench(state_objects({"model": model, "optimizer": optimizer})).prepare()
    slot, expected, outcome = one.stage()
    one.gate.open()
    optimizer.step(closure)
    assert isinstance(outcome.wait(), HostState)
    assert held(slot) == expected


def test_a_grad_scaler_and_a_scheduler_step_through_the_hook(bench):
    training = Training(torch.optim.AdamW, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 10)
    scaler = torch.amp.GradScaler("cpu")
    objects = state_objects(
        {"model": training.model, "optimizer": training.optimizer, "scheduler": scheduler, "scaler": scaler}
    )
    one = bench(objects).prepare()
    slot, expected, outcome = one.stage()

    def step() -> None:
        training.optimizer.zero_grad(set_to_none=False)
        scaler.scale(training.model(torch.randn(5, 6)).sum()).backward()
        scaler.step(training.optimizer)
        scaler.update()
        scheduler.step()

    stepping = threading.Thread(target=step)
    stepping.start()
    one.gate.let(1)
    assert stepping.is_alive()
    one.gate.open()
    stepping.join(PATIENCE)
    assert isinstance(outcome.wait(), HostState)
    assert held(slot) == expected
    assert one.said == []


def test_an_optimizer_without_hooks_makes_every_save_eager_and_says_so_once(bench):
    class Own:
        def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
            self.param_groups = [{"params": parameters}]

        def step(self) -> None:
            pass

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    training = Training(torch.optim.AdamW)
    own = Own(list(training.model.parameters()))
    objects = state_objects({"model": training.model, "optimizer": training.optimizer, "own": own})
    one = bench(objects).prepare()
    (said,) = one.said
    assert "'own'" in said
    slot, expected, outcome = one.stage()
    assert outcome.threads == [threading.current_thread().name]
    assert held(slot) == expected
    assert len(one.said) == 1


def test_small_tensors_are_copied_at_once(bench):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects, worth_deferring=1 << 20).prepare()
    slot, expected, outcome = one.stage()
    assert outcome.threads == [threading.current_thread().name]
    assert held(slot) == expected


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "f32": torch.randn(5, 7), "bf16": torch.randn(3).bfloat16(), "bool": torch.rand(9) > 0.5,
        "scalar": torch.tensor(2.5, dtype=torch.float64), "empty": torch.empty(0, 4), "turned": torch.randn(4, 6).t(),
        "spread": torch.ones(1).expand(8), "c128": torch.randn(2, dtype=torch.complex128), "u8": torch.arange(3).byte(),
        "large": torch.randn(300, 200), "large-turned": torch.randn(300, 200).t(),
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["stage", "stream"])
def test_bytes_are_the_tensors_bytes(bench, mode):
    tensors = some_tensors()
    one = bench([StateObject("part", None, lambda: tensors, lambda _: None)])
    if mode == "stream":
        found = one.area.stream(capture(one.objects))
        assert {tensor.name: bytes(tensor.data) for tensor in found} == {
            f"part/{name}": bits(tensor) for name, tensor in tensors.items()
        }
        return
    one.prepare()
    slot, expected, outcome = one.stage()
    assert isinstance(outcome.wait(), HostState)
    assert held(slot) == expected == {f"part/{name}": bits(tensor) for name, tensor in tensors.items()}


def test_streamed_views_are_the_live_tensors_and_keep_them(bench):
    tensor = torch.zeros(1000)
    one = bench([StateObject("part", None, tensor.detach, lambda _: None)])
    (view,) = one.area.stream(capture(one.objects))
    tensor.fill_(1.0)
    del tensor
    one.objects.clear()
    assert bytes(view.data) == bits(torch.ones(1000))


def test_streaming_copies_only_what_there_is_room_for(bench):
    tensor = torch.zeros(100, 100)
    one = bench([StateObject("part", None, tensor.t, lambda _: None)], room=lambda: Room(1000, "a thimble"))
    with pytest.raises(MemoryError, match=r"a thimble leaves 1\.0 kB"):
        one.area.stream(capture(one.objects))


def test_a_slot_that_is_read_is_never_rewritten(bench):
    value = torch.zeros(1000)
    one = bench([StateObject("part", None, lambda: value, lambda _: None)]).prepare()
    first, expected, outcome = one.stage(1)
    views = outcome.wait().tensors
    value.fill_(1.0)
    second, _, _ = one.stage(2)
    assert one.area.take() is None
    one.area.give_back(second)
    one.area.give_back(second)  # a second time changes nothing
    value.fill_(2.0)
    assert one.stage(3)[0] is second
    assert one.area.take() is None
    assert held(first) == expected
    assert bytes(views[0].data) == bits(torch.zeros(1000))


def test_slots_grow_with_the_state_and_earlier_views_stay(bench):
    value = torch.zeros(1000)
    one = bench([StateObject("part", None, lambda: value, lambda _: None)]).prepare()
    first, _, outcome = one.stage(1)
    views = outcome.wait().tensors
    value = torch.ones(2_000_000)
    second, expected, _ = one.stage(2)
    assert held(second) == expected
    assert bytes(views[0].data) == bytes(4000)
    assert first.size < second.size


def test_a_copy_that_fails_says_so_and_does_not_hold_the_training(bench):
    training = Training(torch.optim.AdamW)

    def broken() -> None:
        raise OSError("the copy broke")

    one = bench(training.objects).prepare()
    one.area._gate = broken
    slot, _, outcome = one.stage()
    training.step()
    assert str(outcome.wait()) == "the copy broke"
    assert read_slot(slot.descriptor) is None
    one.area._gate = one.gate
    one.gate.open()
    one.area.give_back(slot)
    slot, expected, outcome = one.stage()
    assert isinstance(outcome.wait(), HostState)
    assert held(slot) == expected


def test_a_copying_thread_that_died_holds_no_step(bench, monkeypatch):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects).prepare()
    monkeypatch.setattr("unbroken.training.copying._LOOK", 0.01)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    dying = threading.Event()

    def die() -> None:
        if threading.current_thread().name == "unbroken-staging":
            dying.set()
            raise SystemExit

    one.area._gate = die
    slot, _, outcome = one.stage()
    assert dying.wait(PATIENCE)
    training.step()
    assert isinstance(outcome.wait(), SnapshotSpoiled)
    assert read_slot(slot.descriptor) is None


def test_a_waiting_step_copies_too_and_an_interrupt_of_it_spoils_the_snapshot(bench):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects).prepare()
    main = threading.current_thread()

    def interrupt() -> None:
        if threading.current_thread() is main:
            raise KeyboardInterrupt
        one.gate()

    one.area._gate = interrupt
    slot, _, outcome = one.stage()
    assert one.gate.arrived.acquire(timeout=PATIENCE)
    with pytest.raises(KeyboardInterrupt):
        training.step()
    one.gate.open()
    assert isinstance(outcome.wait(), SnapshotSpoiled)
    assert read_slot(slot.descriptor) is None


def test_a_waiting_step_copies_what_the_thread_has_not_taken(bench):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects).prepare()
    by: list[str] = []

    def gate() -> None:
        by.append(threading.current_thread().name)
        if by[-1] == "unbroken-staging":
            one.gate()

    one.area._gate = gate
    slot, expected, outcome = one.stage()
    assert one.gate.arrived.acquire(timeout=PATIENCE)  # the thread holds one piece, and stays there
    stepping = threading.Thread(target=training.step, name="stepping")
    stepping.start()
    for _ in range(int(PATIENCE / 0.01)):
        if not one.area._copying._under_way[0]._pieces:
            break
        threading.Event().wait(0.01)
    assert stepping.is_alive()
    assert read_slot(slot.descriptor) is None
    one.gate.open()
    stepping.join(PATIENCE)
    assert isinstance(outcome.wait(), HostState)
    assert held(slot) == expected
    assert by.count("unbroken-staging") == 1
    assert "stepping" in by


def test_a_copy_that_takes_for_ever_is_given_up(bench, monkeypatch):
    training = Training(torch.optim.AdamW)
    clock = FakeClock()
    one = bench(training.objects, clock=clock).prepare()
    monkeypatch.setattr("unbroken.training.copying._LOOK", 0.01)
    monkeypatch.setattr("unbroken.training.copying._LONGEST_WAIT", -1.0)
    one.area._gate = lambda: one.gate() if threading.current_thread().name == "unbroken-staging" else None
    slot, _, outcome = one.stage()
    assert one.gate.arrived.acquire(timeout=PATIENCE)
    training.step()  # the copying thread never gets through the gate
    one.gate.open()
    assert isinstance(outcome.wait(), SnapshotSpoiled)
    assert read_slot(slot.descriptor) is None


def test_closing_gives_up_a_copy_that_does_not_end(bench):
    training = Training(torch.optim.AdamW)
    one = bench(training.objects).prepare()
    _, _, outcome = one.stage()
    opener = threading.Timer(0.05, one.gate.open)
    opener.start()
    one.area.close(0.0)
    opener.join()
    assert isinstance(outcome.wait(), SnapshotSpoiled)
    assert one.said == []


class TestMemory:
    """How many slots there are, and what is said of it."""

    @staticmethod
    def parts(size: int) -> list[StateObject]:
        value = torch.zeros(size // 4)
        return [StateObject("part", None, lambda: value, lambda _: None)]

    def test_two_slots_are_touched_before_the_first_save(self, bench):
        one = bench(self.parts(40 << 20)).prepare()
        assert one.area.wait_until_touched(PATIENCE)
        assert [slot.held >= 40 << 20 for slot in one.area.slots] == [True, True]
        assert one.said == []

    def test_a_first_save_before_all_is_touched_is_right_as_well(self, bench):
        one = bench(self.parts(64 << 20)).prepare()
        slot, expected, _ = one.stage()
        assert one.area.wait_until_touched(PATIENCE)
        assert held(slot) == expected

    def test_room_for_one_copy_makes_one_slot_and_says_so(self, bench):
        one = bench(self.parts(100 << 20), room=lambda: Room(450 << 20, "the box")).prepare()
        assert len(one.area.slots) == 1
        (said,) = one.said
        assert "one copy" in said
        assert "the box leaves 472 MB" in said
        slot, _, _ = one.stage()
        assert one.area.take() is None
        one.area.give_back(slot)
        assert one.area.take() is slot

    def test_room_for_none_streams_and_says_so(self, bench):
        one = bench(self.parts(100 << 20), room=lambda: Room(300 << 20, "the box")).prepare()
        assert one.area.streaming
        assert one.area.slots == []
        assert one.area.take() is None
        (said,) = one.said
        assert "stands still" in said

    def test_memory_that_an_optimizer_will_take_is_counted(self, bench):
        model = torch.nn.Linear(5000, 5000, bias=False)  # 100 MB, and 200 MB of moments
        optimizer = torch.optim.AdamW(model.parameters())
        one = bench(state_objects({"model": model, "optimizer": optimizer})).prepare()
        assert all(slot.fits(300_000_000) for slot in one.area.slots)
        room = Room((300 + 300 + 30 + 200) * 1_000_000 + (256 << 20) + 100_000, "the box")  # and the generators
        assert len(bench(one.objects, room=lambda: room).prepare().area.slots) == 2
        short = Room(room.size - 2_000_000, "the box")
        assert len(bench(one.objects, room=lambda: short).prepare().area.slots) == 1

    def test_slots_of_an_earlier_trainer_are_taken_over_sealed_and_need_no_room(self, bench):
        objects = self.parts(64 << 20)
        before = bench(objects).prepare()
        assert before.area.wait_until_touched(PATIENCE)
        slot, expected, _ = before.stage()
        import os

        adopted = [Slot(each.number, os.dup(each.descriptor)) for each in before.area.slots]
        one = bench(objects, room=lambda: Room(0, "nothing")).prepare(*adopted)
        assert {each.number for each in one.area.slots} == {0, 1}
        assert one.said == []
        assert held(next(each for each in one.area.slots if each.number == slot.number)) == expected

    def test_a_state_that_outgrows_the_memory_falls_to_one_slot_and_then_to_none(self, bench):
        value = torch.zeros(1 << 20)
        rooms = [PLENTY]
        one = bench([StateObject("part", None, lambda: value, lambda _: None)], room=lambda: rooms[0]).prepare()
        assert one.area.wait_until_touched(PATIENCE)
        value = torch.zeros(16 << 20)
        answers = iter([Room(0, "the box"), PLENTY])
        one.area._pool._room = lambda: next(answers)
        slot, expected, outcome = one.stage()
        assert isinstance(outcome.wait(), HostState)
        assert held(slot) == expected
        assert one.area.slots == [slot]
        assert "one copy" in one.said[-1]
        one.area.give_back(slot)
        value = torch.zeros(64 << 20)
        one.area._pool._room = lambda: Room(0, "the box")
        with pytest.raises(MemoryError, match="the box leaves 0 B"):
            one.stage()
        assert one.area.streaming
        assert "stands still" in one.said[-1]
        assert one.area.slots == []

    def test_a_growing_state_fails_the_save_while_the_other_slot_is_read(self, bench):
        value = torch.zeros(1 << 20)
        one = bench([StateObject("part", None, lambda: value, lambda _: None)]).prepare()
        reading, expected, _ = one.stage()
        value = torch.zeros(16 << 20)
        one.area._pool._room = lambda: Room(0, "the box")
        with pytest.raises(MemoryError, match="a copy of the state takes"):
            one.stage()
        assert not one.area.streaming
        assert held(reading) == expected

    def test_a_system_without_memfd_streams_and_says_so(self, bench, monkeypatch):
        def refuse(*_: Any) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr("os.memfd_create", refuse)
        one = bench(self.parts(1000)).prepare()
        assert one.area.streaming
        assert "Function not implemented" in one.said[0]
