from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from datarater.meta_training.analysis.regression import Regression, lasso_path, regress

RNG = np.random.default_rng(0)
NAMES = [*"abcdefgh", "c4_pass", "constant"]
N = 600
FEATURES = np.column_stack(
    [RNG.normal(size=(N, 8)) * 10.0 + 3, RNG.integers(0, 2, N), np.full(N, 7.0)]
)
SOURCES = [f"s{index % 6}" for index in range(N)]


def regressed(scores: np.ndarray, sources: list[str] | None = None) -> Regression:
    found = regress(FEATURES, scores, NAMES, sources or SOURCES, folds=5, repeats=2)
    assert found is not None
    return found


def test_a_linear_score_is_recovered_with_its_coefficients() -> None:
    scores = 0.3 * FEATURES[:, 0] - 0.1 * FEATURES[:, 3] + 5
    found = regressed(scores)
    assert found.constant == ["constant"]
    assert found.features == NAMES[:-1]
    assert found.ols_r2 == pytest.approx(1)
    assert found.ols_r2_cross_validated == pytest.approx(1)
    assert found.ols_r2_sources_left_out == pytest.approx(1)
    deviations = FEATURES.std(axis=0)[:-1]
    expected = np.zeros(9)
    expected[[0, 3]] = np.array([0.3, -0.1]) * deviations[[0, 3]] / scores.std()
    np.testing.assert_allclose(found.ols, expected, atol=1e-9)
    # The Lasso finds the two features and shrinks both by its penalty.
    assert [name for name, value in zip(NAMES, found.lasso_paper, strict=False) if value] == [
        "a",
        "d",
    ]
    np.testing.assert_allclose(
        np.abs(expected)[[0, 3]] - np.abs(found.lasso_paper)[[0, 3]], 0.03, atol=0.01
    )
    assert found.lasso_alpha < 0.01
    assert found.lasso_r2_cross_validated > 0.99


def test_explained_variance_is_the_share_of_the_signal() -> None:
    signal = FEATURES[:, 1] / FEATURES[:, 1].std()
    found = regressed(signal + RNG.normal(size=N))
    assert found.ols_r2_cross_validated == pytest.approx(0.5, abs=0.07)
    assert found.ols_r2 > found.ols_r2_cross_validated
    assert found.lasso_r2_cross_validated == pytest.approx(0.5, abs=0.07)


def test_noise_is_explained_in_the_fit_only() -> None:
    found = regressed(RNG.normal(size=N))
    assert found.ols_r2 > 0
    assert found.ols_r2_cross_validated < 0.01
    assert found.lasso_r2_cross_validated < 0.01
    assert found.source_share < 0.05


def test_what_differs_between_sources_only_is_not_explained_within_them() -> None:
    owners = np.arange(N) % 6
    found = regressed(owners + 1e-3 * RNG.normal(size=N))
    assert found.source_share > 0.99
    assert found.within_sources_r2 is not None
    assert found.within_sources_r2 < 0.05
    assert regressed(owners.astype(float)).within_sources_r2 is None


def test_a_single_source_cannot_be_left_out() -> None:
    assert regressed(FEATURES[:, 0], ["only"] * N).ols_r2_sources_left_out is None


def test_constant_scores_have_no_regression_and_few_documents_are_refused() -> None:
    assert regress(FEATURES, np.ones(N), NAMES, SOURCES) is None
    with pytest.raises(ValueError, match="10 folds need at least as many documents, not 9"):
        regress(FEATURES[:9], np.arange(9.0), NAMES, SOURCES[:9])


def test_as_many_documents_as_folds_are_enough() -> None:
    assert regress(FEATURES[:10], FEATURES[:10, 0], NAMES, SOURCES[:10], folds=10) is not None


def test_the_lasso_of_the_triangle_is_that_of_the_documents() -> None:
    x = (FEATURES[:, :8] - FEATURES[:, :8].mean(axis=0)) / FEATURES[:, :8].std(axis=0)
    x[:, 7] = x[:, 6] + 0.5 * x[:, 7]
    y = x @ np.array([1.0, -0.5, 0, 0, 0, 0, 0.3, 0.2]) + RNG.normal(size=N)
    y -= y.mean()
    alphas = np.array([0.3, 0.03, 0.003])
    found = lasso_path(x, y, alphas)
    for index, alpha in enumerate(alphas):
        expected = Lasso(alpha=alpha, fit_intercept=False, tol=1e-9).fit(x, y).coef_
        np.testing.assert_allclose(found[:, index], expected, atol=2e-3)


def test_rank_correlations_do_not_depend_on_the_scale_of_a_score() -> None:
    scores = FEATURES[:, 2] / 10
    assert regressed(np.exp(scores)).spearman == pytest.approx(regressed(scores).spearman)
    assert regressed(scores).spearman[2] == pytest.approx(1)
