"""Translates the errors of object stores into those that a local disk would raise.

The file systems of fsspec pass on what their clients raise. Each client has its own classes, few of
which are an `OSError`. A caller needs to know one of six things: the file does not exist, access
is denied, there are no credentials, a package is missing, the store cannot be reached, or the
store failed.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_NOT_ALLOWED = ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_ABSENT = ("404", "NoSuchBucket", "NoSuchKey")
_PAST_END = ("416", "InvalidRange")
_NO_CREDENTIALS = (
    "DefaultCredentialsError",
    "NoCredentialsError",
    "RefreshError",
    "PartialCredentialsError",
)
_CLIENTS = (
    "gcsfs",
    "google",
    "aiohttp",
    "botocore",
    "aiobotocore",
    "s3fs",
    "huggingface_hub",
    "httpx",
    "httpx2",
    "httpcore",
    "requests",
    "urllib3",
)
_UNREACHABLE = re.compile("Connect|Timeout|Transport|NameResolution|OfflineMode")
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
MAX_ANSWER_SECONDS = 15.0
"""Time in which a store must answer the first small request."""
_MAX_MESSAGE_CHARS = 300  # some stores answer with a page of HTML

# The package that reads a protocol's URLs, and the extra of ours that installs it.
_PACKAGES = {
    "gs": ("gcsfs", "gcp"),
    "gcs": ("gcsfs", "gcp"),
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "hf": ("huggingface_hub", "hf"),
}

CREDENTIALS_HINT = (
    "for gs:// run `gcloud auth application-default login` or set "
    "GOOGLE_APPLICATION_CREDENTIALS, for s3:// set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, for hf:// set HF_TOKEN"
)


class MissingPackageError(OSError):
    """The package that reads the URLs of a protocol is not installed."""


class UnknownProtocolError(OSError):
    """fsspec knows no file system for the protocol of a URL."""


def missing_package(path: str, error: ImportError) -> MissingPackageError:
    """Returns the error that names the package, or the extra, to install for a URL.

    Args:
        path: URL, for its protocol and for the message.
        error: Error of the import.
    """
    protocol = protocol_of(path)
    if protocol in _PACKAGES:
        package, extra = _PACKAGES[protocol]
        message = f"{protocol}:// needs the package {package}: pip install 'datarater[{extra}]'"
    else:
        message = f"{protocol}:// needs a package that is not installed ({one_line(error)})"
    return MissingPackageError(errno.EPROTONOSUPPORT, message, path)


def unknown_protocol(path: str) -> UnknownProtocolError:
    """Returns the error for a URL whose protocol fsspec does not know."""
    return UnknownProtocolError(
        errno.EPROTONOSUPPORT,
        f"there is no file system {protocol_of(path)}://; give a local path, gs://, s3:// or "
        "hf://, or install the fsspec package that provides it",
        path,
    )


def protocol_of(path: str) -> str:
    """Returns the protocol of a URL; "" for a path without one.

    Example:
        >>> protocol_of("gs://bucket/a.jsonl")
        'gs'
    """
    return next(iter(protocols_in(path)), "")


def protocols_in(text: str) -> list[str]:
    """Returns the protocols of all URLs in a text."""
    return _PROTOCOL.findall(text)


def os_error(path: str, error: Exception) -> OSError | None:
    """Returns the error that a local disk would have raised in place of a store's error.

    Args:
        path: Path or URL of the file or folder, for the message.
        error: Error that a file system of fsspec raised.

    Returns:
        A `FileNotFoundError`, `PermissionError`, `MissingPackageError` or plain `OSError`; None for
        an error that has nothing to do with a store, such as a programming mistake.
    """
    remote = protocol_of(path) not in ("", "file", "local")
    if remote:
        # HTTP file systems report a failed connection as a missing file.
        failure = error.__cause__ if isinstance(error, FileNotFoundError) else error
        if failure is not None and _is_unreachable(failure):
            message = (
                f"cannot reach {protocol_of(path)}:// ({one_line(failure)}); check the network"
            )
            return OSError(errno.EHOSTUNREACH, message, path)
        if isinstance(error, ImportError):
            return missing_package(path, error)

    # An error that already is one of the disk's.
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if isinstance(error, FileNotFoundError | FileExistsError | IsADirectoryError):
        return error

    message = one_line(error)
    code = _code_of(error)
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, f"no permission ({message}); {CREDENTIALS_HINT}", path)
    if type(error).__name__ in _NO_CREDENTIALS or code == "401":
        return PermissionError(
            errno.EACCES, f"no valid credentials ({message}); {CREDENTIALS_HINT}", path
        )
    if code in _NOT_ALLOWED:
        return PermissionError(errno.EACCES, f"no permission ({message})", path)
    if code in _ABSENT:
        return FileNotFoundError(errno.ENOENT, f"no such file or bucket ({message})", path)
    if isinstance(error, OSError):
        return error
    if code or _is_clients(error):
        return OSError(errno.EIO, f"the store failed ({message})", path)
    return None


def is_past_end(error: BaseException | None) -> bool:
    """Reports whether a store refused a range because the file has no byte of it."""
    while error is not None:
        if isinstance(error, Exception) and _code_of(error) in _PAST_END:
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def raising_os_errors(path: str) -> Iterator[None]:
    """Translates what a store raises within the block into an `OSError` with the same meaning."""
    try:
        yield
    except Exception as error:
        translated = os_error(path, error)
        if translated is None or translated is error:
            raise
        raise translated from error


def in_time(path: str, operation: Callable[[], T], seconds: float = MAX_ANSWER_SECONDS) -> T:
    """Does a small request, and gives up if a store does not answer in time.

    Clients of stores try again and again, so that a missing network shows only after minutes.

    Args:
        path: Path or URL of the file or folder; a local one has no limit.
        operation: The request, which may continue unseen if it takes too long.
        seconds: Limit in seconds.

    Returns:
        The result of the request.

    Raises:
        OSError: if there was no answer; whatever the request raises otherwise.
    """
    if protocol_of(path) in ("", "file", "local", "memory"):
        return operation()

    done: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(operation())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="first request", daemon=True)
    thread.start()
    thread.join(seconds)
    if done:
        return done[0]
    if failed:
        raise failed[0]
    message = f"no answer from {protocol_of(path)}:// in {seconds:g} s; check the network"
    raise OSError(errno.EHOSTUNREACH, message, path)


def one_line(error: BaseException, max_chars: int | None = _MAX_MESSAGE_CHARS) -> str:
    """Returns the message of an error in one line, or the name of its class if it has none.

    Args:
        error: The error.
        max_chars: Length at which the line is cut; None for the whole message.
    """
    return (" ".join(str(error).split()) or type(error).__name__)[:max_chars]


def _code_of(error: Exception) -> str:
    """Returns the HTTP status or the store's own code of an error; "" if it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return str(response.get("Error", {}).get("Code", ""))
    for name in ("code", "status", "status_code"):
        code = getattr(error, name, None) or getattr(response, name, None)
        if code is not None and not callable(code):
            return str(getattr(code, "value", code))
    return "403" if str(error).startswith("Forbidden") else ""


def _is_clients(error: BaseException) -> bool:
    """Reports whether an error's class belongs to a client of a store."""
    return type(error).__module__.partition(".")[0] in _CLIENTS


def _is_unreachable(error: BaseException) -> bool:
    """Reports whether an error means that there was no connection to a store."""
    if isinstance(error, socket.gaierror | ConnectionError | TimeoutError):
        return True
    return _is_clients(error) and _UNREACHABLE.search(type(error).__name__) is not None
