"""What tests of several verbs call."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unbroken.cli import main


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command; gives exit code, output and errors."""

    def calling(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(leaving.value.code or 0), out, err

    return calling
