"""What ``every="auto"`` writes where nothing is ever deleted, said before the bucket is full. Pure."""

from __future__ import annotations

from unbroken.clock import format_duration
from unbroken.every import Every
from unbroken.size import size_text

_HOUR = 3600.0
_SHORTEST = 1.0


def keeps_everything(every: Every, *, kept: bool) -> str | None:
    """What to tell a user at the start whose saves follow each other by themselves and are all kept; None otherwise.

    Args:
        every: the cadence of the scheduled saves. Who named one knows how many there will be.
        kept: whether ``keep=`` says which checkpoints are kept.
    """
    if every.auto is None or kept:
        return None
    return (
        "every=auto saves as often as that costs next to nothing, and without keep= no checkpoint is ever deleted: "
        'keep="last=3" keeps the newest three'
    )


def growth(written: float, interval: float) -> str:
    """The same in figures, once a save was measured.

    Args:
        written: bytes that the first save wrote; later ones write what has changed.
        interval: seconds from save to save.
    """
    interval = max(_SHORTEST, interval)
    return (
        f"a save wrote {size_text(written)}, and one follows every {format_duration(interval)}: "
        f"up to {size_text(written * _HOUR / interval)} an hour, all of which is kept"
    )
