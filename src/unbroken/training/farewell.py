"""How an attempt ended, in the words of the link."""

from __future__ import annotations

from unbroken.errors import EXIT_FAILED, EXIT_INTERRUPTED, Interrupted, UnbrokenError
from unbroken.link.messages import Bye

_MESSAGE_LIMIT = 2000


def farewell(error: BaseException, *, step: int) -> Bye:
    """What to tell the agent of an attempt that ends with ``error`` after ``step`` completed steps."""
    if isinstance(error, Interrupted):
        return Bye("interrupted", step, message=error.message, exit_code=EXIT_INTERRUPTED)
    code = error.exit_code if isinstance(error, UnbrokenError) else EXIT_FAILED
    kind = error.kind if isinstance(error, UnbrokenError) else ""
    return Bye("failed", step, _class_name(error), str(error)[:_MESSAGE_LIMIT], code, kind=kind)


def _class_name(error: BaseException) -> str:
    """With its module, unless it is ours or Python's own: a user's NotFoundError must not be taken for ours."""
    kind = type(error)
    if isinstance(error, UnbrokenError) or kind.__module__ == "builtins":
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"
