"""Which groups a rater drops: keep rates, their ratios to the overall rate, and a limit on those.

With k of the n documents of a group kept, K of all N documents, and c the confidence:

    rate = k / n,  interval: Wilson's score interval
    ratio = rate / (K / N),  interval: that of the rate over K / N
    min/max = lowest rate / highest rate,  interval: see `ratio_interval`

K / N is what was asked for and so is not random. The intervals of a field's G groups are meant to
hold together: each has confidence 1 - (1 - c) / G (Bonferroni), because the most extreme of many
groups is partly the unluckiest. They take documents for independent draws. Documents of one book or
site are not, so that intervals are too narrow where a group is made of a few of those.

The default limit is the four-fifths rule of the US Uniform Guidelines on Employee Selection
Procedures (29 CFR 1607.4): a ratio below 0.8, or above 1 / 0.8 = 1.25, is flagged.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927;
Katz et al., "Obtaining confidence intervals for the risk ratio in cohort studies", Biometrics 1978.

G counts groups.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

CONFIDENCE = 0.95
MAX_DISPARITY = 1.25


@dataclasses.dataclass(frozen=True)
class GroupRate:
    """The keep rate of a group.

    Attributes:
        group: Name of the group.
        documents: n, its documents.
        kept: k, those that are kept.
        rate: k / n.
        low: Lower end of the rate's interval.
        high: Upper end of the rate's interval.
        ratio: Rate over the overall rate.
        ratio_low: Lower end of the ratio's interval.
        ratio_high: Upper end of the ratio's interval.
        flag: `low` or `high` if the ratio is past the limit, otherwise "".
        certain: Whether the whole interval is past the limit.
    """

    group: str
    documents: int
    kept: int
    rate: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    flag: str
    certain: bool


@dataclasses.dataclass(frozen=True)
class Disparity:
    """The keep rates of the groups of a field.

    Attributes:
        field: Name of the field.
        rate: Overall keep rate.
        limit: The limit: ratios below 1 / limit or above it are flagged.
        groups: The groups, the lowest rate first.
        min_over_max: Lowest rate over the highest.
        min_over_max_low: Lower end of its interval.
        min_over_max_high: Upper end of its interval.
    """

    field: str
    rate: float
    limit: float
    groups: tuple[GroupRate, ...]
    min_over_max: float
    min_over_max_low: float
    min_over_max_high: float

    @property
    def flagged(self) -> tuple[GroupRate, ...]:
        """The groups past the limit."""
        return tuple(group for group in self.groups if group.flag)

    def warning(self) -> str | None:
        """Returns one sentence on the groups past the limit; None if there are none."""
        flagged = self.flagged
        if not flagged:
            return None
        certain = sum(group.certain for group in flagged)
        lowest, highest = flagged[0], flagged[-1]
        ends = [f"lowest {_named(lowest)}" if lowest.flag == "low" else ""]
        ends.append(f"highest {_named(highest)}" if highest.flag == "high" else "")
        return (
            f"keep rate by {self.field}: past the limit in {len(flagged)} of {len(self.groups)} "
            f"groups, {certain} with the whole interval; {', '.join(filter(None, ends))} of the "
            f"overall {self.rate:.2f}"
        )


def _named(group: GroupRate) -> str:
    return f"{group.group} {group.ratio:.2f} ({group.ratio_low:.2f} to {group.ratio_high:.2f})"


def disparity(
    field: str,
    kept_N: NDArray[np.bool_],
    groups: Sequence[str],
    limit: float = MAX_DISPARITY,
    confidence: float = CONFIDENCE,
) -> Disparity:
    """Returns the keep rates of groups.

    Args:
        field: Name of the field.
        kept_N: Which documents are kept.
        groups: Group of each document.
        limit: Limit above 1.
        confidence: Coverage of the intervals of all groups together.

    Raises:
        ValueError: If no document is kept, or there is none.
    """
    names, owners_N = np.unique(np.asarray(groups), return_inverse=True)
    total_G = np.bincount(owners_N)
    kept_G = np.bincount(owners_N[kept_N], minlength=len(names))

    overall = float(kept_N.mean()) if len(kept_N) else 0.0
    if not overall:
        raise ValueError("a keep rate needs at least one kept document")

    each = 1 - (1 - confidence) / len(names)
    rows = []
    for name, kept, total in zip(names.tolist(), kept_G.tolist(), total_G.tolist(), strict=True):
        low, high = wilson_interval(kept, total, each)
        ratio = kept / total / overall
        flag = "low" if ratio < 1 / limit else "high" if ratio > limit else ""
        certain = (flag == "low" and high / overall < 1 / limit) or (
            flag == "high" and low / overall > limit
        )
        rows.append(
            GroupRate(
                group=name,
                documents=total,
                kept=kept,
                rate=kept / total,
                low=low,
                high=high,
                ratio=ratio,
                ratio_low=low / overall,
                ratio_high=high / overall,
                flag=flag,
                certain=certain,
            )
        )

    rows.sort(key=lambda row: (row.rate, row.group))
    lowest, highest = rows[0], rows[-1]
    low, high = ratio_interval(
        (lowest.kept, lowest.documents), (highest.kept, highest.documents), each
    )
    return Disparity(
        field=field,
        rate=overall,
        limit=limit,
        groups=tuple(rows),
        min_over_max=lowest.rate / highest.rate,
        min_over_max_low=low,
        min_over_max_high=high,
    )


def wilson_interval(kept: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion.

    Args:
        kept: Number of successes.
        total: Number of trials, at least 1.
        confidence: Coverage.

    Example:
        >>> low, high = wilson_interval(5, 10)
        >>> round(low, 3), round(high, 3)
        (0.237, 0.763)
    """
    z = float(special.ndtri((1 + confidence) / 2))
    rate, scale = kept / total, 1 + z * z / total
    center = (rate + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    low = 0.0 if kept == 0 else max(0.0, center - half)
    return low, 1.0 if kept == total else min(1.0, center + half)


def ratio_interval(
    first: tuple[int, int], second: tuple[int, int], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Returns the interval of a ratio of two proportions, by the delta method for its logarithm.

        log ratio +- z sqrt(1 / k1 - 1 / n1 + 1 / k2 - 1 / n2)

    A first proportion of 0 has no logarithm. Its interval is made of Wilson's intervals (l, u) of
    both: from 0 to u1 / sqrt(l2 (2 r2 - l2)), with r2 the second proportion (MOVER-R: Donner and
    Zou, "Closed-form confidence intervals for functions of the normal mean and standard deviation",
    Statistical Methods in Medical Research 2012).

    Args:
        first: Successes and trials of the numerator.
        second: Successes, at least 1, and trials of the denominator.
        confidence: Coverage.
    """
    (k1, n1), (k2, n2) = first, second
    if k1 == 0:
        high = wilson_interval(k1, n1, confidence)[1]
        low = wilson_interval(k2, n2, confidence)[0]
        return 0.0, high / math.sqrt(low * (2 * k2 / n2 - low))
    z = float(special.ndtri((1 + confidence) / 2))
    half = z * math.sqrt(1 / k1 - 1 / n1 + 1 / k2 - 1 / n2)
    ratio = (k1 / n1) / (k2 / n2)
    return ratio * math.exp(-half), ratio * math.exp(half)
