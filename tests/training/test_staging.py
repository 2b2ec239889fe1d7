"""Staged memory holds the state of its boundary until it is released, whatever the loop does meanwhile."""

from __future__ import annotations

import pytest
import torch

from unbroken.training.staging import StagingArea


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def staged(slot) -> dict[str, bytes]:
    return {tensor.name: bytes(tensor.data) for tensor in slot.tensors}


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "f32": torch.randn(5, 7), "bf16": torch.randn(3).bfloat16(), "bool": torch.rand(9) > 0.5,
        "scalar": torch.tensor(2.5, dtype=torch.float64), "empty": torch.empty(0, 4), "turned": torch.randn(4, 6).t(),
        "spread": torch.ones(1).expand(8), "c128": torch.randn(2, dtype=torch.complex128), "u8": torch.arange(3).byte(),
    }  # fmt: skip


def test_staged_bytes_are_the_tensors_bytes():
    tensors = some_tensors()
    slot = StagingArea().take()
    slot.fill(tensors)
    assert staged(slot) == {name: bits(tensor) for name, tensor in tensors.items()}
    assert [tensor.shape for tensor in slot.tensors] == [tuple(tensor.shape) for tensor in tensors.values()]


def test_staged_bytes_do_not_move_with_the_training():
    tensors = some_tensors()
    slot = StagingArea().take()
    slot.fill(tensors)
    before = staged(slot)
    for name in ("f32", "bf16", "c128"):
        tensors[name].data.mul_(3)
    assert staged(slot) == before


def test_a_slot_that_is_read_is_never_rewritten():
    area = StagingArea()
    first, second = area.take(), area.take()
    assert area.take() is None
    first.fill({"x": torch.zeros(1000)})
    second.fill({"x": torch.ones(1000)})
    assert staged(first)["x"] == bytes(4000)
    first.release()
    again = area.take()
    assert again is first
    again.fill({"x": torch.full((1000,), 2.0)})
    assert staged(second)["x"] == bits(torch.ones(1000))


def test_releasing_twice_does_not_hand_one_slot_to_two():
    area = StagingArea()
    first, _ = area.take(), area.take()
    first.release()
    first.release()
    assert area.take() is first
    assert area.take() is None


def test_memory_is_reused_and_grows_with_the_state():
    area = StagingArea()
    slot = area.take()
    slot.fill({"x": torch.zeros(10_000)})
    size = slot.size
    slot.release()
    slot = area.take()
    slot.fill({"x": torch.zeros(9_000)})
    assert slot.size == size
    slot.release()
    slot = area.take()
    slot.fill({"x": torch.zeros(40_000)})
    assert slot.size >= 160_000


def test_a_host_without_room_says_so(monkeypatch):
    import mmap

    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    slot = StagingArea().take()
    with pytest.raises(MemoryError, match="no room for a staging slot"):
        slot.fill({"x": torch.zeros(10)})
