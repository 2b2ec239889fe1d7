"""What is read to a device passes through the host a chunk at a time, and arrives as it was saved.

Where there is no CUDA device, the memory of the host is taken for one that cannot be written by address.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.training.saved import bits, in_place, save, trained
from tests.training.test_in_place import damage, restore

from unbroken.checkpoint import Box, Manifest, decode_tree
from unbroken.checkpoint.boxes import way_between
from unbroken.checkpoint.chunks import READERS
from unbroken.checkpoint.digest import CHUNK
from unbroken.store import open_store
from unbroken.training import device_memory, placing
from unbroken.training import restore as restoring
from unbroken.training.capture import capture
from unbroken.training.device_memory import DeviceBytes, HostStaging
from unbroken.training.objects import adapt
from unbroken.training.placing import devices_of
from unbroken.training.restore import bytes_of, load_state

DTYPES = [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.int64, torch.float8_e4m3fn, torch.uint8]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor can be written by its address."""
    for module in (restoring, placing):
        monkeypatch.setattr(module, "in_host", lambda _: False)


@st.composite
def parts(draw: st.DrawFn) -> tuple[Box, Box, Box]:
    """A box that lies in two others."""
    axes = draw(st.lists(st.tuples(*[st.integers(0, 2)] * 4, st.integers(1, 4)), max_size=3))
    part = Box(tuple(4 for _ in axes), tuple(length for *_, length in axes))
    around = [
        Box(tuple(4 - axis[at] for axis in axes), tuple(axis[at] + axis[4] + axis[at + 1] for axis in axes))
        for at in (0, 2)
    ]
    return part, around[0], around[1]


@given(parts(), st.sampled_from(DTYPES), st.integers(0, 5))
def test_bytes_go_the_same_ways_as_in_host_memory(
    boxes: tuple[Box, Box, Box], dtype: torch.dtype, skipped: int
) -> None:
    part, source, target = boxes
    item = torch.empty(0, dtype=dtype).element_size()
    way = way_between(part, source, target, item)
    data = memoryview(bytes(number % 251 for number in range(source.size * item)))
    expected = bytearray(target.size * item)
    way.copy(data, memoryview(expected))
    # A view in the middle of its storage, as the parameters of a flat buffer are.
    whole = torch.zeros((skipped + target.size) * item, dtype=torch.uint8).view(dtype)
    tensor = whole[skipped:].view(target.shape)
    sink = DeviceBytes(tensor, HostStaging(pinned=False))
    sink.put(way, data)
    assert sink.size == len(expected)
    assert bytes(bytes_of(whole)) == bytes(skipped * item) + bytes(expected)


def test_a_restore_gives_the_same_bits(uri: str, elsewhere: None) -> None:
    saved, other = trained(1), trained(2)
    save(uri, saved)
    pointers = [parameter.data_ptr() for parameter in other["model"].parameters()]
    restore(uri, other)
    assert bits(other) == bits(saved)
    assert [parameter.data_ptr() for parameter in other["model"].parameters()] == pointers


def test_an_optimizer_that_never_stepped_gets_its_state_there(uri: str, elsewhere: None) -> None:
    saved, other = trained(1), trained(2)
    save(uri, saved)
    other["optimizer"] = torch.optim.AdamW(other["model"].parameters())
    restore(uri, other)
    assert bits(other) == bits(saved)


def test_a_flipped_bit_is_found_and_the_older_checkpoint_read_over_it(uri: str, elsewhere: None) -> None:
    first = trained(1)
    save(uri, first, 1)
    save(uri, trained(2), 2)
    damage(uri, 2, "model/0.weight")
    other = trained(3)
    assert restore(uri, other) == [2]
    assert bits(other) == bits(first)


def test_memory_of_this_machine_is_copied_there(uri: str, elsewhere: None) -> None:
    saved, other = trained(1), trained(2)
    save(uri, saved)
    objects = [item for name, value in saved.items() if (item := adapt(name, value)) is not None]
    staged = {name: bytes_of(tensor) for name, tensor in capture(objects).tensors.items()}
    restore(uri, other, staged=lambda _: staged)
    assert bits(other) == bits(saved)


def test_no_more_of_the_host_is_taken_than_a_chunk_for_each_reader(
    uri: str, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five chunks of one tensor and half of one more."""
    taken: dict[int, int] = {}
    make = torch.empty

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        if "pin_memory" in options:
            me = threading.get_ident()
            taken[me] = max(taken.get(me, 0), math.prod(args))
        return make(*args, **options)

    state = {"weights": torch.arange(5 * CHUNK // 8 + CHUNK // 16)}
    manifest = save(uri, state)
    other = {"weights": torch.zeros_like(state["weights"])}
    monkeypatch.setattr(device_memory.torch, "empty", watched)
    loaded = load_state(open_store(uri), manifest, live=other)
    assert loaded["weights"] is other["weights"]
    assert torch.equal(other["weights"], state["weights"])
    assert 0 < len(taken) <= READERS
    assert max(taken.values()) == CHUNK


def tree_of(manifest: Manifest) -> dict[str, Any]:
    return decode_tree(manifest.state)


def test_what_an_optimizer_will_move_to_the_device_of_its_parameter_is_read_to_there(uri: str) -> None:
    state = trained()
    tree = tree_of(save(uri, state))
    model = torch.nn.Sequential(*state["model"]).to("meta")
    optimizer = adapt("optimizer", torch.optim.AdamW(model.parameters()))
    assert optimizer is not None
    found = devices_of(tree, [optimizer])
    assert set(found) == {f"optimizer/state/{number}/{key}" for number in range(4) for key in ("exp_avg", "exp_avg_sq")}
    assert set(found.values()) == {torch.device("meta")}


def test_what_an_optimizer_of_its_own_kind_does_with_its_state_is_not_foreseen(uri: str) -> None:
    class Own(torch.optim.AdamW):
        def load_state_dict(self, state_dict: Any) -> None:
            super().load_state_dict(state_dict)

    state = trained()
    tree = tree_of(save(uri, state))
    optimizer = adapt("optimizer", Own(torch.nn.Sequential(*state["model"]).to("meta").parameters()))
    assert optimizer is not None
    assert devices_of(tree, [optimizer]) == {}
    assert devices_of({"optimizer": {"unlike": 1}}, [optimizer]) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_device_is_read_in_place(uri: str) -> None:
    def on_device(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = torch.nn.Linear(3000, 3000).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(8, 3000, device="cuda")).square().sum().backward()
        optimizer.step()
        return {"model": model, "optimizer": optimizer, "scale": torch.rand(3, device="cuda")}

    saved, other = on_device(1), on_device(2)
    manifest = save(uri, saved)
    assert "model/weight" in in_place(other, manifest)
    other["optimizer"] = torch.optim.AdamW(other["model"].parameters())
    restore(uri, other)
    assert bits(other) == bits(saved)
    assert all(part.is_cuda for part in other["optimizer"].state[other["model"].weight].values() if part.ndim)
