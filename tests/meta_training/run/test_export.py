"""Exported raters are centered and complete, and refused when their scores are not finite."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarater.meta_training.run.export import NonFiniteScoresError, export_rater
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.scorer import Scorer
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig

CONFIG = RaterConfig(
    window=16, transformer=TransformerConfig(width=8, heads=1, mlp_width=8, layers=1), ngram_rows=32
)
REFERENCE = [f"reference text number {i} " * (i % 5 + 1) for i in range(20)]


def test_scores_are_centered_on_the_reference_sample(tmp_path: Path) -> None:
    params = initialise_rater(CONFIG, jax.random.key(0))
    checkpoint, scores_N = export_rater(
        str(tmp_path / "rater"), CONFIG, params, ByteTokenizer(), REFERENCE, 3, {"step": 7}
    )
    loaded = load_rater(tmp_path / "rater")
    assert loaded.digest == checkpoint.digest
    assert loaded.provenance["step"] == 7

    again_N = Scorer(loaded, ScoringOptions(max_windows=3)).score(REFERENCE).scores_N
    np.testing.assert_allclose(again_N, scores_N, atol=1e-6)
    effect = loaded.provenance["scores_by_length"]
    lengths_N = np.array([len(text) for text in REFERENCE])  # bytes are tokens
    shortest_N = np.argsort(lengths_N, kind="stable")[:5]
    assert effect["parts"][0]["tokens"] == [lengths_N[shortest_N[0]], lengths_N[shortest_N[-1]]]
    assert effect["parts"][0]["mean"] == pytest.approx(again_N[shortest_N].mean(), abs=1e-6)
    assert sum(part["documents"] for part in effect["parts"]) == 20

    assert again_N.mean() == pytest.approx(0, abs=1e-6)
    assert loaded.statistics.standard_deviation == pytest.approx(again_N.std(), rel=1e-5)
    assert loaded.statistics.max_windows == 3
    assert loaded.statistics.sample_size == 20
    np.testing.assert_allclose(
        loaded.statistics.quantiles[::50], np.quantile(again_N, [0, 0.5, 1]), atol=1e-6
    )


def test_the_same_rater_has_the_same_digest_and_another_step_another(tmp_path: Path) -> None:
    params = initialise_rater(CONFIG, jax.random.key(0))
    digests = [
        export_rater(
            str(tmp_path / str(i)), CONFIG, params, ByteTokenizer(), REFERENCE, 3, {"step": step}
        )[0].digest
        for i, step in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_rater_with_scores_that_are_not_finite_is_not_written(tmp_path: Path) -> None:
    initial = initialise_rater(CONFIG, jax.random.key(0))
    for value, cause in (
        (jnp.nan, "its parameters are not finite"),
        (3e38, "its parameters are finite, but too large"),
    ):
        params = jax.tree.map(lambda x, value=value: jnp.full_like(x, value), initial)
        with pytest.raises(
            NonFiniteScoresError,
            match=f"scores of 20 of 20 reference documents are not finite: {cause}",
        ):
            export_rater(str(tmp_path / "rater"), CONFIG, params, ByteTokenizer(), REFERENCE, 3, {})
    assert not (tmp_path / "rater").exists()
