"""What a job file may say to Kubernetes alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from unbroken.job.part import Part
from unbroken.job.values import Port, Text, Word

Path = Annotated[str, StringConstraints(pattern=r"^/[^\s:]*$")]
DISRUPTED = "karpenter.sh/disrupted"


class Toleration(Part):
    """A taint that the pods bear, as Kubernetes writes it."""

    key: Word | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: Text | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _leaves_the_drain_alone(self) -> Toleration:
        if self.key is None:
            raise PydanticCustomError(
                "toleration",
                "this tolerates every taint, "
                f"{DISRUPTED} as well, with which Karpenter announces an interruption: the pod would not be drained",
                {"hint": "Name the key of the taint"},
            )
        if self.key == DISRUPTED or self.key.startswith("aws-node-termination-handler/"):
            raise PydanticCustomError(
                "toleration",
                f"{self.key} announces an interruption: a pod that tolerates it is not drained",
                {"hint": "Leave it out"},
            )
        if self.operator == "Exists" and self.value is not None:
            raise PydanticCustomError("toleration", "operator Exists takes no value", {"hint": "Leave the value out"})
        return self


class Volume(Part):
    """A PersistentVolumeClaim that the pods see."""

    claim: Word
    """Name of the PersistentVolumeClaim."""
    path: Path
    """Where the pods see it."""
    read_only: bool = False
    """Whether they may only read it."""


class Karpenter(Part):
    """What is needed to have Karpenter make nodes (`--with nodepool`)."""

    cluster: Word
    """Name of the EKS cluster: the value of the tag `karpenter.sh/discovery` on its subnets and security groups."""
    node_role: Word
    """IAM role of the nodes."""
    ami: Word = "al2023@latest"
    """Alias of the machine image. A version instead of `latest` keeps a new image from replacing nodes."""
    volume: Text = "200Gi"
    """Size of a node's disk, as Kubernetes writes quantities."""


class TerminationHandler(Part):
    """How AWS's Node Termination Handler hears of interruptions (`--with nth`)."""

    mode: Literal["imds", "queue"] = "imds"
    """`imds`: a DaemonSet that asks each node's metadata service. `queue`: a Deployment that reads an SQS queue."""
    queue_url: Word | None = None
    """URL of the SQS queue; needed for `queue`."""
    node_selector: dict[str, Text] = Field(default={})
    """Nodes on which the DaemonSet runs; all by default."""

    @model_validator(mode="after")
    def _has_its_queue(self) -> TerminationHandler:
        if self.mode == "queue" and self.queue_url is None:
            raise PydanticCustomError("queue", "mode queue needs queue_url", {"hint": "Name the URL of the SQS queue"})
        return self


class Kubernetes(Part):
    """Settings of the engine `kubernetes`."""

    namespace: Word = "default"
    """Namespace of everything that is rendered."""
    service_account: Word | None = None
    """Service account of the pods; the job's name by default."""
    role_arn: Word | None = None
    """IAM role that the service account takes by IRSA. Leave it out with EKS Pod Identity."""
    provisioner: Literal["karpenter", "eks", "other"] = "karpenter"
    """Who makes the nodes: decides which labels select the market. With `other` name them in `node_selector`."""
    labels: dict[str, Text] = Field(default={})
    """Added to every object."""
    annotations: dict[str, Text] = Field(default={})
    """Added to the pods."""
    node_selector: dict[str, Text] = Field(default={})
    """Labels that a node must have."""
    tolerations: list[Toleration] = Field(default=[])
    """Taints that the pods bear. None may swallow the announcement of an interruption."""
    queue: Word | None = None
    """LocalQueue of Kueue."""
    priority_class: Word | None = None
    """PriorityClass of the pods."""
    runtime_class: Word | None = None
    """RuntimeClass of the pods."""
    pull_secrets: list[Word] = Field(default=[])
    """Secrets with which the image is pulled."""
    secrets: list[Word] = Field(default=[])
    """Secrets whose keys become environment variables."""
    volumes: list[Volume] = Field(default=[])
    """Claims that the pods see."""
    user: int = Field(default=1000, ge=1)
    """User and group id of the pods; never 0."""
    gpu_resource: Word = "nvidia.com/gpu"
    """Name under which the device plugin offers GPUs."""
    backoff_limit: int = Field(default=3, ge=0)
    """Failures, interruptions not counted, that a Job of one node survives. A gang is given up at the first."""
    read_node: bool = False
    """Let the pods read their Node object, to hear of its taints; needs `--with rbac`."""
    metrics_port: Port | None = None
    """Port on which the training serves metrics for Prometheus."""
    karpenter: Karpenter | None = None
    """For `--with nodepool`."""
    termination_handler: TerminationHandler | None = None
    """For `--with nth`."""
