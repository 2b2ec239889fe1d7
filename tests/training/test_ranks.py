"""Which rank this is, as the process group and the launcher say."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from unbroken.errors import ConfigError
from unbroken.training.ranks import Ranks


def test_a_process_by_itself_is_the_only_rank():
    assert Ranks.here({}) == Ranks.here({"WORLD_SIZE": "1", "RANK": "0"}) == Ranks(0, 1, 0, 0)


def test_several_ranks_without_a_process_group_are_refused():
    with pytest.raises(ConfigError, match="WORLD_SIZE is 4") as caught:
        Ranks.here({"WORLD_SIZE": "4", "RANK": "1"})
    assert caught.value.kind == "ranks"
    assert "init_process_group() before Run" in caught.value.hint


@pytest.mark.parametrize("text", ["four", "-2"])
def test_an_environment_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigError, match=text):
        Ranks.here({"WORLD_SIZE": text})


def test_the_process_group_says_which_rank_this_is_and_the_launcher_where():
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=8)
    try:
        launcher = {"WORLD_SIZE": "99", "LOCAL_RANK": "1", "GROUP_RANK": "2"}
        assert Ranks.here(launcher) == Ranks(5, 8, 1, 2)
        assert Ranks.here({}) == Ranks(5, 8, 0, 0)
    finally:
        dist.destroy_process_group()
