"""The Azure source against scheduled events of this machine, of others, and of nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.notice import AzureSource, InterruptionAdvisory, InterruptionNotice, SourceError, local_http
from unbroken.notice.azure import NAME_PATH, ScheduledEvent, parse_events
from unbroken.testing import AzureMetadataService, FakeClock, GCPMetadataService


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> Iterator[AzureMetadataService]:
    with AzureMetadataService(clock=clock) as service:
        yield service


@pytest.fixture
def source(service: AzureMetadataService, clock: FakeClock) -> AzureSource:
    return AzureSource(service.endpoint, clock=clock)


def test_a_quiet_machine_gives_nothing_and_is_not_asked_its_name(
    service: AzureMetadataService, source: AzureSource
) -> None:
    assert source.poll() == []
    assert source.reach().answers
    assert service.requests[f"GET {NAME_PATH}"] == 0


@pytest.mark.parametrize(
    ("event_type", "words"),
    [("Preempt", "preempt"), ("Terminate", "delete"), ("Reboot", "reboot"), ("Redeploy", "move to another host")],
)
def test_an_event_that_ends_the_machine_is_a_notice_with_its_moment(
    service: AzureMetadataService, source: AzureSource, clock: FakeClock, event_type: str, words: str
) -> None:
    event = service.schedule(event_type, 45)  # type: ignore[arg-type]
    (notice,) = source.poll()
    assert isinstance(notice, InterruptionNotice)
    assert notice.deadline == int(clock.now()) + 45
    assert words in notice.reason
    assert event in notice.reason


def test_a_freeze_is_an_advisory(service: AzureMetadataService, source: AzureSource) -> None:
    service.schedule("Freeze", 900)
    assert [type(event) for event in source.poll()] == [InterruptionAdvisory]


def test_events_of_other_machines_are_not_ours_and_names_differ_in_case(
    service: AzureMetadataService, source: AzureSource
) -> None:
    service.schedule(resources=["vm-1", "vm-2"])
    assert source.poll() == []
    service.schedule(resources=["vm-1", "VM-0"])
    assert len(source.poll()) == 1
    assert service.requests[f"GET {NAME_PATH}"] == 1


def test_the_machines_own_name_may_be_written_in_capitals(service: AzureMetadataService, source: AzureSource) -> None:
    service.machine = "VM-0"
    service.schedule(resources=["vm-0"])
    assert len(source.poll()) == 1


def test_an_event_is_ours_where_the_name_of_the_machine_cannot_be_learnt(
    service: AzureMetadataService, source: AzureSource
) -> None:
    service.machine = ""
    service.schedule(resources=["vm-1"])
    assert len(source.poll()) == 1


def test_a_cancelled_event_is_announced_no_more(service: AzureMetadataService, source: AzureSource) -> None:
    event = service.schedule()
    assert len(source.poll()) == 1
    service.cancel(event)
    assert source.poll() == []


def test_an_event_that_has_started_keeps_the_moment_it_had(
    service: AzureMetadataService, source: AzureSource, clock: FakeClock
) -> None:
    event = service.schedule(seconds=40)
    before = source.poll()
    clock.advance(10)
    service.start(event)
    assert source.poll() == before


def test_an_event_that_had_started_before_it_was_heard_leaves_30_seconds(
    service: AzureMetadataService, source: AzureSource, clock: FakeClock
) -> None:
    service.start(service.schedule(seconds=-100))
    (notice,) = source.poll()
    assert isinstance(notice, InterruptionNotice)
    assert notice.deadline == clock.now() + 30


@pytest.mark.parametrize("mode", ["garbage", "error500", "hang"])
def test_an_outage_is_said_once_and_cancels_nothing(
    service: AzureMetadataService, source: AzureSource, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(local_http, "_READ_TIMEOUT", 0.05)
    service.schedule()
    before = source.poll()
    assert len(before) == 1
    service.misbehave(mode)  # type: ignore[arg-type]
    assert source.poll() == source.poll() == before
    with pytest.raises(SourceError, match="Azure metadata service"):
        source.poll()
    assert source.poll() == before


def test_another_service_is_silent_and_soon_asked_rarely(clock: FakeClock) -> None:
    with GCPMetadataService() as other:
        source = AzureSource(other.endpoint, clock=clock)
        assert [source.poll() for _ in range(4)] == [[]] * 4
        assert source.interval() == 60.0


def test_nothing_is_acknowledged_unless_it_was_asked_for(service: AzureMetadataService, source: AzureSource) -> None:
    service.schedule()
    source.poll()
    source.acknowledge()
    assert service.acknowledged == []


def test_an_event_of_this_machine_alone_is_acknowledged_on_request(
    service: AzureMetadataService, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNBROKEN_AZURE_ACKNOWLEDGE", "true")
    monkeypatch.setenv("UNBROKEN_AZURE_METADATA", service.endpoint)
    source = AzureSource(clock=clock)
    ours = service.schedule()
    service.schedule("Freeze")
    service.schedule("Reboot", resources=["vm-0", "vm-1"])
    source.poll()
    source.acknowledge()
    assert service.acknowledged == [ours]


def test_an_acknowledgement_that_is_refused_is_said(service: AzureMetadataService, clock: FakeClock) -> None:
    source = AzureSource(service.endpoint, acknowledging=True, clock=clock)
    service.cancel(event := service.schedule())
    source._mine = [ScheduledEvent(event, "preempt", "scheduled", ("vm-0",), 0.0)]
    with pytest.raises(SourceError, match="status 400"):
        source.acknowledge()


@given(st.binary() | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner)
    | st.dictionaries(st.sampled_from(["Events", "EventId", "EventType", "NotBefore", "Resources"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_a_document_is_read_or_refused_with_a_value_error(document: bytes) -> None:
    try:
        events = parse_events(document)
    except ValueError:
        return
    assert all(isinstance(event, ScheduledEvent) for event in events)
