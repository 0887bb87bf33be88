"""Counts of what a selection keeps: of a split, a group of splits, a source, or the whole corpus.

The counts of many splits are arrays, one per count: a corpus has millions of splits, and one worker
has the counts of all of them in memory when it plans the output files and reconciles the counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.errors import CountsError
from datarater.rater_model.counted import counted
from datarater.rater_model.json_codec import IF_SET


@dataclasses.dataclass
class KeptCounts:
    """How many records a selection keeps, drops and rejects.

    Attributes:
        read: Number of all records.
        kept: Number of documents that the rule keeps.
        dropped: Number of documents with a score that the rule does not keep.
        rejected: Number of records without a score.
        kept_tokens: Tokens of the kept documents.
        kept_bytes: Bytes of the kept documents' texts in UTF-8.
        repeats: Number of copies of kept documents beside the first one of each.
        repeat_tokens: Tokens of these copies.
    """

    read: int = 0
    kept: int = 0
    dropped: int = 0
    rejected: int = 0
    kept_tokens: int = 0
    kept_bytes: int = 0
    repeats: int = dataclasses.field(default=0, metadata=IF_SET)
    repeat_tokens: int = dataclasses.field(default=0, metadata=IF_SET)

    @property
    def written(self) -> int:
        """Number of documents to write: kept ones with all their copies."""
        return self.kept + self.repeats

    @property
    def scored(self) -> int:
        """Number of documents with a score."""
        return self.kept + self.dropped

    def add(self, other: KeptCounts) -> None:
        """Adds other counts to these."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def check(self, what: str) -> None:
        """Reconciles the counts: read = kept + dropped + rejected.

        Args:
            what: Name of what is counted, for the message.

        Raises:
            CountsError: The counts do not add up; the message names them.
        """
        if self.read != self.kept + self.dropped + self.rejected:
            raise CountsError(
                f"{what}: {counted(self.read, 'document')} read, but {self.kept} kept + "
                f"{self.dropped} "
                f"dropped + {self.rejected} rejected"
            )


REPEATS = ("repeats", "repeat_tokens")
"""The counts that only a rule with copies has."""
COUNTS = tuple(field.name for field in dataclasses.fields(KeptCounts))


@dataclasses.dataclass(frozen=True)
class KeptSplits:
    """What is kept of each of S splits, or of the files of one class in a split of several.

    Attributes:
        ordinals_S: Ordinals of the splits; repeated where files of a split need different outputs.
        layouts: The distinct layouts of their files (`FileFormat.layout`), in any order.
        layout_codes_S: Layout of each split, as an index into `layouts`.
        counts: One array of S counts for each field of `KeptCounts`, by its name.
        input_bytes_S: Stored bytes that the second read of each takes, approximately; 0 where
            nothing is kept, and in the counts that version 0.1.0 wrote.
    """

    ordinals_S: NDArray[np.int64]
    layouts: tuple[str, ...]
    layout_codes_S: NDArray[np.int32]
    counts: Mapping[str, NDArray[np.int64]]
    input_bytes_S: NDArray[np.int64]

    @classmethod
    def of(
        cls, rows: Iterable[tuple[int, str, KeptCounts]], input_bytes: Sequence[int] = ()
    ) -> KeptSplits:
        """Returns the counts of splits.

        Args:
            rows: Ordinal, layout and counts of each split.
            input_bytes: Stored bytes that the second read of each takes; all 0 if empty.
        """
        rows = list(rows)
        codes = {
            layout: code
            for code, layout in enumerate(dict.fromkeys(layout for _, layout, _ in rows))
        }
        return cls(
            np.asarray([ordinal for ordinal, _, _ in rows], np.int64),
            tuple(codes),
            np.asarray([codes[layout] for _, layout, _ in rows], np.int32),
            {
                name: np.asarray([getattr(counts, name) for _, _, counts in rows], np.int64)
                for name in COUNTS
            },
            np.asarray(input_bytes or [0] * len(rows), np.int64),
        )

    @classmethod
    def merge(cls, parts: Iterable[KeptSplits]) -> KeptSplits:
        """Merges the splits of several parts, sorted by ordinal."""
        parts = [cls.of([]), *parts]

        # Each part numbers the layouts in its own way.
        codes = {
            layout: code
            for code, layout in enumerate(dict.fromkeys(x for part in parts for x in part.layouts))
        }
        ordinals_S = np.concatenate([part.ordinals_S for part in parts])
        own_codes = [
            np.asarray([codes[layout] for layout in part.layouts], np.int32) for part in parts
        ]
        codes_S = np.concatenate(
            [own[part.layout_codes_S] for own, part in zip(own_codes, parts, strict=True)]
        )

        order_S = np.argsort(ordinals_S, kind="stable")
        counts = {
            name: np.concatenate([part.counts[name] for part in parts])[order_S] for name in COUNTS
        }
        input_bytes_S = np.concatenate([part.input_bytes_S for part in parts])[order_S]
        return cls(ordinals_S[order_S], tuple(codes), codes_S[order_S], counts, input_bytes_S)

    @property
    def splits(self) -> int:
        """Number of splits."""
        return len(np.unique(self.ordinals_S))

    def total(self) -> KeptCounts:
        """Returns the sum over all splits."""
        return KeptCounts(**{name: int(self.counts[name].sum()) for name in COUNTS})

    def check(self) -> None:
        """Reconciles the counts of every split.

        Raises:
            CountsError: The counts of a split do not add up; the message names the first such split
                and its counts.
        """
        counts = self.counts
        wrong_S = np.flatnonzero(
            counts["read"] != counts["kept"] + counts["dropped"] + counts["rejected"]
        )
        if len(wrong_S):
            first = int(wrong_S[0])
            numbers = KeptCounts(
                **{name: int(column_S[first]) for name, column_S in counts.items()}
            )
            numbers.check(f"split {self.ordinals_S[first]}")

    def to_json(self) -> dict[str, Any]:
        """Returns the counts as JSON fields."""
        return {
            "ordinals": self.ordinals_S.tolist(),
            "layouts": list(self.layouts),
            "layout_codes": self.layout_codes_S.tolist(),
            **{
                name: column_S.tolist()
                for name, column_S in self.counts.items()
                if name not in REPEATS or column_S.any()
            },
            **({"input_bytes": self.input_bytes_S.tolist()} if self.input_bytes_S.any() else {}),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Sequence[Any]]) -> KeptSplits:
        """Returns the counts that `to_json` wrote."""
        none = [0] * len(fields["ordinals"])
        absent = set(REPEATS) - fields.keys()
        return cls(
            np.asarray(fields["ordinals"], np.int64),
            tuple(fields["layouts"]),
            np.asarray(fields["layout_codes"], np.int32),
            {
                name: np.asarray(none if name in absent else fields[name], np.int64)
                for name in COUNTS
            },
            np.asarray(fields.get("input_bytes", none), np.int64),
        )


@dataclasses.dataclass(frozen=True)
class GroupCounts:
    """What is kept of the splits of one group, by split and by source."""

    group: int
    splits: KeptSplits
    sources: dict[str, KeptCounts]
