from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests share a module

from launches import MakeRanks


@pytest.fixture
def make_ranks(tmp_path: Path) -> Iterator[MakeRanks]:
    """Makes trainings; every process of theirs is gone at the end."""
    with ExitStack() as stack:
        yield MakeRanks(tmp_path, stack)
