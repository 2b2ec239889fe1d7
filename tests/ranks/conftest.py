from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests share a module

from launches import MakeRanks, Ranks


@pytest.fixture
def make_ranks(tmp_path: Path) -> Iterator[MakeRanks]:
    """Makes trainings; every process of theirs is gone at the end."""
    with ExitStack() as stack:
        yield MakeRanks(tmp_path, stack)


@pytest.fixture(scope="session")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Ranks]]:
    """By layout, a training of two ranks that nobody disturbed; each is made once."""
    made: dict[str, Ranks] = {}
    with ExitStack() as stack:
        make = MakeRanks(tmp_path_factory.mktemp("truth"), stack)

        def of(layout: str) -> Ranks:
            if layout not in made:
                made[layout] = make(layout=layout)
                assert made[layout].train() == [0]
            return made[layout]

        yield of
