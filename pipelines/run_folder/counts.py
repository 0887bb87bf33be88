"""Counts of records that were scored: of a split, a group of splits, a source, or the corpus."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from datarater.pipelines.errors import CountsError
from datarater.rater_model.counted import counted
from datarater.rater_model.json_codec import stored_as

MAX_NAMED = 3
"""Number of reasons for rejection in a message."""


@dataclasses.dataclass
class Counts:
    """How many records were scored and rejected.

    Attributes:
        read: Number of all records.
        scored: Number of documents with a score.
        tokens: Tokens of the scored documents.
        bytes: Bytes of the scored documents' texts in UTF-8.
        rejected_by_reason: Numbers of the other records, by reason.
    """

    read: int = 0
    scored: int = 0
    tokens: int = 0
    bytes: int = 0
    rejected_by_reason: Counter[str] = dataclasses.field(
        default_factory=Counter, metadata=stored_as("rejected")
    )

    @property
    def rejected(self) -> int:
        """Number of records without a score."""
        return self.rejected_by_reason.total()

    def add(self, other: Counts) -> None:
        """Adds other counts to these."""
        self.read += other.read
        self.scored += other.scored
        self.tokens += other.tokens
        self.bytes += other.bytes
        self.rejected_by_reason.update(other.rejected_by_reason)

    def check(self, what: str) -> None:
        """Reconciles the counts: read = scored + rejected.

        Args:
            what: Name of what is counted, for the message.

        Raises:
            CountsError: The counts do not add up; the message names them.
        """
        if self.read != self.scored + self.rejected:
            raise CountsError(
                f"{what}: {counted(self.read, 'record')} read, but {self.scored} scored + "
                f"{self.rejected} rejected"
            )


def by_count(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns the reasons for rejection with their numbers, the most frequent first."""
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))


def main_reasons(reasons: Mapping[str, int]) -> str:
    """Describes the most frequent reasons for rejection, for a message."""
    return ", ".join(f"{reason} {number:,}" for reason, number in by_count(reasons)[:MAX_NAMED])
