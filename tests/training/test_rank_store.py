"""The ranks' store, with a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.training.agreed_loop import PATIENCE, stores

from unbroken.errors import StoreError
from unbroken.training.rank_store import RankStore


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_ranks_reach_the_store_by_any_address_of_its_machine(host: str) -> None:
    first = RankStore.serve(2, host)
    other = RankStore.join(first.host, first.port, 1, 2, seconds=10.0)
    try:
        first.set("a", b"\x00\xff")
        assert other.get("a", 5.0) == b"\x00\xff"
    finally:
        other.close()
        first.close()


def test_values_of_any_length_come_back_whole() -> None:
    with stores(2) as (first, other):
        for size in (0, 1, 4 << 20, (4 << 20) + 1, 20 << 20):
            value = os.urandom(size)
            first.set(f"of {size}", value)
            assert other.get(f"of {size}", 5.0) == value


def test_a_value_that_nobody_gives_is_an_error_that_names_it() -> None:
    with stores(2) as (_, other), pytest.raises(StoreError, match=r"rank 1 waited 0.05 s for 'plan'") as found:
        other.get("plan", 0.05)
    assert found.value.kind == "ranks"


def test_a_long_wait_holds_up_no_other_request_of_the_rank() -> None:
    with stores(1) as (store,), ThreadPoolExecutor(1) as pool:
        waits = pool.submit(store.get, "later", PATIENCE)
        store.set("other", b"1", 5.0)
        assert store.get("other", 5.0) == b"1"
        assert not waits.done()
        store.set("later", b"2")
        assert waits.result(PATIENCE) == b"2"


def test_all_ranks_get_the_values_of_all_in_order() -> None:
    values = [b"%d" % rank * (rank + 1) for rank in range(9)]
    with stores(9) as each, ThreadPoolExecutor(9) as pool:
        got = pool.map(lambda store: store.gather("sound", values[store.rank], PATIENCE), each)
        assert list(got) == [values] * 9


def test_a_gather_of_more_than_torch_sends_at_once_comes_whole() -> None:
    with stores(3) as each, ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda store: store.gather("big", bytes([store.rank]) * (5 << 20), PATIENCE), each))
        assert [[value[0] for value in values] for values in got] == [[0, 1, 2]] * 3
        assert {len(value) for values in got for value in values} == {5 << 20}


def test_every_rank_learns_which_ranks_gave_nothing() -> None:
    def attempt(store: RankStore) -> str:
        with pytest.raises(StoreError) as found:
            store.gather("sound", b"", 0.3)
        assert found.value.kind == "ranks"
        return found.value.message

    with stores(5) as each, ThreadPoolExecutor(3) as pool:
        told = set(pool.map(attempt, (each[0], each[2], each[4])))
    assert told == {"ranks 1, 3 gave nothing for 'sound' within 0.3 s"}


def test_all_ranks_get_what_rank_0_shares() -> None:
    with stores(3) as each, ThreadPoolExecutor(3) as pool:
        got = pool.map(lambda store: store.share("which", b"42" if store.rank == 0 else None, PATIENCE), each)
        assert list(got) == [b"42"] * 3
        with pytest.raises(StoreError, match=r"rank 2 waited 0.05 s for rank 0 to share 'other'"):
            each[2].share("other", None, 0.05)


def test_a_closed_store_refuses() -> None:
    with stores(1) as (store,):
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.set("a", b"")


def test_nobody_at_the_address_is_an_error_within_the_bound() -> None:
    store = RankStore.serve(1)
    store.close()
    with pytest.raises(StoreError, match=f"127.0.0.1:{store.port}"):
        RankStore.join("127.0.0.1", store.port, 1, 2, seconds=0.5)


_HOST = """
    import signal
    from unbroken.training.rank_store import RankStore
    store = RankStore.serve(2)
    print(store.port, flush=True)
    signal.pause()
"""


@pytest.fixture
def host() -> Iterator[tuple[subprocess.Popen[str], RankStore]]:
    """Rank 0's process, and rank 1's store."""
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(_HOST)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            store = RankStore.join("127.0.0.1", int(process.stdout.readline()), 1, 2, seconds=PATIENCE)
            store.set("there", b"1")
            yield process, store
            store.close()
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


_REQUESTS: list[Callable[[RankStore], object]] = [
    lambda store: store.set("a", b"1", 0.5),
    lambda store: store.get("there", 0.5),
    lambda store: store.gather("g", b"1", 0.5),
    lambda store: store.share("s", None, 0.5),
    lambda store: store.count("n", 1, 0.5),
]


@pytest.mark.slow
@pytest.mark.parametrize("request_of", _REQUESTS, ids=["set", "get", "gather", "share", "count"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_is_gone_or_does_not_answer_ends_each_request(
    host: tuple[subprocess.Popen[str], RankStore], request_of: Callable[[RankStore], object], sign: signal.Signals
) -> None:
    process, store = host
    process.send_signal(sign)
    if sign == signal.SIGKILL:
        process.wait(PATIENCE)
    with pytest.raises(StoreError) as found:
        request_of(store)
    assert found.value.kind == "ranks"


_OPEN = """
    import json, os, sys
    import torch.distributed as dist
    from unbroken.training.rank_store import RankStore
    rank, path = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=2)
    first, second = RankStore.open(rank, 2, seconds=60.0), RankStore.open(rank, 2, seconds=60.0)
    stores = {"first": first, "second": second}
    got = [store.gather("who", f"{name} of {rank}".encode(), 60.0) for name, store in stores.items()]
    print(json.dumps([[each.decode() for each in values] for values in got]))
    dist.barrier()
    for store in (second, first):
        store.close()
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_meet_through_their_process_group_and_a_second_store_is_another(tmp_path: Path) -> None:
    program = [sys.executable, "-c", textwrap.dedent(_OPEN)]
    ranks = [
        subprocess.Popen([*program, str(rank), str(tmp_path / "group")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [json.loads(rank.communicate(timeout=PATIENCE)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert said == [[["first of 0", "first of 1"], ["second of 0", "second of 1"]]] * 2


_LEFT_OPEN = """
    from unbroken.clock import SYSTEM_CLOCK
    from unbroken.training.agreement import Agreement
    from unbroken.training.rank_store import RankStore
    first = RankStore.serve(2)
    second = RankStore.join("127.0.0.1", first.port, 1, 2)
    agreements = [Agreement(each, each.rank, 2, clock=SYSTEM_CLOCK, on_lost=print) for each in (first, second)]
"""


@pytest.mark.slow
def test_a_process_that_closes_nothing_ends_with_its_own_exit_code() -> None:
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(_LEFT_OPEN)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
