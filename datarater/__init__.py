"""DataRater: meta-learn what training data is worth, and curate web-scale corpora with it.

The names below are the public interface; they load when they are first used, so `import datarater`
is cheap and silent.

Example:
    >>> import datarater
    >>> rater = datarater.load_rater("demo_output/rater")  # doctest: +SKIP
    >>> scorer = datarater.Scorer(rater)  # doctest: +SKIP
    >>> scorer.score(["A sentence that says something."]).scores_N  # doctest: +SKIP
    array([0.41], dtype=float32)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datarater.api import curate, dedup, read_scores, score, select
    from datarater.pipelines.errors import CurationError
    from datarater.pipelines.transforms import KeepTop, RaterModelHandler, ScoreDocuments
    from datarater.rater_model.checkpoint import CheckpointError, load_rater
    from datarater.rater_model.ngram_scorer import make_scorer
    from datarater.rater_model.scorer import Scorer
    from datarater.rater_model.scoring_options import ScoringOptions
    from datarater.rater_model.text_scorer import ScoredTexts

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CurationError",
    "KeepTop",
    "RaterModelHandler",
    "ScoreDocuments",
    "ScoredTexts",
    "Scorer",
    "ScoringOptions",
    "__version__",
    "curate",
    "dedup",
    "load_rater",
    "make_scorer",
    "read_scores",
    "score",
    "select",
]

_MODULES = {
    "CheckpointError": "datarater.rater_model.checkpoint",
    "CurationError": "datarater.pipelines.errors",
    "KeepTop": "datarater.pipelines.transforms",
    "RaterModelHandler": "datarater.pipelines.transforms",
    "ScoreDocuments": "datarater.pipelines.transforms",
    "ScoredTexts": "datarater.rater_model.text_scorer",
    "Scorer": "datarater.rater_model.scorer",
    "ScoringOptions": "datarater.rater_model.scoring_options",
    "curate": "datarater.api",
    "dedup": "datarater.api",
    "load_rater": "datarater.rater_model.checkpoint",
    "make_scorer": "datarater.rater_model.ngram_scorer",
    "read_scores": "datarater.api",
    "score": "datarater.api",
    "select": "datarater.api",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'datarater' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
