"""Decides which documents a cascade leaves to the rater, from a student's error on held-out ones.

A cascade keeps the best share f of a corpus. A student (`datarater.rater_model.ngram_rater`) scores
all documents, and the rater only those whose rank the student leaves in doubt:

    surely kept     the best share a of the documents by the student's score, a <= f
    in doubt        the documents between, ranked by the rater's score
    surely dropped  all documents past the best share b by the student's score, b >= f

The total order is: the surely kept by the student's score, then those in doubt by the rater's, then
the surely dropped by the student's. Only ranks count, so the order survives a student whose scores
are shifted or stretched on the corpus at hand. It is one number (`combined_scores`): the student's
scores are moved by an offset beyond all scores of the rater.

The cascade misses a document that the rater alone keeps only where the student is surely wrong. Let
W_in be the documents surely kept that the rater alone drops, and W_out those surely dropped that it
keeps. Of the f N documents that the rater keeps, the cascade misses max(W_in, W_out). A band is
chosen as in conformal risk control (Angelopoulos et al., arXiv 2208.02814), which adds 1 to the
errors on H held-out documents: each side may be wrong about W of them with

    W + 1 + sqrt((W + 1) / pi) <= (1 - agreement) f (H + 1)

where the root is the expected excess of the larger one of two independent counts, each with a
variance of W + 1, over their mean. For documents like the held-out ones, the expected agreement is
then about the wished one or above it.

Dimension letters in array names: N documents, H held-out documents.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from datarater.rater_model.checkpoint import RaterCheckpoint
from datarater.rater_model.ngram_rater import HELD_OUT_COLUMNS, NgramConfig, held_out_name


class NotAStudentError(ValueError):
    """A rater cannot begin a cascade, since no held-out scores are known of it."""


@dataclasses.dataclass(frozen=True)
class Band:
    """The documents that a cascade leaves to the rater, as shares of the student's ranks.

    Attributes:
        kept: Share a: the best documents, which are surely kept.
        dropped: Share b: all documents past it are surely dropped.
    """

    kept: float
    dropped: float


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Documents that a student was not fitted to.

    Attributes:
        student_H: Their scores by the student.
        rater_H: Their scores by the rater.
        bytes_H: Their sizes in bytes of UTF-8.
    """

    student_H: NDArray[np.floating]
    rater_H: NDArray[np.floating]
    bytes_H: NDArray[np.floating]

    @classmethod
    def of(cls, student: RaterCheckpoint) -> HeldOut:
        """Returns the held-out documents of a student.

        Raises:
            NotAStudentError: It is not a student.
        """
        if not isinstance(student.config, NgramConfig) or not student.config.held_out:
            raise NotAStudentError("it is not a student that datarater distil made")
        return cls(*(student.params[held_out_name(column)] for column in HELD_OUT_COLUMNS))

    def band(self, keep: float, agreement: float) -> Band:
        """Returns the band of the wished agreement.

        Args:
            keep: Share f of the documents that is kept.
            agreement: Wished share, in expectation, of the rater's own kept documents among the
                cascade's; 1 leaves everything to the rater.
        """
        count = len(self.student_H)
        allowed = _allowed_errors((1 - agreement) * keep * (count + 1))
        if allowed < 0:
            return Band(0.0, 1.0)

        by_student_H = np.argsort(-self.student_H, kind="stable")
        by_rater_H = np.argsort(-self.rater_H, kind="stable")
        kept_H = np.zeros(count, bool)
        kept_H[by_rater_H[: round(keep * count)]] = True
        kept_H = kept_H[by_student_H]

        # From either end, as many documents as have no more wrong ones among them than allowed.
        best = _first_with_more(~kept_H, allowed)
        worst = _first_with_more(kept_H[::-1], allowed)
        return Band(min(best / count, keep), max(1 - worst / count, keep))

    def share(self, band: Band) -> float:
        """Returns the share of the held-out bytes that a band leaves to the rater."""
        count = len(self.student_H)
        by_student_H = np.argsort(-self.student_H, kind="stable")
        inside = slice(math.floor(band.kept * count), math.ceil(band.dropped * count))
        return float(self.bytes_H[by_student_H[inside]].sum() / max(1.0, self.bytes_H.sum()))

    def offset(self) -> float:
        """Returns the distance by which the student's scores are moved: a power of two.

        It is at least four times the largest score of a held-out document.
        """
        largest = max(float(np.abs(column).max()) for column in (self.student_H, self.rater_H))
        return float(2.0 ** math.ceil(math.log2(max(4 * largest, 1.0))))


def _allowed_errors(budget: float) -> int:
    """Returns the largest W with W + 1 + sqrt((W + 1) / pi) <= budget; -1 if there is none."""
    root = math.sqrt(1 / math.pi)
    largest = ((math.sqrt(root**2 + 4 * max(0.0, budget)) - root) / 2) ** 2
    return math.floor(largest + 1e-9) - 1


def _first_with_more(wrong_H: NDArray[np.bool_], allowed: int) -> int:
    """Returns how many documents from the first on have no more than the allowed wrong ones."""
    return int(np.searchsorted(np.cumsum(wrong_H), allowed, side="right"))


def combined_scores(
    student_N: NDArray[np.float32],
    rater_N: NDArray[np.float32],
    certainty_N: NDArray[np.int8],
    offset: float,
) -> NDArray[np.float32]:
    """Returns one score for each document, whose order is the total order of a cascade.

        surely kept: student + offset; in doubt: rater; surely dropped: student - offset

    Scores are first limited to half the offset, so that the three never mix. The limit is at least
    twice any held-out score. A score of the rater that is not finite stays as it is.

    Args:
        student_N: Scores of the student.
        rater_N: Scores of the rater; those of documents that are not in doubt do not matter.
        certainty_N: 1 for surely kept, 0 for in doubt, -1 for surely dropped.
        offset: Distance by which the student's scores are moved, a power of two.
    """
    half = np.float32(offset / 2)
    below = np.nextafter(half, np.float32(0))
    moved_N = np.clip(student_N, -half, half) + certainty_N.astype(np.float32) * np.float32(offset)
    limited_N = np.where(np.isfinite(rater_N), np.clip(rater_N, -below, below), rater_N)
    return np.where(certainty_N == 0, limited_N, moved_N).astype(np.float32)
