"""How the training process ends: which signals ask it to stop, and with which code an uncaught error leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from unbroken.errors import UnbrokenError
from unbroken.notice.choice import SIGUSR1, choice_of_environment

_STOP_SIGNALS = (signal.SIGTERM,)


class StopSignals:
    """Notes stop signals while it is installed. The handler does nothing but note the name.

    A handler that the program had installed before is called as well; the default (die at once) is what this replaces.
    Only in the process that installed it: a child that was forked later inherits the handler, and must still die of the
    signal, as whoever sends it expects.

    SIGUSR1, the advance warning of Slurm, is one only where nobody else has a use for it: a program with a handler of
    its own keeps it, and below an agent that hears it itself it is ignored already. Forked children live on, for the
    loop still needs its data.
    """

    def __init__(self) -> None:
        self.received = ""
        """Name of the first stop signal, or ""."""
        self.received_at = 0.0
        """When it came, in wall-clock seconds."""
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Begin to listen. Python allows it in the main thread only; elsewhere the agent alone hears signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL and SIGUSR1 in choice_of_environment().on:
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note)

    def remove(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(signal.Signals(number))
        if os.getpid() != self._process:
            if number == signal.SIGUSR1:
                return
            signal.signal(number, before if before is not None else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if not self.received:
            self.received, self.received_at = signal.Signals(number).name, time.time()
        if callable(before):
            before(number, frame)


def install_exit_codes() -> None:
    """Let an uncaught :class:`UnbrokenError` end the process with its own exit code, and with words for people."""
    if getattr(sys.excepthook, "unbroken", False):
        return
    sys.excepthook = _exit_hook(sys.excepthook)


def _exit_hook(
    before: Callable[[type[BaseException], BaseException, TracebackType | None], Any],
) -> Callable[[type[BaseException], BaseException, TracebackType | None], Any]:
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, UnbrokenError):
            before(kind, error, trace)
            return
        sys.stderr.write(_in_words(error, trace))
        # The interpreter takes the exit code of a SystemExit that is raised here.
        raise SystemExit(error.exit_code)

    hook.unbroken = True  # type: ignore[attr-defined]
    return hook


def _in_words(error: UnbrokenError, trace: TracebackType | None) -> str:
    """What happened, what to do, and the line of the program at which it did; our own frames help nobody."""
    text = f"unbroken: {error.message}\n"
    if error.hint:
        text += f"  hint: {error.hint}\n"
    own = str(Path(__file__).parent.parent)
    frames = [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith(own)]
    if frames:
        text += f"  at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}\n"
    return text
