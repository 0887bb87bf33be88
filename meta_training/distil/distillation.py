"""Fits an n-gram student to the scores of a rater, and measures it on documents held out.

The student is ridge regression on the shares of a text's n-grams. With x_g the share of the n-grams
of an order that fall into row g, and m_g its mean over the documents,

    w = argmin sum over documents of (score - b - sum over g of v_g x_g / sqrt(m_g))^2
                + (N / 1000) sum over g of v_g^2,    w_g = v_g / sqrt(m_g)

so that rare n-grams, whose shares are small, can count as much as frequent ones.

Dimension letters in array names: N the documents of the fit, H those held out, G all rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import datarater
from datarater.meta_training.evaluate.errors import EmptyDataError
from datarater.rater_model.byte_ngrams import table_rows
from datarater.rater_model.cascade import HeldOut
from datarater.rater_model.checkpoint import RaterCheckpoint, ScoreStatistics, percentiles
from datarater.rater_model.ngram_rater import NgramConfig, held_out_name, rows_by_order, table_name
from datarater.rater_model.ngram_scorer import NgramScorer
from datarater.rater_model.tokenizer import ByteTokenizer

MIN_DOCUMENTS = 50
KEEPS = (0.5, 0.25, 0.1)
AGREEMENTS = (0.95, 0.98, 0.99)
_PENALTY = 1e-3
_TOLERANCE = 1e-3
_PROGRESS = 5000


@dataclasses.dataclass(frozen=True)
class Scored:
    """Documents with their scores by a rater.

    Attributes:
        texts: The texts, in random order.
        scores_N: Scores of the rater.
        rater: Digest of the rater.
    """

    texts: Sequence[str]
    scores_N: NDArray[np.float64]
    rater: str


def distil(
    scored: Scored, config: NgramConfig, held_out: float, say: Callable[[str], None]
) -> RaterCheckpoint:
    """Returns the student of a rater, not saved yet.

    Args:
        scored: Documents in random order, with their scores.
        config: Orders and rows of the tables.
        held_out: Share of the documents that the student is not fitted to, the last ones.
        say: Prints a line of progress.

    Raises:
        EmptyDataError: If there are fewer than `MIN_DOCUMENTS`.
    """
    count = len(scored.texts)
    if count < MIN_DOCUMENTS:
        raise EmptyDataError(
            f"{count:,} documents have a score, but a student needs at least {MIN_DOCUMENTS}"
        )
    first = count - max(1, round(held_out * count))
    tables, intercept = _fit(config, scored.texts[:first], scored.scores_N[:first], say)

    # The student's own scorer scores the held-out documents: what is measured is what is used.
    config = dataclasses.replace(config, held_out=count - first)
    student = RaterCheckpoint(
        config=config,
        params={table_name(order): table_G for order, table_G in tables.items()},
        tokenizer=ByteTokenizer(),
        statistics=ScoreStatistics(center=-intercept),
    )
    texts = scored.texts[first:]
    by_student = NgramScorer(student).score(texts)
    columns = {
        "student": by_student.scores_N,
        "rater": scored.scores_N[first:].astype(np.float32),
        "bytes": by_student.tokens_N.astype(np.float32),
    }
    statistics = dataclasses.replace(
        student.statistics,
        standard_deviation=float(by_student.scores_N.std()),
        quantiles=percentiles(by_student.scores_N),
        sample_size=len(texts),
    )
    return dataclasses.replace(
        student,
        params=student.params | {held_out_name(name): column for name, column in columns.items()},
        statistics=statistics,
        provenance={
            "distilled_from": scored.rater,
            "fitted_documents": first,
            "datarater": datarater.__version__,
            **measures(HeldOut(**{f"{name}_H": column for name, column in columns.items()})),
        },
    )


def measures(held_out: HeldOut) -> dict[str, float]:
    """Returns how well a student predicts its rater's scores of held-out documents.

    Returns:
        R^2 of the scores, and their rank correlation.
    """
    from scipy.stats import spearmanr

    rater_H = held_out.rater_H.astype(np.float64)
    errors_H = rater_H - held_out.student_H
    spread = float(np.var(rater_H))
    return {
        "r2": 1 - float(np.mean(errors_H**2)) / spread if spread else 0.0,
        "rank_correlation": float(spearmanr(held_out.student_H, rater_H)[0]) if spread else 0.0,
    }


def _fit(
    config: NgramConfig,
    texts: Sequence[str],
    scores_N: NDArray[np.float64],
    say: Callable[[str], None],
) -> tuple[dict[int, NDArray[np.float32]], float]:
    """Returns the table of each order and the intercept."""
    from scipy.sparse import diags
    from sklearn.linear_model import Ridge

    shares_NxG = _shares(config, texts, say)
    mean_G = np.asarray(shares_NxG.mean(axis=0)).ravel()
    scale_G = np.zeros_like(mean_G)
    np.divide(1, np.sqrt(mean_G), out=scale_G, where=mean_G > 0)

    say(f"fitting {int((mean_G > 0).sum()):,} weights to {len(texts):,} documents")
    ridge = Ridge(alpha=_PENALTY * len(texts), solver="sparse_cg", tol=_TOLERANCE)
    ridge.fit((shares_NxG @ diags(scale_G)).astype(np.float32), scores_N.astype(np.float32))
    weights_G = (ridge.coef_ * scale_G).astype(np.float32)

    sizes = [table_rows(order, config.row_bits) for order in config.orders]
    parts = np.split(weights_G, np.cumsum(sizes)[:-1])
    return dict(zip(config.orders, parts, strict=True)), float(ridge.intercept_)


def _shares(config: NgramConfig, texts: Sequence[str], say: Callable[[str], None]) -> Any:
    """Returns the shares of each text's n-grams by row, a sparse matrix [N, G] in float32."""
    from scipy.sparse import csr_matrix

    sizes = [table_rows(order, config.row_bits) for order in config.orders]
    firsts = dict(zip(config.orders, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    columns: list[NDArray[np.int32]] = []
    values: list[NDArray[np.float32]] = []
    ends = [0]
    for number, text in enumerate(texts, start=1):
        pieces: dict[int, list[NDArray[np.int64]]] = {order: [] for order in config.orders}
        for order, rows_M in rows_by_order(config, text.encode()):
            pieces[order].append(rows_M)
        end = ends[-1]
        for order, rows in pieces.items():
            rows_M = np.concatenate(rows) if rows else np.zeros(0, np.int64)
            distinct_K, counts_K = np.unique(rows_M, return_counts=True)
            columns.append((distinct_K + firsts[order]).astype(np.int32))
            values.append((counts_K / max(1, len(rows_M))).astype(np.float32))
            end += len(distinct_K)
        ends.append(end)
        if number % _PROGRESS == 0:
            say(f"counted the n-grams of {number:,} documents")
    return csr_matrix(
        (np.concatenate(values), np.concatenate(columns), np.asarray(ends, np.int64)),
        shape=(len(texts), sum(sizes)),
    )


def cost_table(held_out: HeldOut) -> list[str]:
    """Returns lines of a table: what share of the bytes a cascade leaves to the rater."""
    lines = ["kept share   " + "".join(f"agreement {agreement:<6g}" for agreement in AGREEMENTS)]
    for keep in KEEPS:
        shares = [held_out.share(held_out.band(keep, agreement)) for agreement in AGREEMENTS]
        lines.append(f"{keep:<13g}" + "".join(f"{share:<16.1%}" for share in shares))
    return [line.rstrip() for line in lines]
