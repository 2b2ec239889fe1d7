"""Who was not heard of for too long."""

from __future__ import annotations

from collections.abc import Mapping

_FIRST_BEAT_FACTOR = 10  # a rank may come long after the others: its part of the restore takes as long as it takes


class Silence:
    """Counts how long each one's beat has stood still, as seen by somebody who looks at regular moments.

    Time in which nobody looked counts for two beats at most: whoever was itself held up (a machine that slept, a long
    call that kept the interpreter) must not take the others for dead. Before the first beat of one its bound is ten
    times as long.

    Args:
        lost_seconds: after how long silence means lost.
        beat_seconds: how far apart the beats are.
    """

    def __init__(self, *, beat_seconds: float, lost_seconds: float) -> None:
        self._most = 2 * beat_seconds
        self._lost_seconds = lost_seconds
        self._beats: dict[int, bytes] = {}
        self._silent: dict[int, float] = {}
        self._looked_at: float | None = None

    def look(self, beats: Mapping[int, bytes], now: float) -> list[int]:
        """The ranks that are lost.

        Args:
            beats: by rank, what its beat is now; ``b""``: it has given none yet.
            now: monotonic seconds.
        """
        passed = 0.0 if self._looked_at is None else min(now - self._looked_at, self._most)
        self._looked_at = now
        lost = []
        for rank, beat in beats.items():
            moved = beat != self._beats.get(rank, b"")
            self._beats[rank] = beat
            self._silent[rank] = 0.0 if moved else self._silent.get(rank, 0.0) + passed
            bound = self._lost_seconds if beat else self._lost_seconds * _FIRST_BEAT_FACTOR
            if self._silent[rank] >= bound:
                lost.append(rank)
        return lost
