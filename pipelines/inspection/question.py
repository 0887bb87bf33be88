"""What `datarater inspect` is asked: which documents of a run to show."""

from __future__ import annotations

import dataclasses
import enum


class Show(enum.StrEnum):
    """Which documents are shown."""

    BEST = "best"
    WORST = "worst"
    CUTOFF = "cutoff"
    RANDOM = "random"
    KEY = "key"
    EXCLUDED = "excluded"
    REJECTED = "rejected"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """Which documents to show, and how much may be read to find them.

    Attributes:
        show: Which documents.
        count: Maximum number of documents.
        skip: Number of documents that are passed over first.
        source: Source that they must be of; None for any.
        reason: Reason for which records must have been rejected, or documents excluded; None for
            any.
        keys: Keys of documents, in any of the forms that an id may have.
        seed: Seed for the random choice of documents and of score files.
        max_score_files: Maximum number of score files, and of summaries, that are read; 0 for all.
        end: Rank key of the cutoff; None without one.
    """

    show: Show
    count: int = 10
    skip: int = 0
    source: str | None = None
    reason: str | None = None
    keys: tuple[str, ...] = ()
    seed: int = 0
    max_score_files: int = 256
    end: int | None = None

    @property
    def needed(self) -> int:
        """The number of documents that must be found."""
        return self.skip + self.count

    def fits(self, files: int) -> bool:
        """Returns whether so many files may be read."""
        return not self.max_score_files or files <= self.max_score_files
