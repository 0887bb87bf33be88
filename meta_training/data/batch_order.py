r"""The order of windows in which a share of the batches has windows of a single source.

The rater is trained by the softmax over a batch's scores. In a batch of all sources, telling good
sources from bad ones explains most of a window's worth, and n-gram filters do that as well. In a
batch of one source the windows compete with their like, so the meta-gradient asks for the order
within the source.

In each pass over the set, with n_k windows of source k, batches of B windows and the share s,

    W = floor(s sum over k of floor(n_k / B))     batches are each drawn from a single source,
    floor(N / B) - W                              from all windows that are left, N = sum n_k.

The W batches are spread over the sources in proportion to floor(n_k / B), by systematic sampling:
source k has the floor or the ceiling of W floor(n_k / B) / sum floor(n_j / B) of them, and that
number on average over passes. A source with fewer than B windows takes part in the mixed batches
alone. Which windows a batch has and the order of the batches are drawn anew in each pass. Every
window is in at most one batch of a pass; N mod B windows, others each time, are in none.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from datarater.meta_training.data.texts import DataError
from datarater.rater_model.counted import counted

if TYPE_CHECKING:
    import grain


class BatchOrder:
    """An endless sequence of batches of window numbers, each computed from its position alone.

    Args:
        source_N: Number of each window's source, from 0.
        batch: B, the windows of a batch.
        share: s, the share of batches from a single source, in [0, 1].
        seed: Seed of the order.

    Raises:
        DataError: If the windows do not fill one batch.

    Example:
        >>> order = BatchOrder(np.array([0, 0, 0, 1, 1, 1]), batch=3, share=1.0, seed=0)
        >>> sorted(sorted(order[i].tolist()) for i in range(2))
        [[0, 1, 2], [3, 4, 5]]
    """

    def __init__(self, source_N: np.ndarray, batch: int, share: float, seed: int) -> None:
        windows = len(source_N)
        if windows < batch:
            raise DataError(
                f"the inner set has {counted(windows, 'window')}, fewer than one batch of {batch}: "
                "lower inner_batch, set data.within_source_share to 0, or use more data"
            )
        self._arguments = (source_N, batch, share, seed)
        self._batch, self._seed = batch, seed
        # The windows of each source, one source after the other.
        self._by_source_N = np.argsort(source_N, kind="stable")
        self._size_K = np.bincount(source_N)

        whole_K = self._size_K // batch
        self._within = int(share * whole_K.sum())
        # Ends of the sources on a scale on which each batch of a single source takes 1.
        self._end_K = np.cumsum(whole_K) * self._within / max(1, whole_K.sum())
        self.batches_per_pass = windows // batch
        # An iterator reads ahead of the position to which another one returns.
        self._order = functools.lru_cache(maxsize=2)(self._order_of_pass)

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchOrder, self._arguments

    def __getitem__(self, position: int) -> np.ndarray:
        """Returns the window numbers of a batch, shape [B]."""
        number, place = divmod(position, self.batches_per_pass)
        order_MxB: np.ndarray = self._order(number)
        return order_MxB[place]

    def _order_of_pass(self, number: int) -> np.ndarray:
        """Returns the window numbers of all batches of a pass, shape [batches, B]."""
        rng = np.random.default_rng((self._seed, number))

        # Systematic sampling: a source has a batch for each whole number that its part of the
        # shifted scale passes.
        passed_K = np.floor(self._end_K + rng.random()).astype(np.int64)
        batches_K = np.diff(passed_K, prepend=0)

        first = 0
        single, left_over = [], []
        for size, batches in zip(self._size_K, batches_K, strict=True):
            windows = rng.permutation(self._by_source_N[first : first + size])
            single.append(windows[: batches * self._batch])
            left_over.append(windows[batches * self._batch :])
            first += size

        mixed = rng.permutation(np.concatenate(left_over))
        whole = len(mixed) - len(mixed) % self._batch
        order = np.concatenate([*single, mixed[:whole]]).reshape(-1, self._batch)
        return rng.permutation(order, axis=0)

    def __repr__(self) -> str:
        return f"BatchOrder({self.batches_per_pass} batches of {self._batch} in a pass)"


@dataclasses.dataclass(frozen=True)
class SingleSource:
    """How many of the batches have windows of a single source; see `batch_order`.

    Attributes:
        share: Share of the batches, in [0, 1].
        batch: B, the windows whose scores compete; a divisor of those that are drawn at a time.
    """

    share: float = 0.0
    batch: int = 1


MIXED = SingleSource()
"""Every batch has windows of all sources."""

_FOREVER = 2**62  # batches, in the length that grain asks for


def batch_numbers(
    source_N: np.ndarray, count: int, seed: int, single: SingleSource = MIXED
) -> grain.MapDataset:
    """Returns the numbers of the windows of endless batches.

    Args:
        source_N: Number of each window's source.
        count: Windows of a batch.
        seed: Seed for shuffling.
        single: Share of batches of a single source.

    Raises:
        DataError: The windows do not fill one batch.
    """
    import grain  # processes that only prepare data do without it

    if not single.share:
        numbers = grain.MapDataset.range(len(source_N)).seed(seed).shuffle().repeat()
        return numbers.batch(count)

    order = BatchOrder(np.asarray(source_N), single.batch, single.share, seed)
    return grain.MapDataset.range(_FOREVER).map(_Together(order, count // single.batch))


@dataclasses.dataclass(frozen=True)
class _Together:
    """Several successive batches of an order as one; it pickles, for processes that read."""

    order: BatchOrder
    count: int

    def __call__(self, position: int) -> np.ndarray:
        first = position * self.count
        return np.concatenate([self.order[first + i] for i in range(self.count)])
