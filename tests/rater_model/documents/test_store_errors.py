"""Errors of object stores are translated into those of a local disk."""

from __future__ import annotations

import errno
import socket

import pytest

from datarater.rater_model.documents.store_errors import (
    MissingPackageError,
    os_error,
    raising_os_errors,
)


class HttpError(Exception):
    """An error as gcsfs raises it."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class ClientError(Exception):
    """An error as botocore raises it."""

    def __init__(self, code: str):
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}}


class DefaultCredentialsError(Exception):
    """An error as google.auth raises it."""


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (HttpError(401, "Anonymous caller"), PermissionError, "no valid credentials"),
        (DefaultCredentialsError("none found"), PermissionError, "GOOGLE_APPLICATION_CREDENTIALS"),
        (HttpError(403, "denied"), PermissionError, "no permission"),
        (OSError("Forbidden: gs://b/o"), PermissionError, "no permission"),
        (ClientError("AccessDenied"), PermissionError, "no permission"),
        (PermissionError("as s3fs raises it, without a number"), PermissionError, "no permission"),
        (HttpError(404, "not found"), FileNotFoundError, "no such file or bucket"),
        (ClientError("NoSuchBucket"), FileNotFoundError, "no such file or bucket"),
        (HttpError(503, "overloaded"), OSError, "the store failed"),
        (ClientError("SlowDown"), OSError, "the store failed"),
        (socket.gaierror(-2, "Name or service not known"), OSError, "cannot reach gs://"),
        (ConnectionRefusedError(111, "refused"), OSError, "cannot reach gs://"),
        (ImportError("Install gcsfs"), MissingPackageError, r"pip install 'datarater\[gcp\]'"),
    ],
)
def test_errors_of_stores_are_those_of_a_disk(
    error: Exception, kind: type[OSError], says: str
) -> None:
    with pytest.raises(OSError, match=says) as raised, raising_os_errors("gs://b/o"):
        raise error
    assert type(raised.value) is kind
    assert raised.value.filename == "gs://b/o"


def test_a_page_of_html_is_cut() -> None:
    error = os_error("gs://b/o", HttpError(503, "<html>" + "x" * 10_000))
    assert error is not None
    assert len(str(error)) < 500


def test_a_failed_connection_behind_a_missing_file_is_reported() -> None:
    missing = FileNotFoundError("https://host/a")
    missing.__cause__ = ConnectionResetError(104, "reset")
    assert "cannot reach https://" in str(os_error("https://host/a", missing))
    assert os_error("/local/a", missing) is missing


@pytest.mark.parametrize(
    "error",
    [
        FileExistsError("there"),
        FileNotFoundError("gone"),
        OSError(errno.ENOSPC, "full"),
        ValueError("a mistake"),
        KeyError("x"),
    ],
)
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, raising_os_errors("gs://b/o"):
        raise error
    assert raised.value is error
    assert os_error("gs://b/o", error) in (error, None)
