"""Looks at the place where a training is to run, and says what would go wrong there, before anything is paid for."""

from unbroken.doctor.examine import CHECKS, Check, examine, exit_code_of
from unbroken.doctor.finding import SEVERITIES, Finding
from unbroken.doctor.place import Place

__all__ = ["CHECKS", "SEVERITIES", "Check", "Finding", "Place", "examine", "exit_code_of"]
