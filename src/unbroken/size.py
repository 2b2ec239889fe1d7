"""Bytes as sentences carry them."""

from __future__ import annotations


def size_text(size: float) -> str:
    """Write bytes in decimal units, with two figures at least: ``512 B``, ``3.1 GB``, ``61 GB``."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 999.5:  # what would be rounded to 1000 belongs to the next unit
            break
        size, unit = size / 1000.0, larger
    return f"{size:.0f} {unit}" if abs(size) >= 9.95 or unit == "B" else f"{size:.1f} {unit}"
