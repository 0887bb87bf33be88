"""Writes the metrics of a run: a CSV for people and spreadsheets, event files for TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import socket
import struct
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from datarater.meta_training.errors import WorkdirError
from datarater.rater_model.atomic_files import replace_file

_LOG = logging.getLogger("datarater")
METRICS_FILE = "metrics.csv"


class Writer(Protocol):
    """Something that metrics are written to, step by step."""

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Writes one step's metrics; see `MetricsWriter.write`."""

    def close(self) -> None:
        """Ends the writing."""


class Writers:
    """Several writers as one; a context manager that closes them.

    Args:
        writers: The writers. The first is the run's record and gets each row first.
    """

    def __init__(self, *writers: Writer) -> None:
        self._writers = writers

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Writes one step's metrics to each writer."""
        for writer in self._writers:
            writer.write(step, scalars)

    def close(self) -> None:
        """Closes each writer."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.close)

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class MetricsWriter:
    """Writes scalar metrics by step to `metrics.csv` and to TensorBoard event files in a folder.

    In both, a row has reached the operating system when `write` returns. The CSV is the run's
    record, so it is an error if it cannot be written. Event files are for watching: if they cannot
    be written, one warning is logged and the run continues without them.

    Args:
        folder: Folder for both; created if it is missing.
        after: Step that the run continues from. Rows that an earlier process wrote for later steps
            are cut off the CSV, and TensorBoard discards them too, so that nothing appears twice.

    Example:
        >>> with MetricsWriter("work/metrics") as writer:  # doctest: +SKIP
        ...     writer.write(10, {"outer_loss": 2.5})
    """

    def __init__(self, folder: str | Path, after: int = 0) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)

        self._path = folder / METRICS_FILE
        self._names = cut_metrics(self._path, after)
        self._csv_file = self._path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._csv_file, lineterminator="\n")

        # In all event files but a run's first, the session start makes TensorBoard discard later
        # steps, also when the run began anew.
        resumed = any(folder.glob("events.out.tfevents.*"))
        self._events: _EventFile | None = None
        try:
            self._events = _EventFile(folder)
        except OSError as error:
            self._continue_without_events(error)
        self._to_tensorboard(file_version="brain.Event:2")
        if resumed:
            self._to_tensorboard(step=after + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Writes one step's metrics.

        Args:
            step: Step of the metrics.
            scalars: Values by name, with the same names in every call; None where a step has no
                such value.

        Raises:
            WorkdirError: The rows before have names that are missing here.
            OSError: The CSV cannot be written.
        """
        names = ["step", *scalars]
        if not self._names:
            self._names = names
            self._csv.writerow(names)
        if self._names != names and set(self._names) < set(names):
            self._widen(names)
        if self._names != names:
            raise WorkdirError(
                f"{self._path} has the columns of another version of datarater "
                f"({_difference(self._names, names)}): move the file elsewhere and run the same "
                "command again, which begins a new one"
            )

        self._csv.writerow([step, *scalars.values()])
        self._csv_file.flush()
        values = [
            Summary.Value(tag=name, simple_value=x) for name, x in scalars.items() if x is not None
        ]
        self._to_tensorboard(step=step, summary=Summary(value=values))

    def _widen(self, names: list[str]) -> None:
        """Gives the rows of an earlier version, which had fewer columns, empty cells for new ones.

        Args:
            names: Names of all columns.
        """
        self._csv_file.close()
        with self._path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

        replace_file(self._path, text.getvalue().encode("utf-8"))
        self._names = names
        self._csv_file = self._path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._csv_file, lineterminator="\n")

    def _to_tensorboard(self, **fields: Any) -> None:
        if self._events is None:
            return
        try:
            self._events.write(Event(wall_time=time.time(), **fields))
        except OSError as error:
            self._continue_without_events(error)

    def _continue_without_events(self, error: OSError) -> None:
        _LOG.warning(
            "TensorBoard gets no more metrics of this run, %s still does: %s", self._path, error
        )
        if self._events:
            with contextlib.suppress(OSError):  # the same error again
                self._events.close()
        self._events = None

    def close(self) -> None:
        """Closes both files."""
        try:
            if self._events:
                self._events.close()
        except OSError as error:
            self._continue_without_events(error)
        finally:
            self._csv_file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _EventFile:
    """An event file as TensorBoard reads it, written event by event without a buffer.

    tensorboardX's own writer passes events to a thread through a queue: a write that fails ends the
    thread, and the full queue then blocks the run forever; a killed process loses the queue.
    """

    def __init__(self, folder: Path) -> None:
        # TensorBoard reads the files of a folder in order of their names.
        self._path = folder / f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}"
        self._file = self._path.open("xb", buffering=0)

    def write(self, event: Event) -> None:
        """Appends one event: its length and its bytes, each followed by a checksum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        remaining = (
            length
            + struct.pack("<I", masked_crc32c(length))
            + content
            + struct.pack("<I", masked_crc32c(content))
        )
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def close(self) -> None:
        self._file.close()


def cut_metrics(path: Path, after: int) -> list[str]:
    """Removes the rows of later steps from a metrics CSV, and lines that a power cut has damaged.

    Unreadable lines, and steps up to `after` without a row, are logged as warnings. A file with an
    unreadable header is renamed with the suffix `.damaged`.

    Args:
        path: Path of the CSV, which may be missing.
        after: Last step to keep.

    Returns:
        The names of the columns. If no row is left, the names and the file are empty.
    """
    content = path.read_bytes() if path.exists() else b""
    header, *lines = content.split(b"\n")
    torn = bool(lines.pop()) if lines else bool(header)  # the last line is incomplete
    names = _column_names(header) if lines or not torn else []
    if lines and not names:
        damaged = path.with_name(f"{path.name}.damaged")
        os.replace(path, damaged)
        _LOG.warning(
            "%s has no header: it is kept as %s, and a new file begins", path, damaged.name
        )
        content, lines, torn = b"", [], False

    steps = [_step(line, len(names)) for line in lines]
    unreadable = steps.count(None) + torn
    if unreadable:
        _LOG.warning("%s: %d lines cannot be read and are removed", path, unreadable)
    rows = [
        (step, line)
        for step, line in zip(steps, lines, strict=True)
        if step is not None and step <= after
    ]
    _warn_of_missing_rows(path, {step for step, _ in rows}, after)

    kept = b"".join(line + b"\n" for line in (header, *(line for _, line in rows))) if rows else b""
    if kept != content:
        replace_file(path, kept)
    return names if rows else []


def _column_names(header: bytes) -> list[str]:
    """Returns the column names of a header; none if the line is not a header."""
    try:
        names = header.decode("utf-8").strip("\r").split(",")
    except UnicodeDecodeError:
        return []
    is_header = names[0] == "step" and all(name and name.isprintable() for name in names)
    return names if is_header else []


def _step(line: bytes, columns: int) -> int | None:
    """Returns the step of a row; None if the line is not a complete row."""
    try:
        step, *values = line.decode("ascii").split(",")
        for value in values:
            float(value or 0)
        return int(step) if len(values) + 1 == columns else None
    except ValueError:
        return None


def _warn_of_missing_rows(path: Path, steps: Collection[int], after: int) -> None:
    missing = sorted(set(range(1, after + 1)) - set(steps))
    if missing:
        which = (
            f"step {missing[0]}"
            if len(missing) == 1
            else f"{len(missing)} steps of {missing[0]} to {missing[-1]}"
        )
        _LOG.warning(
            "%s has lost the row of %s; the run has lost nothing and continues after step %d",
            path,
            which,
            after,
        )


def _difference(old: list[str], new: list[str]) -> str:
    parts = [f"it lacks {name}" for name in new if name not in old]
    parts += [f"it has {name}" for name in old if name not in new]
    return ", ".join(parts) or "in another order"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a metrics CSV, each without the values that its step does not have."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
