"""The interface of whatever scores texts, apart from the scorers so that JAX is not imported."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class ScoredTexts:
    """Scores of N texts.

    Attributes:
        scores_N: Scores, float32; not finite where the rater's arithmetic overflowed, NaN for a
            text without tokens.
        tokens_N: Tokens of each whole text, int64, including those that `max_windows`
            left unscored.
        by_rater_N: Whether the rater gave each score, and not its student; None where there is no
            student.
        other_scores: Scores of other raters beside it, float32, by name.
    """

    scores_N: np.ndarray
    tokens_N: np.ndarray
    by_rater_N: np.ndarray | None = None
    other_scores: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PendingScores:
    """The scores of texts that were given to a scorer (`TextScorer.submit`).

    Attributes:
        result: Waits for the scores; raises what the tokenizer or the model raised.
    """

    result: Callable[[], ScoredTexts]


class TextScorer(abc.ABC):
    """Whatever scores texts: a rater's scorer, or what a test puts in its place.

    Attributes:
        digest: Digest of the rater.
        batches_ahead: Number of batches to submit before waiting for the first one's scores.
        has_student: Whether a student scores some of the texts.
        other_raters: Names of the raters that score all texts beside it.
    """

    digest: str
    batches_ahead: int = 0
    has_student: bool = False
    other_raters: tuple[str, ...] = ()

    @abc.abstractmethod
    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Returns the scores and token counts of any number of texts, in the same order."""

    def submit(self, texts: Sequence[str]) -> PendingScores:
        """Begins to score texts; here, scores them before it returns."""
        scored = self.score(texts)
        return PendingScores(lambda: scored)


def check_texts(texts: Sequence[str]) -> None:
    """Raises a TypeError unless the argument is a sequence of strings.

    A string is a sequence of strings too: its characters would be scored one by one.
    """
    if isinstance(texts, str | bytes):
        raise TypeError(
            f"score takes a list of texts, not a single {type(texts).__name__}; write score([text])"
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is of type {type(text).__name__}, not str")
