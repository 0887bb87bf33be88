"""Lists the committed files of a run folder.

A listing returns many names per request; a look for every single file would cost one request each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.stores import Entry

PREFIXES = 256
"""Number of folders that score files are spread over."""
REQUESTS_AT_ONCE = 32
_SCORE_FILE = re.compile(r"(\d{8,})\.parquet$")

T = TypeVar("T")
R = TypeVar("R")


def at_once(work: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
    """Does work that mostly waits for a network, many items at a time.

    Returns:
        The results in the order of the items.
    """
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(REQUESTS_AT_ONCE, len(items))) as pool:
        return list(pool.map(work, items))


def score_entries(folder: RunFolder) -> Iterable[list[tuple[int, Entry]]]:
    """Yields the committed score files of each prefix in turn, with their splits' ordinals."""
    # A few prefixes at a time, so that memory never holds the names of millions of files.
    for first in range(0, PREFIXES, REQUESTS_AT_ONCE):
        prefixes = range(first, min(first + REQUESTS_AT_ONCE, PREFIXES))
        yield from at_once(lambda prefix: entries_of(folder, prefix), prefixes)


def entries_of(folder: RunFolder, prefix: int) -> list[tuple[int, Entry]]:
    """Lists the score files under one prefix, each with its split's ordinal."""
    entries = []
    for entry in commits.list_folder(f"{folder.scores_path}/{prefix:02x}"):
        match = _SCORE_FILE.search(entry.path)
        if match is not None:
            entries.append((int(match[1]), entry))
    return entries


def scored_ordinals(folder: RunFolder) -> NDArray[np.int64]:
    """Returns the ordinals of all splits with a score file, sorted."""
    return merge_ordinals(ordinals_of(entries) for entries in score_entries(folder))


def ordinals_of(entries: Sequence[tuple[int, Entry]]) -> NDArray[np.int64]:
    """Returns the ordinals of listed score files."""
    return np.asarray([ordinal for ordinal, _ in entries], np.int64)


def merge_ordinals(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Merges several arrays of ordinals into one, sorted and without repetitions."""
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))


def committed_files(folder: RunFolder) -> int:
    """Counts the files of a run that are committed one by one, a number that grows with progress.

    These are score files, summaries, and files of selections and of deduplications.
    """
    count = sum(len(entries) for entries in score_entries(folder))
    for summaries in (folder.summaries_path, folder.old_summaries_path):
        count += len(commits.list_folder(summaries))
    for name in selections(folder):
        path = folder.selection(name).path
        count += sum(
            len(entries_below(inner))
            for inner in (f"{path}/ranking", f"{path}/kept", f"{path}/counts")
        )
    for name in deduplications(folder):
        duplicates = folder.duplicates(name)
        # Signatures are removed in the end.
        count += len(entries_below(duplicates.signatures_folder))
        count += 2 * len(entries_below(duplicates.documents_folder))
    return count


def entries_below(path: str) -> list[Entry]:
    """Lists the files in a folder and in all folders below it."""
    entries = commits.list_folder(path)
    for name in commits.list_subfolders(path):
        entries += entries_below(f"{path}/{name}")
    return entries


def selections(folder: RunFolder) -> list[str]:
    """Returns the names of the selections that were started."""
    return commits.list_subfolders(f"{folder.path}/selections")


def deduplications(folder: RunFolder) -> list[str]:
    """Returns the names of the deduplications that were started."""
    return commits.list_subfolders(folder.duplicates_path)
