"""Metrics of a run: a CSV for people and spreadsheets, event files for TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

import tensorboardX

METRICS_FILE = "metrics.csv"


class MetricsWriter:
    """Writes scalar metrics by step to `metrics.csv` and to TensorBoard event files in a folder.

    Args:
        folder: where to write; made if missing.
        after: the step that the run goes on from. What an earlier process wrote of later steps is cut off the CSV,
            and TensorBoard is told to forget it, so that nothing appears twice.

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
        # Nothing to forget in a run's first event file; the purge of a resumed one also covers a run begun anew.
        resumed = any(folder.glob("events.out.tfevents.*"))
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=after + 1 if resumed else None)

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Writes one step's metrics.

        Args:
            step: the step they belong to.
            scalars: their values by name, the same names in every call; None where a step has no such value.

        Raises:
            ValueError: the names are not those of the rows before.
        """
        if not self._names:
            self._names = ["step", *scalars]
            self._csv.writerow(self._names)
        if self._names != ["step", *scalars]:
            raise ValueError(f"{self._path} has the columns {self._names}, not {['step', *scalars]}")
        self._csv.writerow([step, *scalars.values()])
        self._csv_file.flush()
        for name, value in scalars.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both files."""
        self._csv_file.close()
        self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def cut_metrics(path: Path, after: int) -> list[str]:
    """Cuts the rows behind a step off a metrics CSV, a last line that was not written to its end among them.

    Args:
        path: the CSV; it need not exist.
        after: the last step to keep.

    Returns:
        The names of its columns; empty where no row is left, and the file then too.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = whole[:1] + [line for line in whole[1:] if int(line.split(",", 1)[0]) <= after]
    if len(kept) < 2:
        kept = []
    if kept != lines:
        new = path.with_name(f".{path.name}.new")
        new.write_text("".join(kept), encoding="utf-8", newline="")
        os.replace(new, path)
    return next(csv.reader(io.StringIO(kept[0]))) if kept else []


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a metrics CSV, without the values that a step does not have."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
