"""Loading into live objects: exact, or refused before anything has changed."""

from __future__ import annotations

import pytest
import torch
from tests.training.saved import save

from unbroken.checkpoint import decode_tree
from unbroken.errors import MismatchError
from unbroken.store import open_store
from unbroken.training.capture import capture, rebuild
from unbroken.training.objects import state_objects
from unbroken.training.restore import apply_state, load_state


def saved_state(objects):
    captured = capture(objects)
    return rebuild(decode_tree(captured.tree), {name: tensor.clone() for name, tensor in captured.tensors.items()})


def trained(dtype=torch.float32, width=4):
    model = torch.nn.Linear(width, width).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, width, dtype=dtype)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_float32_moments_of_bfloat16_parameters_keep_their_bits():
    model, optimizer = trained(torch.bfloat16)
    for parts in optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            parts[key] = torch.randn(parts[key].shape)  # float32, as mixed-precision optimizers keep them
    state = saved_state(state_objects({"model": model, "optimizer": optimizer}))
    fresh_model, fresh_optimizer = trained(torch.bfloat16)
    apply_state(state_objects({"model": fresh_model, "optimizer": fresh_optimizer}), state)
    for before, after in zip(optimizer.state.values(), fresh_optimizer.state.values(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert after[key].dtype == torch.float32
            assert torch.equal(before[key], after[key])


def test_parameters_are_loaded_in_place():
    model, _ = trained()
    state = saved_state(state_objects({"model": model}))
    fresh, _ = trained()
    address = fresh.weight.data_ptr()
    apply_state(state_objects({"model": fresh}), state)
    assert fresh.weight.data_ptr() == address
    assert torch.equal(fresh.weight, model.weight)


def test_an_optimizer_over_other_parameters_is_refused():
    model, optimizer = trained()
    state = saved_state(state_objects({"optimizer": optimizer}))
    other = torch.optim.AdamW([model.weight], lr=0.1)
    with pytest.raises(MismatchError, match="optimizer refused the checkpoint's state"):
        apply_state(state_objects({"optimizer": other}), state)


def test_the_first_ten_tensors_are_named_and_the_rest_counted():
    state = saved_state(state_objects({"model": torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(8)))}))
    other = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(8)))
    with pytest.raises(MismatchError, match="and 6 more"):
        apply_state(state_objects({"model": other}), state)


def test_another_element_type_is_refused_and_not_cast():
    model, _ = trained(torch.float32)
    state = saved_state(state_objects({"model": model}))
    other, _ = trained(torch.float64)
    with pytest.raises(MismatchError, match=r"weight is float32\[4, 4\] in the checkpoint and float64\[4, 4\] here"):
        apply_state(state_objects({"model": other}), state)


def test_a_plain_tensor_is_loaded_in_place_or_refused():
    tensor = torch.arange(3.0)
    state = saved_state(state_objects({"t": tensor}))
    tensor.zero_()
    apply_state(state_objects({"t": tensor}), state)
    assert tensor.tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(MismatchError, match="for t"):
        apply_state(state_objects({"t": torch.zeros(4)}), state)


def test_an_object_that_raises_while_loading_is_named():
    class Picky:
        def state_dict(self):
            return {"x": 1}

        def load_state_dict(self, state):
            raise KeyError("y")

    state = saved_state(state_objects({"picky": Picky()}))
    with pytest.raises(MismatchError, match="picky refused the checkpoint's state: KeyError"):
        apply_state(state_objects({"picky": Picky()}), state)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 under torch 2.13
def test_torchdata_s_stateful_loader_resumes_in_the_middle_of_an_epoch():
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    make = lambda: torchdata.StatefulDataLoader(list(range(20)), batch_size=2, shuffle=False, num_workers=0)  # noqa: E731
    loader = make()
    batches = iter(loader)
    used = [next(batches).tolist() for _ in range(4)]
    state = saved_state(state_objects({"loader": loader}))
    resumed = make()
    apply_state(state_objects({"loader": resumed}), state)
    used += [batch.tolist() for batch in resumed]
    assert [number for batch in used for number in batch] == list(range(20))


def test_large_tensors_get_memory_of_their_own_in_huge_pages_and_the_right_bytes(uri):
    state = {
        "small": torch.arange(3.0),
        "large": torch.arange(3_000_000, dtype=torch.float32),
        "none": torch.ones(0, 2),
    }
    manifest = save(uri, state)
    loaded = load_state(open_store(uri), manifest)
    assert {name: torch.equal(loaded[name], tensor) for name, tensor in state.items()} == dict.fromkeys(state, True)
    assert all(loaded[name].data_ptr() != state[name].data_ptr() for name in ("small", "large"))


def test_live_tensors_that_do_not_agree_are_left_alone(uri):
    manifest = save(uri, {"t": torch.arange(3.0), "u": torch.arange(3.0)})
    live = {"t": torch.zeros(3, dtype=torch.float64), "u": torch.zeros(1).expand(3), "more": torch.zeros(3)}
    loaded = load_state(open_store(uri), manifest, live=live)
    assert [tensor.sum().item() for tensor in live.values()] == [0, 0, 0]
    assert loaded["t"].tolist() == loaded["u"].tolist() == [0, 1, 2]


def test_only_the_named_objects_are_read(uri):
    manifest = save(uri, {"t": torch.arange(3.0), "u": torch.arange(2.0)})
    counts = []
    assert set(load_state(open_store(uri), manifest, ["t", "absent"], on_bytes=counts.append)) == {"t"}
    assert sum(counts) == 12
