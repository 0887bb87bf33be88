"""What a person sees while a run works: how many splits are scored, how fast, what is rejected, how long it takes."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from datarater.pipelines.errors import CurationError, RejectedShareError, RunFolderError
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import describe_plan
from datarater.pipelines.run_folder.progress import Status, Watcher

_TERMINAL_SECONDS = 1.0
_LOOK_SECONDS = 5.0
_LOG_SECONDS = 30.0
_SHARE_OF_TIME = 0.1
_LEAST_RECORDS = 1000


def check_rejected_share(status: Status, most: float) -> None:
    """Stops a run that eats garbage, as soon as it is sure to.

    That is when the records rejected so far are more than the limit allows of the whole corpus,
    were all that is still to come good; how many are still to come is taken from what was read so
    far.

    Args:
        status: how far the run is.
        most: the share of records that may be rejected.

    Raises:
        RejectedShareError: naming the share, the reasons and what to do.
    """
    counts = status.counts
    if counts.read < _LEAST_RECORDS or not status.splits_done:
        return
    expected = counts.read * status.splits / status.splits_done
    if status.rejected > most * expected:
        reasons = ", ".join(
            f"{reason} {count:,}" for reason, count in counts.rejected.most_common(3)
        )
        raise RejectedShareError(
            f"{status.rejected:,} of the {counts.read:,} records read so far are rejected ({reasons}), past what "
            f"--max_rejected_fraction {most:g} allows of the whole corpus; correct the input or the read options, or "
            "raise the limit and run the same command to go on"
        )


class Progress(threading.Thread):
    """Watches the run folder while splits are being scored, and prints a line now and then; on a terminal over itself.

    It looks at the run folder alone, so that it is right whatever worker did the work.

    Args:
        folder: the run folder.
        prints: whether to print at all.
        max_rejected_fraction: stops the run where more is sure to be rejected.
        interrupt: called from this thread with what stops the run.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        prints: bool = True,
        max_rejected_fraction: float = 1.0,
        interrupt: Callable[[CurationError], None] | None = None,
    ):
        super().__init__(name="progress", daemon=True)
        self._watcher = Watcher(folder)
        self._prints = prints
        self._most = max_rejected_fraction
        self._interrupt = interrupt
        self._ended = threading.Event()
        self._terminal = sys.stderr.isatty()

    def run(self) -> None:
        """Looks and prints until the run ends."""
        wait = _TERMINAL_SECONDS if self._terminal else _LOOK_SECONDS
        first, printed = True, False
        said = time.monotonic()
        while not self._ended.wait(wait):
            began = time.monotonic()
            try:
                status = self._watcher.look()
                if status is not None and self._interrupt is not None and self._most < 1:
                    check_rejected_share(status, self._most)
            except RejectedShareError as error:
                assert self._interrupt is not None
                self._interrupt(error)
                break
            except (OSError, RunFolderError):
                continue  # watching must not end what it watches; the next look may fare better
            # A look at millions of splits takes a while: most of the time is left to the work.
            wait = max(wait, (time.monotonic() - began) / _SHARE_OF_TIME)
            if status is None or not self._prints:
                continue
            if status.splits_done == status.splits and first:
                break
            if first:
                print(describe_plan(self._watcher.plan), file=sys.stderr, flush=True)
            first = False
            if self._terminal:
                print(f"\r\x1b[K{status.line()}", end="", file=sys.stderr, flush=True)
                printed = True
            elif time.monotonic() - said >= _LOG_SECONDS or status.splits_done == status.splits:
                print(status.line(), file=sys.stderr, flush=True)
                said = time.monotonic()
            if status.splits_done == status.splits:
                break
        if printed:
            print(file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self.join()
