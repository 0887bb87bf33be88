from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.evaluate.arms import _numbers, _perplexity_rank, read_scores
from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.heuristics import (
    _repeated_ngrams,
    _top_ngram,
    c4_score,
    gopher_score,
)
from datarater.meta_training.evaluate.word_models import classifier_scores, importance_weights

PROSE = re.findall(
    r"\w+", "the sea was calm and the old boat drifted slowly toward the quiet harbor"
)
JUNK = re.findall(
    r"\w+", "click buy cheap pills now free casino bonus offer win cash prize deal today"
)


def texts(words: list[str], count: int, seed: int, length: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=length)) for _ in range(count)]


def auc(scores: np.ndarray, good: np.ndarray) -> float:
    return float((scores[good][:, None] > scores[~good][None]).mean())


GOOD = np.arange(80) % 2 == 0
POOL = [
    good if is_good else bad
    for is_good, good, bad in zip(GOOD, texts(PROSE, 80, 0), texts(JUNK, 80, 1), strict=True)
]


def test_importance_weights_prefer_the_words_of_the_target() -> None:
    scores = importance_weights(POOL, POOL, texts(PROSE, 10, 2))
    assert auc(scores, GOOD) == 1


def test_importance_weights_do_not_depend_on_length_alone() -> None:
    pool = [*texts(PROSE, 20, 0), *texts(PROSE, 20, 1, length=600), *texts(JUNK, 20, 2)]
    scores = importance_weights(pool, pool, texts(PROSE, 10, 3))
    assert abs(scores[:20].mean() - scores[20:40].mean()) < 0.1 * abs(
        scores[:40].mean() - scores[40:].mean()
    )


def test_the_classifier_prefers_the_words_of_the_target() -> None:
    # Ranks within two halves that hold good documents in slightly different numbers.
    assert auc(classifier_scores(POOL, texts(PROSE, 10, 2)), GOOD) > 0.98


def test_the_classifier_scores_no_document_that_it_was_fitted_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[set[bytes]] = []
    scored: list[set[bytes]] = []

    class Watched:
        def __init__(self, **options: object) -> None:
            fitted.append(set())
            scored.append(set())

        def fit(self, examples: Any, labels: np.ndarray) -> None:
            fitted[-1] |= {row.data.tobytes() + row.indices.tobytes() for row in examples[~labels]}

        def decision_function(self, examples: Any) -> np.ndarray:
            scored[-1] |= {row.data.tobytes() + row.indices.tobytes() for row in examples}
            return np.zeros(examples.shape[0])

    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", Watched)
    classifier_scores(POOL, texts(PROSE, 10, 2))
    assert [len(each) for each in fitted] == [40, 40] == [len(each) for each in scored]
    assert not fitted[0] & scored[0]
    assert not fitted[1] & scored[1]
    assert fitted[0] == scored[1]


def test_c4_drops_lines_without_sentences_and_documents_with_code() -> None:
    prose = "This is a sentence of several words. It is followed by another one! Is this the third?"
    assert c4_score(prose) == 1
    assert c4_score(f"Home | About | Contact\n{prose}") == pytest.approx(
        len(prose) / (len(prose) + 23)
    )
    assert c4_score(f"{prose}\nfunction() {{ }}") == 0
    assert c4_score(f"{prose}\nLorem ipsum dolor sit amet.") == 0
    assert c4_score("One sentence of at least five words.") == 0
    assert c4_score(f"{prose}\nPlease enable javascript to see this page now.") < 0.75


def test_gopher_counts_the_rules_that_a_text_violates() -> None:
    rng = np.random.default_rng(0)
    lines = rng.permutation([f"word{i}" for i in range(120)]).reshape(10, 12).tolist()
    prose = "\n".join(f"The {' '.join(line)} of {line[0]}s." for line in lines)
    assert gopher_score(prose) == 0
    assert gopher_score("12 34 56 78 " * 40) <= -3
    assert gopher_score("buy this now\n" * 80) < gopher_score(prose)


def test_c4_retains_the_first_of_a_repeated_span_of_three_sentences() -> None:
    span = "One was the first of them. Two was the second one. Three was the last of all. "
    between = "Here is something else to read. "
    once, twice = f"{span}{between}", f"{span}{between}{span.upper()}"
    assert c4_score(once.strip()) == 1
    assert c4_score(twice) == pytest.approx(len(once) / len(twice))
    # Two sentences again are no span of three.
    assert c4_score(f"{span}{between}{span[:50]}".strip()) == 1
    # A span does not repeat itself: of seven equal sentences, three and the odd one stay.
    same = "The very same sentence once again. "
    assert c4_score(same * 7) == pytest.approx(4 / 7)


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=25), st.integers(1, 4))
def test_repeated_ngrams_cover_the_characters_of_a_mark_per_word(
    words: list[str], order: int
) -> None:
    grams = [tuple(words[at : at + order]) for at in range(len(words) - order + 1)]
    marked = {
        at + offset
        for at, gram in enumerate(grams)
        if gram in grams[:at]
        for offset in range(order)
    }
    total = max(1, sum(map(len, words)))
    assert _repeated_ngrams(words, order) == sum(len(words[at]) for at in marked) / total
    most = max(map(grams.count, grams), default=0)
    tops = [len("".join(gram)) * most / total for gram in grams if grams.count(gram) == most > 1]
    assert _top_ngram(words, order) in (tops or [0])


def test_a_passage_that_occurs_twice_violates_the_rules_on_longer_ngrams() -> None:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in rng.permutation(300)]
    passage = " ".join(words[:40])
    text = " ".join([*words, "the", "and"])
    # 40 of 342 words: more than the limits for 9 and 10 words alone.
    assert gopher_score(text) - gopher_score(f"{text} {passage}") == 2


def test_perplexity_arms_rank_from_both_ends_and_the_middle() -> None:
    log_probability = np.array([-3.0, -1.0, -2.0, np.nan])
    assert np.nanargmax(_perplexity_rank("perplexity_low", log_probability)) == 1
    assert np.nanargmax(_perplexity_rank("perplexity_high", log_probability)) == 0
    middle = _perplexity_rank("perplexity_middle", np.array([-3.0, -1.0, -2.0]))
    assert middle.argmax() == 2
    assert np.isnan(_perplexity_rank("perplexity_middle", log_probability)[3])


def test_labels_are_numbers_or_booleans() -> None:
    assert _numbers(["1.5", "true", "false", "-2"]).tolist() == [1.5, 1.0, 0.0, -2.0]
    assert np.isnan(_numbers(["", "1"])).tolist() == [True, False]
    with pytest.raises(FlagError, match="no document of the pool has a label"):
        _numbers(["", ""])
    with pytest.raises(FlagError, match="--label_field"):
        _numbers(["good"])


def table(path: Path, **columns: list[object]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_scores_are_joined_by_key_or_by_id(tmp_path: Path) -> None:
    keys = ['"a"', "7", '"b"']
    by_key = table(tmp_path / "key.parquet", key=['"b"', '"a"', '"z"'], score=[2.0, 1.0, 9.0])
    found = read_scores("mine", [by_key], keys)
    np.testing.assert_array_equal(found, [1.0, np.nan, 2.0])
    by_id = table(tmp_path / "id.parquet", id=["a", "b"], score=[1.0, 2.0])
    np.testing.assert_array_equal(read_scores("mine", [by_id], keys), [1.0, np.nan, 2.0])
    numbers = table(tmp_path / "numbers.parquet", id=[7], score=[5.0])
    np.testing.assert_array_equal(read_scores("mine", [numbers], keys), [np.nan, 5.0, np.nan])


def test_scores_that_cannot_be_joined_are_refused(tmp_path: Path) -> None:
    wrong = table(tmp_path / "wrong.parquet", key=["1"], value=[1.0])
    with pytest.raises(
        FlagError, match=r"--scores mine: .* needs the columns score, and key or id"
    ):
        read_scores("mine", [wrong], ["1"])
    twice = table(tmp_path / "twice.parquet", key=["1", "1"], score=[1.0, 2.0])
    with pytest.raises(FlagError, match="two different scores"):
        read_scores("mine", [twice], ["1"])
    other = table(tmp_path / "other.parquet", key=["2"], score=[1.0])
    with pytest.raises(FlagError, match="no document of the pool has a score"):
        read_scores("mine", [other], ["1"])
    text = tmp_path / "text.parquet"
    text.write_text("not a table")
    with pytest.raises(FlagError, match="not a Parquet file"):
        read_scores("mine", [str(text)], ["1"])
