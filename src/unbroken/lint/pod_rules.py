"""What decides whether a pod's training hears the notice and has the time and memory to save."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from unbroken.lint.look import Look
from unbroken.lint.reading import Path

DEFAULT_NEED = 60.0
"""Seconds of grace asked for where no save was measured; Kubernetes' own default of 30 is less."""
NOTICE = 120.0
"""Seconds between EC2's notice and the end of the machine."""
_SPOT = (
    "karpenter.sh/capacity-type", "eks.amazonaws.com/capacityType", "cloud.google.com/gke-spot",
    "kubernetes.azure.com/scalesetpriority",
)  # fmt: skip
_SHELLS = ("sh", "bash", "dash", "ash", "zsh")


def looks_like_training(look: Look, pod: Path) -> bool:
    """Whether a container asks for a GPU or starts a training by its command."""
    for path, one in look.each(*pod, "spec", "containers"):
        if re.search(r"\btorchrun\b|\bunbroken\b|\btrain", " ".join(_command(one))):
            return True
        limits = look.get(*path, "resources", "limits")
        if isinstance(limits, dict) and any(str(key).endswith("/gpu") for key in limits):
            return True
    return False


def pod_rules(look: Look, pod: Path, save_seconds: float | None) -> None:
    """Look at a pod (or its template) at ``pod``."""
    spec = (*pod, "spec")
    _grace(look, (*spec, "terminationGracePeriodSeconds"), save_seconds)
    _placement(look, pod)
    memories = {v.get("name") for _, v in look.each(*spec, "volumes") if _in_memory(v)}
    for path, container in look.each(*spec, "containers"):
        _start(look, path, container)
        _resources(look, path)
        mounts = [m for _, m in look.each(*path, "volumeMounts") if m.get("mountPath") == "/dev/shm"]  # noqa: S108
        if not any(mount.get("name") in memories for mount in mounts):
            why = "The shared memory of DataLoader workers is 64 MiB here; mount an emptyDir with medium Memory"
            mended = "volumeMounts:\n- name: shm\n  mountPath: /dev/shm"
            if not memories:
                mended += "\nvolumes:\n- name: shm\n  emptyDir:\n    medium: Memory"
            look.add("small-shm", (*path, "volumeMounts"), why, mended)


def _in_memory(volume: dict[str, Any]) -> bool:
    empty = volume.get("emptyDir")
    return isinstance(empty, dict) and empty.get("medium") == "Memory"


def _grace(look: Look, path: Path, save_seconds: float | None) -> None:
    value = look.get(*path)
    grace = value if isinstance(value, int) else 30
    need = DEFAULT_NEED if save_seconds is None else save_seconds
    if need >= NOTICE:
        why = (
            f"The save takes {need:g} s and the notice is {NOTICE:g} s: no grace can hold it; save more often or faster"
        )
        look.add("save-too-long", path, why, "terminationGracePeriodSeconds: 100")
        return
    mended = f"terminationGracePeriodSeconds: {min(119, max(100, math.ceil(need)))}"
    if grace < need:
        look.add("grace-short", path, f"{grace} s of grace are fewer than the {need:g} s that a save needs", mended)
    if grace >= NOTICE:
        look.add("grace-long", path, f"{grace} s of grace are more than is left of a notice of {NOTICE:g} s", mended)


def _placement(look: Look, pod: Path) -> None:
    mark = (*pod, "metadata", "annotations", "karpenter.sh/do-not-disrupt")
    if str(look.get(*mark)).lower() == "true":
        why = "It blocks the drain even on an interruption: SIGTERM never comes. Leave it out"
        look.add("do-not-disrupt", mark, why, 'karpenter.sh/do-not-disrupt: "false"')
    spec = (*pod, "spec")
    for path, one in look.each(*spec, "tolerations"):
        # The taint has the effect NoSchedule: what tolerates others alone leaves it its force.
        if one.get("effect") not in (None, "", "NoSchedule"):
            continue
        every = one.get("operator") == "Exists" and not one.get("key")
        if every or one.get("key") == "karpenter.sh/disrupted":
            why = "It tolerates karpenter.sh/disrupted, so that the pod is never evicted politely; name another key"
            look.add("bare-exists", path, why, "- key: nvidia.com/gpu\n  operator: Exists")
    placed = json.dumps([look.get(*spec, "nodeSelector"), look.get(*spec, "affinity")])
    if not any(label in placed for label in _SPOT):
        why = "Nothing says whether this runs on spot; capacity types are labels of nodes, not taints"
        look.add("no-spot-selector", (*spec, "nodeSelector"), why, "nodeSelector:\n  karpenter.sh/capacity-type: spot")


def _start(look: Look, path: Path, container: dict[str, Any]) -> None:
    words = _command(container)
    if not container.get("command"):
        why = "The image's own command is not seen here: it must not exit 0 before the training is finished"
        look.add("unseen-exit", path, why, 'command: ["unbroken", "run", "--", "python", "train.py"]')
    flags = [at for at, word in enumerate(words[1:4], 1) if re.fullmatch(r"-[a-z]*c", word)]
    if words and words[0].rsplit("/", 1)[-1] in _SHELLS and flags:
        script = words[flags[0] + 1] if len(words) > flags[0] + 1 else ""
        prepared, last = _last_command(script)
        if not last.startswith("exec "):
            why = "A shell as PID 1 does not pass SIGTERM on: let it exec the last command"
            field = "command" if container.get("command") else "args"
            mended = f"command: {json.dumps([*words[: flags[0] + 1], f'{prepared}exec {last}'])}"
            if container.get("args"):
                mended += "\nargs: []"
            look.add(
                "shell-pid-1", (*path, field), why, mended if _is_simple(last) else 'command: ["python", "train.py"]'
            )
    stop = (*path, "lifecycle", "preStop")
    if "sleep" in json.dumps(look.get(*stop)):
        why = "preStop runs before SIGTERM and eats the grace period; leave it out"
        look.add("sleeping-prestop", stop, why, "# no preStop")
    image = container.get("image")
    last = str(image or "").rsplit("/", 1)[-1]
    if image and "@" not in last and (":" not in last or last.endswith(":latest")):
        why = "The attempt after an interruption may pull another image than the one before"
        look.add("floating-image", (*path, "image"), why, f"image: {str(image).removesuffix(':latest')}:TAG")


def _last_command(script: str) -> tuple[str, str]:
    """What a script does before its last command, and that command; a word in quotes is never cut."""
    script = script.rstrip(" \n\t;")
    cut = 0
    for match in re.finditer(r"'[^']*'|\"[^\"]*\"|&&|\|\||[;\n]", script):
        cut = match.end() if match[0][0] not in "'\"" else cut
    before = script[:cut]
    return before + " " * (before[-1:] not in ("", "\n")), script[cut:].strip()


def _is_simple(command: str) -> bool:
    """Whether exec may stand before it: no end of a loop, no pipe, nothing in the background."""
    quoteless = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
    return bool(command) and not re.search(r"[|&(){}]|^(fi|done|esac)\b", quoteless)


def _command(container: dict[str, Any]) -> list[str]:
    parts = [container.get("command"), container.get("args")]
    return [str(word) for part in parts if isinstance(part, list) for word in part]


def _resources(look: Look, path: Path) -> None:
    here = (*path, "resources")
    limit, request = (look.get(*here, kind, "memory") for kind in ("limits", "requests"))
    if limit is None or (request is None and look.get(*here, "requests", "cpu") is None):
        why = "Without requests and a memory limit the node may kill the training, and the memory of a save is not kept"
        memory = limit or request or "16Gi"
        mended = f"resources:\n  requests: {{cpu: 4, memory: {memory}}}\n  limits: {{memory: {memory}}}"
        look.add("no-resources", here, why, mended)
    elif request is not None and limit != request:
        why = f"Memory is limited to {limit} but {request} is asked for: the node may run out before the limit"
        look.add("memory-unequal", (*here, "requests", "memory"), why, f"memory: {limit}")
