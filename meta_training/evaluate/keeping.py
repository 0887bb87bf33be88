"""Which documents an arm keeps: the best by score, up to an exact share of the bytes or tokens.

Each source may have a floor, a share that its own best documents keep however the others score.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray


def text_hash(text: str) -> int:
    """Returns 64 bits of a text's digest, the same for texts that differ in case and spacing only.

    The hash decides on which side of the target's split a document is, whether a document of the
    pool is in the target, and the order of documents with equal scores.
    """
    normalized = " ".join(text.casefold().split())
    digest = hashlib.blake2b(
        normalized.encode("utf-8", "surrogatepass"), digest_size=8, person=b"evaluate"
    )
    return int.from_bytes(digest.digest(), "little")


def seeded_hash(hashes_N: ArrayLike, seed: int, draw: int = 0) -> NDArray[np.uint64]:
    """Mixes a seed into hashes by SplitMix64's finalizer, a bijection.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Args:
        hashes_N: Hashes, uint64.
        seed: Seed of the run.
        draw: Number of the independent draw with this seed.
    """
    salt = int.from_bytes(hashlib.blake2b(f"{seed} {draw}".encode(), digest_size=8).digest(), "big")
    mixed_N = np.asarray(hashes_N, np.uint64) ^ np.uint64(salt)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(shift))) * np.uint64(factor)
    return mixed_N ^ (mixed_N >> np.uint64(31))


def order_of(scores_N: ArrayLike, ties_N: ArrayLike) -> NDArray[np.int64]:
    """Returns the indices of the documents, the best first.

    Args:
        scores_N: Scores; higher is better, and NaN is worst.
        ties_N: Tie-breakers of equal scores, such as seeded hashes; lower is better.
    """
    scores_N = np.asarray(scores_N, np.float64)
    worst_N = np.where(np.isnan(scores_N), np.inf, -scores_N)
    return np.lexsort((np.asarray(ties_N), worst_N))


def rank(scores_N: ArrayLike, ties_N: ArrayLike) -> NDArray[np.int64]:
    """Returns the rank of each document, 0 for the best; the arguments are those of `order_of`.

    Example:
        >>> rank([0.1, 0.9, 0.9], [0, 2, 1]).tolist()
        [2, 1, 0]
    """
    order_N = order_of(scores_N, ties_N)
    rank_N = np.empty(len(order_N), np.int64)
    rank_N[order_N] = np.arange(len(order_N))
    return rank_N


def keep_best(
    scores_N: ArrayLike,
    sizes_N: ArrayLike,
    keep: float,
    ties_N: ArrayLike,
    required_N: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Returns which documents are kept.

    Documents are taken in descending order of the score, equal scores in ascending order of the
    tie-breaker, until their size is as close to keep x total as whole documents allow. A document
    whose score is NaN comes last.

    Args:
        scores_N: Scores; higher is better.
        sizes_N: Sizes in bytes or tokens.
        keep: Share of the total size to keep, above 0 and up to 1.
        ties_N: Tie-breakers, such as seeded hashes.
        required_N: Documents that are taken before all others, such as those that `source_floors`
            returns, even where they alone exceed the share; None for none.

    Example:
        >>> keep_best([0.1, 0.9, 0.5], [10, 10, 20], 0.5, [0, 1, 2]).tolist()
        [False, True, False]
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the kept share must be above 0 and at most 1, not {keep}")
    sizes_N = np.asarray(sizes_N, np.int64)
    kept_N = np.zeros(len(sizes_N), bool) if required_N is None else required_N.copy()
    required, wanted = int(sizes_N[kept_N].sum()), keep * sizes_N.sum()

    # The others in their order, R of them, with the size that is kept after each.
    order_N = order_of(scores_N, ties_N)
    others_R = order_N[~kept_N[order_N]]
    total_R = required + np.cumsum(sizes_N[others_R])
    count = int(np.searchsorted(total_R, wanted, side="right"))
    before = total_R[count - 1] if count else required
    if count < len(total_R) and (not before or total_R[count] - wanted < wanted - before):
        count += 1
    kept_N[others_R[:count]] = True
    return kept_N


def source_floors(
    scores_N: ArrayLike,
    sizes_N: ArrayLike,
    floor: float,
    ties_N: ArrayLike,
    sources_N: ArrayLike,
) -> NDArray[np.bool_]:
    """Returns the best documents of each source, as few as have `floor` of the source's size.

    Args:
        scores_N: Scores; higher is better.
        sizes_N: Sizes in bytes or tokens.
        floor: Share of each source, from 0 to 1.
        ties_N: Tie-breakers, such as seeded hashes.
        sources_N: Source of each document, names or numbers.

    Example:
        >>> sources = ["a", "a", "b", "b"]
        >>> source_floors([3, 2, 1, 0], [10, 10, 10, 10], 0.5, [0] * 4, sources).tolist()
        [True, False, True, False]
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"the floor of each source must be from 0 to 1, not {floor}")
    sizes_N = np.asarray(sizes_N, np.int64)
    _, source_N = np.unique(np.asarray(sources_N), return_inverse=True)
    total_K = np.bincount(source_N, sizes_N)
    # Rounded, so that 0.1 of 30 bytes is 3 of them and not a little more.
    floor_K = np.round(floor * total_K, 6)

    # Source by source, each with its best documents first.
    order_N = order_of(scores_N, ties_N)
    order_N = order_N[np.argsort(source_N[order_N], kind="stable")]
    start_K = np.cumsum(total_K) - total_K
    before_N = np.cumsum(sizes_N[order_N]) - sizes_N[order_N] - start_K[source_N[order_N]]
    required_N = np.zeros(len(sizes_N), bool)
    required_N[order_N] = before_N < floor_K[source_N[order_N]]
    return required_N
