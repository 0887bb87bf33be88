"""Counts what loopback object stores are asked for and the bytes that they serve."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections import Counter


class Kind(enum.StrEnum):
    """What a request asks of an object store, whichever its protocol."""

    GET = "get"
    """The content of an object, or a range of it."""
    HEAD = "head"
    """Size and fingerprint of an object."""
    LIST = "list"
    """A page of a listing."""
    CREATE = "create"
    """The creation of an object on the condition that it is absent."""
    PUT = "put"
    """The creation or replacement of an object, or a part of an upload."""
    DELETE = "delete"
    """The removal of an object."""


@dataclasses.dataclass(frozen=True)
class Served:
    """A request that a store has answered.

    Attributes:
        kind: What was asked.
        name: Bucket and object, separated by a slash; for a listing, bucket and prefix.
        status: HTTP status of the answer.
        size: Bytes of an object's content that were served; 0 for all but a successful `GET`.
    """

    kind: Kind
    name: str
    status: int
    size: int


class RequestLog:
    """Collects the requests that a store answers; several threads may add to it.

    Example:
        >>> log = RequestLog()
        >>> log.add(Served(Kind.GET, "bucket/in/a.jsonl", 206, 4096))
        >>> log.add(Served(Kind.HEAD, "bucket/in/a.jsonl", 200, 0))
        >>> log.requests(under="bucket/in/"), log.bytes_served(), log.by_kind()
        (2, 4096, {'get': 1, 'head': 1})
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: list[Served] = []

    def add(self, served: Served) -> None:
        """Adds an answered request."""
        with self._lock:
            self._served.append(served)

    def clear(self) -> None:
        """Forgets all requests."""
        with self._lock:
            self._served.clear()

    def answered(self, under: str = "", kind: Kind | None = None) -> list[Served]:
        """Returns the answered requests, in the order of their answers.

        Args:
            under: Start of the names of the objects to count.
            kind: Kind of the requests to count; None for all.
        """
        with self._lock:
            served = list(self._served)
        return [one for one in served if one.name.startswith(under) and kind in (None, one.kind)]

    def requests(self, under: str = "", kind: Kind | None = None) -> int:
        """Returns the number of requests; the arguments are those of `answered`."""
        return len(self.answered(under, kind))

    def bytes_served(self, under: str = "") -> int:
        """Returns the bytes of objects that were served."""
        return sum(one.size for one in self.answered(under))

    def by_kind(self, under: str = "") -> dict[str, int]:
        """Returns the number of requests by kind."""
        return dict(sorted(Counter(str(one.kind) for one in self.answered(under)).items()))

    def by_object(self, under: str = "") -> dict[str, int]:
        """Returns the bytes that were served of every object that was read."""
        sizes: Counter[str] = Counter()
        for one in self.answered(under, Kind.GET):
            sizes[one.name] += one.size
        return dict(sizes)
