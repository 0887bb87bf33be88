"""Splits at the members of a gzip file and the frames of a zstd file: where they begin, and reading from there.

Any bytes may look like the beginning of a member, in another member's stored block for one. So a
boundary is verified once, when splits are planned, by unpacking what follows it, and stands in the
plan: readers never guess. A stored block of deflate holds 65,535 bytes at most, a raw block of zstd
131,072: what unpacks without an error for longer than that, checksums included, is no such payload.

A file made to deceive this check is found when it is read: the split before comes to the boundary
in the middle of a member, and the run stops. Nothing is lost or read twice without a word.
"""

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from datarater.rater_model.documents.decompression import (
    MEMBER_END,
    ZSTD_MAGIC,
    StreamError,
    corrupt,
    decompressed_chunks,
    member_chunks,
)
from datarater.rater_model.documents.files import read_range
from datarater.rater_model.documents.records import VIRTUAL_BYTES, Compression, Reason, Split

_VERIFIED_BYTES = 2**18
_UNPACKED_BYTES = 2**28
_WINDOW_BYTES = 2**20
_FIRST_MEMBER_BYTES = (2**17, 2**23)
_FIRST_MEMBER_SHARE = 8
_HEAD_BYTES = 2**16
_CANDIDATES = 1000
_LONGEST_PART = 4
_BEGINS = {
    Compression.GZIP: re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"),
    Compression.ZSTD: re.compile(re.escape(ZSTD_MAGIC)),
}

FirstMember = Callable[[bytes, int], bool]
"""Says of a member's first unpacked bytes, and of how many it unpacks to, whether a split may begin with it."""


class FalseBoundaryError(OSError):
    """What was verified as the boundary between two members lies within one of them."""


class Section:
    """A part of an open file, read as if it were the whole.

    Args:
        file: can seek; it is read from `start` on.
        start: stored offset of the first byte.
        end: of the byte after the last; None for the end of the file.

    Attributes:
        passed: how many bytes were read.
    """

    def __init__(self, file: BinaryIO, start: int, end: int | None) -> None:
        self._file = file
        self._size = None if end is None else end - start
        self.passed = 0
        file.seek(start)

    def read(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        if self._size is not None:
            count = min(count, self._size - self.passed)
        data = self._file.read(count) if count else b""
        self.passed += len(data)
        return data


class _Stored:
    """The stored bytes of a file from some place on, fetched a window at a time: planning jumps through files."""

    def __init__(self, path: str, size: int, start: int) -> None:
        self._path = path
        self._size = size
        self._window = memoryview(b"")
        self._next = start
        self.passed = 0

    def read(self, count: int) -> bytes:
        if not self._window and self._next < self._size:
            self._window = memoryview(read_range(self._path, self._next, _WINDOW_BYTES))
            self._next += len(self._window)
        data = bytes(self._window[:count])
        self._window = self._window[count:]
        self.passed += len(data)
        return data


def virtual_offset(stored: int) -> int:
    """The position of the first byte that unpacks from a stored offset."""
    return stored * VIRTUAL_BYTES


def find_boundaries(
    path: str,
    size: int,
    compression: Compression,
    target: int,
    may_begin: FirstMember | None = None,
) -> list[int]:
    """Finds where a compressed file of many members can be cut into parts of about equal size.

    Args:
        path: of the file.
        size: its stored bytes.
        compression: gzip or zstd.
        target: stored bytes that a part should have.
        may_begin: what the member at a boundary must be like, besides being one.

    Returns:
        The stored offsets of verified boundaries, rising, 0 left out. None where the first member
        is long, or members lie so far apart that a part would be more than 4 times the target.

    Raises:
        OSError: if the file cannot be read.
    """
    count = -(-size // target)
    if count < 2 or not _has_members(path, size, compression):
        return []
    step = -(-size // count)
    found: list[int] = []
    place = step
    while place + step // 2 <= size:
        last = min(size, place + (_LONGEST_PART - 1) * target)
        boundary = _next_boundary(path, size, compression, place, last, may_begin)
        if boundary is None:
            return found if last == size else []
        found.append(boundary)
        place = boundary + step
    return found


def _has_members(path: str, size: int, compression: Compression) -> bool:
    """Whether the first member ends early in the file."""
    least, most = _FIRST_MEMBER_BYTES
    most = max(least, min(most, size // _FIRST_MEMBER_SHARE))
    file = _Stored(path, size, 0)
    unpacked = 0
    try:
        for chunk in _members(file, compression):
            if chunk == MEMBER_END:
                return True
            unpacked += len(chunk)
            if file.passed > most or unpacked > _UNPACKED_BYTES:
                return False
    except StreamError:
        pass
    return False


def _members(file: "Section | _Stored", compression: Compression) -> Iterator[bytes]:
    return member_chunks(cast(BinaryIO, file), compression)


def _next_boundary(
    path: str,
    size: int,
    compression: Compression,
    place: int,
    last: int,
    may_begin: FirstMember | None,
) -> int | None:
    """The first verified boundary from a place on and before another."""
    candidates = 0
    for start in range(place, last, _WINDOW_BYTES):
        end = min(start + _WINDOW_BYTES, last)
        for match in _BEGINS[compression].finditer(read_range(path, start, end - start + 3)):
            if _is_boundary(path, size, compression, start + match.start(), may_begin):
                return start + match.start()
            candidates += 1
            if candidates == _CANDIDATES:
                return None
    return None


def _is_boundary(
    path: str, size: int, compression: Compression, start: int, may_begin: FirstMember | None
) -> bool:
    """Whether members stand from here on: at least `_VERIFIED_BYTES` of them, or up to the end of the file."""
    file = _Stored(path, size, start)
    head, unpacked, first = b"", 0, may_begin is not None
    try:
        for chunk in _members(file, compression):
            if first and may_begin is not None:
                head += chunk[: _HEAD_BYTES - len(head)]
                if chunk == MEMBER_END:
                    if not may_begin(head, unpacked):
                        return False
                    first = False
            unpacked += len(chunk)
            if unpacked > _UNPACKED_BYTES:
                return False
            if not first and file.passed >= _VERIFIED_BYTES:
                return True
    except StreamError:
        return False
    return not first


class SplitStream:
    """The decompressed bytes of a split, from where reading can begin.

    Args:
        file: the split's file, opened; can seek if it is plain or the split is virtual.
        split: what to read.
        beyond: whether to read on behind the end of a virtual split, to the end of its last record.

    Attributes:
        position: of the first chunk's first byte.
        end: the first position that is no longer the split's, None for the end of the file. Of a
            virtual split it is known once the reading comes to it: until then it is None.
    """

    def __init__(self, file: BinaryIO, split: Split, beyond: bool = True) -> None:
        self._file = file
        self._split = split
        self._beyond = beyond
        self.position = 0
        self.end = split.end
        if split.virtual:
            self.position, self.end = split.start, None
        elif split.compression is Compression.NONE and split.start:
            # The byte before the split tells whether a record starts at its very beginning.
            self.position = split.start - 1

    def __iter__(self) -> Iterator[bytes]:
        if self._split.virtual:
            return self._virtual_chunks()
        if self.position:
            self._file.seek(self.position)
        return decompressed_chunks(self._file, self._split.compression)

    def _virtual_chunks(self) -> Iterator[bytes]:
        split = self._split
        start = split.start // VIRTUAL_BYTES
        stop = None if split.end is None else split.end // VIRTUAL_BYTES
        position = self.position
        section = cast(BinaryIO, Section(self._file, start, stop))
        try:
            for chunk in decompressed_chunks(section, split.compression):
                position += len(chunk)
                yield chunk
        except StreamError as error:
            if stop is None or error.reason is not Reason.STREAM_TRUNCATED:
                raise
            self._refuse_false_boundary(start, stop)
            detail = f"it does not end where the next begins, at stored byte {stop}"
            raise corrupt(str(split.compression), detail) from error
        if stop is not None:
            # A record that starts at the very boundary is this split's: the next one cannot see
            # what stands before.
            self.end = position + 1
            if self._beyond:
                section = cast(BinaryIO, Section(self._file, stop, None))
                yield from decompressed_chunks(section, split.compression)

    def _refuse_false_boundary(self, start: int, stop: int) -> None:
        """Raises if the member that reaches over the split's end is sound: it is the boundary then that is not."""
        file = Section(self._file, start, None)
        try:
            for _ in _members(file, self._split.compression):
                if file.passed > stop - start + _VERIFIED_BYTES:
                    break
        except StreamError as error:
            if error.reason is not Reason.TRAILING_GARBAGE:
                return
        raise FalseBoundaryError(
            f"what was planned as the beginning of a {self._split.compression} member at byte {stop} lies within "
            "another, which was made to look so; curate the file into a new run folder with a larger --split_bytes"
        )
