"""Files that could not be read when a run was planned."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import ClassVar

from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.records import Compression, ReadOptions, Record, Split
from datarater.rater_model.documents.sniffing import FileHead


class Unreadable(FileFormat):
    """The format of a file that is part of a plan although it could not be read.

    Its content is unknown, so it is never read later either: the same plan gives the same records.
    """

    name: ClassVar[str] = "unreadable"

    def sniff(self, head: FileHead) -> Compression | None:
        """Returns None: no content has this format."""
        return None

    def read(self, split: Split, options: ReadOptions) -> Iterator[Record]:
        """Raises an OSError, which is accounted for as the split's."""
        raise OSError(errno.EIO, "it could not be read when the run was planned", split.path)
