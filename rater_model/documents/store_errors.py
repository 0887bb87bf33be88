"""What object stores raise, as the errors that a disk would raise.

The file systems of fsspec pass on what their clients raise: each has classes of its own, of which
few are an `OSError`. Whoever reads or writes files wants to know four things: is it absent, may it
not be touched, are there no credentials, or did the store fail.
"""

import contextlib
import errno
from collections.abc import Iterator

_NOT_ALLOWED = ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_ABSENT = ("404", "NoSuchBucket", "NoSuchKey")
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
    "requests",
)
_MOST_SAID = 300  # characters of a store's own message; some answer with a page of HTML

CREDENTIALS_HINT = (
    "for gs:// run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS, for s3:// set "
    "AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for hf:// HF_TOKEN"
)


def _code_of(error: Exception) -> str:
    """The HTTP status or the store's own code of an error; "" where it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return str(response.get("Error", {}).get("Code", ""))
    for name in ("code", "status", "status_code"):
        code = getattr(error, name, None) or getattr(response, name, None)
        if code is not None and not callable(code):
            return str(getattr(code, "value", code))
    return "403" if str(error).startswith("Forbidden") else ""


def os_error(path: str, error: Exception) -> OSError | None:
    """The error that a disk would have raised in the place of a store's.

    Args:
        path: the file or folder, for the message.
        error: what a file system of fsspec raised.

    Returns:
        A `FileNotFoundError`, a `PermissionError` or a plain `OSError`; None for an error that
        tells nothing about a store, such as a mistake in a program.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if isinstance(error, FileNotFoundError | FileExistsError | IsADirectoryError):
        return error
    message = (" ".join(str(error).split()) or type(error).__name__)[:_MOST_SAID]
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, f"no permission ({message}); {CREDENTIALS_HINT}", path)
    code = _code_of(error)
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
    if code or type(error).__module__.partition(".")[0] in _CLIENTS:
        return OSError(errno.EIO, f"the store failed ({message})", path)
    return None


@contextlib.contextmanager
def raising_os_errors(path: str) -> Iterator[None]:
    """Raises, for whatever a store raises in its block, the `OSError` that says the same."""
    try:
        yield
    except Exception as error:
        translated = os_error(path, error)
        if translated is None or translated is error:
            raise
        raise translated from error
