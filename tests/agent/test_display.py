from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import Iterator

import pytest

from unbroken.agent.display import PlainDisplay, TerminalDisplay
from unbroken.agent.view import View
from unbroken.clock import SYSTEM_CLOCK
from unbroken.link.progress import Progress
from unbroken.testing.clock import FakeClock


class Terminal:
    """A pseudo-terminal with a size."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self) -> str:
        try:
            return os.read(self.master, 65536).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    terminal.resize(40, 10)
    yield terminal
    terminal.close()


def test_status_line_stays_outside_the_scrolling_region(terminal: Terminal) -> None:
    display = TerminalDisplay(terminal.slave, SYSTEM_CLOCK)
    display.show(View(phase="starting"))
    frame = terminal.read()
    assert "\x1b[1;9r" in frame
    assert "\x1b[10;1H\x1b[7m starting" in frame
    display.show(View(phase="starting"))
    assert "r" not in terminal.read().replace("starting", "")  # the region is set once
    display.close()


def test_line_is_cut_to_the_width(terminal: Terminal) -> None:
    display = TerminalDisplay(terminal.slave, SYSTEM_CLOCK)
    display.show(View(phase="x" * 100))
    assert "x" * 39 + "\x1b[0m" in terminal.read()
    display.close()


def test_resize_moves_the_region(terminal: Terminal) -> None:
    display = TerminalDisplay(terminal.slave, SYSTEM_CLOCK)
    display.show(View(phase="starting"))
    terminal.read()
    terminal.resize(60, 20)
    display.show(View(phase="starting"))
    frame = terminal.read()
    assert "\x1b[1;19r" in frame
    assert "\x1b[20;1H" in frame
    display.close()


def test_close_gives_the_whole_screen_back_once(terminal: Terminal) -> None:
    display = TerminalDisplay(terminal.slave, SYSTEM_CLOCK)
    display.show(View(phase="starting"))
    terminal.read()
    display.close()
    assert "\x1b[r\x1b[10;1H\x1b[J" in terminal.read()
    display.close()
    assert terminal.read() == ""


def test_tiny_terminal_gets_no_status_line(terminal: Terminal) -> None:
    terminal.resize(10, 2)
    display = TerminalDisplay(terminal.slave, SYSTEM_CLOCK)
    display.show(View(phase="starting"))
    assert terminal.read() == ""


def test_terminal_that_was_closed_is_no_error() -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
    display = TerminalDisplay(slave, SYSTEM_CLOCK)
    display.show(View(phase="starting"))
    os.close(master)
    display.show(View(phase="starting"))
    display.say("nobody reads this")
    display.close()
    os.close(slave)


def test_reader_that_went_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    PlainDisplay(writer, SYSTEM_CLOCK).say("nobody hears this")
    os.close(writer)


def test_plain_display_says_how_things_stand_once_a_minute() -> None:
    clock = FakeClock()
    reader, writer = os.pipe()
    display = PlainDisplay(writer, clock)
    view = View(1, Progress(5, 9, clock.now()))
    for _ in range(130):
        clock.advance(1.0)
        display.show(view)
    display.say("over")
    lines = os.read(reader, 65536).decode().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("unbroken: attempt 1 · step 5/9")
    assert lines[2] == "unbroken: over"
    os.close(reader)
    os.close(writer)
