"""Objects of a run that no kept checkpoint needs, found by listing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unbroken.journal import Journal

# The forms of keys that writers use, by docs/spec/checkpoint-v1.md. What has another form is somebody else's.
_FORMS = {
    "packs": re.compile(r"packs/(?P<attempt>\d+)/\d+-\d+-\d+-(?P<nonce>[0-9a-f]+)\.safetensors"),
    "ranks": re.compile(r"ranks/(?P<attempt>\d+)/\d+/\d+-(?P<nonce>[0-9a-f]+)\.json"),
    "manifests": re.compile(r"manifests/\d+-(?P<attempt>\d+)-(?P<nonce>[0-9a-f]+)\.json"),
}


@dataclass(frozen=True)
class Garbage:
    """An object that may be deleted."""

    key: str
    size: int
    orphan: bool
    """Whether a save left it behind that was never committed; otherwise it is a retired checkpoint's."""


def find_garbage(journal: Journal, needed: frozenset[str], *, below: int) -> list[Garbage]:
    """Packs, rank records and manifests of attempts below a number that nothing needs, in the order of their keys.

    Args:
        journal: of the run, as read.
        needed: keys that checkpoints need which are kept.
        below: number of the first attempt whose saves may still be under way.

    Raises:
        StoreError: the storage failed.
    """
    committed = {
        (found["attempt"], found["nonce"])
        for commit in journal.state.commits
        if (found := _FORMS["manifests"].fullmatch(commit.event.manifest))
    }
    garbage = []
    for folder, form in _FORMS.items():
        for info in journal.store.list(folder):
            found = form.fullmatch(info.key)
            if found is not None and int(found["attempt"]) < below and info.key not in needed:
                orphan = (found["attempt"], found["nonce"]) not in committed
                garbage.append(Garbage(info.key, info.size, orphan))
    return sorted(garbage, key=lambda each: each.key)
