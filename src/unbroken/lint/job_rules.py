"""What decides whether a Job comes back after an interruption."""

from __future__ import annotations

from typing import Any

from unbroken.lint.look import Look
from unbroken.lint.reading import Path

_DISRUPTION = "- action: {}\n  onPodConditions:\n  - type: DisruptionTarget"
_CODE = "- action: {}\n  onExitCodes:\n    operator: In\n    values: [{}]"
_REPLAY = "RestartJobSetAndIgnoreMaxRestarts"


def job_rules(look: Look, job: Path, *, gang: bool = False) -> None:
    """Look at the Job at ``job``; in a gang, an interruption may end the child Job so that the JobSet restarts."""
    spec = (*job, "spec")
    free = ("Ignore", "FailJob") if gang else ("Ignore",)
    restart = (*spec, "template", "spec", "restartPolicy")
    if look.get(*restart) != "Never":
        why = "podFailurePolicy works with restartPolicy Never alone; else the node that goes away restarts the pod"
        look.add("restart-policy", restart, why, "restartPolicy: Never")
    _replacement(look, spec)
    policy = (*spec, "podFailurePolicy")
    if not isinstance(look.get(*policy), dict):
        rules = "\n".join((_DISRUPTION.format(free[-1]), _CODE.format(free[-1], 75)))
        rules += "" if gang else "\n" + _CODE.format("FailJob", 78)
        why = "Without podFailurePolicy every interruption counts as a failure of the training"
        look.add("no-pod-failure-policy", policy, why, f"podFailurePolicy:\n  rules:\n{_indent(rules)}")
    else:
        _policy_rules(look, policy, free, gang)
    if not gang and any(one.rule in _COUNTED for one in look.found):
        limit = look.get(*spec, "backoffLimit")
        why = f"backoffLimit {6 if limit is None else limit} is used up by interruptions, then the Job fails"
        look.add("backoff-burnt", (*spec, "backoffLimit"), why, _DISRUPTION.format("Ignore"))


_COUNTED = ("no-pod-failure-policy", "disruption-counted", "interrupted-counted")


def _replacement(look: Look, spec: Path) -> None:
    path = (*spec, "podReplacementPolicy")
    if look.get(*path) != "Failed":
        why = "A pod that is still saving may be replaced at once: two trainers write"
        look.add("two-writers", path, why, "podReplacementPolicy: Failed")


def _policy_rules(look: Look, policy: Path, free: tuple[str, ...], gang: bool) -> None:
    rules = (*policy, "rules")
    if _action(look, rules, None) not in free:
        why = "An eviction (condition DisruptionTarget) counts against backoffLimit"
        look.add("disruption-counted", rules, why, _DISRUPTION.format(free[-1]))
    if _action(look, rules, 75) not in free:
        why = "Exit code 75, interrupted with progress saved, counts against backoffLimit"
        look.add("interrupted-counted", rules, why, _CODE.format(free[-1], 75))
    if gang and _action(look, rules, 78) == "FailJob" and _replays(look):
        why = "FailJob on exit code 78 starts the gang again for nothing, without end; counted, maxRestarts ends it"
        look.add("config-replayed", rules, why, _CODE.format("Count", 78))
    if not gang and _action(look, rules, 78) != "FailJob":
        why = "Exit code 78, a configuration to mend, is tried again and again"
        look.add("config-retried", rules, why, _CODE.format("FailJob", 78))


def _action(look: Look, rules: Path, code: int | None) -> Any:
    """The action of the first rule that holds for an exit code, or for a disruption."""
    for path, rule in look.each(*rules):
        if code is None:
            kinds = [c.get("type") for _, c in look.each(*path, "onPodConditions") if c.get("status") in (None, "True")]
            if "DisruptionTarget" in kinds:
                return rule.get("action")
            continue
        values = look.get(*path, "onExitCodes", "values")
        operator = look.get(*path, "onExitCodes", "operator")
        if isinstance(values, list) and operator in ("In", "NotIn") and (code in values) == (operator == "In"):
            return rule.get("action")
    return None


def jobset_rules(look: Look) -> list[Path]:
    """Look at a JobSet; the paths of its Jobs' templates."""
    failure = ("spec", "failurePolicy")
    if not _replays(look):
        why = "Each interruption counts against maxRestarts of the JobSet"
        mended = f"- name: interrupted\n  action: {_REPLAY}\n  onJobFailureReasons: [PodFailurePolicy]"
        look.add("jobset-restarts", (*failure, "rules"), why, mended)
    jobs = []
    for path, _ in look.each("spec", "replicatedJobs"):
        job = (*path, "template")
        jobs.append(job)
        job_rules(look, job, gang=True)
        if look.get(*job, "spec", "backoffLimit") != 0:
            why = "One worker is started again alone while the others wait for it"
            look.add("jobset-backoff", (*job, "spec", "backoffLimit"), why, "backoffLimit: 0")
        if look.get(*job, "spec", "completionMode") != "Indexed":
            why = "Workers without an index have no stable rank and no stable host name"
            look.add("jobset-not-indexed", (*job, "spec", "completionMode"), why, "completionMode: Indexed")
    return jobs


def _replays(look: Look) -> bool:
    """Whether a JobSet starts its gang again, for nothing, where a child Job failed by its podFailurePolicy."""
    return any(
        rule.get("action") == _REPLAY and "PodFailurePolicy" in _words(rule.get("onJobFailureReasons"))
        for _, rule in look.each("spec", "failurePolicy", "rules")
    )


def _words(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
