from __future__ import annotations

import pytest

from unbroken.doctor import Place, store_bandwidth
from unbroken.doctor.store_bandwidth import check_bandwidth, judged
from unbroken.store import open_store
from unbroken.testing import FakeClock

MB = 1_000_000


@pytest.mark.parametrize(
    ("state", "grace", "severity", "text"),
    [
        (9_000 * MB, 100.0, "ok", "takes 1m30s"),
        (11_000 * MB, 100.0, "warning", "in time after a notice"),
        (13_000 * MB, 100.0, "warning", "a notice leaves 2m00s"),
        (13_000 * MB, 3600.0, "warning", "a notice leaves 2m00s"),
        (None, 30.0, "note", "a state of 3.0 GB fits"),
    ],
)
def test_a_save_is_held_against_the_notice_and_the_grace_period(
    state: int | None, grace: float, severity: str, text: str
) -> None:
    found = judged("measured", 100.0 * MB, state, grace)
    assert found.severity == severity
    assert text in found.found


def test_a_slow_line_is_not_given_the_larger_objects(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(FakeClock):
        def monotonic(self) -> float:  # each look at it takes 2 s: 1 MiB in 2 s
            self.advance(2.0)
            return super().monotonic()

    sizes = []

    class Counting:
        def __init__(self, store) -> None:
            self._store = store

        def put(self, key, parts) -> None:
            sizes.append(sum(map(len, parts)))
            self._store.put(key, parts)

        def __getattr__(self, name: str):
            return getattr(self._store, name)

    from unbroken.doctor import probe

    monkeypatch.setattr(probe, "open_store", lambda uri, **options: Counting(open_store(uri, **options)))
    (found,) = check_bandwidth(Place(uri=str(tmp_path), clock=Slow()))
    assert sizes == [store_bandwidth._SIZES[0]]
    assert "524 kB/s to the store" in found.found
    assert not list(tmp_path.iterdir())
