"""What is refused before a byte is written."""

from __future__ import annotations

import pytest
from tests.checkpoint.conftest import Attempt, restore, state_of, tensor

from unbroken.checkpoint import HostState, HostTensor
from unbroken.errors import ConfigError
from unbroken.store import Store

SOUND = tensor("w", b"1234", "float32", ())


@pytest.mark.parametrize(
    ("state", "kind", "named"),
    [
        (state_of(2, [SOUND, SOUND]), "tensor-name", "same name"),
        (state_of(2, [tensor("__metadata__", b"")]), "tensor-name", "__metadata__"),
        (state_of(2, [tensor("w", b"1234", "float32", (2,))]), "tensor-size", "w is a float32 of shape [2]"),
        (state_of(2, [tensor("w", b"1234", "float32", (-1, -1))]), "tensor-size", "[-1, -1]"),
        (HostState(2, {"w": {"$tensor": "v"}}, [SOUND]), "tensor-name", "'v'"),
        (HostState(2, {}, [tensor("\udcff", b"")]), "tensor-name", "udcff"),
        (HostState(2, {}, [HostTensor("w", "float3", (), memoryview(b""))]), "dtype", "float3"),
        (HostState(2, {}, [HostTensor("w", "int32", (1,), memoryview(b"1234").cast("i"))]), "tensor-size", "w is"),
    ],
)
def test_a_state_that_could_not_be_read_again_is_refused_and_nothing_is_written(
    folder_store: Store, state: HostState, kind: str, named: str
) -> None:
    attempt = Attempt(folder_store)
    attempt.save(1, {"w": b"1"})
    before = list(folder_store.list(""))
    with pytest.raises(ConfigError) as caught:
        attempt.writer.write(state)
    assert caught.value.kind == kind
    assert named in caught.value.message
    assert list(folder_store.list("")) == before
    found = restore(folder_store)
    assert found is not None
    assert found.step == 1
