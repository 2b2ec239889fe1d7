"""What a training's command tells torchrun, and what else runs in its pod."""

from __future__ import annotations

import re
from typing import Any

from unbroken.lint.look import Look
from unbroken.lint.reading import Path

_OPTION = r"--{name}(?:=|[\"',\s]+)([^\s\"',]+)"


def command_rules(look: Look, pod: Path) -> None:
    """Look at the containers of a Job's pod at ``pod``."""
    for path, container in look.each(*pod, "spec", "containers"):
        field = "command" if container.get("command") else "args"
        text = " ".join(_words(container))
        found = re.search(r"\btorchrun\b|torch\.distributed\.run\b", text)
        if found is not None:
            _torchrun(look, (*path, field), text[: found.start()], text[found.end() :])
    _sidecars(look, (*pod, "spec"))


def _words(container: dict[str, Any]) -> list[str]:
    parts = [container.get("command"), container.get("args")]
    return [str(word) for part in parts if isinstance(part, list) for word in part]


def _torchrun(look: Look, path: Path, before: str, text: str) -> None:
    """``text`` is what follows the word, for whoever starts it may have options of the same names."""
    elastic = ":" in (_option(text, "nnodes") or "")
    restarts = _option(text, "max[-_]restarts")
    if restarts not in (None, "0") and not elastic:
        why = f"--max-restarts={restarts} starts the ranks again on the machine that goes away; leave that to the Job"
        look.add("torchrun-restarts", path, why, "--max-restarts=0")
    if not re.search(r"\bunbroken\b", before) and _option(text, "shutdown[-_]timeout") is None:
        why = "torchrun kills its ranks 30 s after SIGTERM, whatever the grace: a save that takes longer is lost"
        look.add("torchrun-kills", path, why, "--shutdown-timeout=90")
    if look.get("kind") == "JobSet" and re.search(r"--standalone\b", text):
        why = "--standalone makes each pod a training of its own: the gang never meets, and all write one run"
        look.add("torchrun-alone", path, why, "--rdzv-backend=c10d")


def _option(text: str, name: str) -> str | None:
    found = re.search(_OPTION.format(name=name), text)
    return found[1] if found else None


def _sidecars(look: Look, spec: Path) -> None:
    for path, one in list(look.each(*spec, "containers"))[1:]:
        name = one.get("name")
        why = "A Job is finished when all its containers have ended: this one keeps it, and its machine, if it goes on"
        look.add("sidecar", path, why, f"initContainers:\n- name: {name}\n  restartPolicy: Always")
