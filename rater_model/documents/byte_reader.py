"""Reading a stream, compressed or plain, by lines and counts of bytes, in bounded memory."""

from datarater.rater_model.documents.decompression import StreamError
from datarater.rater_model.documents.files import open_file
from datarater.rater_model.documents.member_boundaries import SplitStream
from datarater.rater_model.documents.records import EXCERPT_BYTES, BadRecord, Reason, Split


class ByteReader:
    """A file's decompressed bytes, front to back; of a virtual split those of its own members alone.

    Damage ends the bytes early, and `failure` says what it was.

    Attributes:
        position: the offset of the next byte.
        failure: what ended the stream before its time, None so far.
    """

    def __init__(self, split: Split) -> None:
        self._file = open_file(split.path)
        stream = SplitStream(self._file, split, beyond=False)
        self._chunks = iter(stream)
        self._buffer = b""
        self._at = 0
        self.position = stream.position
        self.failure: StreamError | None = None

    def __enter__(self) -> "ByteReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _fill(self) -> bool:
        """Takes one more chunk; False at the end."""
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
        """The next bytes, fewer at the end."""
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
        """Passes bytes without holding them; says how many there were."""
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
        r"""The next line with its `\n`; without one at the end, or where it has more bytes than the limit."""
        while True:
            found = self._buffer.find(b"\n", self._at, self._at + limit)
            if found >= 0:
                return self.read(found + 1 - self._at)
            if len(self._buffer) - self._at >= limit or not self._fill():
                return self.read(min(limit, len(self._buffer) - self._at))

    def ended_early(self, start: int, excerpt: bytes, what: str) -> BadRecord:
        """The bad record for one that the end cut off."""
        if self.failure is not None:
            return self.broken(start, excerpt)
        detail = f"the stream ends within a {what}"
        return BadRecord(start, Reason.STREAM_TRUNCATED, detail, excerpt[:EXCERPT_BYTES])

    def broken(self, start: int, excerpt: bytes = b"") -> BadRecord:
        """The bad record for what damage to the stream has lost."""
        assert self.failure is not None
        head = (self.failure.excerpt or excerpt)[:EXCERPT_BYTES]
        return BadRecord(start, self.failure.reason, self.failure.detail, head)
