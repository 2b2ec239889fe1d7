from __future__ import annotations

from collections.abc import Iterator

import pytest

from unbroken.doctor import Place
from unbroken.doctor.metadata import check_metadata
from unbroken.notice import Choice
from unbroken.testing import EC2MetadataService, GCPMetadataService, KubernetesNodeService

_EC2 = Place(notices=Choice(frozenset({"ec2"})))


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[EC2MetadataService]:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    with EC2MetadataService() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.endpoint)
        yield service


def test_services_that_answer_are_sound(ec2: EC2MetadataService, monkeypatch: pytest.MonkeyPatch) -> None:
    with GCPMetadataService() as gcp:
        monkeypatch.setenv("GCE_METADATA_HOST", gcp.host)
        found = check_metadata(Place(notices=Choice(frozenset({"ec2", "gcp"}))))
    assert [(one.severity, one.found) for one in found] == [("ok", "ec2 answers"), ("ok", "gcp answers")]


def test_an_interruption_that_is_announced_now_is_said(ec2: EC2MetadataService) -> None:
    ec2.interrupt()
    found = check_metadata(_EC2)
    assert [one.severity for one in found] == ["ok", "note"]
    assert "EC2 will terminate" in found[1].found


def test_a_token_that_does_not_come_back_is_explained_by_the_hop_limit(ec2: EC2MetadataService) -> None:
    ec2.misbehave("hop-limit")
    (found,) = check_metadata(_EC2)
    assert found.severity == "warning"
    assert "hop limit" in found.found


def test_a_service_that_should_answer_and_fails_is_a_warning(ec2: EC2MetadataService) -> None:
    ec2.misbehave("error500")
    (found,) = check_metadata(_EC2)
    assert found.severity == "warning"
    assert "status 500" in found.found
    assert found.why


def test_off_every_cloud_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("unbroken.notice.choice.cloud_of", lambda: "other")
    (found,) = check_metadata(Place(notices=Choice(frozenset({"ec2", "gcp", "azure"}))))
    assert (found.severity, found.found) == ("note", "no source of notices can answer here")


def test_silence_where_the_firmware_says_nothing_is_a_note(
    ec2: EC2MetadataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2.misbehave("error500")
    from unbroken.notice import Offer
    from unbroken.notice.choice import offers

    monkeypatch.setattr("unbroken.notice.choice.cloud_of", lambda: "")
    (asked,) = [one for one in offers(_EC2.notices) if one.source is not None]
    monkeypatch.delenv("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    (unknown,) = [one for one in offers(_EC2.notices) if one.source is not None]
    silent = Offer("ec2", asked.source, unknown.why)
    monkeypatch.setattr("unbroken.doctor.metadata.offers", lambda *_, **__: [silent])
    assert [one.severity for one in check_metadata(_EC2)] == ["note"]


@pytest.mark.parametrize("allowed", [True, False])
def test_a_service_account_that_may_not_read_its_node_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    with KubernetesNodeService() as service:
        service.allow(allowed)
        monkeypatch.setenv("UNBROKEN_KUBERNETES_API", service.endpoint)
        monkeypatch.setenv("NODE_NAME", "node-0")
        (found,) = check_metadata(Place(notices=Choice(frozenset({"kubernetes"}))))
    assert found.severity == ("ok" if allowed else "warning")
    assert allowed or "may not read node 'node-0'" in found.found
