"""How well features of a document explain its score: least squares and the Lasso.

As in the paper's appendix (arXiv 2505.17895), features and scores are z-scored, and predictions are
made by 10-fold cross-validation that is repeated 5 times. The paper reports R^2 = 0.766 of least
squares, and 0.753 of a Lasso with a penalty of 0.03 that uses 11 of 23 features.

    R^2 = 1 - sum (y - prediction)^2 / sum (y - mean y)^2

N counts documents, F features.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

PAPER = {
    "ols_r2": 0.766,
    "lasso_r2": 0.753,
    "lasso_alpha": 0.03,
    "lasso_nonzero": 11,
    "features": 23,
    "c4_correlation": 0.22,
}
"""What the paper reports of its rater."""

PAPER_COEFFICIENTS = {
    "non_alphanumeric_share": -0.33,
    "curly_brace": 0.27,
    "length": 0.19,
    "words": 0.13,
}
"""The Lasso's leading coefficients in the paper, apart from +0.42 of the number of packed documents
in a sequence: here a score is that of one document."""

_INNER_FOLDS = 5  # of the choice of a penalty within a fold
_PENALTIES = 50
_ITERATIONS = 2000
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Regression:
    """A regression of scores on features.

    Attributes:
        documents: N.
        features: Names of the features, without the constant ones.
        constant: Features that are the same in every document.
        ols_r2: R^2 of least squares on the documents it was fitted to.
        ols_r2_cross_validated: R^2 of least squares on documents it was not fitted to.
        ols_r2_sources_left_out: The same, with every source in one fold; None with a single source.
        lasso_alpha: Penalty that cross-validation chooses.
        lasso_r2: R^2 of the Lasso with that penalty on the documents it was fitted to.
        lasso_r2_cross_validated: R^2 on documents that neither the fit nor the choice has seen.
        lasso_paper_r2: R^2 of the Lasso with the paper's penalty on the documents it was fitted to.
        lasso_paper_r2_cross_validated: The same on documents it was not fitted to.
        source_share: Share of the scores' variance that is between sources.
        within_sources_r2: Cross-validated R^2 of least squares after the mean of each source is
            taken from features and scores; None where no score differs within a source.
        ols: Coefficient of each feature, both in standard deviations.
        lasso: The same of the Lasso with the chosen penalty.
        lasso_paper: The same of the Lasso with the paper's penalty.
        spearman: Rank correlation of each feature with the score.
        c4_correlation: Correlation of the score with passing C4's rules; None where all or none do.
    """

    documents: int
    features: list[str]
    constant: list[str]
    ols_r2: float
    ols_r2_cross_validated: float
    ols_r2_sources_left_out: float | None
    lasso_alpha: float
    lasso_r2: float
    lasso_r2_cross_validated: float
    lasso_paper_r2: float
    lasso_paper_r2_cross_validated: float
    source_share: float
    within_sources_r2: float | None
    ols: list[float]
    lasso: list[float]
    lasso_paper: list[float]
    spearman: list[float]
    c4_correlation: float | None


def regress(
    features_NxF: ArrayLike,
    scores_N: ArrayLike,
    names: Sequence[str],
    sources: Sequence[str],
    folds: int = 10,
    repeats: int = 5,
) -> Regression | None:
    """Regresses scores on features.

    Args:
        features_NxF: Features, finite.
        scores_N: Scores, finite.
        names: Names of the features.
        sources: Source of each document.
        folds: Folds of a cross-validation.
        repeats: Times that it is repeated, each with other folds.

    Returns:
        The regression; None if all scores or all features are constant.

    Raises:
        ValueError: If there are fewer documents than folds.
    """
    from scipy.stats import rankdata
    from sklearn.linear_model import LinearRegression

    features_NxF = np.asarray(features_NxF, np.float64)
    scores_N = np.asarray(scores_N, np.float64)
    if len(scores_N) < folds:
        raise ValueError(f"{folds} folds need at least as many documents, not {len(scores_N)}")
    varies_F = np.ptp(features_NxF, axis=0) > 0
    if np.ptp(scores_N) == 0 or not varies_F.any():
        return None
    kept = [name for name, varies in zip(names, varies_F, strict=True) if varies]
    x_NxF, y_N = _standardized(features_NxF[:, varies_F]), _standardized(scores_N)

    # Each model once on all documents, for its coefficients, and by cross-validation.
    splits = [_random_folds(len(y_N), folds, repeat) for repeat in range(repeats)]
    alphas_A = _penalties(x_NxF, y_N)
    chosen = _best_penalty(x_NxF, y_N, [split for each in splits for split in each], alphas_A)
    paper = np.array([PAPER["lasso_alpha"]])
    ols = LinearRegression().fit(x_NxF, y_N)
    lasso_F, lasso_paper_F = (
        lasso_path(x_NxF, y_N, alpha_A)[:, 0] for alpha_A in (alphas_A[[chosen]], paper)
    )

    between, within_x_NxF, within_y_N = _without_means(x_NxF, y_N, sources)
    ranks_N = _standardized(rankdata(y_N))
    passes_N = features_NxF[:, list(names).index("c4_pass")] if "c4_pass" in kept else None
    return Regression(
        documents=len(y_N),
        features=kept,
        constant=[name for name, varies in zip(names, varies_F, strict=True) if not varies],
        ols_r2=float(ols.score(x_NxF, y_N)),
        ols_r2_cross_validated=_cross_validated(x_NxF, y_N, splits, _least_squares),
        ols_r2_sources_left_out=_sources_left_out(x_NxF, y_N, sources, folds),
        lasso_alpha=float(alphas_A[chosen]),
        lasso_r2=_r2(y_N, x_NxF @ lasso_F),
        # One repeat: the penalty is chosen anew in each fold.
        lasso_r2_cross_validated=_cross_validated(
            x_NxF, y_N, splits[:1], lambda x, y: _chosen_lasso(x, y, alphas_A, folds)
        ),
        lasso_paper_r2=_r2(y_N, x_NxF @ lasso_paper_F),
        lasso_paper_r2_cross_validated=_cross_validated(
            x_NxF, y_N, splits, lambda x, y: lasso_path(x, y, paper)[:, 0]
        ),
        source_share=between,
        within_sources_r2=(
            _cross_validated(within_x_NxF, within_y_N, splits, _least_squares)
            if within_y_N.std() > 1e-9
            else None
        ),
        ols=ols.coef_.tolist(),
        lasso=lasso_F.tolist(),
        lasso_paper=lasso_paper_F.tolist(),
        spearman=[
            float(_standardized(rankdata(column_N)) @ ranks_N / len(y_N)) for column_N in x_NxF.T
        ],
        c4_correlation=(
            None if passes_N is None else float(_standardized(passes_N) @ y_N / len(y_N))
        ),
    )


Split = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices of the documents to fit to, and of those to predict."""


def _standardized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def _random_folds(count: int, folds: int, seed: int) -> list[Split]:
    from sklearn.model_selection import KFold

    return list(KFold(folds, shuffle=True, random_state=seed).split(np.zeros(count)))


def _r2(y_N: NDArray[np.float64], predicted_N: NDArray[np.float64]) -> float:
    return float(1 - np.mean((y_N - predicted_N) ** 2) / np.var(y_N))


def _cross_validated(
    x_NxF: NDArray[np.float64],
    y_N: NDArray[np.float64],
    repeats: Sequence[Sequence[Split]],
    fit: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> float:
    """Returns R^2 of predictions for documents that were left out, as the mean over repeats.

    Args:
        x_NxF: Features.
        y_N: Scores.
        repeats: The splits of each repeat, which leave every document out once.
        fit: Returns the coefficients for standardized features and centered scores.
    """
    values = []
    for splits in repeats:
        predicted_N = np.zeros(len(y_N))
        for fitted, left_out in splits:
            x, x_left_out = _scaled_by_first(x_NxF[fitted], x_NxF[left_out])
            mean = y_N[fitted].mean()
            predicted_N[left_out] = mean + x_left_out @ fit(x, y_N[fitted] - mean)
        values.append(_r2(y_N, predicted_N))
    return float(np.mean(values))


def _scaled_by_first(
    first_NxF: NDArray[np.float64], second_NxF: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns both, with means and deviations of the first taken from both."""
    mean_F, deviation_F = first_NxF.mean(axis=0), first_NxF.std(axis=0)
    scale_F = np.where(deviation_F > 0, deviation_F, 1.0)
    return (first_NxF - mean_F) / scale_F, (second_NxF - mean_F) / scale_F


def _least_squares(x_NxF: NDArray[np.float64], y_N: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.linear_model import LinearRegression

    coefficients_F: NDArray[np.float64] = (
        LinearRegression(fit_intercept=False).fit(x_NxF, y_N).coef_
    )
    return coefficients_F


def lasso_path(
    x_NxF: NDArray[np.float64], y_N: NDArray[np.float64], alphas_A: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the coefficients b of the Lasso for each of A penalties, by scikit-learn.

        b = argmin 1 / (2 N) |y - x b|^2 + alpha |b|_1

    With Q R = [x y], the squared norm is that of R [-b 1]: F + 1 rows in place of N, for which
    coordinate descent takes milliseconds.

    Args:
        x_NxF: Standardized features.
        y_N: Centered scores.
        alphas_A: Penalties, descending.

    Returns:
        Coefficients, [F, A].
    """
    from sklearn import linear_model

    triangle = np.linalg.qr(np.column_stack([x_NxF, y_N]), mode="r")
    triangle *= np.sqrt(len(triangle) / len(y_N))
    with warnings.catch_warnings():
        # At the smallest penalties, features that are nearly collinear converge slowly.
        warnings.simplefilter("ignore")
        coefficients_FxA: NDArray[np.float64] = linear_model.lasso_path(
            triangle[:, :-1], triangle[:, -1], alphas=alphas_A, max_iter=_ITERATIONS, tol=_TOLERANCE
        )[1]
    return coefficients_FxA


def _penalties(x_NxF: NDArray[np.float64], y_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns penalties from the smallest that leaves no coefficient to a thousandth of it."""
    largest = np.abs(x_NxF.T @ y_N).max() / len(y_N)
    return np.geomspace(largest, largest / 1000, _PENALTIES)


def _best_penalty(
    x_NxF: NDArray[np.float64],
    y_N: NDArray[np.float64],
    splits: Sequence[Split],
    alphas_A: NDArray[np.float64],
) -> int:
    """Returns the index of the penalty that predicts documents left out best."""
    errors_A = np.zeros(len(alphas_A))
    for fitted, left_out in splits:
        x, x_left_out = _scaled_by_first(x_NxF[fitted], x_NxF[left_out])
        mean = y_N[fitted].mean()
        predicted_NxA = mean + x_left_out @ lasso_path(x, y_N[fitted] - mean, alphas_A)
        errors_A += ((y_N[left_out, None] - predicted_NxA) ** 2).sum(axis=0)
    return int(errors_A.argmin())


def _chosen_lasso(
    x_NxF: NDArray[np.float64], y_N: NDArray[np.float64], alphas_A: NDArray[np.float64], folds: int
) -> NDArray[np.float64]:
    """Returns the coefficients with the penalty that cross-validation chooses."""
    splits = _random_folds(len(y_N), min(folds, _INNER_FOLDS, len(y_N)), 0)
    best = _best_penalty(x_NxF, y_N, splits, alphas_A)
    coefficients_F: NDArray[np.float64] = lasso_path(x_NxF, y_N, alphas_A[[best]])[:, 0]
    return coefficients_F


def _sources_left_out(
    x_NxF: NDArray[np.float64], y_N: NDArray[np.float64], sources: Sequence[str], folds: int
) -> float | None:
    from sklearn.model_selection import GroupKFold

    names, owners_N = np.unique(np.asarray(sources), return_inverse=True)
    if len(names) < 2:
        return None
    splits = list(GroupKFold(min(folds, len(names))).split(x_NxF, y_N, owners_N))
    return _cross_validated(x_NxF, y_N, [splits], _least_squares)


def _without_means(
    x_NxF: NDArray[np.float64], y_N: NDArray[np.float64], sources: Sequence[str]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Returns the share of variance between sources, and the values without their means."""
    _, owners_N = np.unique(np.asarray(sources), return_inverse=True)
    sizes_S = np.bincount(owners_N)
    mean_S = np.bincount(owners_N, y_N) / sizes_S
    mean_SxF = np.stack([np.bincount(owners_N, column_N) / sizes_S for column_N in x_NxF.T], axis=1)
    between = float(np.mean(mean_S[owners_N] ** 2) / np.var(y_N))
    return between, x_NxF - mean_SxF[owners_N], y_N - mean_S[owners_N]
