"""An upper bound of the documents of a corpus, for a run that must stop at too many rejects.

A run is certain to reject too much once it would even if all that has not been read yet were
documents as small as can be. Unlike an estimate from the splits read so far, that does not depend
on the order in which they are read.
"""

from __future__ import annotations

from datarater.pipelines.run_folder.plan import CommittedPlans
from datarater.rater_model.documents.formats import format_named
from datarater.rater_model.documents.reading import recognized
from datarater.rater_model.documents.records import UNKNOWN_FORMAT, Compression, ReadOptions, Split
from datarater.rater_model.documents.unreadable import Unreadable

MAX_LOOKS = 1_000
"""Number of files that are opened for the bound; of a corpus that needs more there is none."""

_EXPANSION = {Compression.NONE: 1, Compression.GZIP: 1_032, Compression.ZSTD: 32_768}
"""How many bytes a stored byte can be unpacked to; bzip2 has no useful bound."""
_SMALLEST_BYTES = {"tfrecord": 17, "warc": 16}


def max_documents(
    plans: CommittedPlans, read: ReadOptions, max_looks: int = MAX_LOOKS
) -> int | None:
    """Returns an upper bound of the number of documents; None if there is no useful one.

    Lines of JSON have the size of their smallest document, such as `{"text":"a"}`. Compressed
    files count as if each byte were unpacked to as many as possible. Parquet and ArrayRecord files
    state their records.

    Args:
        plans: Plans of the run folder.
        read: How records are read.
        max_looks: Maximum number of files to open.
    """
    total, looks = 0, 0
    counted = ""
    for group in range(plans.groups):
        for task in plans.read_group(group):
            for part in task.each():
                split = part.split
                if split.path == counted:
                    continue  # its file has been counted whole
                if split.format == UNKNOWN_FORMAT:
                    looks += 1
                    if looks > max_looks:
                        return None
                    split = recognized(split)

                bound = _by_size(split, read)
                if bound is None:
                    looks += 1
                    if looks > max_looks:
                        return None
                    bound = format_named(split.format).count_records(split.path)
                    counted = split.path
                if bound is None:
                    return None
                total += bound
    return total


def _by_size(split: Split, read: ReadOptions) -> int | None:
    """Returns the maximum number of documents of a split by its stored bytes; None if unknown."""
    if split.format == Unreadable.name:
        return 0
    if split.format == "text":
        return 1
    smallest = _SMALLEST_BYTES.get(split.format)
    if split.format == "jsonl":
        smallest = len(read.text_field.encode()) + len('{"":"x"}')
    expansion = _EXPANSION.get(split.compression)
    if smallest is None or expansion is None:
        return None
    return split.size * expansion // smallest + 1
