"""What the agents of a run are told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AgentSettings:
    """What every agent of a run is told; the fields are options of ``unbroken run``. Empty ones are left to it."""

    uri: str = ""
    every: str = ""
    keep: str = ""
    grace: str = ""
    pool: str = ""
    price: float | None = None
    currency: str = ""
    max_restarts: int | None = None
    no_progress_limit: int | None = None

    def arguments(self) -> list[str]:
        """As arguments of the command."""
        given = {
            "--uri": self.uri,
            "--every": self.every,
            "--keep": self.keep,
            "--grace": self.grace,
            "--pool": self.pool,
            "--price": self.price,
            "--currency": self.currency,
            "--max-restarts": self.max_restarts,
            "--no-progress-limit": self.no_progress_limit,
        }
        return [part for name, value in given.items() if value not in ("", None) for part in (name, str(value))]
