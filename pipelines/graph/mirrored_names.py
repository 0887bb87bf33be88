"""Names of attributes files: each is that of its document file, so that tools can pair them.

Dolma finds the attributes of `documents/2024/a.jsonl.gz` in `attributes/NAME/2024/a.jsonl.gz`. So
the path below the folder that all inputs have in common is the path below `kept/`. A name that is
not one of JSON lines gets `.jsonl.gz` added.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from datarater.rater_model.documents.records import Compression

_JSON_LINES = re.compile(r"\.(jsonl?|ndjson)(\.(gz|zst|bz2))?$", re.IGNORECASE)


class MirroredNames:
    """Gives each input file the name of its attributes file, which no other input file gets.

    Args:
        root: Beginning of all paths, up to and including a slash; "" if they have none in common.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()

    @classmethod
    def of(cls, paths: Iterable[str]) -> MirroredNames:
        """Returns the names for input files.

        Args:
            paths: Paths between the least and the greatest of which all paths are.
        """
        folders = [path.split("/")[:-1] for path in paths]
        levels = zip(*folders, strict=False)
        common = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
        return cls("".join(f"{level[0]}/" for level in common))

    def __call__(self, path: str) -> str:
        """Returns the name for an input file.

        Args:
            path: Path or URL of the file.
        """
        if path not in self._given:
            self._given[path] = self._free(path)
            self._taken.add(self._given[path])
        return self._given[path]

    def _free(self, path: str) -> str:
        parts = path.removeprefix(self._root).replace("://", "/").split("/")
        # Nothing may lead out of the folder.
        name = "/".join(part for part in parts if part not in ("", ".", "..")) or "file"
        if _JSON_LINES.search(name) is None:
            name += ".jsonl.gz"
        free, number = name, 2
        while free in self._taken:
            stem, _, base = name.rpartition("/")
            free = f"{stem}/{number}-{base}" if stem else f"{number}-{base}"
            number += 1
        return free


def compression_of(name: str) -> Compression:
    """Returns the compression that the name of an attributes file claims."""
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    return next((one for one in Compression if one.suffix == suffix), Compression.NONE)
