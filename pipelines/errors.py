"""What can stop a run, each with its exit code; the same codes in every command."""

import re
from collections.abc import Iterator

DONE = 0
FAILED = 1
WRONG_USAGE = 2
OTHER_RUN = 3
STOPPED = 75


class CurationError(Exception):
    """A run cannot go on; the message says why and what to do."""

    exit_code = FAILED


class RunFolderError(CurationError):
    """A run folder cannot be used: not writable, or its file system lacks create-if-absent."""


class RunFolderMismatchError(CurationError):
    """A run folder, or a selection in it, was made with other options than are asked for now."""

    exit_code = OTHER_RUN


class BooksError(CurationError):
    """Documents read are not the sum of those kept, dropped and rejected, or a file of the books is missing."""


class InputChangedError(CurationError):
    """An input file is no longer what it was when the run was planned or scored."""


class WorkerDiedError(CurationError):
    """A worker process of a local run died, of a signal or for want of memory."""


class StoppedError(CurationError):
    """A signal stopped the run; the same command goes on where it stopped."""

    exit_code = STOPPED


_KNOWN = {
    kind.__name__: kind
    for kind in (
        CurationError,
        RunFolderError,
        RunFolderMismatchError,
        BooksError,
        InputChangedError,
        WorkerDiedError,
        StoppedError,
    )
}
_IN_TEXT = re.compile(
    r"(?:pipelines\.errors\.)?\b(" + "|".join(_KNOWN) + r"): (.*?)(?: \[while running .*|$)", re.MULTILINE
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def find_cause(error: BaseException) -> CurationError | None:
    """The error of ours behind what a runner raised.

    Runners wrap what a worker raised; from another process it arrives as text in the message alone.
    """
    for link in _chain(error):
        if isinstance(link, CurationError):
            return _KNOWN[type(link).__name__](str(link).split(" [while running")[0])
    for link in _chain(error):
        found = find_in_text(str(link))
        if found is not None:
            return found
    return None


def find_in_text(text: str) -> CurationError | None:
    """The last error of ours whose name and message stand in a traceback's text."""
    found = _IN_TEXT.findall(text)
    if not found:
        return None
    name, message = found[-1]
    return _KNOWN[name](message)
