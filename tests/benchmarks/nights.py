"""What it costs a night of a batch to find its files, after many nights: time and memory.

    python -m tests.benchmarks.nights --nights 60 --files 20000 --output /tmp/nights

A state folder of that many batches is made, each with its list of files. Then a process of its own
looks, as every night does, for the files of the next date, which are on the disk. `--checkout DIR`
measures another checkout of this repository too, on the same state folder, in turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FIRST = datetime.date(2026, 1, 1)


def make_state(folder: Path, nights: int, files: int) -> None:
    """Makes a configuration, the lists of all nights and the files of the next."""
    from datarater.pipelines.batch.journal import Journal
    from datarater.pipelines.run_folder.layout import json_lines
    from datarater.rater_model.documents.records import FileInfo
    from tests.support.batches import claim, write_config

    folder.mkdir(parents=True)
    write_config(folder)
    journal = Journal(str(folder / "state"))
    for night in range(nights):
        day = (FIRST + datetime.timedelta(night)).isoformat()
        digest = journal.keep(
            "inputs",
            json_lines(
                FileInfo(
                    f"{folder}/in/{day}/part-{number:08d}.jsonl",
                    1000 + number,
                    f"mtime-{10**18 + number * 10**6 + night}-{1000 + number}",
                )
                for number in range(files)
            ),
        )
        assert journal.append(claim(day, digest, files))

    today = folder / "in" / (FIRST + datetime.timedelta(nights)).isoformat()
    today.mkdir(parents=True)
    for number in range(files):
        (today / f"part-{number:08d}.jsonl").touch()


def look(folder: Path, night: int) -> dict[str, Any]:
    """Looks for the files of a night in this process; returns what it took."""
    from datarater.pipelines.batch import config, inputs
    from datarater.pipelines.batch.journal import Journal

    read = config.read_config(str(folder / "batch.yaml"))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    journal = Journal(str(folder / "state"))
    journal.read()
    intake = inputs.find(read, journal, FIRST + datetime.timedelta(night))
    return {
        "files": len(intake.files),
        "seconds": time.process_time() - started,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nights", type=int, default=60, help="batches before this one")
    parser.add_argument("--files", type=int, default=20_000, help="files of a batch")
    parser.add_argument("--rounds", type=int, default=3, help="looks of each checkout")
    parser.add_argument("--checkout", action="append", type=Path, default=[], metavar="DIR")
    parser.add_argument("--output", required=True, type=Path, help="folder for the state folder")
    parser.add_argument("--look", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.look:
        print(json.dumps(look(args.output, args.nights)))
        return

    shutil.rmtree(args.output, ignore_errors=True)
    make_state(args.output, args.nights, args.files)
    here = Path(__file__).parents[2]
    arguments = ["--look", "--output", str(args.output), "--nights", str(args.nights)]
    rows: dict[str, list[dict[str, Any]]] = {}
    for turn in range(args.rounds):
        for checkout in (*args.checkout, here):
            answer = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), *arguments],
                cwd=checkout,
                env={**os.environ, "PYTHONPATH": str(checkout)},
                capture_output=True,
                check=True,
            )
            row = json.loads(answer.stdout.splitlines()[-1])
            rows.setdefault(str(checkout), []).append(row)
            print(
                f"{checkout}, look {turn + 1}: {row['files']:,} files, "
                f"{row['seconds']:.2f} s of processor time, {row['megabytes']:.0f} MB more memory"
            )
    for checkout, measured in rows.items():
        seconds = statistics.median(row["seconds"] for row in measured)
        print(f"{checkout}: median {seconds:.2f} s")


if __name__ == "__main__":
    main()
