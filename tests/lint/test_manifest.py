"""A good manifest gives nothing; one change gives its rule, at its line, with the good lines as those that mend it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.lint import RULES, Finding, count_known, lint_text

JOB = """\
apiVersion: batch/v1
kind: Job
metadata:
  name: good
spec:
  backoffLimit: 3
  podReplacementPolicy: Failed
  podFailurePolicy:
    rules:
    - action: Ignore
      onPodConditions:
      - type: DisruptionTarget
    - action: Ignore
      onExitCodes:
        operator: In
        values: [75]
    - action: FailJob
      onExitCodes:
        operator: In
        values: [78]
  template:
    metadata:
      annotations:
        karpenter.sh/do-not-disrupt: "false"
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 100
      nodeSelector:
        karpenter.sh/capacity-type: spot
      tolerations:
      - key: nvidia.com/gpu
        operator: Exists
      containers:
      - name: train
        image: example.com/train:TAG
        command: ["sh", "-c", "cd /app && exec python train.py"]
        resources:
          requests: {cpu: 4, memory: 16Gi}
          limits:
            memory: 16Gi
        volumeMounts:
        - name: shm
          mountPath: /dev/shm
      volumes:
      - name: shm
        emptyDir:
          medium: Memory
"""
JOBSET = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: gang
spec:
  failurePolicy:
    rules:
    - name: interrupted
      action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: workers
    template:
      spec:
        backoffLimit: 0
        completionMode: Indexed
""" + "".join(
    f"      {line}\n" for line in JOB[JOB.index("  podReplacementPolicy") :].replace("FailJob", "Count").splitlines()
)
POOL = """\
apiVersion: karpenter.sh/v1
kind: NodePool
metadata:
  name: pool
spec:
  disruption:
    consolidationPolicy: WhenEmpty
  template:
    spec:
      terminationGracePeriod: 110s
      requirements:
      - key: node.kubernetes.io/instance-type
        operator: In
        values: [g5.xlarge, ANOTHER]
      - key: topology.kubernetes.io/zone
        operator: In
        values: [us-east-1a, ANOTHER]
"""
_POLICY = JOB[JOB.index("  podFailurePolicy") : JOB.index("  template")]
_EVICTED = "    - action: Ignore\n      onPodConditions:\n      - type: DisruptionTarget\n"
_CASES = [  # rule, good manifest, good text, bad text, text of the line that is named
    ("restart-policy", JOB, "restartPolicy: Never", "restartPolicy: OnFailure", "restartPolicy: OnFailure"),
    ("no-pod-failure-policy", JOB, _POLICY, "", "spec:"),
    ("disruption-counted", JOB, _EVICTED, "", "rules:"),
    ("interrupted-counted", JOB, "values: [75]", "values: [76]", "rules:"),
    ("config-retried", JOB, "values: [78]", "values: [79]", "rules:"),
    ("backoff-burnt", JOB, _EVICTED, "", "backoffLimit: 3"),
    ("two-writers", JOB, "  podReplacementPolicy: Failed\n", "", "spec:"),
    ("shell-pid-1", JOB, "exec python", "python", "command: ["),
    ("grace-short", JOB, "Seconds: 100", "Seconds: 20", "Seconds: 20"),
    ("grace-long", JOB, "Seconds: 100", "Seconds: 300", "Seconds: 300"),
    ("bare-exists", JOB, "- key: nvidia.com/gpu\n        operator", "- operator", "- operator: Exists"),
    ("do-not-disrupt", JOB, '"false"', '"true"', "karpenter.sh/do-not-disrupt"),
    ("small-shm", JOB, "medium: Memory", "sizeLimit: 1Gi", "volumeMounts:"),
    ("no-resources", JOB, "memory: 16Gi\n        volume", "example.com/x: 1\n        volume", "resources:"),
    ("memory-unequal", JOB, "memory: 16Gi}", "memory: 8Gi}", "memory: 8Gi}"),
    ("floating-image", JOB, "train:TAG", "train:latest", "train:latest"),
    ("no-spot-selector", JOB, "karpenter.sh/capacity-type: spot", "disk: fast", "nodeSelector:"),
    ("config-replayed", JOBSET, "action: Count", "action: FailJob", "rules:"),
    ("jobset-backoff", JOBSET, "backoffLimit: 0", "backoffLimit: 6", "backoffLimit: 6"),
    ("jobset-not-indexed", JOBSET, "completionMode: Indexed", "completionMode: NonIndexed", "NonIndexed"),
    ("jobset-restarts", JOBSET, "AndIgnoreMaxRestarts", "", "rules:"),
    ("one-instance-type", POOL, "[g5.xlarge, ANOTHER]", "[g5.xlarge]", "[g5.xlarge]"),
    ("one-zone", POOL, "[us-east-1a, ANOTHER]", "[us-east-1a]", "[us-east-1a]"),
    ("consolidation", POOL, "Policy: WhenEmpty", "Policy: WhenEmptyOrUnderutilized", "Policy: WhenEmptyOr"),
    ("node-grace", POOL, "      terminationGracePeriod: 110s\n", "", "    spec:"),
]


def _of(rule: str, text: str, save_seconds: float | None = None) -> list[Finding]:
    return [one for one in lint_text(text, "a.yaml", save_seconds=save_seconds) if one.rule == rule]


@pytest.mark.parametrize("text", [JOB, JOBSET, POOL, f"{JOB}---\n{JOBSET}---\n{POOL}"])
def test_good_manifest_gives_nothing(text: str) -> None:
    assert lint_text(text, "a.yaml") == []


@pytest.mark.parametrize(("rule", "good", "right", "wrong", "at"), _CASES, ids=[case[0] for case in _CASES])
def test_rule_names_its_line_and_the_lines_that_mend_it(rule: str, good: str, right: str, wrong: str, at: str) -> None:
    assert right in good
    bad = good.replace(right, wrong, 1)
    (found,) = _of(rule, bad)
    named = bad.splitlines()[found.line - 1]
    assert at in named
    assert found.severity == RULES[rule]
    if rule != "no-resources":  # good has its limits over two lines
        assert all(line.strip() in good for line in found.mended.splitlines())


@pytest.mark.parametrize(
    ("rule", "kind"), [("bare-pod", "Pod"), ("misplaced-training", "Deployment"), ("misplaced-training", "StatefulSet")]
)
def test_training_outside_a_job_is_named(rule: str, kind: str) -> None:
    spec = {"containers": [{"command": ["torchrun", "a.py"]}]}
    inner = spec if kind == "Pod" else {"template": {"spec": spec}}
    assert _of(rule, json.dumps({"kind": kind, "spec": inner}))
    assert not _of(rule, json.dumps({"kind": kind, "spec": inner}).replace("torchrun", "nginx"))


def _with_command(text: str, words: list[str]) -> str:
    return text.replace('["sh", "-c", "cd /app && exec python train.py"]', json.dumps(words))


@pytest.mark.parametrize(
    ("rule", "words", "mended"),
    [
        ("torchrun-restarts", ["unbroken", "run", "--", "torchrun", "--max-restarts=3", "a.py"], "--max-restarts=0"),
        ("torchrun-restarts", ["unbroken", "run", "--", "torchrun", "--max_restarts", "3"], "--max-restarts=0"),
        ("torchrun-kills", ["torchrun", "a.py"], "--shutdown-timeout=90"),
        ("torchrun-kills", ["sh", "-c", "exec python -m torch.distributed.run a.py"], "--shutdown-timeout=90"),
    ],
)
def test_options_of_torchrun_that_cost_progress_are_named(rule: str, words: list[str], mended: str) -> None:
    bad = _with_command(JOB, words)
    (found,) = _of(rule, bad)
    assert (found.mended, "command:" in bad.splitlines()[found.line - 1]) == (mended, True)


@pytest.mark.parametrize(
    "words",
    [
        ["unbroken", "run", "--", "torchrun", "--max-restarts=0", "a.py"],
        ["unbroken", "run", "--", "torchrun", "--nnodes=1:4", "--max-restarts=3", "a.py"],  # elastic
        ["unbroken", "run", "--max-restarts", "7", "--", "torchrun", "--max-restarts=0", "a.py"],  # the agent's own
        ["torchrun", "--shutdown-timeout=90", "a.py"],
    ],
)
def test_options_of_torchrun_that_cost_nothing_are_not(words: list[str]) -> None:
    assert lint_text(_with_command(JOB, words), "a.yaml") == []


def test_a_gang_whose_nodes_would_train_alone_is_named() -> None:
    words = ["unbroken", "run", "--", "torchrun", "--standalone", "a.py"]
    assert _of("torchrun-alone", _with_command(JOBSET, words))
    assert not _of("torchrun-alone", _with_command(JOB, words))


def test_a_container_beside_the_training_is_named() -> None:
    beside = "      - name: proxy\n        image: example.com/proxy:1\n"
    bad = JOB.replace("      volumes:\n", f"{beside}      volumes:\n")
    (found,) = _of("sidecar", bad)
    assert "name: proxy" in bad.splitlines()[found.line - 1]
    assert found.mended.splitlines()[1:] == ["- name: proxy", "  restartPolicy: Always"]


def test_sleeping_pre_stop_hook_is_named() -> None:
    hook = '        lifecycle:\n          preStop: {exec: {command: ["sleep", "90"]}}\n        resources:\n'
    (found,) = _of("sleeping-prestop", JOB.replace("        resources:\n", hook))
    assert "preStop" in JOB.replace("        resources:\n", hook).splitlines()[found.line - 1]


@pytest.mark.parametrize(
    ("script", "mended"),
    [
        ("python train.py", "exec python train.py"),
        ("cd /app; python train.py;", "cd /app; exec python train.py"),
        ("exec 2>&1\npython train.py", "exec 2>&1\nexec python train.py"),
        ("python train.py --text 'a; b && c'", "exec python train.py --text 'a; b && c'"),
    ],
)
def test_the_last_command_is_the_one_to_exec(script: str, mended: str) -> None:
    good = '["sh", "-c", "cd /app && exec python train.py"]'
    (found,) = _of("shell-pid-1", JOB.replace(good, json.dumps(["sh", "-c", script])))
    assert found.mended == f"command: {json.dumps(['sh', '-c', mended])}"
    assert not _of("shell-pid-1", JOB.replace(f"command: {good}", found.mended))


@pytest.mark.parametrize("script", ["if true; then python train.py; fi", "python train.py | tee log", "(python a.py)"])
def test_what_cannot_be_executed_is_mended_without_a_shell(script: str) -> None:
    good = '["sh", "-c", "cd /app && exec python train.py"]'
    (found,) = _of("shell-pid-1", JOB.replace(good, json.dumps(["sh", "-c", script])))
    assert found.mended == 'command: ["python", "train.py"]'


def test_shell_in_the_arguments_is_mended_there_too() -> None:
    good = '["sh", "-c", "cd /app && exec python train.py"]'
    bad = JOB.replace(f"command: {good}", 'command: ["bash"]\n        args: ["-c", "python a.py"]')
    (found,) = _of("shell-pid-1", bad)
    assert found.mended == 'command: ["bash", "-c", "exec python a.py"]\nargs: []'


@pytest.mark.parametrize(
    ("toleration", "count"),
    [
        ("{operator: Exists}", 1), ("{operator: Exists, effect: NoSchedule}", 1),
        ("{key: karpenter.sh/disrupted, operator: Exists}", 1), ("{operator: Exists, effect: NoExecute}", 0),
        ("{key: nvidia.com/gpu, operator: Exists}", 0),
    ],
)  # fmt: skip
def test_toleration_of_the_taint_that_drains_is_named(toleration: str, count: int) -> None:
    bad = JOB.replace("- key: nvidia.com/gpu\n        operator: Exists", f"- {toleration}")
    assert len(_of("bare-exists", bad)) == count


def test_documents_that_train_nothing_are_not_counted() -> None:
    server = {"kind": "Deployment", "spec": {"template": {"spec": {"containers": [{"command": ["nginx"]}]}}}}
    assert count_known(json.dumps(server), "-") == 0
    assert count_known(json.dumps(server).replace("nginx", "torchrun"), "-") == 1
    assert count_known(POOL, "-") == 1


def test_a_pool_of_on_demand_alone_may_have_one_type() -> None:
    market = "      - key: karpenter.sh/capacity-type\n        operator: In\n        values: [on-demand]\n"
    bad = POOL.replace("[g5.xlarge, ANOTHER]", "[g5.xlarge]")
    assert _of("one-instance-type", bad)
    assert not _of("one-instance-type", bad + market)


def test_image_whose_command_is_not_seen_is_noted() -> None:
    assert [one.severity for one in _of("unseen-exit", JOB.replace("command: [", "args: ["))] == ["note"]


def test_measured_save_decides_whether_the_grace_is_enough() -> None:
    assert not _of("grace-short", JOB, 90)
    (found,) = _of("grace-short", JOB, 110)
    assert not _of("grace-short", JOB.replace("terminationGracePeriodSeconds: 100", found.mended), 110)
    assert _of("save-too-long", JOB, 120)


def test_comment_on_the_line_or_above_it_takes_a_finding_away() -> None:
    bad = JOB.replace("train:TAG", "train:latest")
    mark = "# unbroken-lint: ignore[floating-image]"
    assert not _of("floating-image", bad.replace("train:latest", f"train:latest {mark}"))
    assert not _of("floating-image", bad.replace("        image:", f"        {mark}\n        image:"))
    assert _of("floating-image", bad.replace("train:latest", "train:latest # unbroken-lint: ignore[one-zone]"))


def test_cron_job_and_list_are_looked_into() -> None:
    cron = {"kind": "CronJob", "spec": {"jobTemplate": {"spec": {}}}}
    text = json.dumps({"kind": "List", "items": [cron]})
    assert count_known(text, "-") == 1
    assert _of("no-pod-failure-policy", text)


def test_anchor_and_merge_key_are_unfolded() -> None:
    text = "x: &p {consolidationPolicy: WhenEmpty}\n" + POOL.replace("consolidationPolicy: WhenEmpty", "<<: *p")
    assert lint_text(text, "a.yaml") == []


_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 2\n", 2), ("a:\n\tb: 1\n", 2), ("a: &a [*a]\n", 1), ("[" * 5000, 1), (_LAUGHS, None),
        ("a: 1\nb: \x00\n", 2), ("? [a]\n: 1\n", 1), ("a: *nothing\n", 1), ("x" * 2_000_001, 1), ("<<: 3\n", 1),
    ],
    ids=["duplicate", "tab", "recursive", "deep", "laughs", "nul", "list-key", "alias", "huge", "merge"],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error_with_its_line(text: str, line: int | None) -> None:
    with pytest.raises(ConfigError, match=rf"a\.yaml:{line or '[0-9]+'}: ") as caught:
        lint_text(text, "a.yaml")
    assert caught.value.kind == "yaml"


def test_tag_builds_no_object() -> None:
    assert lint_text("!!python/object/apply:os.abort []\n", "a.yaml") == []


_KEYS = sorted({word.strip(" -:") for line in (JOB + JOBSET + POOL).splitlines() for word in line.split()[:2]})
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(_KEYS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5),
    max_leaves=20,
)
_KIND = st.sampled_from(["Job", "CronJob", "JobSet", "Pod", "Deployment", "NodePool", "List"])


@settings(max_examples=150, deadline=None)
@given(_KIND, _JSON, st.sampled_from(["spec", "items", "template"]))
def test_any_shape_of_document_is_read(kind: str, value: object, key: str) -> None:
    text = json.dumps({"kind": kind, "spec": {"template": {"spec": value}}, key: value}, indent=1)
    assert all(1 <= one.line <= len(text.splitlines()) for one in lint_text(text, "-"))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(JOB.splitlines()), max_size=20), st.text(max_size=10), st.integers(0, len(JOB)))
def test_any_text_is_read_or_refused(lines: list[str], noise: str, at: int) -> None:
    for text in ("\n".join(lines), JOB[:at] + noise + JOB[at:]):
        try:
            found = lint_text(text, "-")
        except ConfigError:
            continue
        assert all(1 <= one.line <= len(text.split("\n")) for one in found)
