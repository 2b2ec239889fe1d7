"""The interval between saves that loses the least time, where it is known how often a run is interrupted.

J. W. Young (1974): first order. J. T. Daly (2006): higher order. The exact form of Daly's model is that with the
Lambert W function, and the one that is used; the others are here to be compared with it. Any unit of time, the same
for all.
"""

from __future__ import annotations

import math

_HALLEY_STEPS = 30
_SERIES_BELOW = 1e-5
"""Distance of ``e x + 1`` from 0 below which rounding leaves Halley's step nothing to divide by."""


def best_interval(stall: float, mean: float) -> float:
    """Training time between two saves that costs the least: saves and work done again together.

    Args:
        stall: time of training that a save costs.
        mean: mean time between interruptions that lose work.

    Returns:
        infinite where nothing is ever interrupted.
    """
    if math.isinf(mean):
        return math.inf
    # M (1 + W(-exp(-1 - d/M))), in terms of 1 + W, which rounding would lose where d is small against M.
    return mean * _one_plus_w0(-math.expm1(-stall / mean))


def first_order_interval(stall: float, mean: float) -> float:
    """Young's interval, ``sqrt(2 stall mean)``: good where a stall is short against the mean."""
    return math.sqrt(2.0 * stall * mean)


def daly_interval(stall: float, mean: float) -> float:
    """Daly's interval of higher order; the mean itself where a stall is longer than twice the mean."""
    if stall >= 2.0 * mean:
        return mean
    ratio = stall / (2.0 * mean)
    return math.sqrt(2.0 * stall * mean) * (1.0 + math.sqrt(ratio) / 3.0 + ratio / 9.0) - stall


def lambert_w0(x: float) -> float:
    """The principal branch of Lambert's W on [-1/e, 0): the w >= -1 with ``w exp(w) == x``.

    Raises:
        ValueError: x lies elsewhere.
    """
    distance = math.e * x + 1.0
    if not (x < 0.0 and distance >= -1e-15):
        raise ValueError(f"{x} is not in [-1/e, 0)")
    if x < -0.25:
        return _one_plus_w0(max(0.0, distance)) - 1.0
    w = x * (1.0 - x)
    for _ in range(_HALLEY_STEPS):
        power = math.exp(w)
        miss = w * power - x
        step = miss / (power * (w + 1.0) - (w + 2.0) * miss / (2.0 * w + 2.0))
        w -= step
        if abs(step) <= 1e-16 * abs(w):
            break
    return w


def _one_plus_w0(distance: float) -> float:
    """``1 + W0((distance - 1) / e)`` for a distance from the branch point in [0, 1]."""
    p = math.sqrt(2.0 * distance)
    if distance < _SERIES_BELOW:
        return p * (1.0 - p * (1.0 / 3.0 - p * (11.0 / 72.0 - p * (43.0 / 540.0 - p * 769.0 / 17280.0))))
    u = min(1.0, p * (1.0 - p / 3.0 + p * p * 11.0 / 72.0))
    target = distance - 1.0
    for _ in range(_HALLEY_STEPS):
        power = math.exp(u)  # e exp(w): both sides of the equation are multiplied by e
        miss = (u - 1.0) * power - target
        step = miss / (power * u - (u + 1.0) * miss / (2.0 * u))
        u -= step
        if abs(step) <= 1e-16 * u:
            break
    return u
