"""Damage to text at known noise levels, to test whether a rater tells damaged text from intact.

There are two kinds of damage. Both preserve the unigram distribution, one within the sequence and
the other within the corpus. Replacing bytes uniformly at random would prove nothing, since byte
frequencies alone detect it.

Every function is pure: it copies its input, and all randomness comes from the caller's Generator.

Text is damaged byte by byte, and the result must be text again, so that it can be written as JSONL.
Text is therefore encoded as Latin-1, in which each byte is one character and every byte sequence is
valid; a text with characters outside Latin-1 is refused. ASCII text stays ASCII, since only bytes
that occur in its corpus are drawn.

Dimension letters in array names: L the elements of a sequence, V the vocabulary, K the positions
that are damaged, N the texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOISE_LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)

IntegerArray = NDArray[np.integer[Any]]


class CorruptionKind(StrEnum):
    """The kinds of damage."""

    REDRAWN = "redrawn"
    """Elements are replaced by draws from the corpus's unigram distribution."""
    SHUFFLED = "shuffled"
    """Elements are permuted within their sequence."""


@dataclass(frozen=True, slots=True)
class CorruptedDocument:
    """A text after damage.

    Attributes:
        text: Damaged text, as long as the original.
        kind: Kind of damage.
        noise_level: Share of characters that were replaced or permuted, in [0, 1].
        original: Index of the text that it was made from.
    """

    text: str
    kind: CorruptionKind
    noise_level: float
    original: int


def text_to_bytes(text: str) -> NDArray[np.uint8]:
    """Returns the text's characters as bytes, one each (Latin-1).

    Args:
        text: Text with characters in Latin-1 only.

    Returns:
        uint8 array as long as the text.

    Raises:
        ValueError: If a character is outside Latin-1.
    """
    try:
        encoded = text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {text[error.start]!r} at {error.start} is not in Latin-1; damage by bytes "
            "needs text in which each byte is one character, so exclude such texts"
        ) from error
    return np.frombuffer(encoded, dtype=np.uint8).copy()


def bytes_to_text(bytes_L: NDArray[np.uint8]) -> str:
    """Returns the text with one character per byte, the inverse of `text_to_bytes`.

    Args:
        bytes_L: uint8 array.
    """
    return bytes_L.tobytes().decode("latin-1")


def unigram_distribution(
    sequences: Iterable[IntegerArray], vocabulary_size: int = 256
) -> NDArray[np.float64]:
    """Returns the share of each token among all tokens of the sequences.

    Args:
        sequences: Arrays of tokens in [0, vocabulary_size).
        vocabulary_size: V, the number of distinct tokens; 256 for bytes.

    Returns:
        float64 array of length V that sums to 1.

    Raises:
        ValueError: If there is no token, or one outside the vocabulary.
    """
    counts_V = np.zeros(vocabulary_size, dtype=np.int64)
    for sequence_L in sequences:
        _check_sequence(sequence_L)
        if len(sequence_L) and (sequence_L.min() < 0 or sequence_L.max() >= vocabulary_size):
            raise ValueError(f"a sequence contains a token outside [0, {vocabulary_size})")
        counts_V += np.bincount(sequence_L.astype(np.int64), minlength=vocabulary_size)
    total = int(counts_V.sum())
    if total == 0:
        raise ValueError("a unigram distribution needs at least one token")
    return counts_V / total


def replace_from_unigram(
    sequence_L: IntegerArray,
    noise_level: float,
    unigram_V: NDArray[np.float64],
    rng: np.random.Generator,
) -> IntegerArray:
    """Redraws a share of the positions from a unigram distribution.

    Exactly round(noise_level * L) positions, chosen without replacement, are redrawn independently
    from unigram_V. A draw may equal the token that it replaces. With the corpus's own distribution,
    byte frequencies tell nothing about the noise level, on average over the corpus.

    Args:
        sequence_L: Tokens of any integer dtype.
        noise_level: Share of positions to redraw, in [0, 1].
        unigram_V: Probabilities of the V tokens, as from `unigram_distribution`.
        rng: Random generator.

    Returns:
        A new array of the same dtype and length.

    Raises:
        ValueError: If the noise level is outside [0, 1], or unigram_V is not a distribution whose
            tokens fit the sequence's dtype.
    """
    positions_K = _choose_positions(sequence_L, noise_level, rng)

    unigram_V = np.asarray(unigram_V, dtype=np.float64)
    if (
        unigram_V.ndim != 1
        or not (unigram_V >= 0).all()
        or not math.isclose(unigram_V.sum(), 1.0, abs_tol=1e-6)
    ):
        raise ValueError(
            "unigram_V must be one dimension of non-negative probabilities that sum to 1"
        )
    largest_token = int(np.flatnonzero(unigram_V)[-1])
    if largest_token > np.iinfo(sequence_L.dtype).max:
        raise ValueError(
            f"token {largest_token} does not fit the sequence's dtype {sequence_L.dtype}"
        )

    # Inverse transform sampling; Generator.choice would check and accumulate the distribution on
    # each call.
    replaced_L = sequence_L.copy()
    cumulative_V = np.cumsum(unigram_V)
    draws_K = np.searchsorted(
        cumulative_V / cumulative_V[-1], rng.random(len(positions_K)), side="right"
    )
    replaced_L[positions_K] = draws_K.astype(sequence_L.dtype)
    return replaced_L


def shuffle_within(
    sequence_L: IntegerArray, noise_level: float, rng: np.random.Generator
) -> IntegerArray:
    """Permutes a share of the positions among themselves.

    Exactly round(noise_level * L) positions, chosen without replacement, exchange their tokens by a
    uniformly random permutation, which may leave some in place. The multiset of tokens does not
    change. At level 1 the whole sequence is permuted.

    Args:
        sequence_L: Tokens of any integer dtype.
        noise_level: Share of positions to permute, in [0, 1].
        rng: Random generator.

    Returns:
        A new array of the same dtype and length.

    Raises:
        ValueError: If the noise level is outside [0, 1].
    """
    positions_K = _choose_positions(sequence_L, noise_level, rng)
    shuffled_L = sequence_L.copy()
    shuffled_L[positions_K] = sequence_L[rng.permutation(positions_K)]
    return shuffled_L


def corrupt_documents(
    texts: Sequence[str],
    rng: np.random.Generator,
    levels: Sequence[float] = NOISE_LEVELS,
    kinds: Sequence[CorruptionKind] = tuple(CorruptionKind),
    copies: int = 1,
) -> list[CorruptedDocument]:
    """Returns damaged copies of texts, spread evenly over all kinds and noise levels.

    The texts are dealt the combinations of kind and level in turn, in a random order, so that the
    numbers of documents of any two combinations differ by at most one. The copies of one text get
    different combinations.

    Args:
        texts: Texts in Latin-1 (see the module's docstring).
        rng: Random generator.
        levels: Noise levels in [0, 1].
        kinds: Kinds of damage.
        copies: Copies of each text, from 1 to the number of combinations.

    Returns:
        len(texts) * copies documents, in the order of their originals.

    Raises:
        ValueError: If there is no kind or level, copies is out of range, or a text is not in
            Latin-1.
    """
    combinations = [(kind, level) for level in levels for kind in kinds]
    if not combinations:
        raise ValueError("give at least one noise level and one kind of damage")
    if not 1 <= copies <= len(combinations):
        raise ValueError(
            f"copies must be between 1 and {len(combinations)} (kinds x noise levels), not {copies}"
        )
    if not texts:
        return []

    sequences = [text_to_bytes(text) for text in texts]
    unigram_V = unigram_distribution(sequences)
    turn_N = np.argsort(rng.permutation(len(texts)))

    documents = []
    for original, sequence_L in enumerate(sequences):
        for copy in range(copies):
            kind, level = combinations[(int(turn_N[original]) * copies + copy) % len(combinations)]
            if kind is CorruptionKind.REDRAWN:
                damaged_L = replace_from_unigram(sequence_L, level, unigram_V, rng)
            else:
                damaged_L = shuffle_within(sequence_L, level, rng)
            documents.append(
                CorruptedDocument(
                    bytes_to_text(damaged_L.astype(np.uint8)), kind, float(level), original
                )
            )
    return documents


def _choose_positions(
    sequence_L: IntegerArray, noise_level: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Returns round(noise_level * L) distinct positions."""
    _check_sequence(sequence_L)
    if not 0 <= noise_level <= 1:
        raise ValueError(f"the noise level must be in [0, 1], not {noise_level}")
    length = len(sequence_L)
    return rng.permutation(length)[: round(noise_level * length)]


def _check_sequence(sequence_L: IntegerArray) -> None:
    if sequence_L.ndim != 1 or not np.issubdtype(sequence_L.dtype, np.integer):
        raise ValueError(
            "a sequence must be one dimension of integers, "
            f"not {sequence_L.shape} of {sequence_L.dtype}"
        )
