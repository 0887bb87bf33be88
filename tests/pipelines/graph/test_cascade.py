"""What a student is in doubt of covers the cutoff, and its scorer asks the rater only for that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.graph.cascade import CascadeScorer, Doubt, by_certainty
from datarater.pipelines.run_folder.identity import CascadeOptions
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import RankKeys
from datarater.rater_model.text_scorer import ScoredTexts, TextScorer
from datarater.rater_model.tokenizer import ByteTokenizer

shares = st.floats(0, 1)


def cascade_of(kept: float, dropped: float) -> CascadeOptions:
    return CascadeOptions("student", "0.5", 0.98, kept, dropped, offset=16.0)


def histogram_of(scores_N: Sequence[float], tokens_N: Sequence[int] = ()) -> Histogram:
    count = len(scores_N)
    keys = RankKeys.of(
        np.asarray(scores_N, np.float32),
        np.arange(count, dtype=np.uint64),
        0,
        0,
        range(count),
        tokens_N or [1] * count,
    )
    return Histogram.of(keys, 0)


class FixedScorer(TextScorer):
    """Scores texts from a table, and records which it was asked for."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.digest = "rater"
        self.asked: list[str] = []
        self._scores = scores

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        self.asked += texts
        scores_N = np.asarray([self._scores[text] for text in texts], np.float32)
        return ScoredTexts(scores_N, np.full(len(texts), 7, np.int64))


@given(
    st.lists(st.floats(-4, 4, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=300),
    st.tuples(shares, shares, shares),
)
def test_the_cutoff_lies_between_what_is_surely_kept_and_surely_dropped(
    scores: list[float], three: tuple[float, float, float]
) -> None:
    kept, keep, dropped = sorted(three)
    doubt = Doubt.of(histogram_of(scores), cascade_of(kept, dropped))
    certainty_N = doubt.certainty(np.asarray(scores, np.float32))
    target = round(keep * len(scores))
    assert (certainty_N == 1).sum() <= target
    assert (certainty_N == -1).sum() <= len(scores) - target
    # All scores of a class are on one side of those of the next.
    ranked_N = certainty_N[np.argsort(scores)]
    assert (np.diff(ranked_N) >= 0).all()


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.tuples(st.floats(-4, 4, width=32), st.floats(-4, 4, width=32)),
        min_size=1,
    ),
    st.tuples(shares, shares),
)
def test_the_rater_scores_what_is_in_doubt_and_nothing_else(
    documents: dict[str, tuple[float, float]], two: tuple[float, float]
) -> None:
    kept, dropped = sorted(two)
    student, rater = (
        FixedScorer({text: pair[index] for text, pair in documents.items()}) for index in (0, 1)
    )
    texts = list(documents)
    cascade = cascade_of(kept, dropped)
    doubt = Doubt.of(histogram_of([documents[text][0] for text in texts]), cascade)
    scored = CascadeScorer(student, rater, ByteTokenizer(), doubt, cascade.offset).score(texts)

    assert scored.by_rater_N is not None
    in_doubt = [text for text, by_it in zip(texts, scored.by_rater_N, strict=True) if by_it]
    assert rater.asked == in_doubt
    tokens = [7 if text in set(in_doubt) else len(text.encode()) for text in texts]
    assert scored.tokens_N.tolist() == tokens
    for text, score, by_it in zip(texts, scored.scores_N, scored.by_rater_N, strict=True):
        assert (abs(score) < cascade.offset / 2) == by_it
        assert not by_it or score == documents[text][1]

    surely_kept, by_rater, surely_dropped = by_certainty(
        histogram_of(scored.scores_N.tolist(), tokens), cascade
    )
    assert (by_rater.documents, by_rater.tokens) == (len(in_doubt), 7 * len(in_doubt))
    assert surely_kept.documents == (scored.scores_N >= cascade.offset / 2).sum()
    assert surely_dropped.documents == (scored.scores_N <= -cascade.offset / 2).sum()


def test_a_student_without_a_score_leaves_the_document_to_the_rater() -> None:
    doubt = Doubt.of(histogram_of([1.0, 2.0]), cascade_of(1.0, 1.0))
    assert doubt.certainty(np.asarray([np.nan, 2.0], np.float32)).tolist() == [0, 1]


def test_a_rater_without_a_finite_score_still_rejects_the_document() -> None:
    student, rater = FixedScorer({"a": 1.0}), FixedScorer({"a": float("nan")})
    doubt = Doubt.of(histogram_of([1.0]), cascade_of(0.0, 1.0))
    scored = CascadeScorer(student, rater, ByteTokenizer(), doubt, 16.0).score(["a"])
    assert np.isnan(scored.scores_N).all()
