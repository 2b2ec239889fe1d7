"""The Node object, over http as of kubectl proxy and over https with a service account."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from unbroken.errors import ConfigError
from unbroken.notice import (
    InterruptionAdvisory,
    InterruptionNotice,
    KubernetesNodeSource,
    SourceError,
    kubernetes_node,
)
from unbroken.testing import FakeClock, KubernetesNodeService


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service() -> Iterator[KubernetesNodeService]:
    with KubernetesNodeService() as service:
        yield service


@pytest.fixture
def source(service: KubernetesNodeService, clock: FakeClock, tmp_path: Path) -> KubernetesNodeSource:
    return KubernetesNodeSource("node-0", service.endpoint, account=tmp_path, clock=clock)


def test_a_quiet_node_gives_nothing_and_is_read_from_the_servers_cache(
    service: KubernetesNodeService, source: KubernetesNodeSource
) -> None:
    assert source.poll() == []
    assert source.reach().answers
    assert list(service.requests) == ["GET /api/v1/nodes/node-0?resourceVersion=0"]


@pytest.mark.parametrize(
    "taint",
    [
        "karpenter.sh/disrupted",
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/asg-lifecycle-termination",
        "aws-node-termination-handler/scheduled-maintenance",
    ],
)
def test_a_taint_that_comes_before_a_drain_is_a_notice_whose_deadline_stays(
    service: KubernetesNodeService, source: KubernetesNodeSource, clock: FakeClock, taint: str
) -> None:
    service.taint(taint)
    first = source.poll()
    (notice,) = first
    assert isinstance(notice, InterruptionNotice)
    assert notice.deadline == clock.now() + 120
    assert "node-0" in notice.reason
    clock.advance(20)
    assert source.poll() == first
    service.untaint(taint)
    assert source.poll() == []
    service.taint(taint)
    (again,) = source.poll()
    assert isinstance(again, InterruptionNotice)
    assert again.deadline == clock.now() + 120


def test_a_rebalance_recommendation_and_a_cordon_are_advisories(
    service: KubernetesNodeService, source: KubernetesNodeSource
) -> None:
    service.taint("aws-node-termination-handler/rebalance-recommendation")
    service.cordon()
    assert [type(event) for event in source.poll()] == [InterruptionAdvisory] * 2


def test_taints_of_others_mean_nothing(service: KubernetesNodeService, source: KubernetesNodeSource) -> None:
    service.taint("nvidia.com/gpu")
    service.taint("karpenter.sh/unregistered")
    assert source.poll() == []


def test_a_missing_permission_is_said_once_with_what_to_grant_and_then_asked_for_rarely(
    service: KubernetesNodeService, source: KubernetesNodeSource
) -> None:
    service.allow(False)
    with pytest.raises(SourceError, match="may not read node 'node-0'") as caught:
        source.poll()
    assert "get on nodes" in caught.value.hint
    assert [source.poll() for _ in range(5)] == [[]] * 5
    assert source.interval() == 60.0
    assert "forbidden" in source.reach().why
    service.allow(True)
    service.taint("karpenter.sh/disrupted")
    assert len(source.poll()) == 1
    assert source.interval() == 5.0


@pytest.mark.parametrize("mode", ["garbage", "error500", "hang"])
def test_an_outage_is_said_once_and_cancels_nothing(
    service: KubernetesNodeService, source: KubernetesNodeSource, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(kubernetes_node, "_TIMEOUT", 0.1)
    service.taint("karpenter.sh/disrupted")
    before = source.poll()
    assert len(before) == 1
    service.misbehave(mode)  # type: ignore[arg-type]
    assert source.poll() == source.poll() == before
    with pytest.raises(SourceError, match="answered before and does no more"):
        source.poll()
    assert source.poll() == before


def test_another_nodes_name_is_no_answer(service: KubernetesNodeService, clock: FakeClock, tmp_path: Path) -> None:
    source = KubernetesNodeSource("node/9", service.endpoint, account=tmp_path, clock=clock)
    assert source.poll() == []
    assert "'node/9' was answered with status 404" in source.reach().why


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tls.crt`` and ``tls.key`` of 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return folder


@pytest.fixture
def secure(certificate: Path) -> Iterator[KubernetesNodeService]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    with KubernetesNodeService(token="first", tls=context) as service:
        yield service


def account(folder: Path, certificate: Path, token: str) -> Path:
    (folder / "ca.crt").write_bytes((certificate / "tls.crt").read_bytes())
    (folder / "token").write_text(f"{token}\n")
    return folder


def test_the_service_account_is_enough_and_a_rotated_token_is_read_again(
    secure: KubernetesNodeService, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.delenv("UNBROKEN_KUBERNETES_API", raising=False)
    monkeypatch.setenv("NODE_NAME", "node-0")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", secure.endpoint.rsplit(":", 1)[1])
    source = KubernetesNodeSource(account=account(tmp_path, certificate, "first"), clock=clock)
    secure.taint("karpenter.sh/disrupted")
    assert len(source.poll()) == 1
    secure.rotate_token("second")
    account(tmp_path, certificate, "second")
    secure.untaint("karpenter.sh/disrupted")
    assert source.poll() == []
    assert source.reach().answers


def test_a_server_that_the_mounted_authority_did_not_sign_is_not_given_the_token(
    secure: KubernetesNodeService, certificate: Path, tmp_path: Path, clock: FakeClock
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=other", "-keyout", other / "key", "-out", other / "ca.crt"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (other / "token").write_text("first")
    source = KubernetesNodeSource("node-0", secure.endpoint, account=other, clock=clock)
    assert source.poll() == []
    assert "certificate verify failed" in source.reach().why
    assert not secure.requests


def test_without_a_service_account_it_says_what_is_missing(
    secure: KubernetesNodeService, certificate: Path, tmp_path: Path, clock: FakeClock
) -> None:
    source = KubernetesNodeSource("node-0", secure.endpoint, account=tmp_path, clock=clock)
    assert source.poll() == []
    assert "ca.crt cannot be used" in source.reach().why
    account(tmp_path, certificate, "first")
    (tmp_path / "token").unlink()
    assert source.poll() == []
    assert "no service account is mounted" in source.reach().why


@pytest.mark.parametrize("endpoint", ["http://10.0.0.1:8001", "ftp://127.0.0.1", "https://", "http://[x", "cluster"])
def test_a_token_never_goes_over_an_unencrypted_network(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="no usable address of the Kubernetes API"):
        KubernetesNodeSource("node-0", endpoint)


@pytest.mark.parametrize("missing", ["NODE_NAME", "KUBERNETES_SERVICE_HOST"])
def test_a_variable_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delenv("UNBROKEN_KUBERNETES_API", raising=False)
    for name in ("NODE_NAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv(missing)
    with pytest.raises(ConfigError) as caught:
        KubernetesNodeSource()
    assert missing in str(caught.value)
