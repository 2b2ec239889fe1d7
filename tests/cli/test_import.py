"""unbroken import: weights of a file begin a new run, and nothing in a file is run."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import unbroken
from unbroken import CheckpointManager
from unbroken.checkpoint import load_manifest, verify_checkpoint
from unbroken.checkpoint.importing import import_state, open_source, safetensors_state
from unbroken.cli import main
from unbroken.errors import MismatchError, StoreError
from unbroken.journal import Journal, Origin
from unbroken.store import open_store
from unbroken.testing import FaultyStore

Call = Callable[..., tuple[int, str, str]]


def model_of(seed: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 6))


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def calling(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return int(leaving.value.code or 0), out, err

    return calling


@pytest.fixture(autouse=True)
def _quiet_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("UNBROKEN_SOCKET", "UNBROKEN_RUN", "UNBROKEN_EVERY", "UNBROKEN_KEEP", "UNBROKEN_GRACE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    hook = sys.excepthook
    yield
    sys.excepthook = hook


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return model_of(1).state_dict()


@pytest.fixture(params=["pt", "old.pt", "safetensors"])
def file(request: pytest.FixtureRequest, tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """The weights in each kind of file."""
    path = tmp_path / f"weights.{request.param}"
    if request.param == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=request.param == "pt")
    return path


class Training:
    """A run that begins with the imported model; optimizer and scheduler are its own."""

    def __init__(self, uri: str, seed: int = 5) -> None:
        self.model = model_of(seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.run = unbroken.Run(
            uri, every=2, state={"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        )
        self.began: list[int] = []
        self.first: dict[str, torch.Tensor] = {}

    def train(self, until: int, *, stop_after: int = -1) -> Training:
        with self.run:
            self.began.append(self.run.step)
            self.first = {name: value.clone() for name, value in self.model.state_dict().items()}
            for step in self.run.steps(until=until):
                loss = self.model(torch.randn(4, 6)).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                pending = self.run._opened.newest_save
                assert pending is None or pending.done.wait(60)
                if step == stop_after:
                    break
        return self


class TestTraining:
    def test_import_then_train_then_resume(
        self, file: Path, uri: str, call: Call, weights: dict[str, torch.Tensor]
    ) -> None:
        code, out, err = call("import", file, uri)
        assert (code, err) == (0, "")
        assert "step 0 holds model, 9 tensors" in out

        first = Training(uri).train(10, stop_after=6)
        assert first.began == [0]
        assert same(first.first, weights)
        second = Training(uri, seed=8).train(10)
        assert second.began == [6]

        reference = Training(uri + "-reference")
        reference.model.load_state_dict(weights)
        torch.manual_seed(5)
        model_of(5)
        reference.train(10)
        assert same(second.model.state_dict(), reference.model.state_dict())
        commits = Journal.open(open_store(uri)).state.commits
        assert [commit.step for commit in commits] == [0, 2, 4, 6, 8, 10]
        assert commits[1].event.parent == commits[0].event.manifest

    def test_only_an_imported_checkpoint_may_lack_objects(self, file: Path, uri: str, call: Call) -> None:
        call("import", file, uri)
        Training(uri).train(2)
        model = model_of(0)
        with pytest.raises(MismatchError, match="ema is not in the checkpoint"):
            unbroken.Run(uri, state={"model": model, "ema": model_of(0)}).__enter__()
        store = open_store(uri)
        manifests = [load_manifest(store, commit) for commit in Journal.open(store).state.commits]
        assert [manifest.partial for manifest in manifests] == [True, False]

    def test_a_model_that_does_not_fit_is_refused_naming_tensors(self, file: Path, uri: str, call: Call) -> None:
        call("import", file, uri)
        other = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.BatchNorm1d(9))
        with pytest.raises(MismatchError, match=r"0\.weight is float32\[8, 6\] in the checkpoint") as raised:
            unbroken.Run(uri, state={"model": other}).__enter__()
        assert "2.bias is only in the checkpoint" in str(raised.value)

    def test_a_program_that_calls_its_model_otherwise_is_refused(self, file: Path, uri: str, call: Call) -> None:
        call("import", file, uri)
        with pytest.raises(MismatchError, match="model is only in the checkpoint"):
            unbroken.Run(uri, state={"net": model_of(0)}).__enter__()

    def test_another_name_is_given_on_request(
        self, file: Path, uri: str, call: Call, weights: dict[str, torch.Tensor]
    ) -> None:
        assert call("import", file, uri, "--name", "net")[0] == 0
        net = model_of(0)
        run = unbroken.Run(uri, state={"net": net})
        with run:
            assert run.step == 0
        assert same(net.state_dict(), weights)

    def test_a_manager_reads_an_import_and_demands_a_part_of_it(
        self, file: Path, uri: str, call: Call, weights: dict[str, torch.Tensor]
    ) -> None:
        call("import", file, uri)
        state = {"model": model_of(0), "epoch": 3}
        assert CheckpointManager(uri).restore(state) == 0
        assert same(state["model"].state_dict(), weights)
        assert state["epoch"] == 3
        with pytest.raises(MismatchError, match="net is not in the checkpoint"):
            CheckpointManager(uri).restore({"net": model_of(0)})


class TestRun:
    def test_the_import_is_no_attempt_of_the_training(self, file: Path, uri: str, call: Call) -> None:
        call("import", file, uri)
        status = json.loads(call("status", uri, "--json")[1])
        assert (status["state"], status["durable"]["step"], status["attempts"]) == ("imported", 0, [])
        assert status["attempts_without_progress"] == 0
        assert "imported state; no training has begun" in call("status", uri)[1]
        Training(uri).train(2)
        status = json.loads(call("status", uri, "--json")[1])
        assert status["state"] == "finished"
        assert [(line["attempt"], line["lost_seconds"]) for line in status["attempts"]] == [(2, None)]

    def test_the_checkpoint_is_sound_and_its_attempt_ended(self, file: Path, uri: str, call: Call) -> None:
        call("import", file, uri)
        journal = Journal.open(open_store(uri))
        (attempt,) = journal.state.attempts.values()
        assert attempt.ended is not None
        assert (attempt.purpose, attempt.ended.cause, attempt.ended.last_step) == ("import", "imported", 0)
        assert verify_checkpoint(journal.store, journal.state.checkpoints[0]).problems == []

    def test_it_goes_to_any_store(self, tmp_path: Path, store_uri: str, weights: dict[str, torch.Tensor]) -> None:
        safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
        state = safetensors_state(open_source(tmp_path / "w.safetensors"), "w.safetensors", "model")
        import_state(open_store(store_uri, create=True), state, Origin("host", 1))
        assert same(CheckpointManager(store_uri).read()["model"], weights)

    def test_a_run_that_has_a_checkpoint_is_refused_and_nobody_is_fenced(
        self, file: Path, uri: str, call: Call
    ) -> None:
        with CheckpointManager(uri) as manager:
            manager.save(4, {"model": model_of(0)}).wait(60)
            code, _, err = call("import", file, uri)
            assert code == 78
            assert "has a checkpoint of step 4" in err
            manager.save(5, {"model": model_of(0)}).wait(60)
        assert len(Journal.open(open_store(uri)).state.attempts) == 1

    def test_an_attempt_that_never_saved_is_no_obstacle(self, file: Path, uri: str, call: Call) -> None:
        Journal.create(open_store(uri, create=True)).claim(Origin("host", 1))
        assert call("import", file, uri)[0] == 0

    def test_a_storage_that_fails_leaves_a_run_that_can_be_imported_into(
        self, tmp_path: Path, uri: str, weights: dict[str, torch.Tensor]
    ) -> None:
        safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
        state = safetensors_state(open_source(tmp_path / "w.safetensors"), "w.safetensors", "model")
        store = open_store(uri, create=True)
        with pytest.raises(StoreError):
            import_state(FaultyStore(store, fail_call=1, methods={"put"}), state, Origin("host", 1))
        (attempt,) = Journal.open(store).state.attempts.values()
        assert attempt.ended is not None
        assert attempt.ended.cause == "failed"
        import_state(store, state, Origin("host", 1))
        assert same(CheckpointManager(uri).read()["model"], weights)


class TestFiles:
    def test_an_export_comes_back_with_its_tied_weights(self, tmp_path: Path, call: Call) -> None:
        model = torch.nn.Module()
        model.embed, model.head = torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False)
        model.head.weight = model.embed.weight
        with CheckpointManager(str(tmp_path / "from")) as manager:
            manager.save(9, {"model": model}).wait(60)
        call("export", tmp_path / "from", "--to", tmp_path / "m.safetensors")
        assert call("import", tmp_path / "m.safetensors", tmp_path / "to")[0] == 0
        read = CheckpointManager(str(tmp_path / "to")).read()["model"]
        assert same(read, model.state_dict())
        assert read["head.weight"] is read["embed.weight"]

    def test_a_part_of_a_nested_file_and_tensors_that_are_views(self, tmp_path: Path, uri: str, call: Call) -> None:
        whole = torch.arange(24.0).view(4, 6)
        held = OrderedDict(turned=whole.t(), column=whole[:, 1], half=whole.half(), count=3)
        torch.save({"state_dict": held, "epoch": 3}, tmp_path / "w.ckpt")
        assert call("import", tmp_path / "w.ckpt", uri, "--key", "state_dict")[0] == 0
        read = CheckpointManager(uri).read()["model"]
        assert read.pop("count") == 3
        assert same(read, {"turned": whole.t(), "column": whole[:, 1], "half": whole.half()})

    def test_a_key_that_is_not_there_names_those_that_are(self, tmp_path: Path, uri: str, call: Call) -> None:
        torch.save({"model": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "w.pt")
        code, _, err = call("import", tmp_path / "w.pt", uri, "--key", "weights")
        assert code == 78
        assert "no 'weights' but model, epoch" in err

    def test_a_file_that_needs_unpickling_is_refused_and_not_run(self, tmp_path: Path, uri: str, call: Call) -> None:
        marker = tmp_path / "was-run"
        torch.save({"w": torch.ones(1), "evil": Evil(str(marker))}, tmp_path / "evil.pt")
        code, _, err = call("import", tmp_path / "evil.pt", uri)
        assert code == 78
        assert "does not load without running code from it" in err
        assert "torch.save(model.state_dict()" in err
        assert not marker.exists()
        assert not Path(uri).exists()

    def test_a_whole_model_is_refused_as_well(self, tmp_path: Path, uri: str, call: Call) -> None:
        torch.save(model_of(0), tmp_path / "model.pt")
        assert call("import", tmp_path / "model.pt", uri)[0] == 78

    @pytest.mark.parametrize("content", [b"PK\x03\x04 no archive", b"\x80\x02 no pickle", b"GGUF\x03\x00\x00\x00rest"])
    def test_other_files_are_refused(self, tmp_path: Path, uri: str, call: Call, content: bytes) -> None:
        (tmp_path / "x").write_bytes(content)
        code, _, err = call("import", tmp_path / "x", uri)
        assert code == 78, err
        assert "Traceback" not in err
        assert not Path(uri).exists()

    @pytest.mark.parametrize(
        ("fields", "code", "message"),
        [
            ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}, 12, "w is at bytes 0-80 of 8"),
            ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 12, "F32 of shape [3] with 8 bytes"),
            ({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, 12, "no sound safetensors file"),
            ({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, 12, "no sound safetensors file"),
            ({"w": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}, 78, "w in "),
            ({"__metadata__": {}}, 78, "holds no tensors"),
        ],
    )
    def test_a_safetensors_file_that_is_not_sound_is_refused(
        self, tmp_path: Path, uri: str, call: Call, fields: dict[str, Any], code: int, message: str
    ) -> None:
        header = json.dumps(fields).encode()
        (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        ended, _, err = call("import", tmp_path / "w", uri)
        assert ended == code
        assert message in err
        assert not Path(uri).exists()

    def test_a_truncated_safetensors_file_is_refused(
        self, tmp_path: Path, uri: str, call: Call, weights: dict[str, torch.Tensor]
    ) -> None:
        path = tmp_path / "w.safetensors"
        safetensors.torch.save_file(weights, path)
        whole = path.read_bytes()
        for length in (len(whole) - 1, 100):
            path.write_bytes(whole[:length])
            assert call("import", path, uri)[0] == 12

    def test_no_file_and_an_empty_one(self, tmp_path: Path, uri: str, call: Call) -> None:
        (tmp_path / "empty").touch()
        assert call("import", tmp_path / "none.pt", uri)[0] == 10
        assert call("import", tmp_path / "empty", uri)[0] == 78
        assert call("import", tmp_path, uri)[0] == 78

    @pytest.mark.parametrize("name", ["", "a/b", "$a", "rng"])
    def test_a_name_that_no_program_can_use_is_refused(self, file: Path, uri: str, call: Call, name: str) -> None:
        code, _, err = call("import", file, uri, "--name", name)
        assert code == 78
        assert "cannot name a part of the state" in err

    def test_without_torch_safetensors_alone_can_be_imported(
        self, file: Path, uri: str, weights: dict[str, torch.Tensor]
    ) -> None:
        script = (
            "import sys; sys.modules['torch'] = None\nfrom unbroken.cli import main\n"
            f"main(['import', {str(file)!r}, {uri!r}])"
        )
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
        if file.suffix == ".safetensors":
            assert done.returncode == 0, done.stderr
            assert same(CheckpointManager(uri).read()["model"], weights)
        else:
            assert done.returncode == 78
            assert "pip install 'unbroken[torch]'" in done.stderr


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.path),))
