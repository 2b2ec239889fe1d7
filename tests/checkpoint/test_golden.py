"""Checkpoints that releases wrote load for ever, and a reader written from the specification alone reads them, too."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from tests.checkpoint.conftest import Attempt, restore
from tests.checkpoint.ranks import reassembled
from tests.checkpoint.test_tree import shape_of

from unbroken.checkpoint import decode_tree, encode_tree, read_metrics, read_tensors, verify_checkpoint
from unbroken.checkpoint.committed import load_manifest
from unbroken.errors import DamagedError
from unbroken.journal import Journal
from unbroken.store import open_store
from unbroken.testing import flip_bit, truncate

GOLDEN = Path(__file__).parent / "golden"
V1, V2 = GOLDEN / "v1", GOLDEN / "v2"
READER = GOLDEN / "reader.py"
SPECIFICATION = Path(__file__).parents[2] / "docs" / "spec" / "checkpoint-v1.md"
SPECIFICATION_2 = SPECIFICATION.with_name("checkpoint-v2.md")


def load_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()


def read_independently(run: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, READER, run], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def points(values: list[tuple[int, float]]) -> list[Any]:
    return [[step, encode_tree(value)] for step, value in values]


def check_content(step: int, tensors: dict[str, list[Any]]) -> None:
    assert tensors == {each.name: [each.dtype, list(each.shape), bytes(each.data).hex()] for each in make.tensors(step)}


def test_what_version_1_wrote_loads_for_ever() -> None:
    store = open_store(str(V1))
    found = restore(store)
    assert found is not None
    assert (found.step, found.passed_over) == (20, [])
    assert shape_of(found.tree) == shape_of(make.tree(20))
    state = Journal.open(store).state
    assert [record.step for record in state.checkpoints] == list(make.STEPS)
    for record in state.checkpoints:
        manifest = load_manifest(store, record)
        read = read_tensors(store, manifest)
        check_content(
            record.step,
            {each.name: [each.dtype, each.shape, bytes(read[each.name]).hex()] for each in manifest.tensors},
        )
        assert verify_checkpoint(store, record).problems == []
    metrics = read_metrics(store, state, state.checkpoints[-1])
    assert metrics["loss"] == make.LOSSES
    assert shape_of(metrics["accuracy"]) == shape_of(make.ACCURACIES)


def test_a_reader_written_from_the_specification_alone_reads_it_and_finds_every_digest_right() -> None:
    found = read_independently(V1)
    assert (found["step"], found["passed_over"]) == (20, [])
    check_content(20, found["tensors"])
    assert json.dumps(found["state"]) == json.dumps(encode_tree(make.tree(20)))
    assert found["values"] == {"loss": points(make.LOSSES), "accuracy": points(make.ACCURACIES)}


def own_tensors(step: int) -> dict[str, list[Any]]:
    return {f"rank{rank}/rng/torch": ["uint8", [3], bytes([rank, step, 255]).hex()] for rank in range(make.RANKS)}


def without_own(step: int, tensors: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The tensors of the shared state; those of the ranks' own are looked at and taken out."""
    assert tensors.items() >= own_tensors(step).items()
    return {name: held for name, held in tensors.items() if name not in own_tensors(step)}


def test_what_version_2_wrote_loads_for_ever() -> None:
    store = open_store(str(V2))
    state = Journal.open(store).state
    assert [record.step for record in state.checkpoints] == list(make.STEPS)
    for record in state.checkpoints:
        manifest = load_manifest(store, record)
        assert (manifest.format, manifest.world_size) == (2, make.RANKS)
        assert shape_of(decode_tree(manifest.state)) == shape_of(make.tree(record.step))
        assert [decode_tree(tree) for tree in manifest.locals] == [make.local(rank) for rank in range(make.RANKS)]
        kinds = {each.name: (each.dtype, each.shape) for each in manifest.tensors}
        found = {
            name: [dtype, list(shape), data.hex()]
            for name, (dtype, shape, data) in reassembled(store, manifest).items()
        }
        check_content(record.step, without_own(record.step, found))
        assert {name: tuple(held[:2]) for name, held in found.items()} == kinds
    assert read_metrics(store, state, state.checkpoints[-1]) == {"loss": make.LOSSES}


def test_that_reader_reads_version_2_too(tmp_path: Path) -> None:
    found = read_independently(V2)
    assert (found["step"], found["passed_over"]) == (20, [])
    check_content(20, without_own(20, found["tensors"]))
    assert json.dumps(found["state"]) == json.dumps(encode_tree(make.tree(20)))
    assert found["locals"] == [encode_tree(make.local(rank)) for rank in range(make.RANKS)]
    assert found["values"] == {"loss": points(make.LOSSES)}
    make.make_sharded(str(tmp_path / "made"))
    assert read_independently(tmp_path / "made") == found


@pytest.mark.parametrize("damage", ["rank record", "slice", "no record"])
def test_damage_to_one_rank_s_part_is_found_by_all_readers(tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(V2, run)
    store = open_store(str(run))
    record = Journal.open(store).state.checkpoints[-1]
    manifest = load_manifest(store, record)
    if damage == "rank record":
        flip_bit(store, manifest.ranks[2].key, 300)
    elif damage == "slice":
        flip_bit(store, manifest.packs[-1].key, -1)
    else:
        store.delete([manifest.ranks[1].key])
    found = read_independently(run)
    assert (found["step"], [step for step, _ in found["passed_over"]]) == (10, [20])
    if damage != "slice":  # those are found where slices are read
        with pytest.raises(DamagedError, match=manifest.ranks[1 if damage == "no record" else 2].key):
            load_manifest(store, record)


def test_that_reader_shares_no_code_with_the_package() -> None:
    imported = set()
    for node in ast.walk(ast.parse(READER.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - sys.stdlib_module_names == {"xxhash"}


@pytest.mark.parametrize("damage", ["manifest", "pack", "rank record", "tensor"])
def test_that_reader_does_find_damage(tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(V1, run)
    store = open_store(str(run))
    record = Journal.open(store).state.checkpoints[-1]
    manifest = load_manifest(store, record)
    if damage == "manifest":
        flip_bit(store, record.event.manifest, 300)
    elif damage == "pack":
        truncate(store, manifest.packs[1].key, 900)
    elif damage == "rank record":
        flip_bit(store, manifest.ranks[0].key, 300)
    else:
        flip_bit(store, manifest.packs[1].key, -1)
    found = read_independently(run)
    assert found["step"] == 10
    assert [step for step, _ in found["passed_over"]] == [20]
    check_content(10, found["tensors"])


def test_that_reader_reads_what_is_written_today_and_believes_no_zombie(tmp_path: Path) -> None:
    make.make(str(tmp_path / "made"))
    assert read_independently(tmp_path / "made") == read_independently(V1)
    store = open_store(str(tmp_path / "run"), create=True)
    zombie = Attempt(store)
    zombie.save(1, {"w": b"1", "frozen": b"f" * 99}, {"loss": [(1, 1.0)]})
    owner = Attempt(store)
    owner.restore()
    owner.save(2, {"w": b"2", "frozen": b"f" * 99}, {"loss": [(2, 2.0)]})
    copied = tmp_path / "run" / "journal" / "00000000005.json"
    second = json.loads((copied.parent / "00000000002.json").read_text())
    second["event"].update(step=9, manifest="manifests/forged.json")
    copied.write_text(json.dumps({**second, "n": 5}))
    found = read_independently(tmp_path / "run")
    ours = restore(store)
    assert ours is not None
    assert found["step"] == ours.step == 2
    assert found["values"] == {"loss": [[1, 1.0], [2, 2.0]]}
    assert {name: bytes.fromhex(data) for name, (_, _, data) in found["tensors"].items()} == ours.content


def blocks(specification: Path = SPECIFICATION) -> list[list[str]]:
    """The fenced blocks of a specification's example."""
    example = specification.read_text().partition("## An example")[2]
    return [block.strip().splitlines() for block in re.findall(r"```(?:json)?\n(.*?)```", example, re.DOTALL)]


def test_the_example_of_the_specification_shows_the_golden_checkpoint() -> None:
    (entry,), manifest, dump, (values,) = blocks()
    assert (V1 / "journal" / "00000000004.json").read_text() == entry
    event = json.loads(entry)["event"]
    written = (V1 / event["manifest"]).read_text()
    shown = [line for line in manifest if line != "..."]
    assert len(shown) == 5
    assert all(line in written for line in shown)
    assert (V1 / event["metrics"]).read_text() == values
    pack = (V1 / json.loads(written)["packs"][1]["key"]).read_bytes()
    for line in (line for line in dump if line != "..."):
        at, row = int(line[:8], 16), bytes.fromhex(line[10:57])
        assert pack[at : at + len(row)] == row


def test_the_example_of_specification_2_shows_the_golden_checkpoint() -> None:
    record, (ranks,) = blocks(SPECIFICATION_2)
    written = (V2 / "ranks/2/20/1-0000000b.json").read_text()
    assert len(record) == 5
    assert all(line in written for line in record if line != "...")
    event = json.loads((V2 / "journal" / "00000000004.json").read_text())["event"]
    assert (V2 / event["manifest"]).read_text().endswith(ranks)


def test_the_specification_names_every_field_tag_and_element_type() -> None:
    from unbroken.checkpoint.dtypes import KNOWN
    from unbroken.checkpoint.manifest import Manifest, PackRecord, RankRecord, RankRef, Slice, TensorRecord
    from unbroken.checkpoint.tree import _DECODERS

    text = SPECIFICATION.read_text() + SPECIFICATION_2.read_text()
    fields = [
        field.name
        for kind in (Manifest, PackRecord, RankRecord, Slice, TensorRecord)
        for field in msgspec.structs.fields(kind)
        if field.name != "locals"  # it is never stored
    ]
    for word in (*fields, *KNOWN, *_DECODERS):
        assert f"`{word}`" in text, word
    assert all(f'"{field.name}"' in text for field in msgspec.structs.fields(RankRef))
