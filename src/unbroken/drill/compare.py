"""Comparing two runs' final checkpoints and logged values, bit by bit."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from unbroken.checkpoint import TensorRecord, encode_tree, read_metrics
from unbroken.drill.content import Content, content_of
from unbroken.errors import NotFoundError
from unbroken.journal import CheckpointRecord, Journal

LOGGED = "logged values"
GENERATORS = "rng"
"""Name in the state under which a run keeps the random number generators of Python, NumPy and torch."""
_OF_A_RANK = re.compile(r"rank\d+")


class Difference(msgspec.Struct, frozen=True):
    """One thing that differs. ``group`` is the name in the run's ``state``, ``name`` the path within."""

    group: str
    name: str
    text: str


class Group(msgspec.Struct):
    """What was compared under one name of the state. ``values`` are numbers and words that are no tensors."""

    name: str
    tensors: int = 0
    values: int = 0
    bytes: int = 0
    differences: int = 0


class Comparison(msgspec.Struct):
    """All that was compared, and every difference."""

    groups: list[Group]
    differences: list[Difference]
    unseeded: list[str] = []
    """Random number generators that began differently in the two trainings and were never used by either: each kept
    its state from its run's first checkpoint to the last, through every interruption. The resume is exact there.
    Those of several ranks are named ``rank3/torch``."""
    world_sizes: list[int] = []
    """Of the two final checkpoints."""
    left_out: list[str] = []
    """Names of the state that were not compared: they belong to each rank alone, and the two have other numbers of
    ranks."""

    @property
    def identical(self) -> bool:
        return not self.differences

    @property
    def tensors(self) -> int:
        return sum(group.tensors for group in self.groups)

    @property
    def bytes(self) -> int:
        """Bytes of tensors in one of the two checkpoints."""
        return sum(group.bytes for group in self.groups)

    @property
    def logged(self) -> int:
        """Logged values of one of the two runs."""
        return sum(group.values for group in self.groups if group.name == LOGGED)


def final_checkpoint(journal: Journal) -> CheckpointRecord:
    """The checkpoint with which a run finished.

    Raises:
        NotFoundError: the run did not finish, or has no checkpoint of its last step.
    """
    step = journal.state.finished_step
    for record in reversed(journal.state.checkpoints):
        if step is not None and record.step == step:
            return record
    raise NotFoundError(f"{journal.store.uri} has no final checkpoint: the run is not finished", kind="unfinished")


def compare_runs(first: Journal, second: Journal) -> Comparison:
    """Compare the final states and logged values of two finished runs.

    Every tensor byte of both is read and verified, in whatever layout it was written. What belongs to each rank alone
    is compared where both were written by as many ranks, and is said to be left out otherwise.

    Raises:
        NotFoundError: a run is not finished.
        DamagedError: a checkpoint's bytes disagree with their digests.
    """
    one, other = final_checkpoint(first), final_checkpoint(second)
    work = _Work()
    if one.step != other.step:
        work.differ("step", "", f"{one.step} and {other.step}")
    contents = content_of(first.store, one), content_of(second.store, other)
    world_sizes = [content.manifest.world_size for content in contents]
    left_out = sorted(contents[0].own | contents[1].own) if world_sizes[0] != world_sizes[1] else []
    _compare_contents(work, *(content.without(left_out) for content in contents))
    _compare_logged(work, read_metrics(first.store, first.state, one), read_metrics(second.store, second.state, other))
    generators = sorted({_generator(found) for found in work.differences if found.group == GENERATORS})
    unseeded = [name for name in generators if _unused(first, one, name) and _unused(second, other, name)]
    if unseeded:
        work.forgive(unseeded)
    return Comparison(list(work.groups.values()), work.differences, unseeded, world_sizes, left_out)


class _Work:
    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.differences: list[Difference] = []

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(name))

    def differ(self, group: str, name: str, text: str) -> None:
        self.differences.append(Difference(group, name, text))
        self.group(group).differences += 1

    def forgive(self, generators: list[str]) -> None:
        """Take back the differences of these generators."""
        kept = [one for one in self.differences if one.group != GENERATORS or _generator(one) not in generators]
        self.group(GENERATORS).differences -= len(self.differences) - len(kept)
        self.differences = kept


def _generator(difference: Difference) -> str:
    """Its name; of several ranks with the rank before it."""
    parts = difference.name.split("/")
    return "/".join(parts[:2] if _OF_A_RANK.fullmatch(parts[0]) else parts[:1])


def _unused(journal: Journal, final: CheckpointRecord, generator: str) -> bool:
    """Whether a generator's state never changed between a run's first checkpoint and its final one."""
    first = journal.state.checkpoints[0]
    work = _Work()
    prefix = f"{GENERATORS}/{generator}"
    one, other = (content_of(journal.store, record).below(prefix) for record in (first, final))
    _compare_contents(work, one, other)
    return first.n != final.n and not work.differences


def _split(path: str) -> tuple[str, str]:
    group, _, rest = path.partition("/")
    return group, rest


def _compare_contents(work: _Work, first: Content, second: Content) -> None:
    for path in first.trees:
        work.group(_split(path)[0])  # in the order in which the run names its state
    _compare_values(work, first.values, second.values)
    _compare_tensors(work, first, second)
    _compare_structure(work, first.trees, second.trees)


def _compare_values(work: _Work, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Everything that is no tensor. What differs within one container is one difference: generators are long."""
    unequal: dict[str, list[str]] = {}
    for path in {**one, **other}:
        work.group(_split(path)[0]).values += 1
        if path not in one or path not in other or not same_bits(one[path], other[path]):
            unequal.setdefault(path.rpartition("/")[0], []).append(path)
    for container, paths in unequal.items():
        group, name = _split(paths[0] if len(paths) == 1 else container)
        more = "" if len(paths) == 1 else f"{len(paths)} values differ, the first is {paths[0].rpartition('/')[2]}: "
        work.differ(group, name, f"{more}{_shown(one, paths[0])} and {_shown(other, paths[0])}")


def _shown(leaves: dict[str, Any], path: str) -> str:
    return repr(leaves[path]) if path in leaves else "nothing"


def _compare_structure(work: _Work, first: dict[str, Any], second: dict[str, Any]) -> None:
    """Leaves may agree where a list became a tuple or a dict changed its order: the trees as stored must agree too."""
    differing = {group.name for group in work.groups.values() if group.differences}
    for path in (path for path in first if path in second):
        group, name = _split(path)
        if group not in differing and msgspec.json.encode(first[path]) != msgspec.json.encode(second[path]):
            work.differ(group, name, "the containers differ in type or order")


def same_bits(one: Any, other: Any) -> bool:
    """Whether two values are the same in type and bits, as the format writes them: 0.0 is not -0.0, 1 is not True."""
    return _stored(one) == _stored(other)


def _stored(value: Any) -> bytes:
    return msgspec.json.encode(encode_tree(value))


def _compare_tensors(work: _Work, one: Content, other: Content) -> None:
    """One tensor at a time: two whole states need not fit into memory."""
    for path in {**one.tensors, **other.tensors}:
        group, name = _split(path)
        pair = one.tensors.get(path), other.tensors.get(path)
        if pair[0] is None or pair[1] is None:
            work.differ(group, name, f"the tensor is only in the {'second' if pair[0] is None else 'first'}")
            continue
        totals = work.group(group)
        totals.tensors += 1
        totals.bytes += pair[0].size
        text = _forms_differ(pair[0], pair[1]) or _bytes_differ(pair[0], one.read(path), other.read(path))
        if text:
            work.differ(group, name, text)


def _forms_differ(one: TensorRecord, other: TensorRecord) -> str:
    forms = [f"{record.dtype}{record.shape}" for record in (one, other)]
    return "" if forms[0] == forms[1] else f"{forms[0]} and {forms[1]}"


def _bytes_differ(record: TensorRecord, one: memoryview, other: memoryview) -> str:
    if one == other:
        return ""
    first, second = bytes(one), bytes(other)
    unequal = [index for index in range(len(first)) if first[index] != second[index]]
    return f"{record.dtype}{record.shape}: {len(unequal)} of {len(first)} bytes differ, the first is byte {unequal[0]}"


_Curve = dict[str, list[tuple[int, float]]]


def _compare_logged(work: _Work, one: _Curve, other: _Curve) -> None:
    """Each name's curve differs at most once: everything after its first difference follows from that."""
    for name in {**one, **other}:
        first, second = one.get(name, []), other.get(name, [])
        group = work.group(LOGGED)
        group.values += len(first)
        if len({step for step, _ in second}) != len(second):
            work.differ(LOGGED, name, "a step was logged more than once")
        unequal = [(a, b) for a, b in zip(first, second, strict=False) if a[0] != b[0] or not same_bits(a[1], b[1])]
        if unequal:
            (step, value), (other_step, other_value) = unequal[0]
            at = f"step {step}" if step == other_step else f"steps {step} and {other_step}"
            work.differ(LOGGED, name, f"{len(unequal)} values differ, the first at {at}: {value!r} and {other_value!r}")
        elif len(first) != len(second):
            work.differ(LOGGED, name, f"{len(first)} values and {len(second)}")
