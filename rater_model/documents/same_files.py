"""Finds files that are listed under several names, so that each is read once.

A local file has several names through symbolic links, `..`, repeated slashes, relative and absolute
paths; an object of a store through repeated slashes. Hard links are files of their own.

Memory grows with the number of folders and of links, and with the files of folders that are listed
under several names, but not with that of all files.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator

from datarater.rater_model.documents.records import FileInfo

_SLASHES = re.compile(r"(?<!:)/{2,}")


class SameFiles:
    """Learns the names of all files in any order, then passes each file once.

    Args:
        local_path: Returns a local file's path without its protocol, None for a file of a store.
    """

    def __init__(self, local_path: Callable[[str], str | None]) -> None:
        self._local_path = local_path
        self._real_folder = functools.lru_cache(maxsize=2**16)(self._resolved)
        self._names_of_folder: dict[str, str] = {}
        self._doubtful_folders: set[str] = set()
        self._links: dict[str, str] = {}

    def add(self, path: str) -> None:
        """Learns a name.

        Args:
            path: Local path or URL.
        """
        folder, real = self._place(path)
        if self._names_of_folder.setdefault(real, folder) != folder:
            self._doubtful_folders.add(real)
        local = self._local_path(path)
        if local is not None and os.path.islink(local):
            self._links[path] = os.path.realpath(local)

    def once(self, files: Iterable[FileInfo]) -> Iterator[FileInfo]:
        """Yields files whose names were all added before, each under its first name.

        Args:
            files: The files, sorted by path.
        """
        targets = set(self._links.values())
        seen: set[tuple[str, str]] = set()
        for file in files:
            real = self._links.get(file.path) or self._real(file.path)
            if real in targets or os.path.dirname(real) in self._doubtful_folders:
                # Objects of other names may be other objects: then their content differs.
                identity = (real, file.fingerprint)
                if identity in seen:
                    continue
                seen.add(identity)
            yield file

    def _place(self, path: str) -> tuple[str, str]:
        """Returns a file's folder as it is named, and as it is."""
        folder = path.rpartition("/")[0]
        return folder, self._real_folder(folder)

    def _real(self, path: str) -> str:
        return f"{self._place(path)[1]}/{path.rpartition('/')[2]}"

    def _resolved(self, folder: str) -> str:
        local = self._local_path(folder)
        if local is None:
            return _SLASHES.sub("/", folder).rstrip("/")
        return os.path.realpath(local or ("." if not folder else "/"))
