"""MinHash signatures: what a document is compared by, in a few bytes, instead of its text.

The similarity of two documents is the Jaccard similarity of their sets of *shingles*, sequences of
5 consecutive words (`datarater.pipelines.dedup.words`):

    J(A, B) = |A and B| / |A or B|

A text of fewer words is one shingle. A random permutation of all shingles has the same first
shingle in both sets with probability J. A signature has the first shingles, the *minima*, of 128
permutations.

- Its *bands* find candidates: two documents are compared if all minima of a band are equal. With b
  bands of r minima, that happens with probability 1 - (1 - J^r)^b.
- Its *sketch* verifies them: 4 bits of each minimum. Different minima agree in 4 bits with
  probability 1/16, so for a share P of equal ones, J is estimated as (16 P - 1) / 15. At J = 0.8
  the standard error is 0.037; whole minima would have 0.035.
- Its *digest* finds documents with the same words in the same order.

Sources: Broder, "On the resemblance and containment of documents", 1997; Leskovec, Rajaraman,
Ullman, "Mining of massive datasets", chapter 3 (bands); Li and König, "b-bit minwise hashing",
WWW 2010.

N counts documents, S shingles, P permutations, B bands.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.dedup.words import Words, normalized, split_words, words_of
from datarater.pipelines.selection.ranking import seeded_hash
from datarater.rater_model.word_sequences import sequence_hashes

SHINGLE_WORDS = 5
PERMUTATIONS = 128
SKETCH_WORDS = PERMUTATIONS // 16
"""64-bit words of a sketch, of 16 minima each."""
MIN_CHANCE = 0.9
"""Chance that two documents of just the required similarity are compared, at least."""

_PADDING = np.uint64(0)
"""A word that no text has, which fills documents of fewer words than a shingle."""
_BLOCK_SHINGLES = 2**16
_SHINGLE_SEED, _FACTOR_SEED, _TERM_SEED, _BAND_SEED, _SKETCH_SEED = range(3, 8)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_LOW_BITS = np.uint64(0x1111111111111111)
_EVERY_SECOND = np.uint64(0x0101010101010101)


@dataclasses.dataclass(frozen=True)
class Bands:
    """How the minima of a signature are divided.

    Attributes:
        count: Number of bands.
        rows: Number of minima in each.
    """

    count: int
    rows: int

    @classmethod
    def for_similarity(cls, similarity: float) -> Bands:
        """Returns the fewest bands by which pairs of a similarity are compared often enough.

        Args:
            similarity: Similarity at which the chance must be at least `MIN_CHANCE`.

        Example:
            >>> Bands.for_similarity(0.8)
            Bands(count=16, rows=8)
        """
        several = (cls(PERMUTATIONS // rows, rows) for rows in range(PERMUTATIONS, 0, -1))
        return next(
            bands for bands in several if bands.rows == 1 or bands.chance(similarity) >= MIN_CHANCE
        )

    def chance(self, similarity: float) -> float:
        """Returns the probability that two documents of a similarity are compared."""
        return 1 - (1 - similarity**self.rows) ** self.count


@dataclasses.dataclass(frozen=True)
class Signatures:
    """The signatures of N documents.

    Attributes:
        digests_Nx2: 128-bit digests of all words of a document, uint64; of the text itself if it
            has no words.
        minima_NxP: Minima of its shingles, uint32; those of a document without words mean nothing.
        has_words_N: Whether the document has words.
    """

    digests_Nx2: NDArray[np.uint64]
    minima_NxP: NDArray[np.uint32]
    has_words_N: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Signatures:
        """Returns the signatures of texts.

        Time and memory are proportional to the size of the texts.
        """
        texts = [normalized(text) for text in texts]
        words = words_of(texts)
        digests = b"".join(
            _digest(text, words_W) for text, words_W in zip(texts, split_words(words), strict=True)
        )
        return cls(
            np.frombuffer(digests, "<u8").reshape(-1, 2),
            minima_of(*shingles_of(words)),
            words.counts_N > 0,
        )

    def bands(self, bands: Bands) -> NDArray[np.uint64]:
        """Returns bands_NxB: a hash of each band's minima and number."""
        used = self.minima_NxP[:, : bands.count * bands.rows]
        parts_NxBxR = used.reshape(len(used), bands.count, bands.rows)
        hashes_NxB = np.tile(np.arange(bands.count, dtype=np.uint64), (len(used), 1))
        for row in range(bands.rows):
            hashes_NxB *= _MULTIPLIER
            hashes_NxB += parts_NxBxR[:, :, row]
        return seeded_hash(hashes_NxB.reshape(-1), _BAND_SEED).reshape(hashes_NxB.shape)

    def sketches(self) -> NDArray[np.uint64]:
        """Returns sketches_NxK: 4 bits of each minimum, 16 of them in each of K words."""
        mixed_M = seeded_hash(self.minima_NxP.reshape(-1), _SKETCH_SEED) & np.uint64(15)
        bits_NxKx16 = mixed_M.reshape(-1, SKETCH_WORDS, 16) << (
            np.arange(0, 64, 4, dtype=np.uint64)
        )
        return np.bitwise_or.reduce(bits_NxKx16, axis=2)


def _digest(text: str, words_W: NDArray[np.uint64]) -> bytes:
    """Returns a digest of 16 bytes of all words, or of the characters of a text without words."""
    if len(words_W):
        return hashlib.blake2b(words_W.data, digest_size=16).digest()
    characters = "".join(text.split()).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(characters, digest_size=16, person=b"no words").digest()


def shingles_of(words: Words) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Returns hashes of all shingles, document by document.

    Returns:
        shingles_S, and the number of shingles of each document, at least 1.
    """
    # Documents with fewer words than a shingle are filled, so that they have one.
    missing_N = np.maximum(0, SHINGLE_WORDS - words.counts_N)
    hashes_W = np.insert(words.hashes_W, np.repeat(np.cumsum(words.counts_N), missing_N), _PADDING)
    counts_N = words.counts_N + missing_N
    documents_W = np.repeat(np.arange(len(counts_N), dtype=np.int32), counts_N)
    hashes_S, _ = sequence_hashes(hashes_W, documents_W, SHINGLE_WORDS)
    shingles_S = (seeded_hash(hashes_S, _SHINGLE_SEED) >> np.uint64(32)).astype(np.uint32)
    return shingles_S, counts_N - (SHINGLE_WORDS - 1)


def minima_of(
    shingles_S: NDArray[np.uint32],
    counts_N: NDArray[np.int64],
    block_shingles: int = _BLOCK_SHINGLES,
) -> NDArray[np.uint32]:
    """Returns minima_NxP of documents.

    The permutation p maps a shingle x to a_p x + b_p modulo 2^32, with an odd a_p.

    Args:
        shingles_S: Hashes of the shingles, document by document.
        counts_N: Number of shingles of each document, at least 1.
        block_shingles: Number of shingles to handle at a time.
    """
    minima_PxN = np.full((PERMUTATIONS, len(counts_N)), np.iinfo(np.uint32).max, np.uint32)
    ends_N = np.cumsum(counts_N)
    starts_N = ends_N - counts_N
    factors_P, terms_P = _permutations()

    # Blocks that stay in the processor's cache; a long document continues from block to block.
    for start in range(0, len(shingles_S), block_shingles):
        block_S = shingles_S[start : start + block_shingles]
        first = np.searchsorted(ends_N, start, "right")
        last = np.searchsorted(starts_N, start + len(block_S), "left")
        begins_M = np.maximum(starts_N[first:last] - start, 0)
        permuted_S = np.empty_like(block_S)
        for permutation in range(PERMUTATIONS):
            np.multiply(block_S, factors_P[permutation], out=permuted_S)
            permuted_S += terms_P[permutation]
            minima_M = minima_PxN[permutation, first:last]
            np.minimum(minima_M, np.minimum.reduceat(permuted_S, begins_M), out=minima_M)
    return np.ascontiguousarray(minima_PxN.T)


@functools.cache
def _permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Returns the odd factor and the term of each permutation."""
    numbers_P = np.arange(PERMUTATIONS, dtype=np.uint64)
    factors_P = (seeded_hash(numbers_P, _FACTOR_SEED) >> np.uint64(32)).astype(np.uint32)
    terms_P = (seeded_hash(numbers_P, _TERM_SEED) >> np.uint64(32)).astype(np.uint32)
    return factors_P | np.uint32(1), terms_P


def similarities(
    sketches_NxK: NDArray[np.uint64], others_NxK: NDArray[np.uint64]
) -> NDArray[np.float32]:
    """Returns the estimated similarity of each sketch with the one at its place in another array.

    Returns:
        Values from 0 to 1, float32, of shape N.
    """
    # One bit for each minimum that differs; their sum by bytes, which has room for 16.
    different_NxK = sketches_NxK ^ others_NxK
    different_NxK |= different_NxK >> np.uint64(1)
    different_NxK |= different_NxK >> np.uint64(2)
    different_NxK &= _LOW_BITS
    pairs_NxK = (different_NxK & _EVERY_SECOND) + (different_NxK >> np.uint64(4) & _EVERY_SECOND)
    numbers_N = (pairs_NxK * _EVERY_SECOND >> np.uint64(56)).sum(axis=1)
    share_N = 1 - numbers_N.astype(np.float32) / (16 * sketches_NxK.shape[1])
    return np.maximum(0, (16 * share_N - 1) / 15).astype(np.float32)
