"""Finds where gzip members and zstd frames begin, and reads a file from there.

Any bytes may look like the beginning of a member, in another member's stored block for example. So
a boundary is verified once, when splits are planned, by unpacking what follows it, and is written
to the plan: readers never guess. A stored block of deflate has at most 65,535 bytes, a raw block of
zstd 131,072: bytes that unpack without an error for longer than that, checksums included, are not
such a payload. Nearer to the end of the file that proves nothing for zstd, whose frames may end
without a checksum: there the frames from the last boundary on must lead to the candidate.

A file made to deceive this check is detected when it is read: the split before reaches the boundary
in the middle of a member, and the run stops. Nothing is lost or read twice silently.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from datarater.rater_model.documents.decompression import (
    CHUNK_BYTES,
    MEMBER_END,
    ZSTD_MAGIC,
    StreamError,
    corrupt,
    decompressed_chunks,
    member_chunks,
    stated_size,
)
from datarater.rater_model.documents.files import read_range
from datarater.rater_model.documents.records import (
    MAX_ZSTD_WINDOW_BYTES,
    VIRTUAL_BYTES,
    Compression,
    Reason,
    Split,
)
from datarater.rater_model.documents.remote_file import WHOLE

_VERIFIED_BYTES = 2**18
_FIRST_WINDOW_BYTES = 2**13
_ONE_MEMBER_MAY_DIFFER = 2.0
_UNPACKED_BYTES = 2**28
_FIRST_MEMBER_BYTES = (2**17, 2**23)
_FIRST_MEMBER_SHARE = 8
_HEAD_BYTES = 2**16
_CANDIDATES = 1000
_MAX_PART_TARGETS = 4
_SKIPPABLE_MAGIC = 0x184D2A5  # the first 28 bits of a skippable frame
_BEGINS = {
    Compression.GZIP: re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"),
    Compression.ZSTD: re.compile(re.escape(ZSTD_MAGIC)),
}

FirstMember = Callable[[bytes, int], bool]
"""Reports whether a split may begin with a member.

The arguments are its first unpacked bytes and the number of bytes that it unpacks to.
"""


class FalseBoundaryError(OSError):
    """A verified boundary between two members lies within one of them."""


class Section:
    """Reads a part of an open file as if it were the whole file.

    Args:
        file: File that can seek.
        start: Stored offset of the first byte.
        end: Stored offset of the byte after the last; None for the end of the file.

    Attributes:
        passed: Number of bytes read.
    """

    def __init__(self, file: BinaryIO, start: int, end: int | None) -> None:
        self._file = file
        self._size = None if end is None else end - start
        self.passed = 0
        file.seek(start)

    def read(self, count: int) -> bytes:
        """Returns the next bytes, fewer at the end."""
        if self._size is not None:
            count = min(count, self._size - self.passed)
        data = self._file.read(count) if count else b""
        self.passed += len(data)
        return data


class _Stored:
    """Reads a file's stored bytes from an offset on, in windows, each twice as large as the last.

    Args:
        path: Local path or URL of the file.
        size: Stored size of the file, in bytes.
        start: Stored offset to begin at.
        max_window_bytes: Maximum size of a window, in bytes.
    """

    def __init__(self, path: str, size: int, start: int, max_window_bytes: int) -> None:
        self._path = path
        self._size = size
        self._max_window_bytes = max_window_bytes
        self._window_bytes = min(_FIRST_WINDOW_BYTES, max_window_bytes)
        self._window = memoryview(b"")
        self._next = start
        self.passed = 0

    def read(self, count: int) -> bytes:
        if not self._window and self._next < self._size:
            self._window = memoryview(read_range(self._path, self._next, self._window_bytes))
            self._next += len(self._window)
            self._window_bytes = min(2 * self._window_bytes, self._max_window_bytes)
        data = bytes(self._window[:count])
        self._window = self._window[count:]
        self.passed += len(data)
        return data

    def read_all(self, count: int) -> bytes:
        """Returns `count` bytes, fewer only at the end of the file."""
        data = b""
        while len(data) < count and (more := self.read(count - len(data))):
            data += more
        return data

    def skip(self, count: int) -> None:
        """Passes over bytes without reading those beyond the window."""
        in_window = min(count, len(self._window))
        self._window = self._window[in_window:]
        self._next += count - in_window
        self.passed += count


def find_boundaries(
    path: str,
    size: int,
    compression: Compression,
    target: int,
    may_begin: FirstMember | None = None,
    window_bytes: int = 2**20,
) -> list[int]:
    """Finds where a compressed file of many members can be cut into parts of about equal size.

    Args:
        path: Local path or URL of the file.
        size: Stored size of the file, in bytes.
        compression: Gzip or zstd.
        target: Stored bytes that a part should have.
        may_begin: Additional check of the member at a boundary.
        window_bytes: Maximum number of stored bytes that are read at a time.

    Returns:
        The stored offsets of verified boundaries, increasing, 0 left out. Empty if the first member
        is long, or if members are so far apart that a part would exceed 4 times the target.

    Raises:
        OSError: if the file cannot be read.
    """
    count = -(-size // target)
    search = _Search(path, size, compression, may_begin, window_bytes)
    if count < 2 or not search.has_members():
        return []
    step = -(-size // count)
    boundaries: list[int] = []
    place, previous = step, 0
    while place + step // 2 <= size:
        last = min(size, place + (_MAX_PART_TARGETS - 1) * target)
        boundary = search.next_boundary(place, last, previous)
        if boundary is None:
            return boundaries if last == size else []
        boundaries.append(boundary)
        place, previous = boundary + step, boundary
    return boundaries


def cut_at_members(whole: Split, target: int, may_begin: FirstMember | None = None) -> list[Split]:
    """Cuts a gzip or zstd file between members or frames, if there are many.

    Args:
        whole: Split that covers the file.
        target: Stored bytes that a part should have.
        may_begin: Additional check of the member at a boundary.

    Raises:
        OSError: if the file cannot be read.
    """
    if whole.compression not in _BEGINS:
        return [whole]
    boundaries = find_boundaries(whole.path, whole.size, whole.compression, target, may_begin)
    return whole.cut_at(boundaries, virtual=True)


@dataclasses.dataclass(frozen=True)
class _Search:
    """A search for boundaries in one file; see `find_boundaries`."""

    path: str
    size: int
    compression: Compression
    may_begin: FirstMember | None
    window_bytes: int

    def stored(self, start: int) -> _Stored:
        return _Stored(self.path, self.size, start, self.window_bytes)

    def read(self, start: int, count: int) -> bytes:
        return read_range(self.path, start, count)

    def has_members(self) -> bool:
        """Reports whether the first member ends early in the file."""
        min_bytes, max_bytes = _FIRST_MEMBER_BYTES
        max_bytes = max(min_bytes, min(max_bytes, self.size // _FIRST_MEMBER_SHARE))
        file = self.stored(0)
        unpacked = 0

        try:
            for number, chunk in enumerate(_members(file, self.compression)):
                if chunk == MEMBER_END:
                    return True
                unpacked += len(chunk)
                if file.passed > max_bytes or unpacked > _UNPACKED_BYTES:
                    return False

                # A file of one member, which most are, says so itself: no more of it is read. For
                # gzip the first chunk proves nothing, because a small member may end with it; a
                # zstd frame states its own size.
                if number == (1 if self.compression is Compression.GZIP else 0):
                    estimate = unpacked * self.size // file.passed
                    stated = stated_size(
                        self.compression, self.size, estimate, self.read, _ONE_MEMBER_MAY_DIFFER
                    )
                    if stated is not None and stated > unpacked:
                        return False
        except StreamError:
            pass
        return False

    def next_boundary(self, place: int, last: int, previous: int) -> int | None:
        """Returns the first verified boundary in a range of stored offsets; None without one.

        Args:
            place: First offset of the range.
            last: Offset after the last one.
            previous: Stored offset of a boundary before them; 0 for the beginning of the file.
        """
        candidates, start, window_bytes = 0, place, min(2**16, self.window_bytes)
        while start < last:
            end = min(start + window_bytes, last)
            window = read_range(self.path, start, end - start + 3)
            for match in _BEGINS[self.compression].finditer(window):
                candidate = start + match.start()
                if self._is_boundary(candidate, previous):
                    return candidate
                candidates += 1
                if candidates == _CANDIDATES:
                    return None
            start, window_bytes = end, min(2 * window_bytes, self.window_bytes)
        return None

    def _is_boundary(self, start: int, previous: int) -> bool:
        """Reports whether members follow an offset for `_VERIFIED_BYTES`, or to the file's end."""
        file = self.stored(start)
        head, unpacked, first = b"", 0, self.may_begin is not None

        try:
            for chunk in _members(file, self.compression):
                if first and self.may_begin is not None:
                    head += chunk[: _HEAD_BYTES - len(head)]
                    if chunk == MEMBER_END:
                        if not self.may_begin(head, unpacked):
                            return False
                        first = False
                unpacked += len(chunk)
                if unpacked > _UNPACKED_BYTES:
                    return False
                if not first and file.passed >= _VERIFIED_BYTES:
                    return True
        except StreamError:
            return False

        # The members reach the end of the file. A gzip member ends with a checksum, so one within a
        # payload cannot; a zstd frame can.
        if first or self.compression is Compression.GZIP:
            return not first
        return _frames_lead_to(self.stored(previous), previous, start)


def _members(file: Section | _Stored, compression: Compression) -> Iterator[bytes]:
    return member_chunks(cast(BinaryIO, file), compression)


def _frames_lead_to(file: _Stored, previous: int, start: int) -> bool:
    """Reports whether zstd frames that begin at one offset end at another, from their headers."""
    at = previous
    while at < start:
        frame = _frame_bytes(file)
        if frame is None:
            return False
        at += frame
    return at == start


def _frame_bytes(file: _Stored) -> int | None:
    """Passes over one zstd frame without decompressing it and returns its stored size.

    Source: RFC 8878, section 3.1.

    Returns:
        The size in bytes; None where the bytes are not a frame.
    """
    begin = file.passed
    magic = int.from_bytes(file.read_all(4), "little")
    if magic >> 4 == _SKIPPABLE_MAGIC:
        file.skip(int.from_bytes(file.read_all(4), "little"))
        return file.passed - begin
    if magic != int.from_bytes(ZSTD_MAGIC, "little"):
        return None

    # The descriptor says which fields the header has.
    descriptor = file.read_all(1)
    if not descriptor:
        return None
    flags = descriptor[0]
    single_segment, has_checksum = flags >> 5 & 1, flags >> 2 & 1
    window_bytes = 1 - single_segment
    dictionary_bytes = (0, 1, 2, 4)[flags & 3]
    content_size_bytes = (single_segment, 2, 4, 8)[flags >> 6]
    file.skip(window_bytes + dictionary_bytes + content_size_bytes)

    # Each block has a header of 3 bytes: last block (1 bit), type (2 bits), size (21 bits).
    is_last = False
    while not is_last:
        header = file.read_all(3)
        if len(header) < 3:
            return None
        block = int.from_bytes(header, "little")
        is_last = bool(block & 1)
        is_repeated_byte = block >> 1 & 3 == 1
        file.skip(1 if is_repeated_byte else block >> 3)
    file.skip(4 * has_checksum)
    return file.passed - begin


def stored_end(split: Split) -> int | None:
    """Returns the stored offset up to which a split is read in order, `WHOLE` for the whole file.

    A part of a compressed stream ends at an offset that only its reader finds: None.
    """
    if split.end is None:
        return WHOLE
    if split.virtual:
        return split.end // VIRTUAL_BYTES
    return split.end if split.compression is Compression.NONE else None


class SplitStream:
    """Iterates over the decompressed bytes of a split, from where reading can begin.

    Args:
        file: Open file of the split; can seek if it is plain or the split is virtual.
        split: Split to read.
        beyond: Whether to continue past the end of a virtual split, to the end of its last record.
        chunk_bytes: Maximum size of a chunk of a plain or gzip file.
        max_window_bytes: Maximum window of a zstd frame.

    Attributes:
        position: Position of the first chunk's first byte.
        end: First position that no longer belongs to the split, None for the end of the file. For a
            virtual split it is None until the reading reaches it.
    """

    def __init__(
        self,
        file: BinaryIO,
        split: Split,
        beyond: bool = True,
        chunk_bytes: int = CHUNK_BYTES,
        max_window_bytes: int = MAX_ZSTD_WINDOW_BYTES,
    ) -> None:
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._max_window_bytes = max_window_bytes
        self._split = split
        self._beyond = beyond
        self.position = 0
        self.end = split.end
        if split.virtual:
            self.position, self.end = split.start, None
        elif split.compression is Compression.NONE and split.start:
            # The byte before the split shows whether a record starts exactly at its beginning.
            self.position = split.start - 1

    def __iter__(self) -> Iterator[bytes]:
        if self._split.virtual:
            return self._virtual_chunks()
        if self.position:
            self._file.seek(self.position)
        return self._chunks(self._file)

    def _chunks(self, file: Section | BinaryIO) -> Iterator[bytes]:
        return decompressed_chunks(
            cast(BinaryIO, file),
            self._split.compression,
            self._chunk_bytes,
            self._max_window_bytes,
        )

    def _virtual_chunks(self) -> Iterator[bytes]:
        """Yields the chunks of a virtual split, then those after it if they were asked for."""
        split = self._split
        start = split.start // VIRTUAL_BYTES
        stop = None if split.end is None else split.end // VIRTUAL_BYTES
        position = self.position

        # The members of the split.
        section = Section(self._file, start, stop)
        try:
            for chunk in self._chunks(section):
                position += len(chunk)
                yield chunk
        except StreamError as error:
            if stop is None or error.reason is not Reason.STREAM_TRUNCATED:
                raise
            self._refuse_false_boundary(start, stop)
            detail = f"it does not end where the next begins, at stored byte {stop}"
            raise corrupt(str(split.compression), detail) from error
        if stop is not None:
            # A record that starts exactly at the boundary belongs to this split: the next one
            # cannot see the byte before.
            self.end = position + 1
            if self._beyond:
                yield from self._chunks(Section(self._file, stop, None))

    def _refuse_false_boundary(self, start: int, stop: int) -> None:
        """Raises if the member that extends past the split's end is sound: the boundary is not."""
        file = Section(self._file, start, None)
        try:
            for _ in _members(file, self._split.compression):
                if file.passed > stop - start + _VERIFIED_BYTES:
                    break
        except StreamError as error:
            if error.reason is not Reason.TRAILING_GARBAGE:
                return
        raise FalseBoundaryError(
            f"the {self._split.compression} member planned at byte {stop} lies within another "
            "member, whose data imitates one; curate the file into a new run folder with a larger "
            "--split_bytes"
        )
