"""The GCP source against a metadata server that behaves, misbehaves, or is something else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unbroken.errors import ConfigError
from unbroken.notice import GCPSource, InterruptionAdvisory, InterruptionNotice, SourceError, local_http
from unbroken.testing import AzureMetadataService, EC2MetadataService, FakeClock, GCPMetadataService


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service() -> Iterator[GCPMetadataService]:
    with GCPMetadataService() as service:
        yield service


@pytest.fixture
def source(service: GCPMetadataService, clock: FakeClock) -> GCPSource:
    return GCPSource(service.endpoint, gpu=False, clock=clock)


def test_a_quiet_instance_gives_nothing(source: GCPSource) -> None:
    assert source.poll() == []
    assert source.reach().answers


def test_a_preemption_leaves_30_seconds_from_when_it_was_first_heard(
    service: GCPMetadataService, source: GCPSource, clock: FakeClock
) -> None:
    service.preempt()
    expected = InterruptionNotice("gcp", "GCP preempts this instance", clock.now() + 30)
    first = source.poll()
    clock.advance(10)
    assert first == source.poll() == [expected]


@pytest.mark.parametrize(("gpu", "seconds"), [(False, 60), (True, 3600)])
def test_a_stop_for_maintenance_leaves_a_minute_and_with_a_gpu_an_hour(
    service: GCPMetadataService, clock: FakeClock, gpu: bool, seconds: int
) -> None:
    service.maintain()
    (notice,) = GCPSource(service.endpoint, gpu=gpu, clock=clock).poll()
    assert isinstance(notice, InterruptionNotice)
    assert notice.deadline == clock.now() + seconds


def test_maintenance_that_is_called_off_is_announced_no_more(
    service: GCPMetadataService, source: GCPSource, clock: FakeClock
) -> None:
    service.maintain()
    assert len(source.poll()) == 1
    service.maintain("NONE")
    assert source.poll() == []
    clock.advance(1000)
    service.maintain()
    (again,) = source.poll()
    assert isinstance(again, InterruptionNotice)
    assert again.deadline == clock.now() + 60


def test_a_live_migration_is_an_advisory(service: GCPMetadataService, source: GCPSource) -> None:
    service.maintain("MIGRATE_ON_HOST_MAINTENANCE")
    assert [type(event) for event in source.poll()] == [InterruptionAdvisory]


@pytest.mark.parametrize("mode", ["garbage", "error500", "hang"])
def test_an_outage_is_said_once_and_cancels_nothing(
    service: GCPMetadataService, source: GCPSource, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(local_http, "_READ_TIMEOUT", 0.05)
    service.preempt()
    before = source.poll()
    service.misbehave(mode)  # type: ignore[arg-type]
    assert source.poll() == source.poll() == before
    with pytest.raises(SourceError, match="GCP metadata server"):
        source.poll()
    assert source.poll() == before
    assert source.interval() == 1.0


@pytest.mark.parametrize("kind", [EC2MetadataService, AzureMetadataService])
def test_the_service_of_another_cloud_is_no_google_and_soon_asked_rarely(
    kind: type[EC2MetadataService | AzureMetadataService], clock: FakeClock
) -> None:
    with kind() as other:
        source = GCPSource(other.endpoint, clock=clock)
        assert [source.poll() for _ in range(4)] == [[]] * 4
        assert source.interval() == 60.0
        assert "no Google metadata server" in source.reach().why


def test_the_host_comes_from_the_variable_of_googles_libraries(
    service: GCPMetadataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", service.host)
    service.preempt()
    assert len(GCPSource().poll()) == 1


def test_a_host_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "http://here")
    with pytest.raises(ConfigError, match="GCE_METADATA_HOST"):
        GCPSource()
