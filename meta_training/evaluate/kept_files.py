"""Finds the documents of files, such as those that `curate` kept, in the pool.

N counts the documents of the pool.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.keeping import text_hash
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document, ReadOptions

Identity = tuple[str, int]
"""Key and `text_hash` of a document."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Which documents of the pool are in the files.

    Attributes:
        kept_N: Whether each document of the pool is in the files.
        missing: Number of the files' documents that are not in the pool.
        changed: Number of those that are there by key, with another text.
        read: Number of the files' documents.
    """

    kept_N: NDArray[np.bool_]
    missing: int
    changed: int
    read: int


def find_in_pool(
    name: str,
    patterns: Sequence[str],
    options: ReadOptions,
    keys_N: Sequence[str],
    hashes_N: ArrayLike,
) -> Found:
    """Reads files of any format and finds their documents in the pool.

    Args:
        name: Name of the arm, for messages.
        patterns: Files or globs.
        options: Fields of the documents.
        keys_N: Keys of the pool's documents.
        hashes_N: Their `text_hash`.

    Raises:
        FlagError: If no document is in the pool.
        NoInputError: If a pattern matches no file.
        OSError: If a file cannot be read.
    """
    documents = [
        (record.key, text_hash(record.text))
        for info in list_files(patterns)
        for record in read_file(info.path, options)
        if isinstance(record, Document)
    ]
    pool = list(zip(keys_N, np.asarray(hashes_N, np.uint64).tolist(), strict=True))
    found = match(documents, pool)
    if not found.kept_N.any():
        raise FlagError(
            f"--kept {name}: the files have {counted(len(documents), 'document')}, none of which "
            f"is in the pool by key or by text; keys of the pool look like {keys_N[0]}"
        )
    return found


def match(documents: Iterable[Identity], pool_N: Sequence[Identity]) -> Found:
    """Returns which documents of the pool are among the given ones.

    A document is the one of the pool with its key and text; without one, that with its key; without
    one, that with its text. Keys need not be unique in a corpus: of several alike in the pool, as
    many are found as are given.

    Args:
        documents: Key and hash of each document to find.
        pool_N: Key and hash of each document of the pool.
    """
    waiting = list(documents)
    kept_N = np.zeros(len(pool_N), bool)
    left = [len(waiting)]
    by: list[Callable[[Identity], Hashable]] = [
        lambda identity: identity,
        lambda identity: identity[0],
        lambda identity: identity[1],
    ]
    for of in by:
        places: defaultdict[Hashable, list[int]] = defaultdict(list)
        for index in reversed(range(len(pool_N))):
            places[of(pool_N[index])].append(index)
        # The first ones of the pool come last in the lists, to be taken first.
        missing = []
        for document in waiting:
            indices = places.get(of(document))
            if indices is None:
                missing.append(document)
                continue
            while indices and kept_N[indices[-1]]:
                indices.pop()
            if indices:
                kept_N[indices.pop()] = True
        waiting = missing
        left.append(len(waiting))
    return Found(kept_N, missing=left[3], changed=left[1] - left[2], read=left[0])
