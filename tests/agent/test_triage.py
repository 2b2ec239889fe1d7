"""What happens to uploads that wait, with a clock that the test holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from unbroken.agent.arena import HeldSlot, Taken
from unbroken.agent.bandwidth import BandwidthMeter
from unbroken.agent.emergency import Action
from unbroken.agent.triage import Triage, Upload
from unbroken.testing.clock import FakeClock

MB = 1 << 20
SIZE = 100 * MB


class Scene:
    """Uploads of 100 MB at 10 MB/s, of which the choice counts on 8."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.meter = BandwidthMeter(self.clock)
        self.descriptor = os.memfd_create("state")
        os.ftruncate(self.descriptor, SIZE)
        self.triage = Triage(self.meter, self.clock)
        with self.meter.upload():
            for _ in range(20):
                self.clock.advance(1)
                self.meter.sent(10 * MB)

    def upload(self, step: int, **more: Any) -> Upload:
        state = SimpleNamespace(checkpoints=[])
        claim = SimpleNamespace(journal=SimpleNamespace(state=state))
        writer: Any = SimpleNamespace(expected=lambda size: size, claim=claim)
        slot = HeldSlot(0, self.descriptor, object())
        trainer: Any = object()
        return Upload(writer, trainer, Taken(slot, self.descriptor), step, **more)

    def press(self, seconds: float) -> None:
        self.triage.press(self.clock.monotonic() + seconds)


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    os.close(scene.descriptor)


def action(choice: Any) -> Action | None:
    return None if choice is None else choice.action


def test_nothing_is_chosen_without_a_notice_or_before_the_stop_step_is_known(scene: Scene) -> None:
    assert scene.triage.weigh([scene.upload(4), scene.upload(8)], 2) is None
    scene.press(100)
    assert scene.triage.weigh([scene.upload(4), scene.upload(8)], 2) is None


def test_older_state_gives_way_once_the_stop_step_is_sealed(scene: Scene) -> None:
    older, stop = scene.upload(40, sent=20 * MB), scene.upload(90)
    scene.press(15)
    scene.triage.stopping(90)
    assert action(scene.triage.weigh([older], 2)) is Action.REPLACE
    assert older.abandoned == ""  # if the trainer dies while it stages, this is all there is
    assert scene.triage.weigh([older, stop], 2) is None
    assert older.abandoned == "for step 90"
    assert (older.hurry.is_set(), stop.abandoned) == (True, "")


def test_older_state_gives_way_at_once_where_it_has_the_only_slot(scene: Scene) -> None:
    older = scene.upload(40, sent=20 * MB)
    scene.press(15)
    scene.triage.stopping(90)
    assert action(scene.triage.weigh([older], 1)) is Action.REPLACE
    assert older.abandoned == "for step 90"


def test_both_are_uploaded_where_there_is_time_and_one_choice_is_enough(scene: Scene) -> None:
    older, stop = scene.upload(40), scene.upload(90)
    scene.press(60)
    scene.triage.stopping(90)
    assert action(scene.triage.weigh([older], 2)) is Action.BOTH
    assert scene.triage.weigh([older, stop], 2) is None
    assert older.abandoned == ""


def test_choice_is_made_anew_when_the_deadline_comes_nearer(scene: Scene) -> None:
    older, stop = scene.upload(40), scene.upload(90)
    scene.press(60)
    scene.triage.stopping(90)
    scene.triage.weigh([older, stop], 2)
    scene.press(15)
    assert action(scene.triage.weigh([older, stop], 2)) is Action.REPLACE
    assert older.abandoned == "for step 90"


def test_newest_of_a_dead_trainers_two_states_goes_first_where_one_fits(scene: Scene) -> None:
    older, newest = scene.upload(40, orphan=True), scene.upload(90, orphan=True)
    scene.press(15)
    assert action(scene.triage.weigh([older, newest], 2)) is Action.REPLACE
    assert older.abandoned == "for step 90"


def test_only_state_is_uploaded_whether_or_not_it_fits(scene: Scene) -> None:
    stop = scene.upload(90)
    scene.press(1)
    scene.triage.stopping(90)
    assert scene.triage.weigh([], 2) is None
    assert action(scene.triage.weigh([stop], 2)) is Action.ONLY
    stop.sent = 50 * MB
    assert scene.triage.weigh([stop], 2) is None
    assert stop.abandoned == ""


def test_next_attempt_begins_without_the_last_ones_stop_step(scene: Scene) -> None:
    scene.press(60)
    scene.triage.stopping(90)
    scene.triage.forget()
    assert scene.triage.weigh([scene.upload(91)], 2) is None


def test_upload_that_has_ended_is_no_longer_weighed_and_may_have_lost_its_descriptor(scene: Scene) -> None:
    scene.press(100)
    first, stop = scene.upload(4), scene.upload(8)
    lost = os.dup(scene.descriptor)
    ended = scene.upload(2, ended=True)
    ended.taken = Taken(ended.taken.slot, lost)
    os.close(lost)
    scene.triage.stopping(8)
    assert ended.expected() == SIZE
    choice = scene.triage.weigh([ended, first, stop], 2)
    assert choice is not None
    assert choice.situation.in_flight is not None
    assert choice.situation.in_flight.step == 4
    assert scene.triage.weigh([ended], 2) is None


def test_choice_that_stays_is_not_said_again_while_the_bandwidth_is_being_measured(scene: Scene) -> None:
    older, stop = scene.upload(40), scene.upload(90)
    scene.press(600)
    scene.triage.stopping(90)
    first = scene.triage.weigh([older, stop], 2)
    assert action(first) is Action.BOTH
    with scene.meter.upload():
        for _ in range(20):
            scene.clock.advance(1)
            scene.meter.sent(50 * MB)
            assert scene.triage.weigh([older, stop], 2) is None
    assert scene.triage._choice is not first  # it was made anew all the same


def test_parts_of_several_ranks_are_weighed_together(scene: Scene) -> None:
    """Each of two takes 12.5 s at the careful bandwidth."""
    older = [scene.upload(40, peers=2) for _ in range(2)]
    stop = scene.upload(90, peers=2)
    scene.press(40)
    scene.triage.stopping(90)
    choice = scene.triage.weigh([*older, stop], 2)
    assert action(choice) is Action.REPLACE
    assert choice is not None
    assert (choice.situation.stop_bytes, choice.situation.in_flight.left) == (2 * SIZE, 2 * SIZE)
    assert [upload.abandoned for upload in (*older, stop)] == ["for step 90", "for step 90", ""]


def test_last_part_of_the_stop_step_is_finished(scene: Scene) -> None:
    last = scene.upload(90, peers=2, sent=10 * MB)
    scene.press(5)
    scene.triage.stopping(90)
    assert action(scene.triage.weigh([last], 2)) is Action.FINISH
    assert last.abandoned == ""
