"""How the command starts: lightly, and with an exit code that tells a job manager not to try again."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HEAVY = {"torch", "numpy", "rich", "pydantic", "obstore", "boto3", "xxhash", "yaml"}

_START = f"""
import sys
from unbroken.cli import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    print("left with", leaving.code)
print("loaded", sorted({_HEAVY!r} & set(sys.modules)))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]], ids=str)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    done = run("-c", _START, *arguments)
    assert done.stdout.splitlines()[-2:] == ["left with 0", "loaded []"], done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = run("-c", f"import sys, unbroken; assert not {_HEAVY!r} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_help_lists_the_verbs() -> None:
    done = run("-m", "unbroken", "--help")
    assert done.returncode == 0
    for verb in ("run", "drill", "status", "ls", "show", "verify", "export", "import"):
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"]], ids=str)
def test_what_the_command_does_not_know_is_a_configuration_error_that_names_it(arguments: list[str]) -> None:
    done = run("-m", "unbroken", *arguments)
    assert done.returncode == 78
    assert "frobnicate" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_verb_at_all_shows_the_help_and_is_a_configuration_error() -> None:
    done = run("-m", "unbroken")
    assert done.returncode == 78
    assert "Commands:" in done.stderr
