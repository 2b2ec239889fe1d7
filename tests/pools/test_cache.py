"""Answers are kept for a while, with their age, and never in the way."""

from __future__ import annotations

from pathlib import Path

from unbroken.pools.cache import Cache
from unbroken.pools.facts import Reading, SpotPrice
from unbroken.testing import FakeClock


class Source:
    def __init__(self, clock: FakeClock, problems: tuple[str, ...] = ()) -> None:
        self.asked, self._clock, self._problems = 0, clock, problems

    def ask(self) -> Reading:
        self.asked += 1
        fact = SpotPrice("p4d", "us-east-1", "us-east-1a", 10.0 + self.asked, 5.0)
        return Reading("source", self._clock.now(), (fact,), self._problems)


def test_a_young_answer_is_taken_again_and_an_old_one_is_not(tmp_path: Path) -> None:
    clock = FakeClock(1000.0)
    source, cache = Source(clock), Cache(tmp_path / "cache", 60.0, clock)
    first = cache.get("a", source.ask)
    clock.advance(59.0)
    assert cache.get("a", source.ask) == first
    assert cache.get("b", source.ask) != first  # another question
    clock.advance(2.0)
    assert cache.get("a", source.ask).at == clock.now()
    assert source.asked == 3


def test_an_answer_with_problems_is_asked_again(tmp_path: Path) -> None:
    clock = FakeClock(1000.0)
    source, cache = Source(clock, ("denied",)), Cache(tmp_path, 60.0, clock)
    cache.get("a", source.ask)
    cache.get("a", source.ask)
    assert source.asked == 2


def test_a_cache_that_is_damaged_or_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    clock = FakeClock(1000.0)
    source, cache = Source(clock), Cache(tmp_path, 60.0, clock)
    cache.get("a", source.ask)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"{")
    cache.get("a", source.ask)
    (tmp_path / "file").write_bytes(b"")
    Cache(tmp_path / "file" / "below", 60.0, clock).get("a", source.ask)
    assert source.asked == 3
