"""The sets of a run: which documents are learned from, and which are held out for what.

    inner        the pool to rate; inner models train on it
    outer        the target, whose loss the rater is trained to lower; there may be several
    validation   decides when to stop; the rater is not trained on it
    test         for the user; no part of training looks at it

Each document is in at most one set. A set has a source of its own, or is a share of another's,
chosen by a hash of each document's text: outer of the pool's, validation and test of the target's.
Where the outer set is a share of the pool, the target is the pool. A text that occurs in several
sets belongs to the first of test, validation, outer and inner that has it.

N counts the texts of a source.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from datarater.meta_training.data.texts import (
    EmptySetError,
    FileTexts,
    TextReader,
    TextSource,
    open_source,
    text_hash,
)
from datarater.meta_training.data.worker_pool import WorkerPool

INNER, OUTER, VALIDATION, TEST = "inner", "outer", "validation", "test"

_LOG = logging.getLogger("datarater")
_UNIT_BYTES = 2**24


def names_of_roles(names: Iterable[str]) -> dict[str, str]:
    """Returns the name of the outer set with each role that `SetNames.sources` may give one.

    Args:
        names: Names of the outer sets; the first is that of the only one where there is one.

    Example:
        >>> names_of_roles(["web", "books"])
        {'outer web': 'web', 'outer books': 'books', 'outer': 'web'}
    """
    names = list(names)
    return {**{f"{OUTER} {name}": name for name in names}, OUTER: names[0]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetNames:
    """What the sets are made of.

    Attributes:
        inner: Name of the inner source, as for `open_source`.
        outer: Name of the outer source, or those of several by the name of their set; empty for a
            share of the inner one.
        outer_share: That share, between 0 and 1.
        validation: Name of the validation source; empty for a share of the outer one, or of the
            inner one if the outer set is a share of that.
        validation_share: That share; 0 for no validation set.
        test: Name of the test source; empty for a share likewise.
        test_share: That share; 0 for no test set.
    """

    inner: str
    outer: str | Mapping[str, str] = ""
    outer_share: float = 0.0
    validation: str = ""
    validation_share: float = 0.0
    test: str = ""
    test_share: float = 0.0

    def sources(self) -> dict[str, str]:
        """Returns the name of each set's own source, by role, the inner set first."""
        outer = {OUTER: self.outer} if isinstance(self.outer, str) else self.outer
        names = {
            INNER: self.inner,
            **{(OUTER if len(outer) == 1 else f"{OUTER} {key}"): outer[key] for key in outer},
            VALIDATION: self.validation,
            TEST: self.test,
        }
        return {role: name for role, name in names.items() if name}

    @property
    def target(self) -> str:
        """Role whose source the shares are taken from: the one outer set, or the pool.

        Raises:
            ValueError: There are several outer sets, and a share of them is wanted.
        """
        own = self.sources()
        if OUTER not in own and len(own) > 1 and any(map(_is_outer, own)) and self.shares():
            raise ValueError("a share of several outer sets cannot be held out")
        return OUTER if OUTER in own else INNER

    def source_of(self, role: str) -> str:
        """Returns the name of the source that a set's documents are in."""
        own = self.sources()
        return own[role] if role in own else own[self.target]

    def shares(self) -> dict[str, float]:
        """Returns the shares that are held out, of the source of `target`, by role."""
        shares = {
            OUTER: 0.0 if self.outer else self.outer_share,
            VALIDATION: 0.0 if self.validation else self.validation_share,
            TEST: 0.0 if self.test else self.test_share,
        }
        return {role: share for role, share in shares.items() if share}

    def roles(self) -> list[str]:
        """Returns the roles of all sets: inner, outer, validation, test."""
        roles = dict.fromkeys([*self.sources(), *self.shares()])
        return sorted(roles, key=lambda role: _ORDER.index(role.partition(" ")[0]))


_ORDER = (INNER, OUTER, VALIDATION, TEST)


@dataclasses.dataclass(frozen=True)
class TextSet:
    """The documents of a source that belong to one set.

    Attributes:
        role: "inner", "outer", or "outer NAME" of one of several, "validation" or "test".
        source: Source of the texts.
        member_N: Which of its texts belong to the set.
        elsewhere: Number of its documents that are not in the set because another set has them.
        rejected: Number of unusable records of the source, by reason.
        hashes: Sorted `text_hash` of the set's texts.
    """

    role: str
    source: TextSource
    member_N: np.ndarray
    elsewhere: int = 0
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    hashes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))

    def holds(self, text: str) -> bool:
        """Returns whether the set has a text, wherever it was read."""
        value = np.uint64(text_hash(text))
        place = int(np.searchsorted(self.hashes, value))
        return place < len(self.hashes) and bool(self.hashes[place] == value)

    def __iter__(self) -> Iterator[str]:
        return self._texts(np.flatnonzero(self.member_N))

    def _texts(self, indices: np.ndarray) -> Iterator[str]:
        texts = (self.source[int(index)] for index in indices)
        return (text for text in texts if text is not None)

    def spread(self, count: int) -> list[str]:
        """Returns documents spread over the whole source, without reading all of it.

        Args:
            count: Maximum number of documents; fewer are returned if the set has fewer.

        Returns:
            The documents, the same ones each time.
        """
        size = len(self.member_N)
        if not size:
            return []
        # A step that has no factor in common with the size visits every index once.
        step = next(
            s for s in itertools.count(max(1, round(size * 0.6180339887))) if np.gcd(s, size) == 1
        )
        chosen: list[int] = []
        for first in range(0, size, 2**20):
            index_N = np.arange(first, min(size, first + 2**20), dtype=np.int64) * step % size
            chosen += index_N[self.member_N[index_N]].tolist()
            if len(chosen) >= count:
                break
        return list(itertools.islice(self._texts(np.asarray(chosen, np.int64)), count))


def open_sets(
    names: SetNames,
    text_field: str = "text",
    tfds_data_dir: str = "",
    source_field: str = "source",
    pool: WorkerPool | None = None,
    folder: str | None = None,
) -> dict[str, TextSet]:
    """Opens the sets of a run, which never share a document.

    Args:
        names: What the sets are made of.
        text_field: Field with the text.
        tfds_data_dir: Folder of prepared TensorFlow datasets.
        source_field: Field with the name of a record's source; of files only.
        pool: Worker processes that read datasets; None for this process.
        folder: Folder for copies of texts; see `FileTexts`.

    Returns:
        The sets by role, the inner set first.

    Raises:
        EmptySetError: If a set is empty.
        DataError: If a dataset cannot be read.
        NoInputError: If no file matches.
    """
    own = names.sources()
    opened = {
        name: open_source(
            name, text_field, tfds_data_dir, source_field, folder and f"{folder}/{number}"
        )
        for number, name in enumerate(dict.fromkeys(own.values()))
    }
    sources = {role: opened[names.source_of(role)] for role in names.roles()}
    hashes = {name: _hashes(source, pool or WorkerPool(0)) for name, source in opened.items()}

    sets: dict[str, TextSet] = {}
    taken = np.zeros(0, np.uint64)
    # A text belongs to the first set of this order that has it: the inner set is the last.
    for role in [*[r for r in (TEST, VALIDATION) if r in sources], *_outer(sources), INNER]:
        each = hashes[names.source_of(role)]
        low, high = _ranges(names)[role]
        # Compared as Python's integers are: 2^64 is not a uint64.
        eligible_N = each.usable_N & (each.hash_N >= np.uint64(low))
        eligible_N &= each.hash_N <= np.uint64(high - 1)
        member_N = eligible_N & ~np.isin(each.hash_N, taken)
        elsewhere = int(eligible_N.sum() - member_N.sum())
        own_hashes = np.unique(each.hash_N[member_N])
        sets[role] = TextSet(role, sources[role], member_N, elsewhere, each.rejected, own_hashes)
        taken = np.union1d(taken, own_hashes)

    sets = {role: sets[role] for role in names.roles()}
    for role, texts in sets.items():
        if not texts.member_N.any():
            raise EmptySetError(
                f"the {role} set has no document: {texts.source.name} has "
                f"{len(texts.source)} texts, none of which belongs to the set "
                f"(rejected: {texts.rejected})"
            )
    return sets


def _outer(roles: Mapping[str, object]) -> list[str]:
    return list(filter(_is_outer, roles))


def _is_outer(role: str) -> bool:
    return role.partition(" ")[0] == OUTER


def _ranges(names: SetNames) -> dict[str, tuple[int, int]]:
    """Returns the hashes [low, high) that a text of each set's source has."""
    ranges = dict.fromkeys(names.sources(), (0, 2**64))
    border, share_so_far = 0, 0.0
    for role, share in names.shares().items():
        share_so_far += share
        end = min(2**64 - 1, max(border + 1, round(share_so_far * 2**64)))
        ranges[role] = border, end
        border = end
    ranges[names.target] = border, 2**64
    return ranges


class _Hashes(NamedTuple):
    """`text_hash` of each text of a source, which of them are usable, and why others are not."""

    hash_N: np.ndarray
    usable_N: np.ndarray
    rejected: dict[str, int]


class _Unit(NamedTuple):
    reader: TextReader
    start: int
    stop: int


def _hashes(source: TextSource, pool: WorkerPool) -> _Hashes:
    """Hashes the texts of a source; those of files were hashed as they were read."""
    if isinstance(source, FileTexts):
        return _Hashes(source.hash_N, np.ones(len(source), bool), dict(source.rejected))

    units = [_Unit(source.reader, *unit) for unit in source.units(_UNIT_BYTES)]
    parts = list(pool.map(_unit_hashes, units))
    rejected: collections.Counter[str] = collections.Counter()
    for part in parts:
        rejected.update(part.rejected)
    if rejected:
        _LOG.warning(
            "%s: skipped %d records that cannot be used: %s",
            source.name,
            rejected.total(),
            dict(rejected),
        )
    return _Hashes(
        np.concatenate([np.zeros(0, np.uint64), *(part.hash_N for part in parts)]),
        np.concatenate([np.zeros(0, bool), *(part.usable_N for part in parts)]),
        dict(rejected),
    )


def _unit_hashes(unit: _Unit) -> _Hashes:
    count = unit.stop - unit.start
    hash_N, usable_N = np.zeros(count, np.uint64), np.zeros(count, bool)
    rejected: collections.Counter[str] = collections.Counter()
    for place in range(count):
        text, reason = unit.reader.read(unit.start + place)
        if text is None:
            rejected[reason] += 1
            continue
        hash_N[place], usable_N[place] = text_hash(text), True
    return _Hashes(hash_N, usable_N, dict(rejected))
