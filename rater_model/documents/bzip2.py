"""bzip2 streams in bounded memory, with damage told apart; see `rater_model.streams`."""

import bz2
from collections.abc import Iterator
from typing import BinaryIO

from rater_model.stream_errors import corrupt, garbage, truncated

BZIP2_MAGIC = b"BZh"
_INPUT_BYTES = 2**16
_OUTPUT_BYTES = 2**20


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
        StreamError: after the last chunk, if the file is damaged.
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
                raise garbage(pending, "bzip2 stream")
        decoder = bz2.BZ2Decompressor()
        while not decoder.eof:
            if decoder.needs_input and not pending:
                pending = file.read(_INPUT_BYTES)
                if not pending:
                    raise truncated("bzip2")
            try:
                # The library says of bad data what a file system says of bad disks: no call here touches a file.
                chunk = decoder.decompress(pending, _OUTPUT_BYTES)
            except (OSError, ValueError) as error:
                raise corrupt("bzip2", error) from error
            pending = b""
            if chunk:
                yield chunk
        pending = decoder.unused_data or file.read(_INPUT_BYTES)
        streams += 1
