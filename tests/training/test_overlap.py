"""Which tensors wait for the optimizer alone, and whether its step can be held back."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from unbroken.training.capture import capture
from unbroken.training.objects import StateObject, state_objects
from unbroken.training.overlap import StepGuard, Versions, deferrable, expected_growth, find_optimizers


@pytest.fixture
def held() -> Iterator[list[int]]:
    """Counts the steps that were held."""
    calls: list[int] = []
    guard = StepGuard(lambda: calls.append(1))
    yield calls
    guard.close()


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def objects_of(value: object) -> list[StateObject]:
    return [StateObject("it", value, dict, lambda _: None)]


PLAIN = [
    torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adamax,
    torch.optim.NAdam, torch.optim.RAdam, torch.optim.Rprop, torch.optim.ASGD, torch.optim.Adadelta,
]  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
def test_torch_s_optimizers_are_hooked_and_call(kind, held):
    optimizer = kind([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    assert find_optimizers(objects_of(optimizer)) == ([optimizer], "")
    stepped(optimizer)
    assert held == [1]


def test_a_scheduler_s_wrapper_around_step_is_seen_through(held):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert "step" in vars(optimizer)
    assert find_optimizers([*objects_of(optimizer), *objects_of(scheduler)]) == ([optimizer], "")
    stepped(optimizer)
    scheduler.step()
    assert held == [1]


class Calm(torch.optim.SGD):
    """Another optimizer's step within its own."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)


def test_a_subclass_with_a_step_of_its_own_is_hooked_by_its_constructor(held):
    optimizer = Calm([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    assert find_optimizers(objects_of(optimizer)) == ([optimizer], "")
    stepped(optimizer)
    assert held


class Marked(torch.optim.SGD):
    """Says that it is hooked and is not, as some versions of torch.compile leave optimizers behind."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1)

    step.hooked = True


def test_the_mark_of_a_hook_without_the_hook_is_not_believed(held):
    optimizer = Marked([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    stepped(optimizer)
    assert held == []
    found, reason = find_optimizers(objects_of(optimizer))
    assert found == []
    assert "Marked" in reason


def test_a_step_that_was_wrapped_by_somebody_is_not_trusted():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    inner = optimizer.step

    @functools.wraps(inner)
    def outer(*args: Any) -> None:
        optimizer.param_groups[0]["params"][0].data.mul_(2)  # before any hook
        inner(*args)

    optimizer.step = outer
    assert find_optimizers(objects_of(optimizer))[0] == []


class Wrapper:
    """As Accelerate's: has an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


class LikeOne:
    """As DeepSpeed's: behaves as one."""

    param_groups: tuple[()] = ()

    def step(self) -> None:
        """Unseen."""


@pytest.mark.parametrize(
    "value", [Wrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)), LikeOne()], ids=["wrapper", "like"]
)
def test_what_steps_without_a_hook_is_named(value):
    good = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    found, reason = find_optimizers([*objects_of(good), *objects_of(value)])
    assert found == []
    assert type(value).__name__ in reason
    assert "'it'" in reason


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about torch
def test_a_compiled_step_is_held_each_time(held):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    step = torch.compile(optimizer.step, backend="eager")
    for times in range(1, 5):
        step()
        assert len(held) == times


def test_an_optimizer_made_by_a_copy_is_hooked(held):
    import copy

    optimizer = copy.deepcopy(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1))
    assert find_optimizers(objects_of(optimizer))[0] == [optimizer]
    stepped(optimizer)
    assert held == [1]


def test_a_closed_guard_holds_nothing():
    calls: list[int] = []
    guard = StepGuard(lambda: calls.append(1))
    guard.close()
    stepped(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1))
    assert calls == []


def deferred(parts: dict[str, object], *optimizers: torch.optim.Optimizer) -> set[str]:
    return set(deferrable(capture(state_objects(parts)).tensors, optimizers, smallest=1))


def test_parameters_and_moments_wait_and_nothing_else_does():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    frozen = torch.nn.Linear(2, 2)
    lr = torch.tensor(0.1)
    optimizer = stepped(torch.optim.AdamW(model.parameters(), lr=lr, foreach=False))
    found = deferred({"model": model, "optimizer": optimizer, "frozen": frozen}, optimizer)
    assert {name for name in found if name.startswith("model")} == {
        f"model/{name}" for name, _ in model.named_parameters()
    }
    moments = {f"optimizer/state/{i}/{key}" for i in range(4) for key in ("exp_avg", "exp_avg_sq", "step")}
    assert found - moments == {f"model/{name}" for name, _ in model.named_parameters()}
    assert moments <= found
    assert not any("lr" in name for name in found)  # a scheduler changes it


def test_tied_weights_wait_once():
    first, second = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    assert deferred({"first": first, "second": second}, optimizer) == {"first/weight"}


def test_a_view_of_a_parameter_is_not_taken_for_it():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert deferred({"part": model.weight.detach()[:2]}, optimizer) == set()


def test_tensors_that_are_not_plain_row_major_memory_are_copied_at_once():
    turned = torch.nn.Parameter(torch.ones(3, 4).t())
    with torch.inference_mode():
        inference = torch.ones(3)
    optimizer = torch.optim.SGD([turned, torch.nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer.state[turned]["kept"] = inference
    assert deferred({"turned": turned.detach(), "inference": inference}, optimizer) == set()


def test_the_state_s_tensors_in_lists_wait_as_well():
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.LBFGS([parameter], max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (parameter**4).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert any("old_dirs" in name for name in deferred({"optimizer": optimizer}, optimizer))


def test_a_counter_that_moves_after_the_look_is_not_held_against_the_copy():
    one, other = torch.zeros(3), torch.zeros(3)
    versions = Versions({"one": one, "other": other})
    assert versions.moved() == ""
    one.add_(1)
    assert versions.moved() == ""
    again = Versions({"one": one, "other": other})
    other.add_(1)
    assert again.moved() == "other"


@pytest.mark.parametrize(
    ("make", "times"),
    [
        (torch.optim.AdamW, 2),
        (lambda p: torch.optim.Adam(p, amsgrad=True), 3),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
    ],
)
def test_what_an_optimizer_will_hold_is_foreseen(make, times):
    parameters = [torch.nn.Parameter(torch.ones(100)), torch.nn.Parameter(torch.ones(50), requires_grad=False)]
    optimizer = make(parameters)
    before = expected_growth(objects_of(optimizer))
    assert before == times * 400
    parameters[0].grad = torch.ones(100)
    optimizer.step()
    if times:
        assert expected_growth(objects_of(optimizer)) == 0
        tensors = [tensor for tensor in optimizer.state[parameters[0]].values() if torch.is_tensor(tensor)]
        assert sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1) == before


def test_memory_that_was_exchanged_counts_as_changed():
    tensor = torch.zeros(100_000)
    watched = Versions({"it": tensor})
    tensor.share_memory_()  # as happens to what is sent to another process; it moves no counter
    assert tensor._version == 0
    assert watched.moved() == "it"


def test_a_forked_process_steps_as_it_likes(held, monkeypatch):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    monkeypatch.setattr("os.getpid", lambda: -1)
    stepped(optimizer)
    assert held == []
