"""What Kubernetes' Node object says about the node that a pod runs on: taints and cordon."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import ConfigError
from unbroken.notice.answering import Answering
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.source import Announced, NoAnswer, Reach, SourceError, poll_interval

NODE_VARIABLE = "NODE_NAME"
"""Name of the node, by the downward API (``spec.nodeName``)."""
API_VARIABLE = "UNBROKEN_KUBERNETES_API"
"""URL of the API server, where it is not the cluster's own, as that of ``kubectl proxy``."""

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_STOPPING = {
    "karpenter.sh/disrupted": "Karpenter takes node {node} away",
    "karpenter.sh/disruption": "Karpenter takes node {node} away",
    "aws-node-termination-handler/spot-itn": "EC2 takes the spot instance of node {node}",
    "aws-node-termination-handler/asg-lifecycle-termination": "the Auto Scaling group terminates node {node}",
    "aws-node-termination-handler/scheduled-maintenance": "node {node} is drained for scheduled maintenance",
}
_ADVISING = {
    "aws-node-termination-handler/rebalance-recommendation": "EC2 recommends rebalancing: the risk of node {node} is elevated",  # noqa: E501
    "node.kubernetes.io/unschedulable": "node {node} takes no new pods (cordoned)",
}
_NOTICE_SECONDS = 120.0
_POLL_SECONDS = 5.0
_TIMEOUT = 5.0
_REPLY_LIMIT = 4 << 20
_LOST = "Until it does, a drain is heard only as a signal"
_FORBIDDEN = (
    "Give the pod's service account a ClusterRole with the verb get on nodes (docs/notices.md), or leave the source"
    " out with UNBROKEN_NOTICES=-kubernetes"
)


class KubernetesNodeSource:
    """Polls the Node object of the node that this pod runs on, with the pod's service account.

    A taint of Karpenter, or one of the Node Termination Handler that comes before a drain, is a notice of 120 s: the
    drain's own SIGTERM, with the pod's grace period, brings the earlier deadline. A cordon and a rebalance
    recommendation are advisories.

    Args:
        node: the node's name; None takes ``NODE_NAME``.
        endpoint: URL of the API server; None takes ``UNBROKEN_KUBERNETES_API``, else that of the cluster.
        account: folder with the service account's ``token`` and ``ca.crt``.
        poll_seconds: time between polls; None takes ``UNBROKEN_NOTICE_POLL``, else 5 s.
        clock: wall clock for deadlines.

    Raises:
        ConfigError: the node's name, the endpoint, or the time between polls is missing or not usable.
    """

    name = "kubernetes"

    def __init__(
        self,
        node: str | None = None,
        endpoint: str | None = None,
        *,
        account: Path = SERVICE_ACCOUNT,
        poll_seconds: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._node = node or os.environ.get(NODE_VARIABLE, "")
        if not self._node:
            raise ConfigError(
                "the name of the node is not known", kind="node-name",
                hint=f"Set {NODE_VARIABLE} from spec.nodeName by the downward API",
            )  # fmt: skip
        self._endpoint = endpoint or os.environ.get(API_VARIABLE) or _cluster()
        self._secure, self._host, self._port = _address(self._endpoint)
        self._account = account
        self._poll_seconds = poll_interval(poll_seconds, _POLL_SECONDS)
        self._answering = Answering(f"the Kubernetes API at {self._endpoint}", self._poll_seconds, _LOST)
        self._clock = clock
        self._refused = ""
        """What was said of the permissions."""
        self._heard_at: dict[str, float] = {}
        self._announced: Announced = []

    def poll(self) -> Announced:
        """What the Node object says now.

        Raises:
            SourceError: the service account may not read it, or the API answered before and has now failed three
                times in a row; each said once.
        """
        try:
            status, body = self._get(f"/api/v1/nodes/{quote(self._node, safe='')}?resourceVersion=0")
            if status in (401, 403):
                self._forbidden(status, body)
            if status != 200:
                raise NoAnswer(f"node {self._node!r} was answered with status {status}")
            announced = self._read(body)
        except NoAnswer as error:
            self._answering.failed(error)
            return self._announced
        self._answering.succeeded()
        self._refused = ""
        self._announced = announced
        return self._announced

    def interval(self) -> float:
        return 60.0 if self._refused else self._answering.interval()

    def reach(self) -> Reach:
        return self._answering.reach()

    def close(self) -> None:
        """Nothing is held between two polls."""

    def _forbidden(self, status: int, body: bytes) -> None:
        """Say once what is missing.

        Raises:
            NoAnswer: always, or the SourceError.
        """
        found = f"the service account may not read node {self._node!r} (status {status}: {_message(body)})"
        said, self._refused = self._refused, found
        try:
            self._answering.failed(NoAnswer(found))
        except SourceError:
            said = ""
        if said != found:
            raise SourceError(found, kind="kubernetes-access", hint=_FORBIDDEN)
        raise NoAnswer(found)

    def _read(self, body: bytes) -> Announced:
        try:
            spec = json.loads(body)["spec"]
            taints = [str(taint["key"]) for taint in spec.get("taints") or ()]
            cordoned = bool(spec.get("unschedulable", False))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise NoAnswer(f"{body[:40]!r} is no Node object") from error
        if cordoned and "node.kubernetes.io/unschedulable" not in taints:
            taints.append("node.kubernetes.io/unschedulable")
        for gone in [key for key in self._heard_at if key not in taints]:
            del self._heard_at[gone]
        found: Announced = [self._notice(key) for key in taints if key in _STOPPING]
        found += [InterruptionAdvisory(self.name, self._words(_ADVISING[key])) for key in taints if key in _ADVISING]
        return found

    def _notice(self, taint: str) -> InterruptionNotice:
        heard_at = self._heard_at.setdefault(taint, self._clock.now())
        return InterruptionNotice(self.name, self._words(_STOPPING[taint]), heard_at + _NOTICE_SECONDS)

    def _words(self, text: str) -> str:
        return text.format(node=self._node)

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = self._connection()
        try:
            connection.request("GET", path, headers={**self._authorization(), "Accept": "application/json"})
            with connection.getresponse() as response:
                return response.status, response.read(_REPLY_LIMIT)
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"GET {path} failed ({type(error).__name__}: {error})") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT)
        authorities = self._account / "ca.crt"
        try:
            context = ssl.create_default_context(cafile=str(authorities))
        except (OSError, ssl.SSLError) as error:
            raise NoAnswer(f"{authorities} cannot be used: {error}") from error
        return http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT, context=context)

    def _authorization(self) -> dict[str, str]:
        """The token is read each time: the kubelet replaces it before it expires."""
        try:
            return {"Authorization": f"Bearer {(self._account / 'token').read_text().strip()}"}
        except FileNotFoundError as error:
            if not self._secure:
                return {}  # a proxy signs for us
            raise NoAnswer(f"{self._account / 'token'} is not there: no service account is mounted") from error
        except (OSError, ValueError) as error:
            raise NoAnswer(f"{self._account / 'token'} cannot be read: {error}") from error


def _cluster() -> str:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError(
            "the address of the Kubernetes API is not known: KUBERNETES_SERVICE_HOST is not set",
            kind="kubernetes-endpoint", hint=f"This is no pod. Elsewhere, set {API_VARIABLE}",
        )  # fmt: skip
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def _address(endpoint: str) -> tuple[bool, str, int]:
    """Whether it is encrypted, host and port."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    secure = parts.scheme == "https"
    if not host or not (secure or (parts.scheme == "http" and _is_loopback(host))):
        raise ConfigError(
            f"{endpoint!r} is no usable address of the Kubernetes API", kind="kubernetes-endpoint",
            hint=f"Set {API_VARIABLE} to https://HOST:PORT, or to http://127.0.0.1:PORT for kubectl proxy",
        )  # fmt: skip
    return secure, host, port or (443 if secure else 80)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _message(body: bytes) -> Any:
    try:
        return json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        return repr(body[:60])
