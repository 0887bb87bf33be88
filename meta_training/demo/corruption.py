"""Damage to sequences at a known noise level, to see whether a rater tells damaged text from intact.

Two kinds, both of which keep the unigram distribution (one within the sequence, one within the
corpus). Replacing bytes uniformly at random would be a void test: byte frequencies alone solve it.

Every function is pure: it copies its input, and all chance comes from the Generator that the caller
gives.

Text is damaged byte by byte, and the result must be text again, so that it can be written as JSONL.
Text is therefore taken as Latin-1, in which each byte is one character and every byte sequence is
valid; a text with characters outside of Latin-1 is refused. ASCII text stays ASCII, since no byte
is drawn that its corpus lacks.
"""

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
    """Elements replaced by draws from the corpus's own unigram distribution."""
    SHUFFLED = "shuffled"
    """Elements permuted within their sequence."""


@dataclass(frozen=True, slots=True)
class CorruptedDocument:
    """A text after damage.

    Attributes:
        text: The damaged text, as many characters long as the original.
        kind: The kind of damage.
        noise_level: The share of characters that were replaced or permuted, in [0, 1].
        original: The index of the text it was made from.
    """

    text: str
    kind: CorruptionKind
    noise_level: float
    original: int


def text_to_bytes(text: str) -> NDArray[np.uint8]:
    """The text's characters as bytes, one each (Latin-1).

    Args:
        text: A text all of whose characters lie in Latin-1.

    Returns:
        uint8 array as long as the text.

    Raises:
        ValueError: If a character lies outside of Latin-1.
    """
    try:
        encoded = text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {text[error.start]!r} at {error.start} is not in Latin-1: damage by bytes needs text "
            "in which each byte is one character; leave such texts out"
        ) from error
    return np.frombuffer(encoded, dtype=np.uint8).copy()


def bytes_to_text(bytes_L: NDArray[np.uint8]) -> str:
    """The inverse of `text_to_bytes`.

    Args:
        bytes_L: uint8 array.

    Returns:
        A text with one character a byte.
    """
    return bytes_L.tobytes().decode("latin-1")


def unigram_distribution(
    sequences: Iterable[IntegerArray], vocabulary_size: int = 256
) -> NDArray[np.float64]:
    """The share of each token among all tokens of the sequences.

    Args:
        sequences: Arrays of tokens in [0, vocabulary_size).
        vocabulary_size: V, the number of tokens; 256 for bytes.

    Returns:
        float64 array of length V that sums to 1.

    Raises:
        ValueError: If there is no token at all, or one outside of the vocabulary.
    """
    counts_V = np.zeros(vocabulary_size, dtype=np.int64)
    for sequence_L in sequences:
        _check_sequence(sequence_L)
        if len(sequence_L) and (sequence_L.min() < 0 or sequence_L.max() >= vocabulary_size):
            raise ValueError(f"a sequence holds a token outside of [0, {vocabulary_size})")
        counts_V += np.bincount(sequence_L.astype(np.int64), minlength=vocabulary_size)
    total = int(counts_V.sum())
    if total == 0:
        raise ValueError("no tokens to take a unigram distribution from")
    return counts_V / total


def replace_from_unigram(
    sequence_L: IntegerArray,
    noise_level: float,
    unigram_V: NDArray[np.float64],
    rng: np.random.Generator,
) -> IntegerArray:
    """Redraws a share of the positions from a unigram distribution.

    Exactly round(noise_level * L) positions, chosen without replacement, are drawn anew, each
    independently from unigram_V. A draw may equal what it replaces. With the corpus's own
    distribution, byte frequencies say nothing about the noise level, on average over the corpus.

    Args:
        sequence_L: Tokens, of any integer dtype.
        noise_level: The share of positions to redraw, in [0, 1].
        unigram_V: Probabilities of the V tokens, as from `unigram_distribution`.
        rng: Where chance comes from.

    Returns:
        A new array of the same dtype and length.

    Raises:
        ValueError: If the noise level lies outside of [0, 1], or unigram_V is not a distribution
            whose tokens fit the sequence's dtype.
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
    replaced_L = sequence_L.copy()
    # Inverse transform sampling: Generator.choice would check and accumulate the distribution for
    # each call.
    cumulative_V = np.cumsum(unigram_V)
    draws_K = np.searchsorted(
        cumulative_V / cumulative_V[-1], rng.random(len(positions_K)), side="right"
    )
    replaced_L[positions_K] = draws_K.astype(sequence_L.dtype)
    return replaced_L


def shuffle_within(
    sequence_L: IntegerArray, noise_level: float, rng: np.random.Generator
) -> IntegerArray:
    """Permutes a share of the positions among themselves; the multiset of tokens stays what it was.

    Exactly round(noise_level * L) positions, chosen without replacement, exchange their tokens by a
    uniformly random permutation (which may leave some where they were). At level 1 it permutes the
    whole sequence.

    Args:
        sequence_L: Tokens, of any integer dtype.
        noise_level: The share of positions to permute, in [0, 1].
        rng: Where chance comes from.

    Returns:
        A new array of the same dtype and length.

    Raises:
        ValueError: If the noise level lies outside of [0, 1].
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
    """Damaged copies of texts, spread evenly over all kinds and noise levels.

    The texts are put in a random order and dealt the kinds x levels combinations in turn, so the
    numbers of documents of any two combinations differ by at most one. Each of a text's copies gets
    another combination.

    Args:
        texts: Texts in Latin-1 (see the module's docstring).
        rng: Where chance comes from.
        levels: Noise levels in [0, 1].
        kinds: Kinds of damage.
        copies: Copies made of each text, from 1 to the number of combinations.

    Returns:
        len(texts) * copies documents, in the order of their originals.

    Raises:
        ValueError: If there is no kind or level, copies is out of its range, or a text is not in
            Latin-1.
    """
    combinations = [(kind, level) for level in levels for kind in kinds]
    if not combinations:
        raise ValueError("give at least one noise level and one kind of damage")
    if not 1 <= copies <= len(combinations):
        raise ValueError(
            f"copies must lie between 1 and {len(combinations)} (kinds x noise levels), not {copies}"
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
    """Exactly round(noise_level * L) distinct positions."""
    _check_sequence(sequence_L)
    if not 0 <= noise_level <= 1:
        raise ValueError(f"the noise level must lie in [0, 1], not {noise_level}")
    length = len(sequence_L)
    return rng.permutation(length)[: round(noise_level * length)]


def _check_sequence(sequence_L: IntegerArray) -> None:
    if sequence_L.ndim != 1 or not np.issubdtype(sequence_L.dtype, np.integer):
        raise ValueError(
            f"a sequence must be one dimension of integers, not {sequence_L.shape} of {sequence_L.dtype}"
        )
