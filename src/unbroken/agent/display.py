"""Where the agent speaks to people: a status line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Protocol

from unbroken.agent.view import View, format_view
from unbroken.clock import Clock

_PREFIX = "unbroken: "
_PLAIN_SECONDS = 60.0

_SAVE, _RESTORE = "\x1b7", "\x1b8"
_REVERSE, _NORMAL = "\x1b[7m", "\x1b[0m"
_CLEAR_TO_END_OF_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"
_SMALLEST = (20, 4)


class Display(Protocol):
    """One place that people read."""

    def say(self, text: str) -> None:
        """Something happened."""

    def show(self, view: View) -> None:
        """How things stand; called about twice a second."""

    def close(self) -> None:
        """Leave the place as it was."""


class PlainDisplay:
    """Lines on the descriptor ``out``, for logs: events as they come, and how things stand once a minute.

    Args:
        steady: whether to say how things stand.
    """

    def __init__(self, out: int, clock: Clock, *, steady: bool = True) -> None:
        self._out = out
        self._clock = clock
        self._steady = steady
        self._shown_at = clock.monotonic()

    def say(self, text: str) -> None:
        _write(self._out, f"{_PREFIX}{text}\n")

    def show(self, view: View) -> None:
        now = self._clock.monotonic()
        if self._steady and view.attempt and now - self._shown_at >= _PLAIN_SECONDS:
            self._shown_at = now
            self.say(format_view(view, self._clock.now()))

    def close(self) -> None:
        pass


class TerminalDisplay:
    """A status line at the bottom of the terminal ``out``, kept outside the scrolling region.

    The command's own output scrolls above it, untouched and unread: both write to the same terminal.
    """

    def __init__(self, out: int, clock: Clock) -> None:
        self._out = out
        self._clock = clock
        self._size: tuple[int, int] | None = None

    def say(self, text: str) -> None:
        _write(self._out, f"{_PREFIX}{text}\n")

    def show(self, view: View) -> None:
        try:
            columns, rows = os.get_terminal_size(self._out)
        except OSError:
            return  # the terminal was closed; what is to be saved is saved all the same
        if columns < _SMALLEST[0] or rows < _SMALLEST[1]:
            self.close()
            return
        frame = "" if self._size == (columns, rows) else self._enter(columns, rows)
        line = f" {format_view(view, self._clock.now())}"[:columns].ljust(columns)
        frame += f"{_SAVE}\x1b[{rows};1H{_REVERSE}{line}{_NORMAL}{_RESTORE}"
        _write(self._out, frame)

    def close(self) -> None:
        if self._size is None:
            return
        _, rows = self._size
        self._size = None
        _write(self._out, f"{_SAVE}\x1b[r\x1b[{rows};1H{_CLEAR_BELOW}{_RESTORE}")

    def _enter(self, columns: int, rows: int) -> str:
        # The line feed makes room at the bottom; setting the region moves the cursor, so it is saved, put back, and
        # moved up by the row that was made.
        leave = "" if self._size is None else f"{_SAVE}\x1b[r\x1b[{self._size[1]};1H{_CLEAR_TO_END_OF_LINE}{_RESTORE}"
        self._size = (columns, rows)
        return f"{leave}\n{_SAVE}\x1b[1;{rows - 1}r{_RESTORE}\x1b[1A"


def choose_display(clock: Clock, *, attached: bool = False) -> Display:
    """The display that suits standard error; a detached agent only names events: the terminal is another's."""
    out = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
    if not attached and os.isatty(out) and os.environ.get("TERM", "dumb") != "dumb":
        return TerminalDisplay(out, clock)
    return PlainDisplay(out, clock, steady=not attached)


def _write(out: int, text: str) -> None:
    # One system call a frame, so that the command's output cannot fall in between; a reader that went away is no
    # reason to stop training.
    with contextlib.suppress(OSError):
        os.write(out, text.encode("utf-8", "replace"))
