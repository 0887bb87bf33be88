"""What a person sees while a local run works: how many splits are scored."""

import logging
import os
import sys
import threading
import time
from types import TracebackType

import orjson

from pipelines import errors
from pipelines.ledger import RunFolder
from rater_model.files import local_path

_TERMINAL_SECONDS = 1.0
_LOG_SECONDS = 30.0


def scored_splits(folder: RunFolder) -> tuple[int, int] | None:
    """How many splits of a local run folder are scored, and how many there are; None before there is a plan."""
    root = local_path(folder.path)
    if root is None:
        return None
    try:
        with open(os.path.join(root, "plan", "identity.json"), "rb") as file:
            total = orjson.loads(file.read())["plan"]["splits"]
    except FileNotFoundError:
        return None
    done = 0
    for _, _, names in os.walk(os.path.join(root, "scores")):
        done += sum(name.endswith(".parquet") for name in names)
    return done, total


class Progress(threading.Thread):
    """Prints a line while splits are being scored: over itself on a terminal, now and then elsewhere.

    It looks at the run folder alone, so that it is right whatever worker did the work.

    Args:
        folder: a local run folder.
    """

    def __init__(self, folder: RunFolder):
        super().__init__(name="progress", daemon=True)
        self._folder = folder
        self._ended = threading.Event()
        self._terminal = sys.stderr.isatty()

    def run(self) -> None:
        """Looks and prints until the run ends."""
        started, first = time.monotonic(), None
        printed = False
        while not self._ended.wait(_TERMINAL_SECONDS if self._terminal else _LOG_SECONDS):
            found = scored_splits(self._folder)
            if found is None:
                continue
            done, total = found
            first = done if first is None else first
            if done == total and not printed:
                continue
            line = f"scored {done:,} of {total:,} splits"
            if first < done < total:
                left = (time.monotonic() - started) / (done - first) * (total - done)
                line += f", about {left / 60:.0f} min left" if left > 90 else f", about {left:.0f} s left"
            print(f"\r\x1b[K{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
            sys.stderr.flush()
            printed = True
            if done == total:
                break
        if printed and self._terminal:
            print(file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self.join()


class _OwnErrorsAreSaidOnce(logging.Filter):
    """Keeps Beam from printing a traceback for what the command says in one line at its end."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and errors.find_cause(error) is not None:
            return False
        message = record.getMessage()
        if "No semi_persistent_directory found" in message:  # of a container's, which a local worker has not
            return False
        return errors.find_in_text(message.replace("\\n", "\n")) is None


def quieten_beam() -> None:
    """Leaves errors of ours to the command's last line; all other messages of Beam stay."""
    for name in (
        "apache_beam.runners.common",
        "apache_beam.runners.portability.local_job_service",
        "apache_beam.runners.worker.sdk_worker",
    ):
        logger = logging.getLogger(name)
        if not any(isinstance(known, _OwnErrorsAreSaidOnce) for known in logger.filters):
            logger.addFilter(_OwnErrorsAreSaidOnce())
