"""A local stand-in for the Node objects of a Kubernetes API server, as far as interruptions need them."""

from __future__ import annotations

import json
import ssl
from typing import Any
from urllib.parse import unquote, urlsplit

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.testing.metadata_server import GARBAGE, Answer, LocalServer, Request

_NODES = "/api/v1/nodes/"


class KubernetesNodeService(LocalServer):
    """A server on 127.0.0.1 that serves one Node object.

    Set ``UNBROKEN_KUBERNETES_API`` to :attr:`endpoint`, and ``NODE_NAME`` to the node's name, in the environment of the
    process under test.

    Args:
        node: the node's name.
        token: the bearer token that is asked for; "" for none, as ``kubectl proxy``.
        port: the port to listen on; 0 takes a free one.
        clock: as of the other services; nothing that is served here depends on it.
        tls: speaks https with this.
    """

    def __init__(
        self,
        node: str = "node-0",
        *,
        token: str = "",
        port: int = 0,
        clock: Clock = SYSTEM_CLOCK,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.node = node
        self._token = token
        self._allowed = True
        self._version = 1
        self._taints: dict[str, dict[str, str]] = {}
        self._cordoned = False
        super().__init__(port=port, clock=clock, tls=tls)

    def taint(self, key: str, value: str = "", effect: str = "NoSchedule") -> None:
        """Put a taint on the node."""
        with self._lock:
            self._taints[key] = {"key": key, "value": value, "effect": effect}
            self._version += 1

    def untaint(self, key: str) -> None:
        """Take a taint away, if it is there."""
        with self._lock:
            self._taints.pop(key, None)
            self._version += 1

    def cordon(self, cordoned: bool = True) -> None:
        """Let the node take no new pods, or take them again."""
        with self._lock:
            self._cordoned = cordoned
            self._version += 1

    def allow(self, allowed: bool) -> None:
        """Let the service account read nodes, or not."""
        with self._lock:
            self._allowed = allowed

    def rotate_token(self, token: str) -> None:
        """Ask for another token from now on."""
        with self._lock:
            self._token = token

    def _respond(self, request: Request, *, garbled: bool) -> Answer:
        with self._lock:
            token, allowed = self._token, self._allowed
        if token and request.headers.get("authorization") != f"Bearer {token}":
            return _status(401, "Unauthorized")
        path = urlsplit(request.path).path
        if request.method != "GET" or not path.startswith(_NODES):
            return _status(404, "the server could not find the requested resource")
        name = unquote(path.removeprefix(_NODES))
        if not allowed:
            return _status(403, f'nodes "{name}" is forbidden: User "system:serviceaccount:default:default" cannot get')
        if name != self.node:
            return _status(404, f'nodes "{name}" not found')
        return Answer(200, GARBAGE if garbled else json.dumps(self._object()).encode())

    def _object(self) -> dict[str, Any]:
        with self._lock:
            spec: dict[str, Any] = {"providerID": f"local:///{self.node}"}
            taints = list(self._taints.values())
            if self._cordoned:
                spec["unschedulable"] = True
                taints.append({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"})
            if taints:
                spec["taints"] = taints
            metadata = {"name": self.node, "resourceVersion": str(self._version)}
        return {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": {}}


def _status(code: int, message: str) -> Answer:
    document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return Answer(code, json.dumps(document).encode(), {"Content-Type": "application/json"})
