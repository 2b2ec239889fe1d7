"""From a journal to numbers and text: attempts, lost time, cost, how a run stands."""

from unbroken.report.cost import Cost, cost_of
from unbroken.report.summary import RunSummary, summarise
from unbroken.report.timeline import AttemptLine, Sighting, build_timeline, lost_seconds

__all__ = [
    "AttemptLine",
    "Cost",
    "RunSummary",
    "Sighting",
    "build_timeline",
    "cost_of",
    "lost_seconds",
    "summarise",
]
