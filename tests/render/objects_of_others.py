"""Schemas of objects that Kubernetes itself does not know, of the fields that are rendered.

Written after the public definitions: JobSet v1alpha2, Karpenter v1 (with its AWS provider), Prometheus Operator v1,
kustomize v1beta1. A field that they lack is an error.
"""

from __future__ import annotations

from typing import Any


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
BOOL = {"type": "boolean"}
LABELS = {"type": "object", "additionalProperties": TEXT}
METADATA = closed(["name"], name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS)
SECONDS = {"type": "string", "pattern": r"^[0-9]+s$"}
REQUIREMENT = closed(
    ["key", "operator", "values"], key=TEXT, operator={"enum": ["In", "NotIn", "Exists"]}, values=listed(TEXT)
)
SELECTED = listed(closed(["tags"], tags=LABELS))


def whole(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": version}, kind={"const": kind}, metadata=METADATA, spec=spec,
    )  # fmt: skip


SCHEMAS: dict[str, dict[str, Any]] = {
    "JobSet": whole(
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
        closed(
            ["replicatedJobs"],
            suspend=BOOL,
            failurePolicy=closed(
                [],
                maxRestarts={"type": "integer", "minimum": 0},
                restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
                rules=listed(
                    closed(
                        ["name", "action"],
                        name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                        action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
                        onJobFailureReasons=listed(
                            {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
                                      "MaxFailedIndexesExceeded", "PodFailurePolicy"]}
                        ),
                    )
                ),
            ),
            network=closed([], enableDNSHostnames=BOOL, publishNotReadyAddresses=BOOL, subdomain=TEXT),
            replicatedJobs=listed(
                closed(
                    ["name", "template"], name=TEXT, replicas={"type": "integer", "minimum": 1},
                    template=closed(["spec"], spec={"type": "object"}),
                )
            ),
        ),
    ),
    "NodePool": whole(
        "karpenter.sh/v1",
        "NodePool",
        closed(
            ["template"],
            weight={"type": "integer", "minimum": 1, "maximum": 100},
            disruption=closed(
                ["consolidateAfter"], consolidationPolicy={"enum": ["WhenEmpty", "WhenEmptyOrUnderutilized"]},
                consolidateAfter={"type": "string", "pattern": "^([0-9]+s|Never)$"},
            ),
            template=closed(
                ["spec"],
                spec=closed(
                    ["nodeClassRef", "requirements"],
                    nodeClassRef=closed(["group", "kind", "name"], group=TEXT, kind=TEXT, name=TEXT),
                    requirements=listed(REQUIREMENT),
                    expireAfter={"type": "string", "pattern": "^([0-9]+h|Never)$"},
                    terminationGracePeriod=SECONDS,
                ),
            ),
        ),
    ),
    "EC2NodeClass": whole(
        "karpenter.k8s.aws/v1",
        "EC2NodeClass",
        closed(
            ["amiSelectorTerms", "subnetSelectorTerms", "securityGroupSelectorTerms"],
            amiSelectorTerms=listed(closed(["alias"], alias={"type": "string", "pattern": "^[a-z0-9]+@.+$"})),
            role=TEXT, subnetSelectorTerms=SELECTED, securityGroupSelectorTerms=SELECTED,
            metadataOptions=closed(
                [], httpTokens={"enum": ["required", "optional"]},
                httpPutResponseHopLimit={"type": "integer", "minimum": 1, "maximum": 64},
            ),
            blockDeviceMappings=listed(
                closed(
                    ["deviceName", "ebs"], deviceName=TEXT,
                    ebs=closed([], volumeSize={"type": "string", "pattern": "^[0-9]+(G|Gi|T|Ti)$"},
                               volumeType={"enum": ["gp3", "io2"]}, encrypted=BOOL),
                )
            ),
        ),
    ),
    "PodMonitor": whole(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        closed(
            ["selector", "podMetricsEndpoints"],
            selector=closed(["matchLabels"], matchLabels=LABELS),
            podMetricsEndpoints=listed(closed([], port=TEXT, interval=SECONDS)),
        ),
    ),
    "Kustomization": closed(
        ["resources"],
        apiVersion={"const": "kustomize.config.k8s.io/v1beta1"}, kind={"const": "Kustomization"},
        resources=listed(TEXT),
    ),
}  # fmt: skip
