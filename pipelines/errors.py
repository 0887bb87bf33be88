"""Errors that stop a run, each with an exit code (`datarater.rater_model.exit_codes`)."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from datarater.rater_model.exit_codes import (
    BAD_SPLITS,
    DISK_FULL,
    EMPTY_CORPUS,
    FAILED,
    NO_INPUT,
    NO_PERMISSION,
    OTHER_RUN,
    PAST_LIMIT,
    STOPPED,
    UNREADABLE_INPUT,
    WRONG_USAGE,
)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


class CurationError(Exception):
    """A run cannot continue; the message says why and what to do.

    Attributes:
        exit_code: Exit code of the command that this error ends.
        interrupted: Whether the error interrupted a run whose work may continue in other threads
            (`datarater.pipelines.runners.interrupts`).
    """

    exit_code = FAILED
    interrupted = False


class UsageError(CurationError):
    """A flag has an invalid value."""

    exit_code = WRONG_USAGE


class RunFolderError(CurationError):
    """A run folder cannot be used: it is not writable, or its file system is not suitable."""


class DiskFullError(RunFolderError):
    """The disk of the run folder is full, or a quota or a limit on file sizes is reached."""

    exit_code = DISK_FULL


class RunFolderPermissionError(RunFolderError):
    """The permissions of the run folder forbid writing."""

    exit_code = NO_PERMISSION


class NoMatchError(CurationError):
    """No file matches the input patterns."""

    exit_code = NO_INPUT


class EmptyCorpusError(CurationError):
    """The input files contain no records, or none that could be scored."""

    exit_code = EMPTY_CORPUS


class UnreadableInputError(CurationError):
    """An input file cannot be read; a retry may help."""

    exit_code = UNREADABLE_INPUT


class InputPermissionError(UnreadableInputError):
    """The permissions of an input file forbid reading."""

    exit_code = NO_PERMISSION


class RejectedShareError(CurationError):
    """More records were rejected than `--max_rejected_fraction` allows."""

    exit_code = PAST_LIMIT


class LeaseHeldError(CurationError):
    """Another launch works in the run folder."""

    exit_code = OTHER_RUN


class RunFolderMismatchError(CurationError):
    """A run folder, or a selection in it, was made with different options."""

    exit_code = OTHER_RUN


class CountsError(CurationError):
    """Counts do not add up, or a file that they come from is missing.

    The documents read must be the sum of those kept, dropped and rejected.
    """


class InputChangedError(CurationError):
    """An input file was modified since the run was planned or scored."""

    exit_code = OTHER_RUN


class OutOfMemoryError(CurationError):
    """A split needs more memory than is available."""


class BadSplitsError(CurationError):
    """The run is complete, but splits were rejected whole (`--on_bad_split reject`)."""

    exit_code = BAD_SPLITS


class WorkerDiedError(CurationError):
    """A worker process of a local run died, for example because memory ran out."""


class PoisonSplitError(CurationError):
    """A split repeatedly crashed the worker that scored it."""


class StoppedError(CurationError):
    """A signal stopped the run; the same command resumes it."""

    exit_code = STOPPED


class JobGoesOnError(StoppedError):
    """The job was submitted and continues without the command."""


def _with_subclasses(kind: type[CurationError]) -> Iterator[type[CurationError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)


_KNOWN = {kind.__name__: kind for kind in _with_subclasses(CurationError)}
_IN_TEXT = re.compile(
    r"(?:pipelines\.errors\.)?\b(" + "|".join(_KNOWN) + r"): (.*?)(?: \[while running .*|$)",
    re.MULTILINE,
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def find_cause(error: BaseException) -> CurationError | None:
    """Returns the error of this module behind what a runner raised; None if there is none.

    Runners wrap what a worker raised. From another process it arrives as text in the message only.
    """
    for link in _chain(error):
        if isinstance(link, CurationError):
            return named(type(link).__name__, str(link).split(" [while running")[0])
    for link in _chain(error):
        cause = find_in_text(str(link))
        if cause is not None:
            return cause
    return None


def find_in_text(text: str) -> CurationError | None:
    """Returns the last error of this module whose name and message are in a traceback's text."""
    matches = _IN_TEXT.findall(text)
    if not matches:
        return None
    name, message = matches[-1]
    return named(name, message)


def named(name: str, message: str) -> CurationError:
    """Returns an error of the class with this name; a plain one if the name is unknown."""
    return _KNOWN.get(name, CurationError)(message)


def reading_failed(path: str, error: OSError) -> UnreadableInputError:
    """Returns the error to raise for an input file that cannot be read."""
    if error.errno in _NO_PERMISSION:
        return InputPermissionError(f"the input {path} cannot be read: {error.strerror}")
    return UnreadableInputError(f"the input {path} cannot be read: {error.strerror or error}")


def writing_failed(path: str, error: OSError) -> RunFolderError:
    """Returns the error to raise for a file of the run folder that cannot be written."""
    if error.errno in _DISK_FULL:
        return DiskFullError(
            f"{path} cannot be written: {error.strerror}; nothing committed is lost: free some "
            "space and run the same command to continue"
        )
    if error.errno in _NO_PERMISSION:
        return RunFolderPermissionError(f"{path} cannot be written: {error.strerror}")
    return RunFolderError(f"{path} cannot be written: {error.strerror or error}")


def copying_failed(source: str, target: str, error: OSError) -> CurationError:
    """Returns the error to raise if copying an input into the run folder failed.

    Only a full disk can be recognized as the target's fault; anything else is reported as the
    source's.
    """
    if error.errno in _DISK_FULL:
        return writing_failed(target, error)
    return reading_failed(source, error)
