"""``unbroken.dcp`` in several processes, over gloo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.dcp_cases import same

from unbroken.checkpoint import Manifest, load_manifest, verify_checkpoint
from unbroken.dcp import Reader
from unbroken.journal import Journal
from unbroken.store import open_store
from unbroken.testing import flip_bit
from unbroken.training.restore import load_state

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).with_name("dcp_program.py")


def run(verb: str, count: int, uri: str, *, killed: bool = False) -> list[dict[str, Any]]:
    """Run the program with ``count`` ranks; what each has found."""
    folder = Path(tempfile.mkdtemp(dir=Path(uri).parent))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [(folder / f"log-{rank}").open("w+") for rank in range(count)]
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, verb, str(rank), str(count), folder, uri],
            stdout=logs[rank], stderr=subprocess.STDOUT, env=environment,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        codes = [process.wait(120) for process in (processes[:1] if killed else processes)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    text = "\n".join(f"rank {rank}:\n{(folder / f'log-{rank}').read_text()[-3000:]}" for rank in range(count))
    if killed:
        assert codes == [-9], text
        return []
    assert codes == [0] * count, text
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(count)]


def manifest_of(uri: str, step: int) -> tuple[Manifest, list[str]]:
    journal = Journal.open(open_store(uri))
    [record] = [each for each in journal.state.checkpoints if each.step == step]
    return load_manifest(journal.store, record), verify_checkpoint(journal.store, record).problems


@pytest.fixture(scope="module")
def four() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A run that four ranks have saved, and what they saw."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/run"
        yield uri, run("save", 4, uri)


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/run"
        yield uri, run("save", 2, uri)


def demand_truth(saved: dict[str, Any], found: list[dict[str, Any]]) -> None:
    for each in found:
        for name in ("model", "optimizer", "x", "plain", "values"):
            assert same(each["loaded"][name], saved[name]), name
        assert each["loaded"]["loader"]["dp_rank_0"] == b"position of 0"
    assert all(same(each["next"], found[0]["next"]) for each in found)


def test_four_ranks_save_and_two_load(four: tuple[str, list[dict[str, Any]]]) -> None:
    uri, saved = four
    found = run("load", 2, uri)
    demand_truth(saved[0]["saved"], found)
    assert found[0]["loaded"]["loader"]["world_size"] == 4


def test_two_ranks_save_and_three_load(two: tuple[str, list[dict[str, Any]]]) -> None:
    uri, saved = two
    demand_truth(saved[0]["saved"], run("load", 3, uri))


def test_the_same_ranks_go_on_to_the_same_bits(two: tuple[str, list[dict[str, Any]]]) -> None:
    uri, saved = two
    found = run("load", 2, uri)
    assert same(found[0]["next"]["model"], saved[0]["later"]["model"])


def test_a_checkpoint_of_four_ranks_is_sound_and_each_element_is_there_once(
    four: tuple[str, list[dict[str, Any]]],
) -> None:
    uri, _ = four
    manifest, problems = manifest_of(uri, 10)
    assert problems == []
    assert (manifest.format, manifest.world_size) == (2, 4)
    slices = {record.name: len(record.slices) for record in manifest.tensors}
    assert slices["x/rows"] == 3  # of 5 rows in four parts the last is empty
    assert (slices["x/alike"], slices["x/scalar"], slices["plain"]) == (1, 1, 1)
    written = [name.split("/")[2].split("-")[1] for name in (pack.key for pack in manifest.packs)]
    assert sorted(set(written)) == ["0", "1", "2", "3"]


def test_one_process_sees_all_of_it(four: tuple[str, list[dict[str, Any]]]) -> None:
    uri, saved = four
    manifest, _ = manifest_of(uri, 10)
    state = load_state(open_store(uri), manifest)
    for name in ("model", "x", "plain"):
        assert same(state[name], saved[0]["saved"][name])
    assert state["loader"] == {**{f"dp_rank_{r}": f"position of {r}".encode() for r in range(4)}, "world_size": 4}
    assert Reader(uri).steps() == [10, 20]


def test_an_asynchronous_save_holds_the_state_at_the_call(four: tuple[str, list[dict[str, Any]]]) -> None:
    uri, saved = four
    state = load_state(open_store(uri), manifest_of(uri, 20)[0])
    assert same(state["model"], saved[0]["saved"]["model"])
    assert not same(state["model"], saved[0]["later"]["model"])


def test_all_ranks_hear_of_a_value_that_one_cannot_save(four: tuple[str, list[dict[str, Any]]]) -> None:
    for each in four[1]:
        assert list(each["opaque"]) == [1]
        assert each["opaque"][1].startswith("ConfigError: opaque.of_rank_1 cannot be saved")


def test_ranks_that_save_different_steps_are_refused(four: tuple[str, list[dict[str, Any]]]) -> None:
    for each in four[1]:
        assert list(each["steps"]) == [1, 2, 3]
        assert "about to save step 13, and the coordinator step 12" in each["steps"][1]


def test_an_older_writer_is_fenced_and_kept_plans_are_no_other_attempts(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    for each in run("fence", 2, uri):
        assert list(each["fenced"]) == [0]
        assert each["fenced"][0].startswith("FencedError")
        assert "enable_plan_caching" in each["kept"][1]
    assert Reader(uri).steps() == [1, 2, 4, 5]
    state = load_state(open_store(uri), manifest_of(uri, 5)[0])
    assert same(state["x"], torch.full((3,), 5.0))


@pytest.fixture(scope="module")
def dead() -> Iterator[str]:
    """A run of two ranks, of which one was killed in a save."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/run"
        run("die", 2, uri, killed=True)
        yield uri


def test_killed_before_the_commit_the_checkpoint_before_stands(dead: str) -> None:
    uri = dead
    assert Reader(uri).steps() == [1]
    manifest, problems = manifest_of(uri, 1)
    assert problems == []
    assert same(load_state(open_store(uri), manifest)["x"], torch.ones(3))


def test_damage_that_one_rank_meets_reaches_all(dead: str, tmp_path: Path) -> None:
    uri = str(shutil.copytree(dead, tmp_path / "run"))
    manifest, _ = manifest_of(uri, 1)
    [piece] = manifest.tensor("own1").slices
    flip_bit(open_store(uri), manifest.packs[piece.pack].key, piece.start)
    for each in run("damaged", 2, uri):
        assert list(each["failures"]) == [1]
        assert each["failures"][1].startswith("DamagedError: bytes of own1")
