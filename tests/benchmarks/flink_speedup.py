r"""Speed-up of scoring on Flink from one worker to two, and its share of the ideal.

    python -m tests.benchmarks.flink_speedup --corpus '../shared/corpora/dev/*' \
        --output flink_speedup_output

The benchmark starts a cluster of two task managers and curates the corpus on it at parallelism 1
and 2 in turn, `--rounds` times, each time into a run folder of its own, with `--max_windows 4` and
an untrained rater of the default config's size. The kept documents of every run are compared with
those of the in-process runner, document by document.

Only the scoring step is timed, from the job manager's records. On a machine with other work,
seconds tell as much about that work as about ours, so the processor time of the worker processes
within the step is measured as well: two workers on two free cores take as long as the busier one
computes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import jax
import numpy as np

from datarater.rater_model.checkpoint import RaterCheckpoint, save_rater
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig
from deploy.flink import cluster as flink
from deploy.flink import supervisor
from tests.benchmarks.benchmark_support import machine
from tests.support import ROOT
from tests.support.runners import outcome

WORKERS = (1, 2)
SELECTION = "keep-0.5"
SCORING_STEP = "Score split"
SAMPLE_SECONDS = 0.1
TICKS = 100  # per second, in /proc


@dataclasses.dataclass(frozen=True)
class Measured:
    """The scoring step of one run.

    Attributes:
        workers: Number of workers requested.
        seconds: Seconds from the first worker's start to the last one's end.
        processor_seconds: Processor seconds of each worker process within the step, in descending
            order.
        same: Whether the kept documents equal those of the in-process runner.
    """

    workers: int
    seconds: float
    processor_seconds: list[float]
    same: bool


class ProcessorTimes(threading.Thread):
    """Samples the processor time of the worker processes that a cluster's pools started.

    Args:
        folder: Folder of the cluster.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._logs = folder / supervisor.LOGS
        self._ended = threading.Event()
        self._samples: dict[int, list[tuple[float, float]]] = {}

    def run(self) -> None:
        """Samples until `end` is called."""
        while not self._ended.wait(SAMPLE_SECONDS):
            for log in self._logs.glob("worker-pool-*.log"):
                for pid in map(
                    int, re.findall(r"worker [0-9-]+ is process (\d+)", log.read_text())
                ):
                    used = _processor_seconds(pid)
                    if used is not None:
                        self._samples.setdefault(pid, []).append((time.time(), used))

    def end(self) -> None:
        """Stops sampling."""
        self._ended.set()
        self.join()

    def between(self, begin: float, end: float) -> list[float]:
        """Returns each busy process's seconds between two times, in descending order."""
        used = []
        for samples in self._samples.values():
            times, seconds = np.asarray(samples).T
            used.append(float(np.diff(np.interp([begin, end], times, seconds))[0]))
        return sorted((seconds for seconds in used if seconds > 0.05), reverse=True)


def _processor_seconds(pid: int) -> float | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS


def scoring_step(master: str, job: str) -> tuple[float, float]:
    """Returns begin and end of a job's scoring step, in seconds since 1970.

    Args:
        master: HOST:PORT of the cluster's job manager.
        job: Name of the job.
    """

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"http://{master}{path}") as answer:
            return json.load(answer)

    job_id = next(j["jid"] for j in get("/jobs/overview")["jobs"] if j["name"] == job)
    vertex = next(v for v in get(f"/jobs/{job_id}")["vertices"] if SCORING_STEP in v["name"])
    subtasks = get(f"/jobs/{job_id}/vertices/{vertex['id']}")["subtasks"]
    return min(s["start-time"] for s in subtasks) / 1000, max(
        s["end-time"] for s in subtasks
    ) / 1000


def curate(corpus: str, rater: Path, output: Path, flags: list[str]) -> None:
    """Curates by the command, whose output goes to a log beside the run folder.

    Raises:
        RuntimeError: If the command fails.
    """
    log = output.with_name(output.name + ".log")
    command = [
        sys.executable,
        "-m",
        "datarater",
        "curate",
        "--input",
        corpus,
        "--rater",
        str(rater),
        "--output",
    ]
    command += [
        str(output),
        "--keep_fraction",
        "0.5",
        "--max_windows",
        "4",
        "--workers_to_fill",
        "2",
        *flags,
    ]

    with open(log, "w") as file:
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, check=False
        ).returncode
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}; see {log}")


def write_rater(path: Path) -> None:
    """Writes an untrained rater of the default config's size."""
    shape = TransformerConfig(width=64, heads=2, mlp_width=128, layers=1)
    config = RaterConfig(window=256, transformer=shape, ngram_orders=(2,), ngram_rows=8192)
    save_rater(
        path, RaterCheckpoint(config, initialise_rater(config, jax.random.key(0)), ByteTokenizer())
    )


def measure(corpus: str, output: Path, rounds: int) -> dict[str, Any]:
    """Curates in process, then on Flink with one worker and with two in turn; returns the figures.

    Args:
        corpus: Glob of the corpus.
        output: Folder for the runs.
        rounds: Runs with each number of workers.
    """
    rater, folder = output / "rater", output / "cluster"
    write_rater(rater)
    curate(corpus, rater, output / "in_process", [])
    expected = outcome(output / "in_process", SELECTION)

    cluster = flink.up(folder, ROOT / flink.DEFAULT_FOLDER, until_exit=True)
    runs: list[Measured] = []
    try:
        for number in range(rounds):
            for workers in WORKERS if number % 2 == 0 else reversed(WORKERS):
                name = f"workers-{workers}-round-{number}"
                times = ProcessorTimes(folder)
                times.start()
                curate(
                    corpus,
                    rater,
                    output / name,
                    [*cluster.flags(), f"--parallelism={workers}", f"--job_name={name}"],
                )
                times.end()
                begin, end = scoring_step(cluster.flink_master, name)
                same = outcome(output / name, SELECTION) == expected
                runs.append(Measured(workers, end - begin, times.between(begin, end), same))
                print(runs[-1], flush=True)
    finally:
        flink.down(folder)

    return {
        "documents": len(expected["scores"]),
        "kept": len(expected["kept"]),
        "runs": [dataclasses.asdict(run) for run in runs],
        "all_same": all(run.same for run in runs),
        **figures(runs),
        "machine": machine(),
    }


def figures(runs: list[Measured]) -> dict[str, Any]:
    """Returns the medians of several runs, and the speed-up from one worker to two.

    Args:
        runs: Runs with one worker and with two.
    """

    def median(workers: int, of: str) -> float:
        values = {
            "seconds": [run.seconds for run in runs if run.workers == workers],
            "busiest": [run.processor_seconds[0] for run in runs if run.workers == workers],
            "all": [sum(run.processor_seconds) for run in runs if run.workers == workers],
        }
        return statistics.median(values[of])

    medians = {
        of: [median(workers, of) for workers in WORKERS] for of in ("seconds", "busiest", "all")
    }
    return {
        "medians": medians,
        "speed_up_by_the_clock": medians["seconds"][0] / medians["seconds"][1],
        "speed_up_by_processor_time": medians["busiest"][0] / medians["busiest"][1],
    }


def table(report: dict[str, Any]) -> str:
    """Returns the report as Markdown."""
    medians = report["medians"]
    lines = [
        "| workers | scoring step, s | processor s of the busier worker | processor s of all |",
        "|---|---|---|---|",
    ]
    for index, workers in enumerate(WORKERS):
        row = (f"{medians[of][index]:.1f}" for of in ("seconds", "busiest", "all"))
        lines.append(f"| {workers} | {' | '.join(row)} |")

    for name in ("clock", "processor_time"):
        speed_up = report[f"speed_up_by_{'the_' if name == 'clock' else ''}{name}"]
        lines.append(
            f"speed-up by {name.replace('_', ' ')}: {speed_up:.2f}, {speed_up / 2:.0%} of the ideal"
        )

    same = sum(run["same"] for run in report["runs"])
    lines.append(
        f"{same} of {len(report['runs'])} runs keep the same documents as the in-process runner "
        f"({report['kept']:,} of {report['documents']:,})"
    )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table and writes `flink_speedup.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, metavar="GLOB", help="JSONL files")
    parser.add_argument(
        "--output", required=True, type=Path, help="folder for the runs; an existing one is removed"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="runs with each number of workers; default: %(default)s",
    )
    args = parser.parse_args()

    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    report = measure(str(Path(args.corpus).absolute()), args.output.absolute(), args.rounds)
    (args.output / "flink_speedup.json").write_text(json.dumps(report, indent=1))
    print(table(report))


if __name__ == "__main__":
    main()
