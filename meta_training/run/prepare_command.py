"""Runs `datarater prepare` once its flags are parsed: checks, prepares, prints the counts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from datarater.meta_training.config import checks
from datarater.meta_training.data.prepare import WORK
from datarater.meta_training.data.prepared import INDEX, Index, read_index
from datarater.meta_training.errors import ConfigError, WorkdirError
from datarater.meta_training.run.command import ending_in_one_line
from datarater.meta_training.run.preparation import changed_source, difference, prepare
from datarater.meta_training.run.start_models import fill_config, start_models
from datarater.meta_training.run.stopping import StopSignal
from datarater.meta_training.run.workdir import locked_folder
from datarater.rater_model import exit_codes
from datarater.rater_model.counted import counted

COMMAND = "datarater prepare"
_LOG = logging.getLogger("datarater")


def run_preparation(
    config: ConfigDict, output: str, processes: int | None, train_command: str
) -> int:
    """Prepares the data of a config in a folder, from wherever an earlier command was stopped.

    Args:
        config: The whole config.
        output: The folder.
        processes: Number of worker processes; None for one per core.
        train_command: The command that trains on the folder, to print.

    Returns:
        Exit code 0.

    Raises:
        SystemExit: The command ended early, with the exit code of its error, which is printed.
    """
    continues = "the same command continues"
    with ending_in_one_line(COMMAND, continues), StopSignal(command=COMMAND, continues=continues):
        _check(config, output)
        models = start_models(config, Path(output) / "models")
        config = fill_config(config, models)
        checks.check(config)

        folder = Path(output)
        with locked_folder(
            folder, "--output", f"another process is preparing {folder}; wait for it"
        ):
            index = _finished(config, folder)
            if index is None:
                _LOG.info("preparing %s in %s", config.data.inner, folder)
                index = prepare(config, folder, processes=processes, models=models)
                print(f"prepared {folder}:")
            else:
                print(f"nothing to do: {folder} is prepared, from the same inputs and options:")

    for line in index_lines(index, folder):
        print(f"  {line}")
    print(f"next:  {train_command}")
    return exit_codes.DONE


def _check(config: ConfigDict, output: str) -> None:
    """Refuses what nothing can be prepared from, or into."""
    checks.check(config)
    if config.data.prepared:
        raise ConfigError(
            f"data.prepared={config.data.prepared!r} is prepared already: give data.inner, and the "
            "new folder as --output"
        )
    if "://" in output:
        raise ConfigError(
            f"--output={output}: prepared data lie on a local or mounted file system; a finished "
            "folder can be copied anywhere"
        )
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output: {folder} is not a folder")

    ours = (folder / INDEX).exists() or (folder / WORK).exists()
    others = sorted(path.name for path in folder.glob("*") if path.name != ".lock")
    if others and not ours:
        raise WorkdirError(
            f"--output: {folder} has other files, such as {others[0]}; give a new or an empty "
            "folder"
        )


def _finished(config: ConfigDict, folder: Path) -> Index | None:
    """Returns the index of a folder that is prepared for this config; None if it is unfinished.

    Raises:
        WorkdirError: It is prepared from other inputs or with other options.
    """
    index = read_index(folder)
    if index is None:
        return None
    reason = difference(config, index) or changed_source(config, index, folder)
    if reason:
        raise WorkdirError(
            f"--output: {folder} is prepared already, and runs may be reading it: {reason}. Give "
            "the same inputs and options, or another --output"
        )
    shutil.rmtree(folder / WORK, ignore_errors=True)  # if a command was killed at its very end
    return index


def index_lines(index: Index, folder: Path) -> Iterator[str]:
    """Yields lines with the counts of each set, the rejected records and the size of the folder.

    Args:
        index: Index of the folder.
        folder: The folder.
    """
    rows: list[tuple[str, ...]] = [
        ("set", "documents", "windows", "tokens", "in other sets", "near-duplicates")
    ]
    for role, each in index.sets.items():
        numbers = (
            each.documents,
            each.windows,
            each.tokens,
            each.in_other_sets,
            each.near_duplicates,
        )
        rows.append((role, *(f"{number:,}" for number in numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells])

    # Sets that are shares of one source have its rejected records in common.
    by_source = {each.source: each.rejected for each in index.sets.values()}
    for source, rejected in by_source.items():
        yield f"rejected records of {source}: {_reasons(rejected)}"
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    shards = sum(len(each.shards) for each in index.sets.values())
    yield f"{size / 1e6:,.1f} MB in {folder}, {counted(shards, 'shard')}"


def _reasons(rejected: Mapping[str, int]) -> str:
    """Returns the number of rejected records, and how many have which reason."""
    if not rejected:
        return "0"
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(rejected.items()))
    return f"{sum(rejected.values()):,} ({reasons})"
