"""Metrics of a run: a CSV for people and spreadsheets, event files for TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import socket
import struct
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from datarater.meta_training.errors import WorkdirError

_LOG = logging.getLogger("datarater")
METRICS_FILE = "metrics.csv"


class MetricsWriter:
    """Writes scalar metrics by step to `metrics.csv` and to TensorBoard event files in a folder.

    A row is with the operating system when `write` returns, in both. The CSV is the run's record:
    where it cannot be written, that is an error. Event files are for watching: where they cannot be
    written, a warning says so, once, and the run goes on without them.

    Args:
        folder: where to write; made if missing.
        after: the step that the run goes on from. What an earlier process wrote of later steps is
            cut off the CSV, and TensorBoard is told to forget it, so that nothing appears twice.

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
        # Nothing to forget in a run's first event file; the purge of a resumed one also covers a
        # run begun anew.
        resumed = any(folder.glob("events.out.tfevents.*"))
        self._events: _EventFile | None = None
        try:
            self._events = _EventFile(folder)
        except OSError as error:
            self._go_on_without_events(error)
        self._to_tensorboard(file_version="brain.Event:2")
        if resumed:
            self._to_tensorboard(step=after + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Writes one step's metrics.

        Args:
            step: the step they belong to.
            scalars: their values by name, the same names in every call; None where a step has no
                such value.

        Raises:
            WorkdirError: the names are not those of the rows before.
            OSError: the CSV cannot be written.
        """
        names = ["step", *scalars]
        if not self._names:
            self._names = names
            self._csv.writerow(names)
        if self._names != names:
            raise WorkdirError(
                f"{self._path} has the columns of another version of datarater ({_difference(self._names, names)}): "
                "move the file elsewhere and run the same command again, which begins a new one"
            )
        self._csv.writerow([step, *scalars.values()])
        self._csv_file.flush()
        values = [
            Summary.Value(tag=name, simple_value=x) for name, x in scalars.items() if x is not None
        ]
        self._to_tensorboard(step=step, summary=Summary(value=values))

    def _to_tensorboard(self, **fields: Any) -> None:
        if self._events is None:
            return
        try:
            self._events.write(Event(wall_time=time.time(), **fields))
        except OSError as error:
            self._go_on_without_events(error)

    def _go_on_without_events(self, error: OSError) -> None:
        _LOG.warning("TensorBoard gets no more of this run, %s goes on: %s", self._path, error)
        if self._events:
            with contextlib.suppress(OSError):  # the same trouble once more
                self._events.close()
        self._events = None

    def close(self) -> None:
        """Closes both files."""
        try:
            if self._events:
                self._events.close()
        except OSError as error:
            self._go_on_without_events(error)
        finally:
            self._csv_file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _EventFile:
    """An event file as TensorBoard reads it, written event by event with nothing kept back.

    tensorboardX's own writer hands events to a thread through a queue: a write that fails ends the
    thread, and the full queue then blocks the run for ever; a killed process loses what is in it.
    """

    def __init__(self, folder: Path) -> None:
        # TensorBoard reads the files of a folder in the order of their names.
        self._path = folder / f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}"
        self._file = self._path.open("xb", buffering=0)

    def write(self, event: Event) -> None:
        """Appends one event: its length and its bytes, a checksum behind each."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        left = (
            length
            + struct.pack("<I", masked_crc32c(length))
            + content
            + struct.pack("<I", masked_crc32c(content))
        )
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        self._file.close()


def cut_metrics(path: Path, after: int) -> list[str]:
    """Cuts the rows behind a step off a metrics CSV, and lines that cannot be read, as a power cut may leave them.

    A warning tells of lines that cannot be read, and one of steps up to `after` that have no row. A
    file whose header cannot be read is moved to the same name with `.damaged` behind it.

    Args:
        path: the CSV; it need not exist.
        after: the last step to keep.

    Returns:
        The names of its columns; empty where no row is left, and the file then too.
    """
    content = path.read_bytes() if path.exists() else b""
    header, *lines = content.split(b"\n")
    torn = bool(lines.pop()) if lines else bool(header)  # a last line not written to its end
    names = _column_names(header) if lines or not torn else []
    if lines and not names:
        damaged = path.with_name(f"{path.name}.damaged")
        os.replace(path, damaged)
        _LOG.warning(
            "%s does not begin with a header: it is kept as %s, and begun anew", path, damaged.name
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
    _warn_of_holes(path, {step for step, _ in rows}, after)
    kept = b"".join(line + b"\n" for line in (header, *(line for _, line in rows))) if rows else b""
    if kept != content:
        new = path.with_name(f".{path.name}.new")
        with new.open("wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before what it names
        os.replace(new, path)
    return names if rows else []


def _column_names(header: bytes) -> list[str]:
    """Returns the names in a header, none where it is not one."""
    try:
        names = header.decode("utf-8").strip("\r").split(",")
    except UnicodeDecodeError:
        return []
    return (
        names if names[0] == "step" and all(name and name.isprintable() for name in names) else []
    )


def _step(line: bytes, columns: int) -> int | None:
    """Returns the step of a row, None where it is not a whole row."""
    try:
        step, *values = line.decode("ascii").split(",")
        for value in values:
            float(value or 0)
        return int(step) if len(values) + 1 == columns else None
    except ValueError:
        return None


def _warn_of_holes(path: Path, steps: Collection[int], after: int) -> None:
    missing = sorted(set(range(1, after + 1)) - set(steps))
    if missing:
        which = (
            f"step {missing[0]}"
            if len(missing) == 1
            else f"{len(missing)} steps of {missing[0]} to {missing[-1]}"
        )
        _LOG.warning(
            "%s has lost the row of %s; the run itself, which goes on after %d, has not",
            path,
            which,
            after,
        )


def _difference(old: list[str], new: list[str]) -> str:
    parts = [f"it lacks {name}" for name in new if name not in old]
    parts += [f"it has {name}" for name in old if name not in new]
    return ", ".join(parts) or "in another order"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a metrics CSV, without the values that a step does not have."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
