"""How the training process ends: which signals ask it to stop, and with which code an uncaught error leaves."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from unbroken.errors import UnbrokenError

_STOP_SIGNALS = (signal.SIGTERM,)


class StopSignals:
    """Notes stop signals while it is installed. The handler does nothing but note the name.

    A handler that the program had installed before is called as well; the default (die at once) is what this replaces.
    """

    def __init__(self) -> None:
        self.received = ""
        """Name of the first stop signal, or ""."""
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Begin to listen. Python allows it in the main thread only; elsewhere the agent alone hears signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._note)

    def remove(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        before = self._before.get(signal.Signals(number))
        if callable(before):
            before(number, frame)


def install_exit_codes() -> None:
    """Let an uncaught :class:`UnbrokenError` end the process with its own exit code and a message for people."""
    if getattr(sys.excepthook, "unbroken", False):
        return
    sys.excepthook = _exit_hook(sys.excepthook)


def _exit_hook(
    before: Callable[[type[BaseException], BaseException, TracebackType | None], Any],
) -> Callable[[type[BaseException], BaseException, TracebackType | None], Any]:
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        if isinstance(error, UnbrokenError):
            # The interpreter takes the exit code of a SystemExit that is raised here.
            raise SystemExit(error.exit_code)

    hook.unbroken = True  # type: ignore[attr-defined]
    return hook
