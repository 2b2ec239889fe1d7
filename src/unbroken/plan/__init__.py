"""What a job will cost and when it will be done, before it is launched."""

from unbroken.plan.inputs import Input, Inputs, inputs_of
from unbroken.plan.scenarios import Row, plan_rows

__all__ = ["Input", "Inputs", "Row", "inputs_of", "plan_rows"]
