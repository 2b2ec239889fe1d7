"""What is rendered is valid for every version it is said to be for, holds the rules, and is what the files show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.render.objects_of_others import SCHEMAS

from unbroken.cli.run import run
from unbroken.errors import ConfigError
from unbroken.job import Job, load_job, read_job
from unbroken.lint import lint_text
from unbroken.render import EXTRAS, Document, kustomization, render_kubernetes
from unbroken.render.pod import AGENT_BYTES
from unbroken.training.memory import slots_that_fit

ROOT = Path(__file__).parents[2]
VERSIONS = ["1.31", "1.34", "1.37"]
FILES = [name for name in EXTRAS if name not in ("bucket-lifecycle", "iam-policy")]

FULL = """
name: pretrain
run: s3://bucket/runs/pretrain
image: example.com/train:1.0
command: [python, train.py, --text, "it's: {odd}"]
every: 10min
keep: last=3
grace: 95s
notices: {off: [gcp, azure], poll: 2s}
limits: {max_restarts: 7, no_progress: 3}
env: {LEVEL: "1", NAME: "yes"}
ranks: {nodes: NODES, per_node: 4}
resources: {cpu: 8, memory: 32GiB, state: 10GiB, gpu: 4, gpu_type: a100}
pools:
  - {instance_type: p4d.24xlarge, zone: us-east-1a}
  - {instance_type: p4de.24xlarge, zone: us-east-1b}
  - {instance_type: p4d.24xlarge, zone: us-east-1a, market: on-demand}
kubernetes:
  namespace: research
  role_arn: arn:aws:iam::123456789012:role/pretrain
  labels: {team: vision}
  annotations: {owner: somebody}
  read_node: true
  metrics_port: 9400
  queue: gpus
  priority_class: low
  pull_secrets: [pull]
  secrets: [keys]
  volumes: [{claim: data, path: /data, read_only: true}, {claim: cache, path: /cache}]
  tolerations: [{key: team, operator: Equal, value: vision, effect: NoSchedule}]
  karpenter: {cluster: main, node_role: nodes}
"""


def job_of(text: str = FULL, *, nodes: int = 1) -> Job:
    return read_job(text.replace("NODES", str(nodes)), "job.yaml")


def small(**fields: Any) -> Job:
    """The least that Kubernetes needs, and these."""
    base: dict[str, Any] = {
        "name": "a", "run": "s3://b/a", "image": "a:1", "command": ["python", "a.py"], "resources": {"memory": "1GiB"},
    }  # fmt: skip
    return read_job(yaml.safe_dump(base | fields), "job.yaml")


def parsed(document: Document) -> dict[str, Any]:
    found = yaml.safe_load(document.text)
    assert found == document.data
    return found


def by_kind(documents: list[Document], kind: str) -> dict[str, Any]:
    (found,) = (data for document in documents if (data := parsed(document)).get("kind") == kind)
    return found


def validate(data: dict[str, Any]) -> None:
    kind = data["kind"]
    if kind in SCHEMAS:
        jsonschema.validate(data, SCHEMAS[kind])
    if kind == "JobSet":
        (replicated,) = data["spec"]["replicatedJobs"]
        data = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, **replicated["template"]}
    elif kind in SCHEMAS:
        return
    for version in VERSIONS:
        kubernetes_validate.validate(data, version, strict=True)


def pod_of(job: Job) -> dict[str, Any]:
    """The pod's spec in the job's own document."""
    spec = render_kubernetes(job)[1].data["spec"]
    if "replicatedJobs" in spec:
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    found: dict[str, Any] = spec["template"]["spec"]
    return found


def command_of(job: Job) -> list[str]:
    words: list[str] = pod_of(job)["containers"][0]["command"]
    return words


@pytest.mark.parametrize("nodes", [1, 3])
def test_every_document_is_valid_in_every_version(nodes: int) -> None:
    documents = render_kubernetes(job_of(nodes=nodes), FILES)
    for document in [*documents, kustomization(documents)]:
        validate(parsed(document))
    queue = "  termination_handler: {mode: queue, queue_url: https://sqs.example.com/q}\n"
    for document in render_kubernetes(job_of(FULL + queue), ["nth"]):
        validate(parsed(document))


def test_a_field_that_does_not_exist_is_found() -> None:
    """The validation itself."""
    data = parsed(render_kubernetes(job_of())[1])
    data["spec"]["template"]["spec"]["gracePeriod"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(data)
    gang = parsed(render_kubernetes(job_of(nodes=2))[1])
    gang["spec"]["failurePolicy"]["restartPolicy"] = "Never"
    with pytest.raises(jsonschema.ValidationError):
        validate(gang)


def test_interruptions_cost_no_retry_and_a_wrong_configuration_ends_the_job() -> None:
    spec = by_kind(render_kubernetes(job_of()), "Job")["spec"]
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["suspend"] is True
    misconfigured, evicted, interrupted = spec["podFailurePolicy"]["rules"]
    assert (misconfigured["action"], misconfigured["onExitCodes"]["values"]) == ("FailJob", [78])
    assert (evicted["action"], evicted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (interrupted["action"], interrupted["onExitCodes"]["values"]) == ("Ignore", [75])


def test_an_interrupted_gang_starts_again_for_nothing_and_any_other_failure_ends_it() -> None:
    spec = by_kind(render_kubernetes(job_of(nodes=3)), "JobSet")["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 0
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    child = spec["replicatedJobs"][0]["template"]["spec"]
    assert (child["completionMode"], child["parallelism"], child["completions"]) == ("Indexed", 3, 3)
    assert child["backoffLimit"] == 0
    # Only FailJob makes PodFailurePolicy the reason: 78 must not, or the gang would start again for ever.
    assert [rule["action"] for rule in child["podFailurePolicy"]["rules"]] == ["Count", "FailJob", "FailJob"]


def test_a_gang_that_goes_on_with_what_is_left_replaces_the_lost_pod_alone() -> None:
    job = small(ranks={"nodes": 3}, on_lost_node="continue")
    (replicated,) = by_kind(render_kubernetes(job), "JobSet")["spec"]["replicatedJobs"]
    rules = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Count", "Ignore", "Ignore"]
    assert "--nnodes=1:3" in command_of(job)


def test_the_gang_meets_at_its_first_pod_by_the_name_that_jobset_gives_it() -> None:
    words = command_of(job_of(nodes=3))
    assert "--rdzv-endpoint=pretrain-workers-0-0.pretrain:29400" in words
    assert "--nnodes=3" in words
    assert by_kind(render_kubernetes(job_of(nodes=3)), "JobSet")["spec"]["network"]["subdomain"] == "pretrain"


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_command_is_one_that_unbroken_run_takes(nodes: int) -> None:
    words = command_of(job_of(nodes=nodes))
    assert words[:2] == ["unbroken", "run"]
    context = run.make_context("run", words[2:])
    assert context.params["uri"] == "s3://bucket/runs/pretrain"
    assert (context.params["grace"], context.params["every"]) == ("95", "10min")
    assert context.params["keep"] == "last=3"
    assert context.params["notices"] == "-gcp,-azure"
    assert (context.params["max_restarts"], context.params["no_progress_limit"]) == (7, 3)
    assert context.params["command"][-3:] == ("train.py", "--text", "it's: {odd}")


def test_a_gang_whose_name_begins_with_a_digit_has_a_service_that_does_not() -> None:
    job = small(name="3d", ranks={"nodes": 2})
    assert by_kind(render_kubernetes(job), "JobSet")["spec"]["network"]["subdomain"] == "n-3d"
    assert "--rdzv-endpoint=3d-workers-0-0.n-3d:29400" in command_of(job)


def test_the_pod_may_do_no_more_than_it_must() -> None:
    pod = pod_of(job_of())
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert "lifecycle" not in container
    assert pod["restartPolicy"] == "Never"
    assert pod_of(small())["automountServiceAccountToken"] is False


def test_memory_holds_the_training_two_copies_of_its_state_and_what_lies_in_memory_besides() -> None:
    resources = pod_of(job_of())["containers"][0]["resources"]
    gigabytes = 32 + 2 * 10 + 1 + 2
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == f"{gigabytes * 1024 + 512}Mi"
    assert resources["limits"]["nvidia.com/gpu"] == 4
    shm = next(volume for volume in pod_of(job_of())["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}


@pytest.mark.parametrize("state", ["1MB", "17GB", "400GiB"])
def test_in_the_limit_staging_makes_both_slots_while_all_else_is_full(state: str) -> None:
    job = small(resources={"memory": "3GiB", "state": state, "shm": "1GiB"})
    limit = int(pod_of(job)["containers"][0]["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert job.resources.state is not None
    full = (3 << 30) + (1 << 30) + AGENT_BYTES
    assert slots_that_fit([job.resources.state] * 2, job.resources.state, limit - full) == 2


def test_each_pool_is_a_term_and_spot_comes_first() -> None:
    node = pod_of(job_of())["affinity"]["nodeAffinity"]
    terms = node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [[one["values"][0] for one in term["matchExpressions"]] for term in terms] == [
        ["p4d.24xlarge", "us-east-1a", "spot"], ["p4de.24xlarge", "us-east-1b", "spot"],
        ["p4d.24xlarge", "us-east-1a", "on-demand"],
    ]  # fmt: skip
    (preferred,) = node["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchExpressions"][0]["values"] == ["spot"]


@pytest.mark.parametrize(
    ("provisioner", "label", "value"),
    [("karpenter", "karpenter.sh/capacity-type", "spot"), ("eks", "eks.amazonaws.com/capacityType", "SPOT")],
)
def test_without_pools_any_spot_node_will_do(provisioner: str, label: str, value: str) -> None:
    assert pod_of(small(kubernetes={"provisioner": provisioner}))["nodeSelector"] == {label: value}
    assert "nodeSelector" not in pod_of(small(kubernetes={"provisioner": "other"}))


def test_node_pools_are_one_for_each_market_spot_before_on_demand() -> None:
    documents = render_kubernetes(job_of(), ["nodepool"])
    pools = [parsed(each) for each in documents if each.data.get("kind") == "NodePool"]
    assert [(pool["metadata"]["name"], pool["spec"]["weight"]) for pool in pools] == [
        ("pretrain-spot", 100), ("pretrain-on-demand", 10),
    ]  # fmt: skip
    requirements = {one["key"]: one["values"] for one in pools[0]["spec"]["template"]["spec"]["requirements"]}
    assert requirements["node.kubernetes.io/instance-type"] == ["p4d.24xlarge", "p4de.24xlarge"]
    assert requirements["topology.kubernetes.io/zone"] == ["us-east-1a", "us-east-1b"]
    assert pools[0]["spec"]["template"]["spec"]["terminationGracePeriod"] == "105s"
    assert by_kind(documents, "EC2NodeClass")["spec"]["metadataOptions"]["httpPutResponseHopLimit"] == 1


def test_the_policy_of_the_bucket_names_the_run_and_nothing_else() -> None:
    lifecycle, policy = render_kubernetes(job_of(), ["iam-policy", "bucket-lifecycle"])[2:]
    assert lifecycle.data["Rules"][0]["Filter"] == {"Prefix": "runs/pretrain/"}
    objects, listing = policy.data["Statement"]
    assert objects["Resource"] == "arn:aws:s3:::bucket/runs/pretrain/*"
    assert "s3:DeleteObject" in objects["Action"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["runs/pretrain/*"]}}


def test_lint_has_nothing_to_say_of_what_is_rendered() -> None:
    for nodes in (1, 3):
        text = "---\n".join(document.text for document in render_kubernetes(job_of(nodes=nodes), FILES))
        assert lint_text(text, "rendered") == []


@pytest.mark.parametrize(
    ("fields", "extra", "words"),
    [
        ({"image": None}, None, "image is missing"),
        ({"resources": {"cpu": 1}}, None, "resources.memory is missing"),
        ({"kubernetes": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}}, None, "no SIGTERM would come"),
        ({"run": "/runs/a"}, None, "is gone with the pod"),
        ({}, "nodepool", "kubernetes.karpenter is missing"),
        ({"kubernetes": {"karpenter": {"cluster": "a", "node_role": "b"}}}, "nodepool", "pools are missing"),
        ({}, "rbac", "do not read their node"),
        ({}, "podmonitor", "no port of metrics"),
        ({"run": "gs://b/a"}, "iam-policy", "iam-policy is for S3"),
    ],
)
def test_what_is_missing_is_named_and_what_to_write(fields: dict[str, Any], extra: str | None, words: str) -> None:
    given_fields = {name: value for name, value in fields.items() if value is not None}
    text = yaml.safe_dump({"name": "a", "run": "s3://b/a", "command": ["python", "a.py"],
                           **({} if "image" in fields else {"image": "a:1"}),
                           "resources": {"memory": "1GiB"}} | given_fields)  # fmt: skip
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        render_kubernetes(read_job(text, "job.yaml"), [extra] if extra else [])
    assert caught.value.hint


def test_a_run_in_a_folder_is_rendered_where_a_claim_is_mounted_for_it() -> None:
    render_kubernetes(small(run="/runs/a", kubernetes={"volumes": [{"claim": "runs", "path": "/runs"}]}))
    with pytest.raises(ConfigError, match="gone with the pod"):
        render_kubernetes(
            small(run="/runs/a", kubernetes={"volumes": [{"claim": "runs", "path": "/runs", "read_only": True}]})
        )


NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Jobs of all sizes, with any words in them that a file can hold."""
    return small(
        name=draw(NAMES),
        command=["python", "a.py", *draw(st.lists(WORDS, max_size=3))],
        env=draw(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), WORDS, max_size=3)),
        ranks={"nodes": draw(st.integers(1, 4)), "per_node": draw(st.integers(1, 8))},
        resources={
            "memory": f"{draw(st.integers(1, 999))}MiB", "state": f"{draw(st.integers(1, 99))}GB",
            "gpu": draw(st.integers(0, 8)),
        },
        on_lost_node=draw(st.sampled_from(["wait", "continue"])),
        kubernetes={"provisioner": draw(st.sampled_from(["karpenter", "eks", "other"])),
                    "read_node": draw(st.booleans())},
    )  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(jobs())
def test_any_job_is_rendered_validly_and_the_same_each_time(job: Job) -> None:
    documents = render_kubernetes(job)
    assert [each.text for each in documents] == [each.text for each in render_kubernetes(job)]
    for document in documents:
        data = parsed(document)
        if data["kind"] in SCHEMAS:
            jsonschema.validate(data, SCHEMAS[data["kind"]])
        else:
            kubernetes_validate.validate(data, VERSIONS[0], strict=True)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", f"{job.name}-workers-0-{job.ranks.nodes - 1}")
    assert run.make_context("run", command_of(job)[2:]).params["command"][-1] == job.argv[-1].replace("$", "$$")


@pytest.mark.parametrize(
    ("file", "extras", "kinds"),
    [("training-job-spot.yaml", [], ["ServiceAccount", "Job"]), ("node-termination-handler.yaml", ["nth"], None)],
)
def test_the_files_that_are_shown_are_what_is_rendered(file: str, extras: list[str], kinds: list[str] | None) -> None:
    """Made anew by: python -m tests.render.test_kubernetes."""
    assert (ROOT / "manifests" / file).read_text() == shown(extras)
    if kinds is not None:
        assert [each["kind"] for each in yaml.safe_load_all(shown(extras))] == kinds


def shown(extras: list[str]) -> str:
    """All of the example's documents; of those on request only these."""
    documents = render_kubernetes(load_job(ROOT / "examples/kubernetes/job.yaml"), extras)
    return "---\n".join(document.text for document in documents[2 if extras else 0 :])


if __name__ == "__main__":
    (ROOT / "manifests/training-job-spot.yaml").write_text(shown([]))
    (ROOT / "manifests/node-termination-handler.yaml").write_text(shown(["nth"]))
