"""``unbroken watch``: print notices and advisories as they come."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from unbroken.clock import SYSTEM_CLOCK, format_duration, format_time
from unbroken.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from unbroken.notice import InterruptionAdvisory, InterruptionNotice, Offer, Reach

_ENDS = (signal.SIGINT, signal.SIGTERM)


@click.command(short_help="Print notices and advisories as they come.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line; docs/cli.md names the keys.")
@click.option("--notices", default="", metavar="LIST", help="Whom to hear: ec2,gcp or -azure; default all.")
def watch(as_json: bool, notices: str) -> None:
    """Print who can announce an interruption of this machine, and what they announce, until SIGINT or SIGTERM.

    Nothing is stopped or saved. What `unbroken run` would do is the same for a notice: the earliest deadline counts.
    """
    from unbroken.notice import offers, parse_choice

    found = offers(parse_choice(notices, "--notices") if notices else None)
    ended: SimpleQueue[int] = SimpleQueue()
    lines = _Lines(as_json, lambda: ended.put(signal.SIGTERM))
    for offer in found:
        if offer.source is None:
            lines.off(offer)
    if all(offer.source is None for offer in found):
        raise NotFoundError(
            "nobody can announce an interruption here", kind="notices",
            hint="unbroken run hears SIGTERM all the same; docs/notices.md says how to give it another source",
        )  # fmt: skip
    if _watch_until_ended(found, lines, ended) == signal.SIGINT:
        raise click.Abort


def _watch_until_ended(found: list[Offer], lines: _Lines, ended: SimpleQueue[int]) -> int:
    from unbroken.notice import InterruptionNotice, NoticeWatcher
    from unbroken.notice.grace import warning_from

    seconds = warning_from()
    watcher = NoticeWatcher(
        [offer.source for offer in found if offer.source is not None],
        lambda notice: lines.announced("notice", notice),
        lines.advisory,
        lines.problem,
        on_cancelled=lambda notice: lines.announced("cancelled", notice),
        on_reach=lines.reach,
    )

    def warned() -> None:
        reason = "unbroken watch received SIGUSR1"
        watcher.report(InterruptionNotice("sigusr1", reason, SYSTEM_CLOCK.now() + seconds))

    with _signals(ended, warned), watcher:
        return ended.get()


@contextmanager
def _signals(ended: SimpleQueue[int], warned: Callable[[], None]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda found, _: ended.put(found)) for number in _ENDS}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: warned())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Lines:
    """Prints one line for each thing, at once.

    Args:
        nobody_reads: called when the reader of the output has gone.
    """

    def __init__(self, as_json: bool, nobody_reads: Callable[[], None]) -> None:
        self._as_json = as_json
        self._nobody_reads = nobody_reads

    def off(self, offer: Offer) -> None:
        text = f"{offer.name} is not watched: {offer.why}"
        self._print("source", text, source=offer.name, state="off", why=offer.why)

    def reach(self, name: str, reach: Reach) -> None:
        text = f"{name} answers" if reach.answers else f"{name} does not answer: {reach.why}"
        self._print("source", text, source=name, state="answers" if reach.answers else "silent", why=reach.why)

    def announced(self, event: str, notice: InterruptionNotice) -> None:
        left = format_duration(max(0.0, notice.deadline - SYSTEM_CLOCK.now()))
        text = f"{event} from {notice.source}: {notice.reason}; {left} left"
        self._print(event, text, source=notice.source, reason=notice.reason, deadline=notice.deadline)

    def advisory(self, advisory: InterruptionAdvisory) -> None:
        text = f"advisory from {advisory.source}: {advisory.reason}"
        self._print("advisory", text, source=advisory.source, reason=advisory.reason)

    def problem(self, name: str, error: Exception) -> None:
        self._print("problem", f"problem with {name}: {error}", source=name, problem=str(error))

    def _print(self, event: str, text: str, **fields: Any) -> None:
        now = SYSTEM_CLOCK.now()
        line = json.dumps({"event": event, "at": now, **fields}) if self._as_json else f"{format_time(now)} {text}"
        try:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer goes there
            self._nobody_reads()
