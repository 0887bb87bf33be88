"""What can stop a run, each with its exit code (`datarater.rater_model.exit_codes`)."""

import errno
import re
from collections.abc import Iterator

from datarater.rater_model.exit_codes import (
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
    """A run cannot go on; the message says why and what to do.

    Attributes:
        exit_code: of the command that it ends.
        interrupted: whether it broke into a run from outside
            (`datarater.pipelines.runners.interrupts`).
    """

    exit_code = FAILED
    interrupted = False


class UsageError(CurationError):
    """A flag was given something that cannot be meant."""

    exit_code = WRONG_USAGE


class RunFolderError(CurationError):
    """A run folder cannot be used: not writable, or its file system lacks create-if-absent."""


class DiskFullError(RunFolderError):
    """The disk that the run folder lies on is full, or a quota or a limit on the size of files is reached."""

    exit_code = DISK_FULL


class RunFolderPermissionError(RunFolderError):
    """The run folder may not be written."""

    exit_code = NO_PERMISSION


class NoMatchError(CurationError):
    """No input file was found."""

    exit_code = NO_INPUT


class EmptyCorpusError(CurationError):
    """There are input files, but no record in any of them."""

    exit_code = EMPTY_CORPUS


class UnreadableInputError(CurationError):
    """An input file cannot be read; trying again may help."""

    exit_code = UNREADABLE_INPUT


class InputPermissionError(UnreadableInputError):
    """An input file may not be read."""

    exit_code = NO_PERMISSION


class RejectedShareError(CurationError):
    """More records were rejected than `--max_rejected_fraction` allows."""

    exit_code = PAST_LIMIT


class LeaseHeldError(CurationError):
    """Another launch is at work in the run folder."""

    exit_code = OTHER_RUN


class RunFolderMismatchError(CurationError):
    """A run folder, or a selection in it, was made with other options than are asked for now."""

    exit_code = OTHER_RUN


class CountsError(CurationError):
    """Documents read are not the sum of those kept, dropped and rejected, or a file of the books is missing."""


class InputChangedError(CurationError):
    """An input file is no longer what it was when the run was planned or scored."""


class WorkerDiedError(CurationError):
    """A worker process of a local run died, of a signal or for want of memory."""


class PoisonSplitError(CurationError):
    """A split ended the worker that scored it again and again."""


class StoppedError(CurationError):
    """A signal stopped the run; the same command goes on where it stopped."""

    exit_code = STOPPED


class JobGoesOnError(StoppedError):
    """The job was submitted, and goes on without the command."""


def _all_kinds(kind: type[CurationError]) -> Iterator[type[CurationError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from _all_kinds(inner)


_KNOWN = {kind.__name__: kind for kind in _all_kinds(CurationError)}
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
    """The error of ours behind what a runner raised.

    Runners wrap what a worker raised; from another process it arrives as text in the message alone.
    """
    for link in _chain(error):
        if isinstance(link, CurationError):
            return named(type(link).__name__, str(link).split(" [while running")[0])
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
    return named(name, message)


def named(name: str, message: str) -> CurationError:
    """An error of ours by the name of its class; a plain one for a name that is not known."""
    return _KNOWN.get(name, CurationError)(message)


def reading_failed(path: str, error: OSError) -> UnreadableInputError:
    """What to raise for an input file that cannot be read."""
    if error.errno in _NO_PERMISSION:
        return InputPermissionError(f"the input {path} may not be read: {error.strerror}")
    return UnreadableInputError(f"the input {path} cannot be read: {error.strerror or error}")


def writing_failed(path: str, error: OSError) -> RunFolderError:
    """What to raise for a file of the run folder that cannot be written."""
    if error.errno in _DISK_FULL:
        return DiskFullError(
            f"{path} cannot be written: {error.strerror}; nothing committed is lost: make room and run the same "
            "command to go on"
        )
    if error.errno in _NO_PERMISSION:
        return RunFolderPermissionError(f"{path} cannot be written: {error.strerror}")
    return RunFolderError(f"{path} cannot be written: {error.strerror or error}")


def copying_failed(source: str, target: str, error: OSError) -> CurationError:
    """What to raise where reading an input and writing a file of the run folder go together and one has failed."""
    if error.errno in _DISK_FULL:
        return writing_failed(target, error)
    return reading_failed(source, error)
