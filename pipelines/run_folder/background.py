"""A thread that works beside a block of code."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self


class Background(threading.Thread):
    """A thread that runs while a `with` block does: `run` ends once `self.ended` is set."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.set()
        self.join()
