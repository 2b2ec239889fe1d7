"""unbroken export: what it writes is read by the libraries it is written for, and damage stops it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.distributed import checkpoint as dcp

from unbroken import CheckpointManager
from unbroken.checkpoint import load_manifest
from unbroken.cli import main
from unbroken.cli.export import parse_size
from unbroken.errors import ConfigError
from unbroken.journal import Journal
from unbroken.store import open_store
from unbroken.testing import flip_bit

Call = Callable[..., tuple[int, str, str]]


class Tied(torch.nn.Module):
    """A model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.body = torch.nn.Linear(6, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.norm(self.body(self.embed(tokens))))
        return result


class Trained:
    """A tied model and its optimizer, after ``steps`` steps."""

    def __init__(self, seed: int, steps: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Tied()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01 * (seed + 1))
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.arange(11)).square().sum().backward()
            self.optimizer.step()

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def calling(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return int(leaving.value.code or 0), out, err

    return calling


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def trained(uri: str) -> Trained:
    """Saved at steps 1 and 2, with generators and plain values; as it was at step 2."""
    with CheckpointManager(uri, rng=True) as manager:
        manager.save(1, Trained(1, 1).state).wait(60)
        trained = Trained(2, 2)
        nested = {"best": 0.5, "pair": (torch.ones(2), 3), "list": [torch.zeros(1), "x"], "shape": torch.Size([2])}
        manager.save(2, {**trained.state, "extra": nested}).wait(60)
    return trained


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def load(state: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it loads in a single process
        dcp.load(state, checkpoint_id=str(folder))


class TestSafetensors:
    def test_the_model_is_the_default_and_loads_strictly(
        self, trained: Trained, uri: str, call: Call, tmp_path: Path
    ) -> None:
        target = tmp_path / "model.safetensors"
        code, out, err = call("export", uri, "--to", target)
        assert (code, err) == (0, "")
        assert "model of step 2, 8 tensors" in out
        fresh = Tied()
        missing, unexpected = safetensors.torch.load_model(fresh, target)
        assert (set(missing), unexpected) == (set(), [])
        assert same(fresh.state_dict(), trained.model.state_dict())

    def test_an_older_step(self, trained: Trained, uri: str, call: Call, tmp_path: Path) -> None:
        assert call("export", uri, "--to", tmp_path / "one.safetensors", "--step", "1")[0] == 0
        found = safetensors.torch.load_file(tmp_path / "one.safetensors")
        assert torch.equal(found["body.weight"], Trained(1, 1).model.body.weight)

    def test_all_parts_and_the_values_that_are_left_out(
        self, trained: Trained, uri: str, call: Call, tmp_path: Path
    ) -> None:
        code, _, err = call("export", uri, "--to", tmp_path / "all.safetensors", "--all")
        assert code == 0
        assert "values that are no tensors; --format dcp keeps them" in err
        found = safetensors.torch.load_file(tmp_path / "all.safetensors")
        assert torch.equal(found["model/body.weight"], trained.model.body.weight)
        assert torch.equal(found["optimizer/state/0/exp_avg"], trained.optimizer.state_dict()["state"][0]["exp_avg"])
        assert {name.partition("/")[0] for name in found} == {"model", "optimizer", "extra", "rng"}

    def test_shards(self, trained: Trained, uri: str, call: Call, tmp_path: Path) -> None:
        assert call("export", uri, "--to", tmp_path / "out", "--max-shard-size", "200B")[0] == 0
        shards = sorted((tmp_path / "out").glob("model-*-of-*.safetensors"))
        found: dict[str, torch.Tensor] = {}
        for shard in shards:
            found |= safetensors.torch.load_file(shard)
        assert len(shards) > 1
        expected = trained.model.state_dict()
        del expected["head.weight"]
        assert same(found, expected)

    def test_the_same_parts_named_twice_count_once(
        self, trained: Trained, uri: str, call: Call, tmp_path: Path
    ) -> None:
        assert call("export", uri, "--to", tmp_path / "m.safetensors", "--only", "model", "--only", "model")[0] == 0
        assert "body.weight" in safetensors.torch.load_file(tmp_path / "m.safetensors")


class TestDistributedCheckpoint:
    def test_everything_loads_without_a_process_group(
        self, trained: Trained, uri: str, call: Call, tmp_path: Path
    ) -> None:
        code, out, err = call("export", uri, "--to", tmp_path / "out", "--format", "dcp", "--all")
        assert (code, err) == (0, "")
        assert "model, optimizer, extra, rng of step 2" in out
        fresh = Trained(9, 1)
        state: dict[str, Any] = {
            "model": fresh.model.state_dict(), "optimizer": fresh.optimizer.state_dict(),
            "extra": {"best": 0.0, "pair": None, "list": [torch.ones(1), ""], "shape": None},
            "rng": {"torch": torch.get_rng_state(), "python": None},
        }  # fmt: skip
        load(state, tmp_path / "out")
        fresh.model.load_state_dict(state["model"])
        fresh.optimizer.load_state_dict(state["optimizer"])
        assert same(fresh.model.state_dict(), trained.model.state_dict())
        for number, parts in trained.optimizer.state_dict()["state"].items():
            assert same(fresh.optimizer.state_dict()["state"][number], parts)
        assert fresh.optimizer.param_groups[0]["lr"] == trained.optimizer.param_groups[0]["lr"]
        extra = state["extra"]
        assert (extra["best"], extra["shape"], extra["list"][1]) == (0.5, torch.Size([2]), "x")
        assert torch.equal(extra["list"][0], torch.zeros(1))
        assert torch.equal(extra["pair"][0], torch.ones(2))
        assert extra["pair"][1] == 3
        kept = CheckpointManager(uri).read()["rng"]
        assert torch.equal(state["rng"]["torch"], kept["torch"])
        assert state["rng"]["python"] == kept["python"]

    def test_numpy_arrays_are_read_and_not_left_empty(self, uri: str, call: Call, tmp_path: Path) -> None:
        import numpy

        with CheckpointManager(uri) as manager:
            manager.save(1, {"model": torch.nn.Linear(1, 1), "stats": {"mean": numpy.arange(5.0), "n": numpy.int64(3)}})
        assert call("export", uri, "--to", tmp_path / "out", "--format", "dcp", "--only", "stats")[0] == 0
        state: dict[str, Any] = {"stats": {"mean": None, "n": None}}
        load(state, tmp_path / "out")
        assert state["stats"]["mean"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert state["stats"]["n"] == 3

    @pytest.mark.parametrize("dtype", ["bfloat16", "float8_e5m2fnuz", "complex64", "uint16", "bool"])
    def test_types_that_safetensors_lacks_are_kept(self, uri: str, call: Call, tmp_path: Path, dtype: str) -> None:
        kind = getattr(torch, dtype)
        held = torch.arange(6, dtype=torch.uint8).repeat(kind.itemsize)
        held = held.remainder(2).bool() if dtype == "bool" else held.view(kind)
        with CheckpointManager(uri) as manager:
            manager.save(1, {"model": {"w": held, "empty": torch.empty(0, dtype=kind)}})
        assert call("export", uri, "--to", tmp_path / "out", "--format", "dcp")[0] == 0
        state = {"model": {"w": torch.zeros_like(held), "empty": torch.empty(0, dtype=kind)}}
        load(state, tmp_path / "out")
        assert torch.equal(state["model"]["w"].view(torch.uint8), held.view(torch.uint8))

    def test_damage_leaves_nothing(self, trained: Trained, uri: str, call: Call, tmp_path: Path) -> None:
        damage(uri, "model/body.weight")
        code, _, err = call("export", uri, "--to", tmp_path / "exports", "--format", "dcp")
        assert code == 12
        assert "model/body.weight" in err
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
        self, trained: Trained, uri: str, tmp_path: Path
    ) -> None:
        (tmp_path / "exports").mkdir()
        limited = "ulimit -f 1; exec " + f"{sys.executable} -m unbroken export {uri} --to {tmp_path}/exports/out "
        done = subprocess.run(
            ["bash", "-c", limited + "--format dcp --all"], check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 74, done.stderr
        assert "could not be written" in done.stderr
        assert "Traceback" not in done.stderr
        assert list((tmp_path / "exports").iterdir()) == []

    def test_without_torch_it_says_how_to_get_it(
        self, trained: Trained, uri: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        code, _, err = call("export", uri, "--to", tmp_path / "out", "--format", "dcp")
        assert code == 78
        assert "pip install 'unbroken[torch]'" in err
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_the_state_is_not_held_in_memory(self, uri: str, tmp_path: Path) -> None:
        """12 tensors of 16 MiB, two of which are allowed at once."""
        with CheckpointManager(uri) as manager:
            manager.save(1, {"model": {f"w{i}": torch.full((4 << 20,), float(i)) for i in range(12)}})
        script = """
            import resource, sys
            from pathlib import Path
            from unbroken.checkpoint import load_manifest, streaming
            from unbroken.checkpoint.export import export_safetensors
            from unbroken.journal import Journal
            from unbroken.store import open_store
            from unbroken.training.export_dcp import export_dcp
            streaming.TensorStream.__init__.__kwdefaults__["ahead"] = 1
            journal = Journal.open(open_store(sys.argv[1]))
            manifest = load_manifest(journal.store, journal.state.checkpoints[-1])
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for write, name in ((export_dcp, "out"), (export_safetensors, "out.safetensors")):
                write(journal.store, manifest, ["model"], Path(sys.argv[2]) / name)
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
            """
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), uri, str(tmp_path)],
            check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert int(done.stdout) < 120  # MiB; the state has 192


def damage(uri: str, name: str) -> None:
    """Flip a bit of a tensor of the newest checkpoint."""
    store = open_store(uri)
    manifest = load_manifest(store, Journal.open(store).state.checkpoints[-1])
    (piece,) = manifest.tensor(name).slices
    flip_bit(store, manifest.packs[piece.pack].key, piece.start)


class TestCommand:
    @pytest.mark.parametrize("target", ["out.safetensors", "out"])
    def test_damage_ends_with_12_and_leaves_nothing(
        self, trained: Trained, uri: str, call: Call, tmp_path: Path, target: str
    ) -> None:
        damage(uri, "model/body.weight")
        code, out, err = call("export", uri, "--to", tmp_path / target)
        assert (code, out) == (12, "")
        assert "bytes of model/body.weight" in err
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_other_parts_of_a_damaged_checkpoint_are_exported(
        self, trained: Trained, uri: str, call: Call, tmp_path: Path
    ) -> None:
        damage(uri, "model/body.weight")
        assert call("export", uri, "--to", tmp_path / "o.safetensors", "--only", "optimizer")[0] == 0

    def test_nothing_is_replaced_without_force(self, trained: Trained, uri: str, call: Call, tmp_path: Path) -> None:
        target = tmp_path / "m.safetensors"
        target.write_text("precious")
        code, _, err = call("export", uri, "--to", target)
        assert code == 78
        assert "is there already" in err
        assert target.read_text() == "precious"
        assert call("export", uri, "--to", target, "--force")[0] == 0
        assert safetensors.torch.load_file(target)

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--only", "net"], 10, "holds no 'net'"),
            (["--only", "model", "--all"], 78, "exclude each other"),
            (["--step", "9"], 10, "no checkpoint of step 9"),
            (["--max-shard-size", "many"], 78, "'many' is no size"),
            (["--format", "dcp", "--max-shard-size", "5GB"], 78, "for safetensors alone"),
            (["--format", "gguf"], 78, "gguf"),
        ],
    )
    def test_what_cannot_be_done_says_why(
        self, trained: Trained, uri: str, call: Call, tmp_path: Path, arguments: list[str], code: int, message: str
    ) -> None:
        ended, _, err = call("export", uri, "--to", tmp_path / "out", *arguments)
        assert ended == code
        assert message in err
        assert not (tmp_path / "out").exists()

    def test_a_run_that_is_not_there(self, call: Call, tmp_path: Path) -> None:
        assert call("export", tmp_path / "none", "--to", tmp_path / "out.safetensors")[0] == 10

    def test_safetensors_are_written_without_torch(self, trained: Trained, uri: str, tmp_path: Path) -> None:
        script = (
            "import sys; sys.modules['torch'] = None\nfrom unbroken.cli import main\n"
            f"main(['export', {uri!r}, '--to', {str(tmp_path / 'm.safetensors')!r}])"
        )
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("5GB", 5 * 10**9), ("1.5 MiB", 1536 << 10), ("200b", 200), ("2tib", 2 << 40)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "1XB", "0.1B", "1 2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text)
