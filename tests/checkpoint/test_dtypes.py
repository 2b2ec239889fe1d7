"""The table of element types."""

from __future__ import annotations

import pytest
import torch

from unbroken.checkpoint.dtypes import KNOWN, item_size, safetensors_name
from unbroken.errors import FormatError


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_element_type_has_the_size_that_torch_gives_it(name: str) -> None:
    dtype = getattr(torch, name)
    assert str(dtype) == f"torch.{name}"
    assert item_size(name) == dtype.itemsize


def test_an_element_type_outside_the_format_is_refused() -> None:
    for ask in (item_size, safetensors_name):
        with pytest.raises(FormatError) as caught:
            ask("float3")
        assert (caught.value.kind, caught.value.exit_code) == ("dtype", 13)
        assert "float3" in caught.value.message
