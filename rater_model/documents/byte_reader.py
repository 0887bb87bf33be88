"""Reads a stream, compressed or plain, by lines and byte counts, in bounded memory."""

from __future__ import annotations

from datarater.rater_model.documents.decompression import StreamError
from datarater.rater_model.documents.files import open_file
from datarater.rater_model.documents.member_boundaries import SplitStream, stored_end
from datarater.rater_model.documents.records import EXCERPT_BYTES, BadRecord, Reason, Split


class ByteReader:
    """Reads a file's decompressed bytes in order; for a virtual split only those of its members.

    Damage ends the bytes early and sets `failure`.

    Args:
        split: Split to read.
        max_window_bytes: Maximum window of a zstd frame.

    Attributes:
        position: Offset of the next byte.
        failure: Error that ended the stream early; None so far.
    """

    def __init__(self, split: Split, max_window_bytes: int) -> None:
        self._file = open_file(split.path, in_order_to=stored_end(split))
        stream = SplitStream(self._file, split, beyond=False, max_window_bytes=max_window_bytes)
        self._chunks = iter(stream)
        self._buffer = b""
        self._at = 0
        self.position = stream.position
        self.failure: StreamError | None = None

    def __enter__(self) -> ByteReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _fill(self) -> bool:
        """Buffers one more chunk; returns False at the end."""
        if self.failure is not None:
            return False
        try:
            chunk = next(self._chunks, b"")
        except StreamError as error:
            self.failure = error
            return False
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def read(self, count: int) -> bytes:
        """Returns the next bytes, fewer at the end."""
        parts, left = [], count
        while left:
            part = self._buffer[self._at : self._at + left]
            self._at += len(part)
            left -= len(part)
            parts.append(part)
            if left and not self._fill():
                break
        data = b"".join(parts)
        self.position += len(data)
        return data

    def skip(self, count: int) -> int:
        """Skips bytes without buffering them; returns how many there were."""
        left = count
        while left:
            step = min(left, len(self._buffer) - self._at)
            self._at += step
            left -= step
            if left and not self._fill():
                break
        self.position += count - left
        return count - left

    def line(self, limit: int) -> bytes:
        r"""Returns the next line with its `\n`.

        At the end of the stream, or if the line is longer than the limit, there is no `\n`.

        Args:
            limit: Maximum number of bytes.
        """
        while True:
            newline = self._buffer.find(b"\n", self._at, self._at + limit)
            if newline >= 0:
                return self.read(newline + 1 - self._at)
            if len(self._buffer) - self._at >= limit or not self._fill():
                return self.read(min(limit, len(self._buffer) - self._at))

    def ended_early(self, start: int, excerpt: bytes, what: str) -> BadRecord:
        """Returns the bad record for a record that the end of the stream cut off.

        Args:
            start: Position of the record.
            excerpt: First bytes of the record.
            what: Name of what was cut, such as "WARC record".
        """
        if self.failure is not None:
            return self.broken(start, excerpt)
        detail = f"the stream ends within a {what}"
        return BadRecord(start, Reason.STREAM_TRUNCATED, detail, excerpt[:EXCERPT_BYTES])

    def broken(self, start: int, excerpt: bytes = b"") -> BadRecord:
        """Returns the bad record for what damage to the stream has lost."""
        assert self.failure is not None
        head = (self.failure.excerpt or excerpt)[:EXCERPT_BYTES]
        return BadRecord(start, self.failure.reason, self.failure.detail, head)
