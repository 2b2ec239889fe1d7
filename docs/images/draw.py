"""Draw what a terminal shows as a picture.

With the drill's output in a tmux window of 104 columns:

    tmux capture-pane -p -e | python docs/images/draw.py docs/images/drill.svg "unbroken drill"
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def draw(printed: str, title: str) -> str:
    """The SVG of some terminal output; it fetches no fonts from anywhere."""
    lines = printed.rstrip().split("\n")
    width = max(Text.from_ansi(line).cell_len for line in lines) + 1
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), no_wrap=True, overflow="ignore", crop=False)
    return _FONT_FACE.sub("", console.export_svg(title=title, theme=MONOKAI))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(sys.stdin.read(), sys.argv[2]), encoding="utf-8")
