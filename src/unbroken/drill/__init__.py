"""Drills: a training interrupted on purpose, and compared bit by bit with the same training left alone."""

from unbroken.drill.compare import Comparison, compare_runs
from unbroken.drill.drill import DrillPlan, DrillResult, run_drill
from unbroken.drill.schedule import Strike, draw_schedule
from unbroken.drill.watching import Listener

__all__ = ["Comparison", "DrillPlan", "DrillResult", "Listener", "Strike", "compare_runs", "draw_schedule", "run_drill"]
