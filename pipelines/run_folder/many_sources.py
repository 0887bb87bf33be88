"""Bounds the number of sources that are counted apart.

A source that is a URL or a host may have millions of values, and each takes kilobytes in every
count. Past a maximum the sources with the smallest hashes of their names stay, and all others are
counted as one. A source that stays in the counts of the corpus stays in those of every part of it,
so its counts are exact, whatever the order in which parts are merged.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SOURCES = 10_000
OTHER_SOURCES = "(other sources)"
"""Name under which the sources past the maximum are counted together."""


def sources_apart(names: Collection[str], max_sources: int) -> Collection[str]:
    """Returns the names of the sources that are counted apart.

    Args:
        names: Names of all sources. Records without one ("") and `OTHER_SOURCES` always stay.
        max_sources: Maximum number of other names.
    """
    own = [name for name in names if name not in ("", OTHER_SOURCES)]
    if len(own) <= max_sources:
        return names
    return {"", OTHER_SOURCES, *heapq.nsmallest(max_sources, own, key=_hash)}


def _hash(name: str) -> tuple[bytes, str]:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), name


def folded(
    names: Sequence[str], codes_R: NDArray[np.int64], apart: Collection[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Returns sources and codes in which all sources but some are `OTHER_SOURCES`.

    Args:
        names: Names of the sources.
        codes_R: Source of each row, an index into `names`.
        apart: Names that stay.
    """
    import numpy as np  # here, so that the flags of a command load without it

    if all(name in apart for name in names):
        return list(names), codes_R
    kept = [name for name in names if name in apart and name != OTHER_SOURCES]
    places = {name: code for code, name in enumerate(kept)}
    new_S = np.asarray([places.get(name, len(kept)) for name in names], np.int64)
    return [*kept, OTHER_SOURCES], new_S[codes_R]
