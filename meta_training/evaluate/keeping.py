"""Which documents an arm keeps: the best by score, up to an exact share of the bytes or tokens."""

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
    scores_N: ArrayLike, sizes_N: ArrayLike, keep: float, ties_N: ArrayLike
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

    Example:
        >>> keep_best([0.1, 0.9, 0.5], [10, 10, 20], 0.5, [0, 1, 2]).tolist()
        [False, True, False]
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the kept share must be above 0 and at most 1, not {keep}")
    order_N = order_of(scores_N, ties_N)
    total_N = np.cumsum(np.asarray(sizes_N, np.int64)[order_N])

    wanted = keep * total_N[-1]
    count = int(np.searchsorted(total_N, wanted, side="right"))
    if count < len(total_N):
        below = wanted - (total_N[count - 1] if count else 0)
        if not count or total_N[count] - wanted < below:
            count += 1
    kept_N = np.zeros(len(total_N), bool)
    kept_N[order_N[:count]] = True
    return kept_N
