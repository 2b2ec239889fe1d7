"""The interpreter of the training, played by small scripts, and this very one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from unbroken.doctor import Place
from unbroken.doctor.interpreter import NoInterpreterError, ask
from unbroken.doctor.torchrun import check_interpreter, missing_options
from unbroken.version import __version__

_HELP = "--nnodes --nproc_per_node --rdzv-backend --rdzv-endpoint --rdzv-id --rdzv-conf --local-addr --max-restarts"


def _python(folder: Path, versions: Any, help_script: str = f"echo '{_HELP}'") -> str:
    """A program that answers as an interpreter with these versions."""
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = -m ]; then {help_script}; else echo '{json.dumps(versions)}'; fi\n")
    path.chmod(0o755)
    return str(path)


def _severities(python: str, ranks: int = 1) -> list[tuple[str, str]]:
    found = check_interpreter(Place(argv=[python, "train.py"], ranks=ranks))
    return [(one.severity, one.found.replace(python, "python")) for one in found]


def test_this_interpreter_is_sound() -> None:
    if Path(sys.executable).name.rstrip("0123456789.") != "python":
        pytest.skip("this interpreter has another name")
    found = check_interpreter(Place(argv=[sys.executable, "train.py"], ranks=2))
    assert found[0].severity == "ok"
    assert [one.severity for one in found if "torchrun" in one.found] == ["ok"]


def test_everything_there_is_sound(tmp_path: Path) -> None:
    python = _python(tmp_path, {"python": "3.12.1", "unbroken": __version__, "torch": "2.13.0+cpu"})
    assert _severities(python, 4) == [
        ("ok", f"python (3.12.1) has unbroken {__version__}"),
        ("ok", "torchrun of torch 2.13.0+cpu takes all the options that are used"),
    ]


def test_an_interpreter_without_unbroken_or_torch_is_an_error(tmp_path: Path) -> None:
    found = _severities(_python(tmp_path, {"python": "3.12.1", "unbroken": None, "torch": None}))
    assert found == [("error", "python (3.12.1) has no unbroken"), ("error", "python (3.12.1) has no torch")]


def test_another_version_of_unbroken_is_a_warning(tmp_path: Path) -> None:
    found = _severities(_python(tmp_path, {"python": "3.12.1", "unbroken": "99.1", "torch": "2.4.0"}))
    assert found[0] == ("warning", f"python (3.12.1) has unbroken 99.1, and this is {__version__}")


@pytest.mark.parametrize(
    ("torch", "severity"), [("2.3.1", "error"), ("1.13", "error"), ("2.4", "ok"), ("2.10.0", "ok")]
)
def test_torch_from_2_4_on_is_needed(tmp_path: Path, torch: str, severity: str) -> None:
    found = _severities(_python(tmp_path, {"python": "3.12.1", "unbroken": __version__, "torch": torch}))
    assert found[1][0] == severity


@pytest.mark.parametrize(("ranks", "severity"), [(1, "note"), (8, "error")])
@pytest.mark.parametrize("script", ["echo --nnodes", "echo 'ImportError: libcudart' >&2; exit 1"])
def test_a_torchrun_that_cannot_be_used_matters_to_several_ranks(
    tmp_path: Path, ranks: int, severity: str, script: str
) -> None:
    versions = {"python": "3.12.1", "unbroken": __version__, "torch": "2.5.0"}
    found = _severities(_python(tmp_path, versions, script), ranks)
    assert found[1][0] == severity
    assert "--rdzv-backend" in found[1][1] or "ImportError: libcudart" in found[1][1]


def test_a_program_that_is_no_python_is_an_error(tmp_path: Path) -> None:
    assert _severities(_python(tmp_path, "hello")) == [("error", "python does not answer as Python does")]
    assert _severities(str(tmp_path / "missing/python"))[0][0] == "error"


def test_a_command_that_is_no_python_was_not_asked() -> None:
    (found,) = check_interpreter(Place(argv=["bash", "train.sh"]))
    assert found.severity == "note"
    assert "'bash' is not Python" in found.found


def test_the_environment_of_the_training_is_what_the_interpreter_sees(tmp_path: Path) -> None:
    assert ask(["sh", "-c", "echo $WORD"], {"WORD": "told"}, 60.0) == "told\n"


def test_an_interpreter_that_hangs_is_given_up() -> None:
    with pytest.raises(NoInterpreterError, match="took longer than"):
        ask(["sh", "-c", "sleep 600 & sleep 600"], {}, 0.1)


def test_options_are_known_with_dashes_or_underscores() -> None:
    assert missing_options(_HELP) == []
    assert missing_options(_HELP.replace("--local-addr", "--local_address")) == ["--local-addr"]
