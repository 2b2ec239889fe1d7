"""What the loop counts as lost, and whose mistake ends the benchmark."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROBE = {"rows": 0, "device_s": 0.0}


class Time:
    """Time that passes only when something says that it took some."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeTraining:
    def __init__(self, time: Time, busy: list[bool]) -> None:
        self.clock, self.busy, self.steps = time, busy, 0

    def timed_step(self) -> float:
        self.steps += 1
        seconds = 1.5 if self.busy[0] else 1.0
        self.clock.now += seconds
        return seconds

    def digests(self) -> list[str]:
        return [str(self.steps)]


class SlowSaving:
    """Blocks for half a second, then slows the training until it is durable three seconds later."""

    def __init__(self, time: Time, busy: list[bool]) -> None:
        self.clock, self.busy, self.durable = time, busy, []  # type: ignore[var-annotated]

    def open(self, every: int) -> None:
        self.every = every

    def boundary(self, step: int, *, due: bool) -> bool:
        self.busy[0] = bool(self.durable) and self.clock.now < self.durable[-1]
        if due:
            self.clock.now += 0.5
            self.durable.append(self.clock.now + 2.5)
            self.busy[0] = True
        return due

    def close(self) -> list[float]:
        return self.durable


class Store:
    def stored(self) -> int:
        return 7


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import loop

    return loop


def test_lost_is_the_stall_and_by_how_much_the_steps_after_it_were_longer(
    loop: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, busy = Time(), [False]
    monkeypatch.setattr(loop, "time", time)
    saving = SlowSaving(time, busy)
    done = loop.Loop(saving, FakeTraining(time, busy), Store(), every=8, saves=2).run()
    assert saving.every == 8
    assert [save["stall"] for save in done["saves"]] == [0.5, 0.5]
    # Durable 2.5 s after the stall: two steps of 1.5 s begin before that.
    assert [save["lost"] for save in done["saves"]] == [pytest.approx(1.5), pytest.approx(1.5)]
    assert [save["durable"] for save in done["saves"]] == [3.0, 3.0]
    assert done["digests"] == [str(5 + 16)]  # of the boundary at which the last save began, after five warm steps
    assert not any(save["whole_period"] for save in done["saves"])


class LateSaving(SlowSaving):
    """Is not ready when the second save is due, and begins it three steps later."""

    def boundary(self, step: int, *, due: bool) -> bool:
        return super().boundary(step, due=due and not 16 <= step < 19)


def test_the_digests_are_those_of_the_boundary_at_which_a_late_save_began(
    loop: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, busy = Time(), [False]
    monkeypatch.setattr(loop, "time", time)
    saving = LateSaving(time, busy)
    done = loop.Loop(saving, FakeTraining(time, busy), Store(), every=8, saves=2).run()
    assert len(saving.durable) == 2  # and no third one, though a multiple of eight came soon after
    assert done["digests"] == [str(5 + 19)]


def test_a_torn_peer_is_counted_and_a_torn_unbroken_ends_the_benchmark(
    loop: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import save_restore
    from repetition import TornError, difference

    assert difference(["a", "b"], ["a", "b"]) == ""
    assert "differing: [1]" in difference(["a", "b"], ["a", "c"])
    assert difference(["a"], []) != ""
    assert difference([], []) != ""

    class Torn:
        def run(self, name: str, **_: Any) -> dict[str, Any]:
            return {"torn": "differing: [0]", "saved": {"saves": []}, "restored": {}, "left": {}}

    samples: dict[str, Any] = {
        name: {"saved": [], "restored": [], "memory": None, "torn": 0, "left": [], "failed": []}
        for name in ("dcp", "unbroken")
    }
    save_restore._measure_one(Torn(), "dcp", samples, {}, 6, PROBE)
    assert samples["dcp"]["torn"] == 1
    with pytest.raises(TornError, match="unbroken"):
        save_restore._measure_one(Torn(), "unbroken", samples, {}, 6, PROBE)


def test_a_peer_that_never_works_is_out_with_its_reason_and_ours_ends_the_benchmark(loop: ModuleType) -> None:
    import save_restore
    from repetition import MethodFailedError

    class Failing:
        def run(self, name: str, **_: Any) -> dict[str, Any]:
            ignored = "Exception ignored in: <function __del__>\nTraceback:\n  File x\n    at\nAttributeError: gone\n"
            raise MethodFailedError(name, f"Traceback\n  somewhere\nOSError: no CUDA\n{ignored}")

    names = ("dlrover", "dcp", "unbroken")
    samples: dict[str, Any] = {name: {"saved": [], "torn": 0, "failed": []} for name in names}
    samples["dcp"]["saved"].append("once")
    skipped: dict[str, str] = {}
    for name in ("dlrover", "dlrover", "dlrover", "dcp", "dcp", "dcp"):
        save_restore._measure_one(Failing(), name, samples, skipped, 6, PROBE)
    assert skipped == {"dlrover": "failed: OSError: no CUDA"}
    assert samples["dcp"]["failed"] == ["OSError: no CUDA"] * 3
    assert list(samples) == ["dcp", "unbroken"]
    with pytest.raises(MethodFailedError):
        save_restore._measure_one(Failing(), "unbroken", samples, skipped, 6, PROBE)


def test_forward_and_backward_change_every_gradient_and_nothing_of_the_state(loop: ModuleType) -> None:
    from training_state import Training

    training = Training(300_000, seed=1, rows=8, frozen=0.5)
    before = training.digests()
    gradients = [parameter.grad.clone() for parameter in training.trained if parameter.grad is not None]
    assert len(gradients) == 5
    training.forward_backward()
    assert training.digests() == before
    for parameter, old in zip(training.trained, gradients, strict=True):
        assert parameter.grad is not None
        assert not parameter.grad.equal(old)
    training.timed_step()
    changed = [old != new for old, new in zip(before, training.digests(), strict=True)]
    assert changed.count(False) == 5  # the frozen ones
    assert training.size - training.trained_size == 5 * training.model[0].numel() * 4


def test_a_device_takes_its_time_and_leaves_other_gradients_without_a_core(
    loop: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training_state

    time = Time()
    monkeypatch.setattr(training_state, "time", time)
    training = training_state.Training(300_000, seed=1, frozen=0.5, device_s=0.25)
    values = {gradient.data_ptr(): gradient.clone() for pair in training._from_device for gradient in pair}
    before = training.digests()
    used = set()
    for turn in range(20):
        training.forward_backward()
        assert time.now == 1000.0 + 0.25 * (turn + 1)
        used |= {parameter.grad.data_ptr() for parameter in training.trained if parameter.grad is not None}
    assert training.digests() == before
    assert used == set(values)  # all of them come by turns, and nobody has written to one
    assert all(gradient.equal(values[gradient.data_ptr()]) for pair in training._from_device for gradient in pair)
    training.timed_step()
    assert [old != new for old, new in zip(before, training.digests(), strict=True)].count(
        False
    ) == 5  # the frozen ones
