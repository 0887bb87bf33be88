"""Shows the progress of a run, and stops one that rejects too many records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from datarater.pipelines.errors import CurationError, RejectedShareError, RunFolderError
from datarater.pipelines.run_folder.background import Background
from datarater.pipelines.run_folder.counts import main_reasons
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.many_sources import OTHER_SOURCES
from datarater.pipelines.run_folder.progress import Status, Watcher
from datarater.pipelines.run_folder.selection_progress import Phase
from datarater.rater_model.command_line import print_line
from datarater.rater_model.counted import counted

_TERMINAL_SECONDS = 1.0
_LOOK_SECONDS = 5.0
_LOG_SECONDS = 30.0
_SHARE_OF_TIME = 0.1
_MIN_RECORDS = 1000


def check_rejected_share(
    status: Status, max_rejected_fraction: float, max_documents: int | None
) -> None:
    """Refuses to continue a run that is certain to reject too many records.

    With R records rejected so far, at most S documents in the corpus and the limit f, that is
    certain once R > f (R + S). It does not depend on the order in which splits are read.

    Args:
        status: Progress of the run.
        max_rejected_fraction: Share of the records that may be rejected.
        max_documents: Upper bound of the documents of the corpus; None if there is none.

    Raises:
        RejectedShareError: The message names the counts, the reasons and what to do.
    """
    if max_documents is None or not status.exact:
        return
    if status.rejected > max_rejected_fraction * (status.rejected + max_documents):
        counts = status.counts
        raise RejectedShareError(
            f"{status.rejected:,} of the {counted(counts.read, 'record')} read so far are rejected "
            f"({main_reasons(counts.rejected_by_reason)}), more than --max_rejected_fraction "
            f"{max_rejected_fraction:g} allows for the whole corpus; correct the input or the read "
            "options, or raise the limit and run the same command to continue"
        )


def rejects_too_much_so_far(status: Status, max_rejected_fraction: float) -> str:
    """Returns a warning if the records read so far exceed the limit for them; "" otherwise."""
    counts = status.counts
    if counts.read < _MIN_RECORDS or status.rejected <= max_rejected_fraction * counts.read:
        return ""
    return (
        f"WARNING: {status.rejected / counts.read:.1%} of the records read so far are rejected "
        f"({main_reasons(counts.rejected_by_reason)}). The run ends with exit code 4 once "
        f"--max_rejected_fraction {max_rejected_fraction:g} is certain to be exceeded, or when all "
        "is read"
    )


class Progress(Background):
    """Watches the run folder and prints the progress of a launch to standard error.

    On a terminal one line is updated every second. Elsewhere the plan and the end are printed, and
    a line every 30 s in between. All figures come from the run folder, so they are right wherever
    the workers are.

    Args:
        folder: Run folder.
        scores: Whether the launch scores.
        duplicates: Name of the deduplication that the launch makes; "" for none.
        selection: Name of the selection that the launch makes; "" for none.
        prints: Whether to print.
        max_rejected_fraction: Limit of `check_rejected_share`.
        interrupt: Called from this thread with the error that stops the run.
        look_seconds: Time between two looks; None for 1 s on a terminal, 5 s elsewhere.
        log_seconds: Time between two lines where there is no terminal.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        scores: bool = True,
        duplicates: str = "",
        selection: str = "",
        prints: bool = True,
        max_rejected_fraction: float = 1.0,
        interrupt: Callable[[CurationError], None] | None = None,
        look_seconds: float | None = None,
        log_seconds: float = _LOG_SECONDS,
    ):
        super().__init__("progress")
        self._watcher = Watcher(folder)
        self._scores = scores
        self._duplicates = duplicates
        self._selection = selection
        self._prints = prints
        self._max_rejected_fraction = max_rejected_fraction
        self._interrupt = interrupt
        self._terminal = sys.stderr.isatty()
        self._has_open_line = False
        self._has_bound, self._has_warned = False, False
        self._max_documents: int | None = None
        usual = _TERMINAL_SECONDS if self._terminal else _LOOK_SECONDS
        self._look_seconds = usual if look_seconds is None else look_seconds
        self._log_seconds = log_seconds

    def run(self) -> None:
        """Prints the progress until the run ends."""
        wait = self._look_seconds
        is_scoring_over, has_scoring_lines = not self._scores, False
        last_print, has_said_sources = time.monotonic(), False
        while not self.ended.wait(wait):
            began = time.monotonic()
            try:
                status = self._watcher.look()
                self._check(status)
            except RejectedShareError as error:
                assert self._interrupt is not None
                self._interrupt(error)
                break
            except (OSError, RunFolderError):
                continue  # a failed look must not end the run; the next may succeed

            # A look at millions of splits takes a while: most of the time is left to the work.
            wait = max(wait, (time.monotonic() - began) / _SHARE_OF_TIME)
            if status is None or not self._prints:
                continue

            if self._watcher.has_other_sources and not has_said_sources:
                has_said_sources = True
                self._print(
                    "note: there are more sources than --max_sources counts apart: all others are "
                    f"counted as {OTHER_SOURCES!r}, and a selection per source will be refused",
                    ends=True,
                )

            # A run that was scored before has no progress of scoring to show.
            is_scored = status.splits_done == status.splits
            if is_scored and not is_scoring_over:
                is_scoring_over = True
                if has_scoring_lines:
                    self._print(status.line(), ends=True)
            if status.scored and not self._left(status):
                break
            if not is_scored and not has_scoring_lines:
                assert self._watcher.plan is not None
                print_line(self._watcher.plan.describe(), sys.stderr)
                has_scoring_lines = True

            line = self._line(status)
            if line and (self._terminal or time.monotonic() - last_print >= self._log_seconds):
                self._print(line)
                last_print = time.monotonic()
        if self._has_open_line:
            print_line("", sys.stderr)

    def _left(self, status: Status) -> list[str]:
        """Returns the lines of what the launch has not completed, in the order of the work.

        A part that has not begun has an empty line.
        """
        left = []
        if self._duplicates:
            deduplications = [one for one in status.deduplications if one.name == self._duplicates]
            left += (
                [one.line() for one in deduplications if not one.finished]
                if deduplications
                else [""]
            )
        if self._selection:
            selections = [one for one in status.selections if one.name == self._selection]
            unpublished = [one.line() for one in selections if one.phase is not Phase.PUBLISHED]
            left += unpublished if selections else [""]
        return left

    def _line(self, status: Status) -> str:
        """Returns the line of the phase that the launch is in; "" for none."""
        if not status.scored:
            return "" if status.splits_done == status.splits else status.line()
        return next(iter(self._left(status)), "")

    def _print(self, line: str, *, ends: bool = False) -> None:
        """Prints a line of progress, on a terminal in place of the last one."""
        if not self._terminal:
            print_line(line, sys.stderr)
            return
        print_line(line, sys.stderr, start="\r\x1b[K", end="\n" if ends else "")
        self._has_open_line = not ends

    def _check(self, status: Status | None) -> None:
        limit = self._max_rejected_fraction
        if status is None or status.scored or self._interrupt is None or limit >= 1:
            return
        if not self._has_bound:
            self._max_documents = self._watcher.max_documents()
            self._has_bound = True
        check_rejected_share(status, limit, self._max_documents)

        warning = "" if self._has_warned else rejects_too_much_so_far(status, limit)
        if warning:
            self._has_warned = True
            self._print(warning, ends=True)
