"""``unbroken prune``: retire checkpoints and delete what no kept one needs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from unbroken.clock import SYSTEM_CLOCK, format_duration
from unbroken.errors import DamagedError

if TYPE_CHECKING:
    from rich.console import Console

    from unbroken.checkpoint import PrunePlan
    from unbroken.checkpoint.garbage import Garbage
    from unbroken.checkpoint.pruning import Pruned
    from unbroken.journal import AttemptRecord, CheckpointRecord

_EPILOG = """Exit codes: 0 shown, or done; 10 there is no run; 11 the run is being trained; 12 a kept manifest is
damaged, so nothing was deleted; 74 the storage failed; 77 the role may not delete."""


@click.command(epilog=_EPILOG, short_help="Retire checkpoints and delete what no kept one needs.")
@click.option(
    "--keep", default="", metavar="SPEC",
    help="Which to keep, such as last=3,every=10000,best=loss; all by default. The two newest always stay.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do it; without this the command only shows what it would do.")
@click.option("--take-over", is_flag=True, help="Do it though the newest attempt never said that it ended; fences it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
@click.argument("uri")
def prune(uri: str, keep: str, yes: bool, take_over: bool, as_json: bool) -> None:
    """Show which checkpoints of the run at URI would be retired and what would be deleted; with --yes, do it.

    Without --keep every checkpoint stays, and only what no checkpoint needs is deleted: what saves left behind that
    never came to an end.
    """
    from unbroken.checkpoint import parse_keep, plan_prune
    from unbroken.checkpoint.maintenance import live_attempt, prune_run, refuse_live
    from unbroken.cli.reading import open_run, print_json
    from unbroken.journal import Origin
    from unbroken.report.text import make_console

    policy = parse_keep(keep) if keep else None
    journal = open_run(uri)
    owner = live_attempt(journal.state)
    if yes and not take_over:
        refuse_live(journal.state)
    newest = journal.state.owner.attempt if journal.state.owner else 0
    # What a live attempt has in the store may belong to a save under way; it is left out of what is shown, too.
    below = newest if owner is not None and not take_over else newest + 1
    plan = plan_prune(journal, policy, below=below)
    done = None
    if yes and not plan.held and not plan.empty:
        origin = Origin(host=socket.gethostname(), pid=os.getpid())
        done = prune_run(journal.store, policy, origin, take_over=take_over)
    if as_json:
        print_json(_document(journal.store.uri, str(policy) if policy else None, plan, owner, done))
    else:
        _print(make_console(), plan, owner, done, asked=yes)
    if held := (done.held if done else plan.held if yes else ""):
        raise DamagedError(
            f"nothing was deleted: {held}", kind="held",
            hint="Bring the manifest back from the bucket's versions, or train on until this checkpoint is given up",
        )  # fmt: skip


def _document(
    uri: str, keep: str | None, plan: PrunePlan, owner: AttemptRecord | None, done: Pruned | None
) -> dict[str, Any]:
    objects, size = _total(plan.garbage)
    orphans, orphan_size = _total(each for each in plan.garbage if each.orphan)
    return {
        "uri": uri,
        "keep": keep,
        "live": None if owner is None else {"attempt": owner.attempt, "host": owner.origin.host},
        "held": plan.held or None,
        "kept": [{**_row(record), "reasons": plan.reasons[record.event.manifest]} for record in plan.kept],
        "retired": [_row(record) for record in plan.retired],
        "objects": objects,
        "bytes": size,
        "orphans": {"objects": orphans, "bytes": orphan_size},
        "done": None if done is None else {"retired": done.retired, "objects": done.objects, "bytes": done.bytes},
    }


def _row(record: CheckpointRecord) -> dict[str, Any]:
    return {"step": record.step, "attempt": record.attempt, "at": record.at, "manifest": record.event.manifest}


def _total(garbage: Iterable[Garbage]) -> tuple[int, int]:
    """(objects, bytes)"""
    sizes = [each.size for each in garbage]
    return len(sizes), sum(sizes)


def _print(console: Console, plan: PrunePlan, owner: AttemptRecord | None, done: Pruned | None, *, asked: bool) -> None:
    from unbroken.report.text import format_size, make_table

    def say(text: str) -> None:
        console.print(text, markup=False)

    table = make_table("step", "attempt", "age", "size", "", right=("step", "attempt", "age", "size"))
    records = sorted([*plan.kept, *plan.retired], key=lambda record: record.n)
    for record in records:
        reasons = plan.reasons.get(record.event.manifest)
        table.add_row(
            str(record.step),
            str(record.attempt),
            format_duration(max(0.0, SYSTEM_CLOCK.now() - record.at)),
            format_size(record.event.size),
            "retire" if reasons is None else f"keep: {', '.join(reasons)}",
        )
    console.print(table if records else "no checkpoint yet")
    objects, size = _total(plan.garbage)
    orphans, orphan_size = _total(each for each in plan.garbage if each.orphan)
    if done is not None:
        say(f"retired {done.retired} checkpoints, deleted {done.objects} objects ({format_size(done.bytes)})")
    elif plan.held:
        say(f"nothing may be retired or deleted: {plan.held}")
    elif plan.empty:
        say("nothing to retire or delete")
    else:
        say(f"to retire: {len(plan.retired)} checkpoints; to delete: {objects} objects ({format_size(size)})")
        say(f"  of these {orphans} ({format_size(orphan_size)}) were left by saves that never came to an end")
    if asked:
        return
    if owner is not None:
        say(f"attempt {owner.attempt} on {owner.origin.host} owns the run and has not ended: --yes would be refused")
    elif not plan.empty:
        say("nothing was changed; --yes does it")
