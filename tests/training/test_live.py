"""Only memory that its object would fill with the very same values is read in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.saved import bits, in_place, objects_of, save, trained

from unbroken.store import open_store
from unbroken.training.live import live_tensors
from unbroken.training.restore import apply_state, load_state


def test_all_of_a_model_an_optimizer_and_a_tensor(uri):
    state = trained()
    manifest = save(uri, state)
    live = live_tensors(objects_of(state), manifest)
    assert set(live) == {record.name for record in manifest.tensors}
    assert live["model/0.weight"] is state["model"][0].weight
    assert live["model/1.running_mean"] is state["model"][1].running_mean
    assert live["optimizer/state/0/exp_avg"] is state["optimizer"].state[state["model"][0].weight]["exp_avg"]
    assert live["scale"] is state["scale"]


def test_the_state_that_a_new_optimizer_lacks_gets_fresh_memory(uri):
    state = trained()
    manifest = save(uri, state)
    new = {**state, "optimizer": torch.optim.AdamW(state["model"].parameters())}
    found = in_place(new, manifest)
    assert "model/0.weight" in found
    assert not any(name.startswith("optimizer/") for name in found)


class Custom(torch.nn.Linear):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(*args, **kwargs)


class CustomInside(torch.nn.Linear):
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict[f"{prefix}weight"], state_dict[f"{prefix}bias"] = state_dict[f"{prefix}weight"] + 1, None


def hooked(kind: str) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    match kind:
        case "custom":
            model[0] = Custom(2, 2)
        case "custom-inside":
            model[0] = CustomInside(2, 2)
        case "pre-hook":
            model[0].register_load_state_dict_pre_hook(lambda *_: None)
        case "state-hook":
            model[0].register_state_dict_post_hook(lambda *_: None)
        case "own-method":
            model[0].state_dict = model[0].state_dict
    return model


@pytest.mark.parametrize("kind", ["custom", "custom-inside", "pre-hook", "state-hook", "own-method"])
def test_a_module_that_loads_in_a_way_of_its_own_gets_fresh_memory(uri, kind):
    manifest = save(uri, {"model": torch.nn.Sequential(torch.nn.Linear(2, 2))})
    assert in_place({"model": hooked("")}, manifest) == {"model/0.weight", "model/0.bias"}
    assert in_place({"model": hooked(kind)}, manifest) == set()


def test_a_hook_that_swaps_tensors_still_loads_what_it_always_did(uri):
    def swap(module, state_dict, prefix, *_):
        state_dict["a"], state_dict["b"] = state_dict["b"], state_dict["a"]

    class Pair(torch.nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.a, self.b = torch.nn.Parameter(torch.full((2,), a)), torch.nn.Parameter(torch.full((2,), b))

    manifest = save(uri, {"model": Pair(1.0, 2.0)})
    model = Pair(3.0, 4.0)
    model.register_load_state_dict_pre_hook(swap)
    restore_in_place(uri, {"model": model}, manifest)
    assert (model.a.tolist(), model.b.tolist()) == ([2.0, 2.0], [1.0, 1.0])


def test_where_modules_swap_their_tensors_memory_is_fresh(uri):
    model = torch.nn.Linear(2, 2)
    manifest = save(uri, {"model": model})
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        assert in_place({"model": model}, manifest) == set()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("kind", ["hook", "subclass"])
def test_an_optimizer_that_loads_in_a_way_of_its_own_gets_fresh_memory(uri, kind):
    class Mine(torch.optim.SGD):
        def __setstate__(self, state):
            super().__setstate__(state)

    weight = torch.nn.Parameter(torch.ones(2))
    made = (Mine if kind == "subclass" else torch.optim.SGD)([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    made.step()
    manifest = save(uri, {"optimizer": made})
    if kind == "hook":
        assert in_place({"optimizer": made}, manifest) == {"optimizer/state/0/momentum_buffer"}
        made.register_load_state_dict_pre_hook(lambda *_: None)
    assert in_place({"optimizer": made}, manifest) == set()


def test_objects_of_unknown_make_and_generators_get_fresh_memory(uri):
    class Average:
        def __init__(self):
            self.mean = torch.zeros(2)

        def state_dict(self):
            return {"mean": self.mean}

        def load_state_dict(self, state):
            self.mean = state["mean"]

    state = {"average": Average(), "order": torch.Generator()}
    assert in_place(state, save(uri, state)) == set()


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(2, 1)])
def test_another_shape_or_element_type_is_not_read_into(uri, other):
    manifest = save(uri, {"t": torch.ones(2)})
    assert in_place({"t": torch.zeros(2)}, manifest) == {"t"}
    assert in_place({"t": other}, manifest) == set()


@pytest.mark.parametrize(
    "live",
    [
        torch.zeros(1, 2).expand(2, 2), torch.zeros(2, 2).t(), torch.zeros(4, 4)[::2, ::2],
        torch.zeros(2, 2, device="meta"),
    ],
    ids=["expanded", "transposed", "strided", "meta"],
)  # fmt: skip
def test_what_is_no_contiguous_host_memory_is_not_read_into(uri, live):
    assert in_place({"t": live}, save(uri, {"t": torch.ones(2, 2)})) == set()


def test_a_tensor_whose_memory_was_freed_is_not_read_into(uri):
    manifest = save(uri, {"t": torch.ones(2)})
    live = torch.zeros(2)
    live.untyped_storage().resize_(0)
    assert in_place({"t": live}, manifest) == set()


class Tied(torch.nn.Module):
    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)


def apart() -> Tied:
    return Tied(torch.arange(4.0), torch.arange(4.0) + 10)


def tied() -> Tied:
    one = torch.arange(4.0) + 20
    return Tied(one, one)


def overlapping() -> Tied:
    one = torch.zeros(6)
    return Tied(one[:4], one[2:])


def neighbours() -> Tied:
    one = torch.zeros(8)
    return Tied(one[:4], one[4:])


MAKERS = [apart, tied, overlapping, neighbours]


def restore_in_place(uri: str, state: dict[str, Any], manifest: Any) -> None:
    objects = objects_of(state)
    live = live_tensors(objects, manifest)
    apply_state(objects, load_state(open_store(uri), manifest, live=live))


@pytest.mark.parametrize("saved", MAKERS)
@pytest.mark.parametrize("live", MAKERS)
def test_whatever_shares_memory_with_what_a_restore_ends_as_without_reading_in_place(uri, saved, live):
    manifest = save(uri, {"model": saved()})
    expected, model = live(), live()
    apply_state(objects_of({"model": expected}), load_state(open_store(uri), manifest))
    restore_in_place(uri, {"model": model}, manifest)
    assert (model.a.tolist(), model.b.tolist()) == (expected.a.tolist(), expected.b.tolist())


@pytest.mark.parametrize(
    ("saved", "live", "names"),
    [
        (apart, apart, {"model/a", "model/b"}),
        (tied, tied, {"model/a"}),
        (apart, neighbours, {"model/a", "model/b"}),
        (apart, tied, set()),
        (tied, apart, set()),
        (apart, overlapping, set()),
    ],
)
def test_tied_tensors_are_read_in_place_only_where_the_same_are_tied_in_the_checkpoint(uri, saved, live, names):
    assert in_place({"model": live()}, save(uri, {"model": saved()})) == names


def test_memory_of_two_objects_is_not_read_into(uri):
    model = torch.nn.Linear(2, 2)
    state = {"model": model, "weight": model.weight}
    manifest = save(uri, state)
    assert in_place(state, manifest) == {"model/bias"}
    assert in_place({"model": model, "weight": torch.zeros(2, 2)}, manifest) == {"model/bias"}


def test_an_object_that_keeps_what_it_is_given_does_not_get_the_model_s_memory(uri):
    class Shadow:
        def __init__(self, model):
            self.held = model.weight

        def state_dict(self):
            return {"held": self.held.detach()}

        def load_state_dict(self, state):
            self.held = state["held"]

    model = torch.nn.Linear(2, 2)
    manifest = save(uri, {"model": model, "shadow": Shadow(model)})
    other = torch.nn.Linear(2, 2)
    shadow = Shadow(other)
    restore_in_place(uri, {"model": other, "shadow": shadow}, manifest)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(shadow.held, model.weight)
    assert shadow.held.data_ptr() != other.weight.data_ptr()


def test_a_path_that_leads_to_two_places_is_not_read_into(uri):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight] = {"a/b": torch.ones(2), "a": {"b": torch.zeros(2)}, "c": torch.ones(2)}
    assert in_place({"optimizer": optimizer}, save(uri, {"optimizer": optimizer})) == {"optimizer/state/0/c"}


def test_a_restore_in_place_gives_the_bits_that_were_saved(uri):
    state, other = trained(1), trained(2)
    manifest = save(uri, state)
    addresses = [parameter.data_ptr() for parameter in other["model"].parameters()]
    moments = {parts["exp_avg"].data_ptr() for parts in other["optimizer"].state.values()}
    restore_in_place(uri, other, manifest)
    assert bits(other) == bits(state)
    assert [parameter.data_ptr() for parameter in other["model"].parameters()] == addresses
    assert {parts["exp_avg"].data_ptr() for parts in other["optimizer"].state.values()} == moments
