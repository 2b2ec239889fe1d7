from __future__ import annotations

import pytest

from unbroken.errors import ConfigError
from unbroken.notice.grace import grace_from


@pytest.mark.parametrize(("text", "seconds"), [("45", 45.0), ("1.5", 1.5), ("90s", 90.0), ("2min", 120.0)])
def test_grace_is_seconds_or_a_duration(text: str, seconds: float) -> None:
    assert grace_from(text) == seconds


def test_grace_comes_from_the_option_then_the_environment_then_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNBROKEN_GRACE", raising=False)
    assert grace_from(None) == 30.0
    monkeypatch.setenv("UNBROKEN_GRACE", "100")
    assert grace_from(None) == 100.0
    assert grace_from("50") == 50.0


@pytest.mark.parametrize("text", ["soon", "-3", "0", "nan"])
def test_grace_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grace_from(text)
    assert caught.value.kind == "duration"
