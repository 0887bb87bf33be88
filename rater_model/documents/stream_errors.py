"""Damage to compressed streams, told apart: cut, corrupt, followed by garbage."""

from rater_model.records import EXCERPT_BYTES, Reason


class StreamError(Exception):
    """A compressed stream cannot be read on; all that could be decompressed has been given before.

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


def corrupt(name: str, error: object) -> StreamError:
    """What to raise for damage within a stream.

    Args:
        name: of the compression.
        error: what was found.
    """
    return StreamError(
        Reason.STREAM_CORRUPT,
        f"the {name} stream is damaged ({error}); the records that could be unpacked were read, the rest is lost",
    )


def truncated(name: str) -> StreamError:
    """What to raise for a stream that ends before its time."""
    return StreamError(
        Reason.STREAM_TRUNCATED,
        f"the {name} stream ends before its time; whole records before the cut were read, the rest is lost",
    )


def garbage(pending: bytes, name: str) -> StreamError:
    """What to raise for what follows a whole stream and is none.

    Args:
        pending: the first bytes of it.
        name: of what might have followed: `gzip member`.
    """
    return StreamError(
        Reason.TRAILING_GARBAGE,
        f"what follows the last {name} is no {name}; all records before it were read",
        pending[:EXCERPT_BYTES],
    )
