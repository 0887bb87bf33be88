"""Statistics of paired runs: intervals, power, and the noise floor.

Runs of one seed share the initialization and the data order, so two arms are compared by the
differences of their final losses, one per seed. S counts seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

CONFIDENCE = 0.95
POWER = 0.8


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences with its t interval.

    Attributes:
        mean: Mean difference; below 0 where the first arm has the lower loss.
        low: Lower end of the interval; None with a single seed.
        high: Upper end of the interval; None with a single seed.
        deviation: Standard deviation of a single difference; None with a single seed.
        seeds: S, the number of differences.
    """

    mean: float
    low: float | None
    high: float | None
    deviation: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `undecided`: whether the interval excludes 0, for a loss."""
        if self.low is None or self.high is None:
            return "undecided"
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "undecided"


def paired_difference(
    first_S: ArrayLike, second_S: ArrayLike, confidence: float = CONFIDENCE
) -> PairedDifference:
    """Returns the mean of first - second with its two-sided t interval.

        mean +- t(S - 1, (1 + confidence) / 2) x deviation / sqrt(S)

    Args:
        first_S: Final losses of one arm, by seed.
        second_S: Final losses of the other arm, in the same order of seeds.
        confidence: Coverage of the interval.

    Raises:
        ValueError: If the lengths differ, there is no seed, or a loss is not finite.

    Example:
        >>> difference = paired_difference([2.0, 2.1, 2.2], [2.2, 2.3, 2.5])
        >>> round(difference.mean, 3), difference.verdict
        (-0.233, 'better')
    """
    first_S, second_S = np.asarray(first_S, np.float64), np.asarray(second_S, np.float64)
    if first_S.shape != second_S.shape or first_S.ndim != 1 or not len(first_S):
        raise ValueError(
            f"paired losses need one number per seed, not shapes {first_S.shape} and "
            f"{second_S.shape}"
        )
    differences_S = first_S - second_S
    if not np.isfinite(differences_S).all():
        raise ValueError("a loss is not finite: there is no difference to average")

    seeds, mean = len(differences_S), float(differences_S.mean())
    if seeds == 1:
        return PairedDifference(mean, None, None, None, 1)
    deviation = float(differences_S.std(ddof=1))
    half = float(special.stdtrit(seeds - 1, (1 + confidence) / 2)) * deviation / seeds**0.5
    return PairedDifference(mean, mean - half, mean + half, deviation, seeds)


def interval_text(difference: Mapping[str, Any] | None) -> str:
    """Returns a difference with its interval for a table; empty without a difference.

    Args:
        difference: The fields of a `PairedDifference`.
    """
    if difference is None:
        return ""
    if difference["low"] is None:
        return f"{difference['mean']:+.4f}"
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f}, {difference['high']:+.4f})"


def detection_probability(
    difference: float, deviation: float, seeds: int, confidence: float = CONFIDENCE
) -> float:
    """Returns the probability that a paired t test of this many seeds finds a true difference.

    The statistic has a noncentral t distribution with S - 1 degrees of freedom and noncentrality
    difference x sqrt(S) / deviation.

    Args:
        difference: True mean difference.
        deviation: Standard deviation of a single difference, above 0.
        seeds: S, at least 2.
        confidence: 1 minus the probability of a false finding.
    """
    freedom = seeds - 1
    critical = special.stdtrit(freedom, (1 + confidence) / 2)
    noncentrality = abs(difference) * seeds**0.5 / deviation
    # nctdtr fails far in the tail, where the result is 1 to rounding.
    if noncentrality > 30 + 2 * critical:
        return 1.0
    above = 1 - special.nctdtr(freedom, noncentrality, critical)
    below = special.nctdtr(freedom, noncentrality, -critical)
    return float(np.clip(above + np.nan_to_num(below), 0, 1))


def smallest_detectable(
    deviation: float, seeds: int, power: float = POWER, confidence: float = CONFIDENCE
) -> float | None:
    """Returns the smallest true difference that the given seeds find with probability `power`.

    Args:
        deviation: Standard deviation of a single paired difference.
        seeds: S, the number of seeds.
        power: Probability of finding it.
        confidence: Coverage of the interval.

    Returns:
        The difference; None with a single seed, 0 for a deviation of 0.

    Example:
        >>> round(smallest_detectable(0.01, seeds=4), 4), round(smallest_detectable(0.01, 16), 4)
        (0.0202, 0.0075)
    """
    if seeds < 2:
        return None
    if deviation == 0:
        return 0.0

    # Bisection in units of the deviation: the probability grows with the difference.
    low, high = 0.0, 1.0
    while detection_probability(high, 1.0, seeds, confidence) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if detection_probability(middle, 1.0, seeds, confidence) < power:
            low = middle
        else:
            high = middle
    return high * deviation


def typical_deviation(deviations: Sequence[float | None], seeds: int) -> float | None:
    """Returns the standard deviation of a paired difference in a typical arm, for planning.

    Few seeds estimate a deviation poorly, so that all arms are used; and a bad filter may vary far
    more than the others, so that it is their median. The median of S - 1 times estimated variances
    is that of a chi-squared distribution, which corrects it for few seeds.

    Args:
        deviations: Estimated deviation of each arm; None without one.
        seeds: S, the number of seeds of each estimate.

    Returns:
        The deviation; None without any estimate.
    """
    known = np.array([value for value in deviations if value is not None], np.float64)
    if not len(known):
        return None
    median = special.chdtri(seeds - 1, 0.5) / (seeds - 1)
    return float(np.sqrt(np.median(known**2) / median))


def isotonic(values_P: ArrayLike) -> NDArray[np.float64]:
    """Returns the non-increasing sequence closest to the values in least squares.

    Pool adjacent violators (Barlow et al., 1972).

    Example:
        >>> isotonic([4.0, 2.0, 3.0, 1.0]).tolist()
        [4.0, 2.5, 2.5, 1.0]
    """
    means: list[float] = []
    sizes: list[int] = []
    for value in np.asarray(values_P, np.float64):
        mean, size = float(value), 1
        while means and means[-1] < mean:
            mean = (means[-1] * sizes[-1] + mean * size) / (sizes[-1] + size)
            size += sizes[-1]
            means.pop()
            sizes.pop()
        means.append(mean)
        sizes.append(size)
    return np.repeat(means, sizes)
