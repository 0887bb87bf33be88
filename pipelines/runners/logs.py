"""Filters what Beam logs to standard error: the user sees warnings and errors, each once.

Beam warns while it is imported and its workers log at level INFO. Both are of no use to someone who
curates a corpus, so this module filters them in the processes that this package starts.
"""

from __future__ import annotations

import logging

from datarater.pipelines import errors

_IMPORT_WARNINGS = ("apitools not found", "Could not find a compatible bson package")
_NO_CONTAINER = "No semi_persistent_directory found"
_LOGGERS_OF_ERRORS = (
    "apache_beam.runners.common",
    "apache_beam.runners.portability.local_job_service",
    "apache_beam.runners.worker.sdk_worker",
)


class _NoImportWarning(logging.Filter):
    """Drops Beam's warnings that packages for BigQuery and MongoDB, of no use here, are missing."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_IMPORT_WARNINGS)


class _NoRepeatedErrors(logging.Filter):
    """Drops Beam's tracebacks of errors that the command reports in one line when it ends."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and errors.find_cause(error) is not None:
            return False

        # The warning is about a folder that exists in containers, not in local workers.
        message = record.getMessage()
        if _NO_CONTAINER in message:
            return False

        return errors.find_in_text(message.replace("\\n", "\n")) is None


def _add_filter(name: str | None, new: logging.Filter) -> None:
    logger = logging.getLogger(name)
    if not any(isinstance(known, type(new)) for known in logger.filters):
        logger.addFilter(new)


def quieten_import() -> None:
    """Drops the warnings that Beam logs when it is imported; call this before that."""
    for name in (None, "apache_beam.io.mongodbio"):
        _add_filter(name, _NoImportWarning())


def quieten_beam() -> None:
    """Leaves errors of this package to the command's last line; other messages of Beam stay."""
    for name in _LOGGERS_OF_ERRORS:
        _add_filter(name, _NoRepeatedErrors())


def quieten_worker() -> None:
    """Keeps a worker process from logging to standard error; call this before Beam is imported.

    The worker sends its log to the process that runs the graph, which prints warnings and errors.
    Without a handler of its own, the root logger would get one from whatever logs first, and would
    print every INFO line of Beam and JAX beside that.
    """
    logging.getLogger().addHandler(logging.NullHandler())
