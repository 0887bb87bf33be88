"""The target, cut into folds: what raters and rivals learn from, what choices use, and the test.

A choice (of the fraction to keep, of a rival, of a step to stop at) that is made on the documents
of the final test flatters what was chosen. So the target has three folds without a near-duplicate
or a work in common, and each has one role:

    learning   raters and rivals learn from it
    choice     fractions are chosen on it
    test       the reported losses are its losses

The roles may rotate over seeds, so that every document of the target is tested on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROLES = ("learning", "choice", "test")
_MAX_GAP = 0.25  # between a source's shares of two folds, without a warning


@dataclasses.dataclass(frozen=True)
class TargetDocument:
    """A document of the target."""

    text: str
    source: str


class Roles(NamedTuple):
    """The documents of the target by what they are for."""

    learning: tuple[TargetDocument, ...]
    choice: tuple[TargetDocument, ...]
    test: tuple[TargetDocument, ...]


@dataclasses.dataclass(frozen=True)
class Target:
    """The folds of a target.

    Attributes:
        folds: Three folds; two where `learning` has documents of its own.
        learning: Documents that are always learned from, where validation files were given.
    """

    folds: tuple[tuple[TargetDocument, ...], ...]
    learning: tuple[TargetDocument, ...] = ()

    @property
    def rotations(self) -> int:
        """Number of ways to give the folds their roles."""
        return len(self.folds)

    def roles(self, rotation: int) -> Roles:
        """Returns the documents by role, with the folds moved on by `rotation`.

        Args:
            rotation: Number of places; that of seed s is s modulo the number of folds.
        """
        start = rotation % self.rotations
        moved = (*self.folds[start:], *self.folds[:start])
        return Roles(self.learning, *moved) if self.learning else Roles(*moved)


def assign_folds(
    clusters_N: ArrayLike,
    sizes_N: ArrayLike,
    sources_N: Sequence[str],
    hashes_N: Sequence[int],
    folds: int,
) -> NDArray[np.int64]:
    """Returns the fold of each document: clusters stay whole, and folds are alike by source.

    Source by source, the clusters are taken from the largest to the smallest, and each goes to the
    fold that has the fewest bytes of the source. A cluster of several sources counts for that of
    the document with its lowest hash. The folds do not depend on the order of the documents.

    Args:
        clusters_N: Cluster of each document.
        sizes_N: Bytes of each document.
        sources_N: Source of each document.
        hashes_N: Hash of each document, for ties.
        folds: Number of folds.

    Example:
        >>> assign_folds([0, 0, 1, 2], [5, 5, 6, 4], ["a"] * 4, [7, 8, 9, 6], folds=2).tolist()
        [0, 0, 1, 1]
    """
    clusters_N = np.asarray(clusters_N)
    members: dict[int, list[int]] = defaultdict(list)
    for index, cluster in enumerate(clusters_N.tolist()):
        members[cluster].append(index)
    sizes = np.asarray(sizes_N, np.int64)
    by_source: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for indices in members.values():
        first = min(indices, key=lambda index: hashes_N[index])
        by_source[sources_N[first]].append((-int(sizes[indices].sum()), hashes_N[first], first))

    fold_N = np.zeros(len(clusters_N), np.int64)
    total_F = np.zeros(folds, np.int64)
    for source in sorted(by_source):
        filled_F = np.zeros(folds, np.int64)
        for negative_size, _, first in sorted(by_source[source]):
            # Of equally filled folds, the one with the fewest bytes of all sources.
            fold = int(np.lexsort((total_F, filled_F))[0])
            fold_N[members[int(clusters_N[first])]] = fold
            filled_F[fold] -= negative_size
            total_F[fold] -= negative_size
    return fold_N


def uneven_folds(target: Target, rotations: Iterable[int]) -> list[str]:
    """Returns a warning for each rotation whose test and learning folds differ by source.

    They differ if a source's shares of their bytes are more than 25 points apart. A work is in one
    fold, so a source with fewer works than folds is missing from at least one; what learns from
    that fold is tested on a source that it never saw. The choice fold is not compared, and neither
    are validation files, whose sources the user chose.

    Args:
        target: The folds.
        rotations: Rotations to look at.
    """
    lines = []
    for rotation in rotations if not target.learning else ():
        roles = target.roles(rotation)
        learned, tested = _source_shares(roles.learning), _source_shares(roles.test)
        gaps = {name: tested.get(name, 0) - learned.get(name, 0) for name in learned | tested}
        name = max(sorted(gaps), key=lambda source: abs(gaps[source]))
        if abs(gaps[name]) > _MAX_GAP:
            lines.append(
                f"the target's folds differ by source in rotation {rotation}: {name!r} is "
                f"{learned.get(name, 0):.0%} of the bytes to learn from and "
                f"{tested.get(name, 0):.0%} of the test, so losses show this difference as well as "
                "what arms are worth; give a target with more works of that source"
            )
    return lines


def _source_shares(documents: Iterable[TargetDocument]) -> dict[str, float]:
    """Returns the share of the bytes of each source."""
    sizes: dict[str, int] = defaultdict(int)
    for document in documents:
        sizes[document.source] += len(document.text.encode("utf-8"))
    total = sum(sizes.values())
    return {source: size / total for source, size in sizes.items()}


def target_digest(documents: Iterable[TargetDocument]) -> str:
    """Returns a digest of documents in their order."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.text, document.source):
            digest.update(hashlib.blake2b(part.encode("utf-8"), digest_size=16).digest())
    return digest.hexdigest()
