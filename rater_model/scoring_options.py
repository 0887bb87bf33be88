"""Defines what changes a score, apart from the scorer so that JAX is not imported."""

from __future__ import annotations

import dataclasses
import os

SCORER_VERSION = 2
"""Raised whenever the same text, rater and options would get another score."""

# Versions whose scores differ from those of the present one by no more than rounding.
_SAME_BUT_FOR_ROUNDING = frozenset({1, 2})


def differ_by_rounding(version: int, other: int) -> bool:
    """Returns whether two versions of the scorer give the same scores, up to rounding.

    Args:
        version: One version.
        other: The other version; it may be the same.
    """
    return version == other or {version, other} <= _SAME_BUT_FOR_ROUNDING


@dataclasses.dataclass(frozen=True)
class ScoringOptions:
    """Every option that changes a score; part of a run's identity.

    Attributes:
        max_windows: Maximum number of windows scored per text; for a longer text, this many windows
            are spread evenly from its first to its last.
        tokens_per_batch: Tokens in one model call; small is fast on a CPU (1024), large on a GPU
            (65536 and more).
        dtype: Data type of the computation, "float32" or "bfloat16".
    """

    max_windows: int = 256
    tokens_per_batch: int = 1024
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.max_windows < 1:
            raise ValueError(f"max_windows must be at least 1, not {self.max_windows}")
        if self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch must be at least 1, not {self.tokens_per_batch}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, not {self.dtype!r}")


def limit_cpu_threads() -> None:
    """Limits XLA's CPU backend and the tokenizers of this process to one thread each.

    Call this before JAX first computes. Workers are scaled by processes, one per core: threads
    within each would compete for the same cores, and a sum split over a different number of threads
    can differ in its last bit.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
