"""The result as bars, in an SVG that can be read on a light page and on a dark one."""

from __future__ import annotations

from html import escape
from typing import Any

from results import snapshot

_ROWS = {
    "lost_later": "training lost by a save",
    "durable_later": "boundary to durable",
    "restore": "restore",
}
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600; font-size: 15px }
.head { font-weight: 600 } .faint { fill: #57606a } .page { fill: #ffffff }
.bar { fill: #8c959f } .ours { fill: #1f6feb } .torn { fill: #cf222e }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .faint { fill: #9198a1 } .page { fill: #0d1117 }
.bar { fill: #6e7681 } .ours { fill: #4493f8 } .torn { fill: #f85149 } }
"""
_WIDTH, _LEFT, _RIGHT = 860, 200, 150
_BAR, _PITCH, _GAP, _TOP = 14, 20, 34, 58


def draw(result: dict[str, Any]) -> str:
    """An SVG with a group of bars for each of three measures, in copies of the state in memory; shorter is better."""
    setup, parts = result["setup"], []
    place = _TOP
    for row, words in _ROWS.items():
        shown = [(name, method) for name, method in result["methods"].items() if row in method["summary"]]
        if shown:
            parts.append(_group(words, row, shown, place))
            place += _PITCH * len(shown) + _GAP
    notes = [f"{name}: {reason}" for name, reason in result["skipped"].items()]
    for number, note in enumerate(notes):
        parts.append(f'<text class="faint" x="16" y="{place + 18 * number}">{escape(note[:110])}</text>')
    height = place + 18 * len(notes)
    title = f"{setup['state_bytes'] / 1e9:.3g} GB to {setup['store']}, loop '{setup['loop']}'"
    below = (
        f"seconds, and copies of the state in memory ({result['memcpy']['warm_s']:.3f} s); medians; "
        f"{result['host']['cores']} cores; shorter is better"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}"><style>{_STYLE}</style>'
        f'<rect class="page" width="{_WIDTH}" height="{height}" rx="6"/>'
        f'<text class="title" x="16" y="24">{escape(title)}</text>'
        f'<text class="faint" x="16" y="43">{escape(below)}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _group(words: str, row: str, shown: list[tuple[str, dict[str, Any]]], top: int) -> str:
    longest = max([method["summary"][row]["median"] for _, method in shown] + [1e-9])
    parts = [f'<text class="head" x="16" y="{top + 14}">{escape(words)}</text>']
    for number, (name, method) in enumerate(shown):
        about, y = method["summary"][row], top + 20 + _PITCH * number
        length = max(1.0, (_WIDTH - _LEFT - _RIGHT) * about["median"] / longest)
        torn = snapshot(name, method).startswith("TORN")
        kind = "torn" if torn else "ours" if name.startswith("unbroken") else "bar"
        value = f"{about['median']:.2f} s ({about['per_memcpy']:.1f}x){' torn' if torn else ''}"
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>'
            f'<text x="{_LEFT + length + 6:.1f}" y="{y + 12}">{escape(value)}</text>'
        )
    return "".join(parts)
