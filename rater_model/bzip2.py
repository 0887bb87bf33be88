"""bzip2 streams in bounded memory, with damage told apart; see `rater_model.streams`."""

import bz2
from collections.abc import Iterator
from typing import BinaryIO

from rater_model.records import EXCERPT_BYTES, Reason

BZIP2_MAGIC = b"BZh"
_INPUT_BYTES = 2**16
_OUTPUT_BYTES = 2**20


class BrokenBzip2Error(Exception):
    """A bzip2 stream cannot be read on; all that could be unpacked has been given before.

    Attributes:
        reason: `STREAM_CORRUPT`, `STREAM_TRUNCATED` or `TRAILING_GARBAGE`.
        detail: one sentence for a person.
        excerpt: the first bytes of the garbage, where there is any.
    """

    def __init__(self, reason: Reason, detail: str, excerpt: bytes = b"") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.excerpt = excerpt


def is_bzip2(head: bytes) -> bool:
    """Says whether bytes open a bzip2 stream."""
    return (
        head.startswith(BZIP2_MAGIC)
        and head[3:4] in b"123456789"
        and head[4:10]
        in (
            b"1AY&SY",
            b"\x17rE8P\x90",  # the end of a stream that holds nothing
        )
    )


def bzip2_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Reads a bzip2 file to its end, all of its streams, as decompressed, non-empty chunks.

    Args:
        file: opened at its beginning.

    Raises:
        BrokenBzip2Error: after the last chunk, if the file is damaged.
        OSError: if the file cannot be read.
    """
    pending = file.read(_INPUT_BYTES)
    streams = 0
    while True:
        if streams:
            if not pending:
                return
            if len(pending) < len(BZIP2_MAGIC):
                pending += file.read(_INPUT_BYTES)
            if not pending.startswith(BZIP2_MAGIC):
                raise BrokenBzip2Error(
                    Reason.TRAILING_GARBAGE,
                    "what follows the last bzip2 stream is no bzip2 stream; all records before it were read",
                    pending[:EXCERPT_BYTES],
                )
        decoder = bz2.BZ2Decompressor()
        while not decoder.eof:
            if decoder.needs_input and not pending:
                pending = file.read(_INPUT_BYTES)
                if not pending:
                    raise BrokenBzip2Error(
                        Reason.STREAM_TRUNCATED,
                        "the bzip2 stream ends before its time; whole records before the cut were read, the rest is "
                        "lost",
                    )
            try:
                # The library says of bad data what a file system says of bad disks: no call here touches a file.
                chunk = decoder.decompress(pending, _OUTPUT_BYTES)
            except (OSError, ValueError) as error:
                raise BrokenBzip2Error(
                    Reason.STREAM_CORRUPT,
                    f"the bzip2 stream is damaged ({error}); the records that could be unpacked were read, the rest is "
                    "lost",
                ) from error
            pending = b""
            if chunk:
                yield chunk
        pending = decoder.unused_data or file.read(_INPUT_BYTES)
        streams += 1
