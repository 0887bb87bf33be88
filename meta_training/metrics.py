"""Metrics of a run: a CSV for people and spreadsheets, event files for TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import tensorboardX


class MetricsWriter:
    """Writes scalar metrics by step to `metrics.csv` and to TensorBoard event files in a folder.

    Args:
        folder: where to write; made if missing.

    Example:
        >>> with MetricsWriter("work/metrics") as writer:  # doctest: +SKIP
        ...     writer.write(10, {"outer_loss": 2.5})
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._csv_file = (folder / "metrics.csv").open("w", newline="")
        self._csv: csv.DictWriter[str] | None = None
        self._events = tensorboardX.SummaryWriter(str(folder))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one step's metrics; every call must give the same names.

        Args:
            step: the step they belong to.
            scalars: their values by name.
        """
        if self._csv is None:
            self._csv = csv.DictWriter(self._csv_file, ["step", *scalars])
            self._csv.writeheader()
        self._csv.writerow({"step": step, **scalars})
        self._csv_file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both files."""
        self._csv_file.close()
        self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
