"""Scales of charts: from values to positions, with round ticks and short labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic scale.

    Attributes:
        low: Value at `start`.
        high: Value at `end`; above `low`.
        start: Position of the lowest value.
        end: Position of the highest value.
        log: Whether the scale is logarithmic; the values are then positive.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the position of a value; values outside the scale lie at its ends."""
        low, high = self._of(self.low), self._of(self.high)
        share = (self._of(max(value, self.low)) - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log(value) if self.log else value

    def ticks(self, count: int) -> list[float]:
        """Returns about `count` round values on the scale."""
        return (
            _log_ticks(self.low, self.high, count)
            if self.log
            else linear_ticks(self.low, self.high, count)
        )


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Returns multiples of 1, 2 or 5 times a power of ten within a range, about `count`.

    Example:
        >>> linear_ticks(0, 10, 5)
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * factor for factor in (1, 2, 5, 10) if rough <= power * factor), rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Returns powers of ten, or their multiples where these are too few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [
            factor * 10.0**power
            for power in range(first, last + 1)
            for factor in factors
            if low * (1 - 1e-9) <= factor * 10.0**power <= high * (1 + 1e-9)
        ]
        if len(ticks) >= min(count, 3):
            break
    skip = max(1, math.ceil(len(ticks) / max(count, 1)))
    return ticks[::skip]


def short(value: float) -> str:
    """Returns a number in a few characters: `0.25`, `1,200`, `45k`, `1.2M`, `3e18`.

    Example:
        >>> [short(value) for value in (0, 0.25, 3.0, 1200, 45_000, 1_200_000, 3e18)]
        ['0', '0.25', '3', '1,200', '45k', '1.2M', '3e18']
    """
    size = abs(value)
    sign = "\u2212" if value < 0 else ""
    if size >= 1e15 or 0 < size < 1e-4:
        mantissa, _, power = f"{size:.2g}".partition("e")
        return f"{sign}{mantissa}e{int(power)}"
    for unit, suffix in _SUFFIXES:
        if size >= unit * 10 or (size >= unit and unit > 1e3):
            return f"{sign}{_trimmed(size / unit, 3)}{suffix}"
    return f"{sign}{_trimmed(size, 4)}" if size < 1000 else f"{sign}{size:,.0f}"


def _trimmed(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    if "e" in text:
        return f"{value:.0f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves labels apart so that none overlap, in the order of their positions.

    Args:
        positions: Wanted positions.
        gap: Minimum distance between two labels.
        low: Lowest position.
        high: Highest position.

    Returns:
        Positions, each as near to the wanted one as a pass in both directions brings it.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = [min(max(position, low), high) for position in positions]
    for before, after in itertools.pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    if order and placed[order[-1]] > high:
        placed[order[-1]] = high
        for after, before in itertools.pairwise(reversed(order)):
            placed[before] = min(placed[before], placed[after] - gap)
    return placed
