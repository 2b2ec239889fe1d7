"""From live objects to names and back: nothing lost, nothing invented, ties kept."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.checkpoint import decode_tree
from unbroken.errors import ConfigError
from unbroken.training.capture import capture, dtype_name, rebuild
from unbroken.training.objects import RNG, StateObject, state_objects


def holding(value: Any, name: str = "part") -> list[StateObject]:
    return [StateObject(name, None, lambda: value, lambda _: None)]


def round_trip(value: Any) -> Any:
    captured = capture(holding(value))
    tensors = {name: tensor.clone() for name, tensor in captured.tensors.items()}
    return rebuild(decode_tree(captured.tree), tensors)["part"]


def equal(left: Any, right: Any) -> bool:
    """Deep equality of values, types and bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(_raw(left), _raw(right))
    if isinstance(left, numpy.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right or repr(left) == repr(right))


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.flatten()


def test_an_optimizer_s_state_survives_the_round_trip():
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01), betas=(0.9, 0.95), foreach=False)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert equal(round_trip(optimizer.state_dict()), optimizer.state_dict())


@pytest.mark.parametrize(
    "value",
    [
        torch.Size([2, 3]),
        torch.bfloat16,
        torch.device("cuda:1"),
        numpy.arange(6, dtype=numpy.int16).reshape(2, 3),
        numpy.float32(0.1),
        numpy.int64(-3),
        numpy.bool_(True),
        OrderedDict([("b", 1), ("a", torch.zeros(2))]),
        {1: torch.ones(1), "1": torch.zeros(1)},
        (1, (2.5, [None, True, "text", b"bytes", float("nan"), 1 << 80])),
        {"nested": {"deep": [torch.arange(3), {"x": torch.tensor(True)}]}},
    ],
    ids=repr,
)
def test_values_of_every_kind_survive_the_round_trip(value):
    assert equal(round_trip(value), value)


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_tensors_of_every_type_and_shape_survive_the_round_trip(dtype, shape, rng):
    size = torch.empty(shape, dtype=dtype).numel() * torch.empty(0, dtype=dtype).element_size()
    raw = torch.tensor([rng.randrange(2 if dtype == torch.bool else 256) for _ in range(size)], dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    assert equal(round_trip({"t": tensor}), {"t": tensor})


def test_tied_weights_are_kept_once():
    tied = torch.ones(3, 3)
    captured = capture(holding({"embedding": tied, "head": tied, "other": torch.ones(3, 3)}))
    assert list(captured.tensors) == ["part/embedding", "part/other"]
    back = round_trip({"embedding": tied, "head": tied})
    assert back["embedding"] is back["head"]


def test_views_that_differ_are_not_taken_for_one_tensor():
    base = torch.arange(6.0)
    value = {"all": base, "first": base[:3], "turned": base.reshape(2, 3).t(), "bits": base.view(torch.int32)}
    assert equal(round_trip(value), value)
    assert len(capture(holding(value)).tensors) == 4


def test_names_never_collide():
    captured = capture(holding({1: torch.zeros(1), "1": torch.ones(1), "1#2": torch.ones(1) * 2}))
    assert len(captured.tensors) == 3
    assert len(set(captured.tensors)) == 3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [object()]}, r"state\['part'\]\['a'\]\[0\] is a builtins.object"),
        (torch.ones(2, 2).to_sparse(), "part is a torch.sparse_coo tensor"),
        (torch.empty(2, device="meta"), "on meta"),
        ({"f": print}, r"builtin_function_or_method"),
        (numpy.array([object()]), "numpy.ndarray"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_path(value, words):
    with pytest.raises(ConfigError, match=words):
        capture(holding(value))


def test_every_global_generator_is_put_back():
    objects = [item for item in state_objects({"model": torch.nn.Linear(1, 1)}) if item.name == RNG]
    captured = capture(objects)
    saved = rebuild(decode_tree(captured.tree), {name: tensor.clone() for name, tensor in captured.tensors.items()})
    first = (random.random(), numpy.random.rand(), torch.rand(3).tolist())
    objects[0].load(saved[RNG])
    assert (random.random(), numpy.random.rand(), torch.rand(3).tolist()) == first


@pytest.mark.parametrize("kind", ["torch", "numpy", "python"])
def test_generators_of_the_users_own_are_put_back(kind):
    if kind == "torch":
        generator: Any = torch.Generator().manual_seed(3)
        draw = lambda: torch.rand(4, generator=generator).tolist()  # noqa: E731
    elif kind == "numpy":
        generator = numpy.random.default_rng(3)
        draw = lambda: generator.random(4).tolist()  # noqa: E731
    else:
        generator = random.Random(3)
        draw = lambda: [generator.random() for _ in range(4)]  # noqa: E731
    objects = [item for item in state_objects({"own": generator}) if item.name == "own"]
    draw()
    captured = capture(objects)
    saved = rebuild(decode_tree(captured.tree), {name: tensor.clone() for name, tensor in captured.tensors.items()})
    expected = draw()
    objects[0].load(saved["own"])
    assert draw() == expected


def test_a_program_without_numpy_needs_none():
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "import torch, warnings; from unbroken.training.capture import capture\n"
        "from unbroken.training.objects import state_objects\n"
        "from unbroken.training.staging import StagingArea\n"
        "from unbroken.checkpoint import HostState\n"
        "from unbroken.clock import SYSTEM_CLOCK\n"
        "from unbroken.link.arena import SlotOwner\n"
        "objects = state_objects({'m': torch.nn.Linear(2, 2)}); captured = capture(objects)\n"
        "area = StagingArea(say=print, clock=SYSTEM_CLOCK); area.prepare(objects)\n"
        "state = lambda tensors, stall: HostState(1, captured.tree, tensors)\n"
        "area.stage(area.take(), captured, state, SlotOwner('u', 1, 'c'), lambda found: print(found.step))\n"
        "area.stream(captured); area.close(5)\n"
        "print(sorted(captured.tensors))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "m/weight" in done.stdout


def test_dtype_names_are_torch_s_without_the_prefix():
    assert dtype_name(torch.ones(1, dtype=torch.bfloat16)) == "bfloat16"
