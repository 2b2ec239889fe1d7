"""The stand-ins for the other clouds refuse what the real services refuse."""

from __future__ import annotations

import http.client
import json

import pytest

from unbroken.errors import ConfigError, NotFoundError
from unbroken.testing import AzureMetadataService, FakeClock, GCPMetadataService, KubernetesNodeService
from unbroken.testing.metadata_server import LocalServer

PREEMPTED = "/computeMetadata/v1/instance/preempted"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"


def ask(
    service: LocalServer, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(service.endpoint.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        with connection.getresponse() as response:
            return response.status, response.read()
    finally:
        connection.close()


def test_google_demands_its_header_and_refuses_proxies() -> None:
    google = {"Metadata-Flavor": "Google"}
    with GCPMetadataService() as service:
        assert ask(service, "GET", PREEMPTED)[0] == 403
        assert ask(service, "GET", PREEMPTED, {**google, "X-Forwarded-For": "10.0.0.1"})[0] == 403
        assert ask(service, "GET", PREEMPTED, google) == (200, b"FALSE")
        service.preempt()
        assert ask(service, "GET", PREEMPTED, google) == (200, b"TRUE")
        service.clear()
        assert ask(service, "GET", PREEMPTED, google) == (200, b"FALSE")
        assert ask(service, "GET", "/computeMetadata/v1/instance/nothing", google)[0] == 404
        assert ask(service, "POST", PREEMPTED, google)[0] == 405
        with pytest.raises(ConfigError):
            service.maintain("SOON")  # type: ignore[arg-type]


def test_azure_demands_its_header_and_a_version() -> None:
    with AzureMetadataService() as service:
        assert ask(service, "GET", EVENTS)[0] == 400
        assert ask(service, "GET", "/metadata/scheduledevents", {"Metadata": "true"})[0] == 400
        assert ask(service, "GET", "/metadata/other?api-version=1", {"Metadata": "true"})[0] == 404


def test_azures_document_follows_its_events() -> None:
    azure = {"Metadata": "true"}
    with AzureMetadataService("vm-7", clock=FakeClock(now=1_767_225_600.0)) as service:
        event = service.schedule("Reboot", 60)
        document = json.loads(ask(service, "GET", EVENTS, azure)[1])
        assert document["DocumentIncarnation"] == 2
        assert document["Events"][0]["NotBefore"] == "Thu, 01 Jan 2026 00:01:00 GMT"
        assert document["Events"][0]["Resources"] == ["vm-7"]
        body = json.dumps({"StartRequests": [{"EventId": event}]}).encode()
        assert ask(service, "POST", EVENTS, azure, body)[0] == 200
        assert service.acknowledged == [event]
        started = json.loads(ask(service, "GET", EVENTS, azure)[1])["Events"][0]
        assert (started["EventStatus"], started["NotBefore"]) == ("Started", "")
        service.cancel(event)
        assert json.loads(ask(service, "GET", EVENTS, azure)[1])["Events"] == []
        for wrong in (body, b"{", b"{}"):
            assert ask(service, "POST", EVENTS, azure, wrong)[0] == 400
        with pytest.raises(NotFoundError):
            service.cancel(event)
        with pytest.raises(ConfigError):
            service.schedule("Vanish")  # type: ignore[arg-type]


def test_kubernetes_shows_a_cordon_as_a_field_and_a_taint() -> None:
    with KubernetesNodeService("n", token="secret") as service:
        path, bearer = "/api/v1/nodes/n?resourceVersion=0", {"Authorization": "Bearer secret"}
        assert ask(service, "GET", path)[0] == 401
        service.cordon()
        node = json.loads(ask(service, "GET", path, bearer)[1])
        assert node["spec"]["unschedulable"] is True
        assert node["spec"]["taints"] == [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]
        version = int(node["metadata"]["resourceVersion"])
        service.cordon(False)
        node = json.loads(ask(service, "GET", path, bearer)[1])
        assert "taints" not in node["spec"]
        assert int(node["metadata"]["resourceVersion"]) == version + 1
        service.allow(False)
        assert ask(service, "GET", path, bearer)[0] == 403
        assert ask(service, "GET", "/api/v1/pods", bearer)[0] == 404
