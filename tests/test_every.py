"""Cadences as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.every import Auto, Every, parse_every


@pytest.mark.parametrize(
    ("text", "every"),
    [
        (5, Every(steps=5)),
        ("500", Every(steps=500)),
        ("10min", Every(seconds=600)),
        ("1h 30s", Every(seconds=3630)),
        ("auto", Every(auto=Auto(cap=0.01, loss=1800))),
        (" Auto ", Every(auto=Auto())),
        ("auto,cap=2.5%", Every(auto=Auto(cap=0.025))),
        ("auto,loss=15min", Every(auto=Auto(loss=900))),
        ("auto, loss = 1h 30min , cap = 3 %", Every(auto=Auto(0.03, 5400))),
    ],
)
def test_steps_durations_and_auto_are_read(text: int | str, every: Every) -> None:
    assert parse_every(text) == every


@pytest.mark.parametrize(
    "wrong", [0, -3, "0", "-5", "", "often", 2.5, True, None, "10 parsecs", "--5", "²", "automatic", "10min,loss=5min"]
)
def test_what_is_no_cadence_is_refused_with_examples(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"'10min'.*cap=1%") as raised:
        parse_every(wrong)  # type: ignore[arg-type]
    assert raised.value.kind == "every"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("auto,cap=1", "cap: '1' is no share"),
        ("auto,cap=0%", "cap: '0%' is no share"),
        ("auto,cap=100%", "cap: '100%' is no share"),
        ("auto,cap=-1%", "cap: '-1%' is no share"),
        ("auto,cap", "cap: '' is no share"),
        ("auto,loss=15", "loss: '15' is not a duration"),
        ("auto,loss=", "loss: '' is not a duration"),
        ("auto,", "no option ''"),
        ("auto,cup=1%", "no option 'cup'. Did you mean 'cap'"),
        ("auto,Loss=15min", "no option 'Loss'. Did you mean 'loss'"),
        ("auto,cap=1%,cap=2%", "gives cap twice"),
    ],
)
def test_wrong_options_of_auto_are_named(wrong: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_every(wrong)
    assert words in str(raised.value)
    assert "auto,cap=1%,loss=15min" in raised.value.hint


@given(st.integers(1, 9999), st.integers(1, 10**6))
def test_every_cap_and_loss_that_is_written_is_read(hundredths: int, seconds: int) -> None:
    text = f"auto,cap={hundredths / 100}%,loss={seconds}s"
    auto = parse_every(text).auto
    assert auto is not None
    assert auto.cap == pytest.approx(hundredths / 10_000)
    assert auto.loss == seconds
