"""Exports hold the very bytes, under the names that other programs use, and appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tests.checkpoint.conftest import Attempt, tensor, tensor_of
from tests.checkpoint.sharded import boxed, grid, put_sharded

from unbroken.checkpoint import HostState, HostTensor, Manifest, TensorRef, encode_tree, load_manifest
from unbroken.checkpoint.dtypes import KNOWN, from_safetensors, safetensors_name
from unbroken.checkpoint.export import Exported, export_safetensors
from unbroken.checkpoint.selection import held_objects
from unbroken.checkpoint.streaming import TensorStream
from unbroken.checkpoint.tree import Tagged
from unbroken.errors import AccessError, ConfigError, DamagedError, NotFoundError, StoreError
from unbroken.store import Store
from unbroken.testing import flip_bit

WITH_NAME = sorted(dtype for dtype in KNOWN if safetensors_name(dtype))


def commit(store: Store, tree: dict[str, Any], tensors: list[HostTensor]) -> Manifest:
    attempt = Attempt(store)
    attempt.writer.write(HostState(7, encode_tree(tree), tensors))
    return load_manifest(store, attempt.journal.state.checkpoints[-1])


@pytest.fixture
def model(store: Store) -> Manifest:
    """A model with tied weights, and an optimizer with numbers in it."""
    tensors = [
        tensor_of("model/embed.weight", "float32", (10, 4)),
        tensor_of("model/flag", "bool", (3,)),
        tensor_of("model/scale", "float64", ()),
        tensor_of("optimizer/state/0/exp_avg", "float32", (10, 4), seed=1),
    ]
    tree = {
        "model": {
            "embed.weight": TensorRef("model/embed.weight"),
            "flag": TensorRef("model/flag"),
            "head.weight": TensorRef("model/embed.weight"),
            "scale": TensorRef("model/scale"),
        },
        "optimizer": {"state": {0: {"exp_avg": TensorRef("optimizer/state/0/exp_avg"), "step": 3}}, "lr": 0.1},
        "scheduler": {"last": 4},
    }
    return commit(store, tree, tensors)


def opened(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Tensors and metadata of a file, by the real library."""
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name).tobytes() for name in names}, file.metadata() or {}


def bytes_of(manifest: Manifest, store: Store, name: str) -> bytes:
    return bytes(TensorStream(store, manifest, [name]).take(name))


class TestSafetensors:
    def test_one_object_is_named_as_its_state_dict_and_tied_weights_are_kept_once(
        self, store: Store, model: Manifest, tmp_path: Path
    ) -> None:
        target = tmp_path / "out.safetensors"
        done = export_safetensors(store, model, ["model"], target)
        tensors, metadata = opened(target)
        assert tensors == {name: bytes_of(model, store, f"model/{name}") for name in ("embed.weight", "flag", "scale")}
        assert metadata == {
            "format": "pt", "unbroken.run": model.run, "unbroken.step": "7", "head.weight": "embed.weight",
        }  # fmt: skip
        assert done == Exported(files=1, tensors=3, bytes=160 + 3 + 8, left_out=0)

    def test_several_objects_are_named_with_their_names_and_other_values_are_counted(
        self, store: Store, model: Manifest, tmp_path: Path
    ) -> None:
        target = tmp_path / "out.safetensors"
        done = export_safetensors(store, model, ["model", "optimizer", "scheduler"], target)
        tensors, metadata = opened(target)
        assert set(tensors) == {"model/embed.weight", "model/flag", "model/scale", "optimizer/state/0/exp_avg"}
        assert metadata["model/head.weight"] == "model/embed.weight"
        assert done.left_out == 3

    def test_an_alias_becomes_the_name_where_only_it_is_exported(self, folder_store: Store, tmp_path: Path) -> None:
        tree = {"model": {"w": TensorRef("model/w")}, "ema": {"shadow": TensorRef("model/w")}}
        manifest = commit(folder_store, tree, [tensor("model/w", b"abcd")])
        export_safetensors(folder_store, manifest, ["ema"], tmp_path / "out.safetensors")
        assert opened(tmp_path / "out.safetensors")[0] == {"shadow": b"abcd"}

    def test_every_type_that_safetensors_has_is_opened_by_its_library(
        self, folder_store: Store, tmp_path: Path
    ) -> None:
        tensors = [tensor_of(f"model/{dtype}", dtype, (3, 5)) for dtype in WITH_NAME]
        tree = {"model": {dtype: TensorRef(f"model/{dtype}") for dtype in WITH_NAME}}
        manifest = commit(folder_store, tree, tensors)
        target = tmp_path / "out.safetensors"
        export_safetensors(folder_store, manifest, ["model"], target)
        with safe_open(target, framework="pt") as file:
            for each in tensors:
                name = each.name.removeprefix("model/")
                found = file.get_tensor(name)
                assert (str(found.dtype), tuple(found.shape)) == (f"torch.{name}", (3, 5))
                assert bytes(found.flatten().view(dtype=__import__("torch").uint8).numpy()) == bytes(each.data)

    @pytest.mark.parametrize("dtype", sorted(KNOWN - set(WITH_NAME)))
    def test_a_type_that_safetensors_lacks_is_refused_naming_the_tensor(
        self, folder_store: Store, tmp_path: Path, dtype: str
    ) -> None:
        manifest = commit(folder_store, {"model": {"w": TensorRef("model/w")}}, [tensor_of("model/w", dtype, (2,))])
        with pytest.raises(ConfigError, match=f"w is of the type {dtype}, which safetensors does not have") as raised:
            export_safetensors(folder_store, manifest, ["model"], tmp_path / "out.safetensors")
        assert raised.value.kind == "dtype"
        assert not (tmp_path / "out.safetensors").exists()

    def test_arrays_and_a_bare_tensor_are_tensors_too(self, folder_store: Store, tmp_path: Path) -> None:
        tree = {"ema": TensorRef("ema"), "rng": {"keys": (Tagged("ndarray", "rng/keys"), 624)}}
        manifest = commit(folder_store, tree, [tensor("ema", b"ab"), tensor("rng/keys", b"xyz")])
        export_safetensors(folder_store, manifest, ["ema"], tmp_path / "one.safetensors")
        export_safetensors(folder_store, manifest, ["ema", "rng"], tmp_path / "two.safetensors")
        assert opened(tmp_path / "one.safetensors")[0] == {"ema": b"ab"}
        assert opened(tmp_path / "two.safetensors")[0] == {"ema": b"ab", "rng/keys/0": b"xyz"}

    def test_paths_that_would_share_a_name_stay_apart(self, folder_store: Store, tmp_path: Path) -> None:
        tree = {"model": {"a/b": TensorRef("one"), "a": {"b": TensorRef("two")}, 1: TensorRef("three")}}
        manifest = commit(folder_store, tree, [tensor("one", b"1"), tensor("two", b"22"), tensor("three", b"333")])
        export_safetensors(folder_store, manifest, ["model"], tmp_path / "out.safetensors")
        assert opened(tmp_path / "out.safetensors")[0] == {"a/b": b"1", "a/b#2": b"22", "1": b"333"}

    def test_an_object_that_is_not_there_is_refused_naming_those_that_are(
        self, folder_store: Store, tmp_path: Path
    ) -> None:
        manifest = commit(folder_store, {"net": {"w": TensorRef("w")}}, [tensor("w", b"1")])
        with pytest.raises(NotFoundError, match=r"holds no 'model'.*It holds net"):
            export_safetensors(folder_store, manifest, ["model"], tmp_path / "out.safetensors")

    def test_an_object_without_tensors_is_refused(self, store: Store, model: Manifest, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="scheduler holds no tensors"):
            export_safetensors(store, model, ["scheduler"], tmp_path / "out.safetensors")

    def test_tensors_lie_at_multiples_of_their_elements(self, store: Store, model: Manifest, tmp_path: Path) -> None:
        target = tmp_path / "out.safetensors"
        export_safetensors(store, model, ["model"], target)
        data = target.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        assert (8 + length) % 64 == 0
        for name, width in (("scale", 8), ("embed.weight", 4)):
            assert header[name]["data_offsets"][0] % width == 0


class TestRanks:
    @pytest.fixture
    def manifest(self, store: Store, small_chunks: int) -> Manifest:
        """A matrix in a grid over two ranks, and a generator of each."""
        weight = tensor_of("model/w", "float32", (9, 6))
        boxes = [boxed(weight, box) for box in grid(weight.shape, [[4], [2, 5]])]
        own = [tensor_of(f"rank{rank}/rng/torch", "uint8", (5,), seed=rank) for rank in range(2)]
        return put_sharded(
            store,
            [[*boxes[:2], own[0]], [*boxes[2:], own[1]]],
            state={"model": {"w": TensorRef("model/w")}, "scheduler": {"last": 4}},
            locals_=[{"rng": {"torch": TensorRef(each.name)}} for each in own],
        )

    def test_tensors_are_put_together(self, store: Store, manifest: Manifest, tmp_path: Path) -> None:
        done = export_safetensors(store, manifest, ["model"], tmp_path / "m.safetensors")
        weight = tensor_of("model/w", "float32", (9, 6))
        assert opened(tmp_path / "m.safetensors")[0] == {"w": bytes(weight.data)}
        assert (done.tensors, done.bytes) == (1, 216)

    def test_everything_has_what_is_rank_0s_own_and_no_other_ranks(
        self, store: Store, manifest: Manifest, tmp_path: Path
    ) -> None:
        assert held_objects(manifest) == ["model", "scheduler", "rng"]
        done = export_safetensors(store, manifest, held_objects(manifest), tmp_path / "all.safetensors")
        held, _ = opened(tmp_path / "all.safetensors")
        assert held.keys() == {"model/w", "rng/torch"}
        assert held["rng/torch"] == bytes(tensor_of("rank0", "uint8", (5,), seed=0).data)
        assert done.left_out == 1

    def test_damage_in_one_ranks_slice_leaves_nothing(self, store: Store, manifest: Manifest, tmp_path: Path) -> None:
        piece = manifest.tensor("model/w").slices[-1]
        flip_bit(store, manifest.packs[piece.pack].key, piece.start)
        with pytest.raises(DamagedError, match="model/w"):
            export_safetensors(store, manifest, ["model"], tmp_path / "m.safetensors")
        assert list(tmp_path.glob("*.safetensors")) == []


class TestShards:
    @pytest.fixture
    def six(self, folder_store: Store) -> Manifest:
        tensors = [tensor_of(f"model/w{i}", "uint8", (100,), seed=i) for i in range(6)]
        return commit(folder_store, {"model": {f"w{i}": TensorRef(f"model/w{i}") for i in range(6)}}, tensors)

    def test_shards_are_named_and_indexed_as_hugging_face_does(
        self, folder_store: Store, six: Manifest, tmp_path: Path
    ) -> None:
        done = export_safetensors(folder_store, six, ["model"], tmp_path / "out", max_shard_size=250)
        names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "model.safetensors.index.json"]
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"] == {"total_size": 600}
        assert index["weight_map"] == {f"w{i}": names[i // 2] for i in range(6)}
        for name, shard in index["weight_map"].items():
            assert opened(tmp_path / "out" / shard)[0][name] == bytes_of(six, folder_store, f"model/{name}")
        assert done.files == 3

    def test_a_tensor_larger_than_a_shard_has_one_of_its_own(
        self, folder_store: Store, six: Manifest, tmp_path: Path
    ) -> None:
        export_safetensors(folder_store, six, ["model"], tmp_path / "out", max_shard_size=10)
        assert len(list((tmp_path / "out").glob("*.safetensors"))) == 6

    def test_what_fits_into_one_shard_is_one_file_without_an_index(
        self, folder_store: Store, six: Manifest, tmp_path: Path
    ) -> None:
        export_safetensors(folder_store, six, ["model"], tmp_path / "out", max_shard_size=600)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]

    def test_a_single_file_that_would_be_too_large_is_refused(
        self, folder_store: Store, six: Manifest, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=r"600 bytes of tensors do not go into one file.*--to .*out"):
            export_safetensors(folder_store, six, ["model"], tmp_path / "out.safetensors", max_shard_size=250)
        assert list(tmp_path.glob("*out*")) == []


class TestDestination:
    def test_nothing_is_replaced_without_force(self, store: Store, model: Manifest, tmp_path: Path) -> None:
        file, folder = tmp_path / "out.safetensors", tmp_path / "out"
        for target in (file, folder):
            export_safetensors(store, model, ["model"], target)
            with pytest.raises(ConfigError, match=r"is there already.*--force"):
                export_safetensors(store, model, ["optimizer"], target)
        export_safetensors(store, model, ["optimizer"], file, force=True)
        export_safetensors(store, model, ["optimizer"], folder, force=True)
        assert set(opened(file)[0]) == {"state/0/exp_avg"}
        assert [path.name for path in folder.iterdir()] == ["optimizer.safetensors"]

    def test_force_replaces_no_folder_that_holds_anything_else(
        self, store: Store, model: Manifest, tmp_path: Path
    ) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(ConfigError, match=r"holds thesis\.tex, which no export made"):
            export_safetensors(store, model, ["model"], folder, force=True)
        assert (folder / "thesis.tex").read_text() == "years of work"

    def test_an_empty_folder_is_filled(self, store: Store, model: Manifest, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        export_safetensors(store, model, ["model"], tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]

    @pytest.mark.parametrize("force", [False, True])
    def test_a_file_is_no_folder_and_a_folder_no_file(
        self, store: Store, model: Manifest, tmp_path: Path, force: bool
    ) -> None:
        (tmp_path / "x").write_text("x")
        (tmp_path / "y.safetensors").mkdir()
        with pytest.raises(ConfigError, match="is no folder"):
            export_safetensors(store, model, ["model"], tmp_path / "x", force=force)
        with pytest.raises(ConfigError, match="is no file"):
            export_safetensors(store, model, ["model"], tmp_path / "y.safetensors", force=force)

    def test_a_folder_that_is_missing_is_not_made(self, store: Store, model: Manifest, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="there is no folder"):
            export_safetensors(store, model, ["model"], tmp_path / "no" / "out.safetensors")

    @pytest.mark.parametrize("target", ["out.safetensors", "out"])
    def test_damage_leaves_nothing_behind_and_what_was_there_untouched(
        self, store: Store, model: Manifest, tmp_path: Path, target: str
    ) -> None:
        path = tmp_path / "exports" / target
        path.parent.mkdir()
        export_safetensors(store, model, ["optimizer"], path)
        before = {each: each.read_bytes() for each in path.parent.rglob("*") if each.is_file()}
        (piece,) = model.tensor("model/embed.weight").slices
        flip_bit(store, model.packs[piece.pack].key, piece.start + 5)
        with pytest.raises(DamagedError, match=r"model/embed\.weight"):
            export_safetensors(store, model, ["model"], path, force=True)
        assert {each: each.read_bytes() for each in path.parent.rglob("*") if each.is_file()} == before
        fresh = path.parent / f"fresh-{target}"
        with pytest.raises(DamagedError):
            export_safetensors(store, model, ["model"], fresh)
        assert sorted(each.name for each in path.parent.iterdir()) == [target]

    @pytest.mark.parametrize("target", ["out.safetensors", "out"])
    def test_a_disk_that_is_full_leaves_nothing_behind(
        self, folder_store: Store, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = commit(folder_store, {"model": {"w": TensorRef("w")}}, [tensor_of("w", "uint8", (300_000,))])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        (tmp_path / "exports").mkdir()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(StoreError, match="could not be written: File too large") as raised:
                export_safetensors(folder_store, manifest, ["model"], tmp_path / "exports" / target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert raised.value.kind == "full"
        assert list((tmp_path / "exports").iterdir()) == []

    def test_a_file_system_that_cannot_reserve_is_written_to_all_the_same(
        self, store: Store, model: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, "posix_fallocate", refuse)
        export_safetensors(store, model, ["model"], tmp_path / "out.safetensors")
        assert len(opened(tmp_path / "out.safetensors")[0]) == 3

    def test_a_destination_that_denies_access_says_so(
        self, store: Store, model: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def deny(*_: Any, **__: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "open", deny)
        with pytest.raises(AccessError, match="could not be written: Permission denied"):
            export_safetensors(store, model, ["model"], tmp_path / "out.safetensors")


_KILLED = """
import os, signal, sys
from pathlib import Path
from unbroken.checkpoint import load_manifest
from unbroken.checkpoint.export import export_safetensors
from unbroken.journal import Journal
from unbroken.store import open_store

left = int(sys.argv[3])

def counted(call):
    def counting(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counting

for name in ("fsync", "posix_fallocate", "open"):
    setattr(os, name, counted(getattr(os, name)))
for name in ("open", "replace", "rename", "mkdir", "unlink"):
    setattr(Path, name, counted(getattr(Path, name)))
journal = Journal.open(open_store(sys.argv[1]))
manifest = load_manifest(journal.store, journal.state.checkpoints[-1])
left = int(sys.argv[3])
export_safetensors(journal.store, manifest, ["model"], Path(sys.argv[2]), max_shard_size=200, force=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["out", "out.safetensors"])
def test_a_kill_at_any_moment_leaves_the_old_export_or_the_new_one(
    folder_store: Store, tmp_path: Path, target: str
) -> None:
    """Every point between two calls that change the file system."""
    count = 1 if target.endswith(".safetensors") else 3
    attempt = Attempt(folder_store)
    contents = [{f"w{i}": bytes([i + 10 * turn]) * 150 for i in range(count)} for turn in (1, 2)]
    exports = tmp_path / "exports"
    exports.mkdir()
    path = exports / target

    def found() -> dict[str, bytes] | None:
        if not path.exists():
            return None
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        return {name: data for file in files for name, data in opened(file)[0].items()}

    attempt.save(1, contents[0])
    export_safetensors(
        folder_store, load_manifest(folder_store, attempt.journal.state.checkpoints[-1]), ["model"], path,
        max_shard_size=200,
    )  # fmt: skip
    assert found() == contents[0]
    attempt.save(2, contents[1])
    seen = []
    for calls in range(200):
        command = [sys.executable, "-c", textwrap.dedent(_KILLED), folder_store.uri, str(path), str(calls)]
        code = subprocess.run(command, check=False, timeout=60, capture_output=True).returncode
        seen.append(found())
        if code == 0:
            break
        assert code == -9
    assert seen[-1] == contents[1]
    assert len(seen) > 5
    # A folder is away for the moment between two renames; never half there.
    assert all(state in (contents[0], contents[1], None) for state in seen)
    if path.is_file():
        assert None not in seen


class TestStream:
    def test_tensors_come_in_any_order_and_twice(self, store: Store, model: Manifest) -> None:
        names = [record.name for record in model.tensors]
        stream = TensorStream(store, model, names)
        taken = {name: bytes(stream.take(name)) for name in [names[2], names[0], names[2], names[1]]}
        assert taken == {name: bytes_of(model, store, name) for name in taken}

    def test_no_more_is_held_than_allowed(self, folder_store: Store) -> None:
        names = [f"w{i}" for i in range(10)]
        manifest = commit(
            folder_store, {"model": {name: TensorRef(name) for name in names}},
            [tensor_of(name, "uint8", (100,)) for name in names],
        )  # fmt: skip
        stream = TensorStream(folder_store, manifest, names, ahead=250)
        held = []
        for name in names:
            size = len(stream.take(name))
            held.append(size + sum(map(len, stream._ready.values())))
        assert max(held) == 200

    def test_a_tensor_larger_than_allowed_is_read_alone(self, folder_store: Store) -> None:
        names = ["small", "large", "last"]
        sizes = {"small": 10, "large": 1000, "last": 10}
        manifest = commit(
            folder_store, {"model": {name: TensorRef(name) for name in names}},
            [tensor_of(name, "uint8", (size,)) for name, size in sizes.items()],
        )  # fmt: skip
        stream = TensorStream(folder_store, manifest, names, ahead=100)
        assert [(len(stream.take(name)), len(stream._ready)) for name in names] == [(10, 0), (1000, 0), (10, 0)]


@pytest.mark.parametrize("dtype", WITH_NAME)
def test_the_names_of_types_read_back(dtype: str) -> None:
    assert from_safetensors(safetensors_name(dtype)) == dtype
