"""Objects of a run that no kept checkpoint needs, found by listing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unbroken.journal import Journal
from unbroken.store import ObjectInfo

# The forms of keys that writers use, by docs/spec/checkpoint-v1.md. What has another form is somebody else's.
_FORMS = {
    "packs": re.compile(r"packs/(?P<attempt>\d+)/(?P<step>\d+)-(?P<rank>\d+)-\d+-(?P<nonce>[0-9a-f]+)\.safetensors"),
    "ranks": re.compile(r"ranks/(?P<attempt>\d+)/(?P<step>\d+)/(?P<rank>\d+)-(?P<nonce>[0-9a-f]+)\.json"),
    "manifests": re.compile(r"manifests/(?P<step>\d+)-(?P<attempt>\d+)-(?P<nonce>[0-9a-f]+)\.json"),
}


@dataclass(frozen=True)
class Garbage:
    """An object that may be deleted."""

    key: str
    size: int
    orphan: bool
    """Whether a save left it behind that was never committed; otherwise it is a retired checkpoint's. Of several ranks,
    what a save of a committed step left that was tried again counts as the checkpoint's."""


def find_garbage(journal: Journal, needed: frozenset[str], *, below: int) -> list[Garbage]:
    """Packs, rank records and manifests of attempts below a number that nothing needs, in the order of their keys.

    Args:
        journal: of the run, as read.
        needed: keys that checkpoints need which are kept.
        below: number of the first attempt whose saves may still be under way.

    Raises:
        StoreError: the storage failed.
    """
    matches = (_FORMS["manifests"].fullmatch(commit.event.manifest) for commit in journal.state.commits)
    committed = {
        (found["attempt"], found["nonce"]): (found["attempt"], int(found["step"])) for found in matches if found
    }
    useless: list[tuple[ObjectInfo, re.Match[str]]] = []
    of_many: set[tuple[str, int]] = set()
    """Saves of several ranks: the nonces of their objects are not their manifest's."""
    for folder, form in _FORMS.items():
        for info in journal.store.list(folder):
            found = form.fullmatch(info.key)
            if found is not None and int(found["attempt"]) < below and info.key not in needed:
                useless.append((info, found))
                if folder != "manifests" and int(found["rank"]) > 0:
                    of_many.add((found["attempt"], int(found["step"])))
    known = of_many & set(committed.values())
    garbage = [
        Garbage(
            info.key,
            info.size,
            (found["attempt"], found["nonce"]) not in committed
            and ((found["attempt"], int(found["step"])) not in known or "rank" not in found.groupdict()),
        )
        for info, found in useless
    ]
    return sorted(garbage, key=lambda each: each.key)
