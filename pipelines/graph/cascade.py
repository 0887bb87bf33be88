"""The scorer of a cascade: the student's scores, and the rater's where the student is in doubt.

What is in doubt follows from the histogram of the student's scores, which the first pass commits
(`scoring.json` of the run folder `student/`), and from the shares of the band
(`datarater.rater_model.cascade`). The histogram counts scores by their upper 16 bits. Both ends of
the band are moved outward to the next such bin, so that all documents of a bin are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.run_folder.identity import CascadeOptions
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import orders_of
from datarater.rater_model.cascade import combined_scores
from datarater.rater_model.text_scorer import PendingScores, ScoredTexts, TextScorer

if TYPE_CHECKING:
    from datarater.rater_model.tokenizer import Tokenizer

_DIGIT_BITS = np.uint32(16)


@dataclass(frozen=True)
class Doubt:
    """The scores at which a student is in doubt, by their digits at level 0 of the rank keys.

    A digit is the upper half of `orders_of` a score; smaller is better.

    Attributes:
        first: First digit in doubt; documents with a smaller one are surely kept.
        last: Last digit in doubt; documents with a larger one are surely dropped.
    """

    first: int
    last: int

    @classmethod
    def of(cls, histogram: Histogram, cascade: CascadeOptions) -> Doubt:
        """Returns the smallest range of digits that covers the band of a cascade.

        Of N documents, no more than `surely_kept` N are then surely kept, and no more than
        (1 - `surely_dropped`) N surely dropped. So the best round(keep N) documents of the total
        order include all of the former and none of the latter.

        Args:
            histogram: Histogram of the student's scores at level 0.
            cascade: The cascade.
        """
        ends_K = np.cumsum(histogram.counts_K)
        total = int(ends_K[-1]) if len(ends_K) else 0
        digits = [int(digit) for digit in histogram.bins_K]

        # The first bin that reaches past the surely kept share, and the last that begins before the
        # surely dropped ones.
        first = int(np.searchsorted(ends_K, math.floor(cascade.surely_kept * total), "right"))
        last = int(np.searchsorted(ends_K, math.ceil(cascade.surely_dropped * total), "left"))
        no_digit = 1 << 16
        return cls(
            digits[first] if first < len(digits) else no_digit,
            digits[last] if last < len(digits) else no_digit,
        )

    def certainty(self, student_N: NDArray[np.float32]) -> NDArray[np.int8]:
        """Returns 1 for surely kept documents, -1 for surely dropped ones, and 0 for all others.

        Args:
            student_N: Scores of the student; one that is not finite is in doubt.
        """
        is_finite_N = np.isfinite(student_N)
        digits_N = orders_of(np.where(is_finite_N, student_N, 0)) >> _DIGIT_BITS
        certainty_N = (digits_N < self.first).astype(np.int8) - (digits_N > self.last)
        return np.where(is_finite_N, certainty_N, 0).astype(np.int8)


def by_certainty(
    histogram: Histogram, cascade: CascadeOptions
) -> tuple[Histogram, Histogram, Histogram]:
    """Divides a run's documents: surely kept, scored by the rater, surely dropped.

    Args:
        histogram: Histogram of the combined scores at level 0. Half the offset, a power of two, is
            the first score of a bin.
        cascade: The cascade.
    """
    half = cascade.offset / 2
    best, worst = orders_of([half, -half]) >> _DIGIT_BITS
    ends = np.searchsorted(histogram.bins_K, [best, worst - 1], "right").tolist()
    kept, by_rater, dropped = (
        Histogram(*columns)
        for columns in zip(
            np.split(histogram.bins_K, ends),
            np.split(histogram.counts_K, ends),
            np.split(histogram.tokens_K, ends),
            strict=True,
        )
    )
    return kept, by_rater, dropped


class CascadeScorer(TextScorer):
    """Scores texts with a student, and those with the rater of which the student is in doubt.

    Every text has the tokens of the rater's tokenizer, whoever scores it.

    Args:
        student: Scorer of the student.
        rater: Scorer of the rater.
        tokenizer: Tokenizer of the rater.
        doubt: The scores at which the student is in doubt.
        offset: Distance by which the student's scores are moved (`combined_scores`).

    Attributes:
        digest: Digest of the rater.
        batches_ahead: That of the rater.
    """

    has_student = True

    def __init__(
        self,
        student: TextScorer,
        rater: TextScorer,
        tokenizer: Tokenizer,
        doubt: Doubt,
        offset: float,
    ) -> None:
        self.digest = rater.digest
        self.batches_ahead = rater.batches_ahead
        self._student = student
        self._rater = rater
        self._tokenizer = tokenizer
        self._doubt = doubt
        self._offset = offset

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Returns the combined scores of texts, and the tokens of the rater's tokenizer."""
        return self.submit(texts).result()

    def submit(self, texts: Sequence[str]) -> PendingScores:
        """Scores texts with the student, and begins to score those in doubt with the rater."""
        student_N = self._student.score(texts).scores_N
        certainty_N = self._doubt.certainty(student_N)
        in_doubt_M = np.flatnonzero(certainty_N == 0)
        pending = self._rater.submit([texts[index] for index in in_doubt_M.tolist()])

        tokens_N = np.zeros(len(texts), np.int64)
        for index in np.flatnonzero(certainty_N).tolist():
            tokens_N[index] = len(self._tokenizer.encode(texts[index]))

        def result() -> ScoredTexts:
            scored = pending.result()
            rater_N = np.zeros(len(texts), np.float32)
            rater_N[in_doubt_M] = scored.scores_N
            tokens_N[in_doubt_M] = scored.tokens_N
            scores_N = combined_scores(student_N, rater_N, certainty_N, self._offset)
            return ScoredTexts(scores_N, tokens_N, certainty_N == 0)

        return PendingScores(result)
