"""Share of a meta-step in which the device waits for Python, in this checkout and in others.

    git worktree add ../before b6061e8
    python -m tests.benchmarks.device_wait --checkouts ../before . --json device_wait.json

Each checkout runs its own training loop, with the default config's batches, population and
progress lines, in a process of its own. Its meta-step is replaced by one that takes a fixed time
and no processor time, as a step on an accelerator does: a thread that sleeps, and notes when it
begins and ends. The wait is what lies between the end of a step and the start of the next.
Checkouts take turns, so that a busy machine is equally busy for all.

The share that a real run waits depends on the length of its steps, so several are measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# The program of a child, which imports the modules of its own checkout.
CHILD = """
import json, queue, sys, threading, time
from pathlib import Path
import numpy as np
from datarater.meta_training import loop
from datarater.meta_training.algorithm.meta_step import MetaStepMetrics
from datarater.meta_training.configs import default
from datarater.meta_training.run.preparation import prepare_in_workdir
from datarater.meta_training.run.prepared_run import open_experiment
from datarater.meta_training.run.stopping import StopSignal
from datarater.meta_training.run.workdir import Workdir

folder, seconds, steps = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
pool = folder / "pool.jsonl"
pool.write_text("".join(json.dumps({"text": f"document {i} " * 200}) + "\\n" for i in range(400)))
config = default.get_config()
config.data.inner, config.meta_steps = str(pool), steps
config.export_every = config.checkpoint_every = steps
config.population.warmup_steps, config.population.lifetime = 0, 0
config.export.reference_documents = 4
times, work = [], queue.Queue()

def device():
    while True:
        done = work.get()
        started = time.monotonic()
        time.sleep(seconds)
        times.append((started, time.monotonic()))
        done.set()

class Metric:
    # A metric of a step, which is there once the device has done the step.

    def __init__(self, shape, done):
        self.shape, self.done = shape, done

    def copy_to_host_async(self):
        pass

    def __array__(self, dtype=None, copy=None):
        self.done.wait()
        return np.full(self.shape, 0.5, np.float32)

def make_meta_step(*_, **__):
    size = config.population.size
    shapes = {"PxK": (size, 1), "P": (size,)}

    def step(state, inner, outer):
        done = threading.Event()
        work.put(done)
        return state, MetaStepMetrics(**{
            name: Metric(shapes.get(name.rpartition("_")[2], ()), done)
            for name in MetaStepMetrics._fields
        })

    return step

threading.Thread(target=device, daemon=True).start()
loop.make_meta_step = make_meta_step
with Workdir(folder / "work") as workdir, StopSignal() as stop:
    prepare_in_workdir(config, workdir.prepared, None, workdir.run.exists())
    loop.train(open_experiment(config, workdir.prepared), workdir, stop)
print(json.dumps(times))
"""
SKIPPED = 10  # first and last steps, with compilation and exports


def waits(checkout: Path, seconds: float, steps: int) -> tuple[list[float], list[float]]:
    """Returns the device's wait before each step, and the times between the ends of steps.

    Args:
        checkout: Folder of the checkout.
        seconds: Time of a step on the device.
        steps: Number of meta-steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run(
            [sys.executable, "-c", CHILD, folder, str(seconds), str(steps)],
            cwd=checkout,  # Python looks for modules there first
            env={**os.environ, "PYTHONPATH": str(checkout.resolve()), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
    if child.returncode:
        raise RuntimeError(f"the loop of {checkout} failed: {child.stderr[-2000:]}")
    times = json.loads(child.stdout.splitlines()[-1])[SKIPPED:-SKIPPED]
    pairs = list(itertools.pairwise(times))
    return (
        [now[0] - before[1] for before, now in pairs],
        [now[1] - before[1] for before, now in pairs],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkouts", nargs="+", type=Path, default=[Path(".")], help="folders")
    parser.add_argument(
        "--milliseconds", nargs="+", type=float, default=[10, 50, 200], help="times of a step"
    )
    parser.add_argument("--steps", type=int, default=60, help="meta-steps of each run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each checkout and time")
    parser.add_argument("--json", type=Path, help="file to write the results to as well")
    arguments = parser.parse_args(argv)

    rows = []
    print("| checkout | step, ms | wait, ms | share of the time in which the device waits |")
    print("|---|---:|---:|---:|")
    for milliseconds in arguments.milliseconds:
        measured: dict[Path, list[tuple[list[float], list[float]]]] = {}
        for _ in range(arguments.rounds):
            for checkout in arguments.checkouts:
                measured.setdefault(checkout, []).append(
                    waits(checkout, milliseconds / 1000, arguments.steps)
                )
        for checkout, runs in measured.items():
            wait, total = (list(itertools.chain(*lists)) for lists in zip(*runs, strict=True))
            row = {
                "checkout": str(checkout),
                "step_ms": milliseconds,
                "wait_ms_median": 1000 * statistics.median(wait),
                "wait_share": sum(wait) / sum(total),
            }
            rows.append(row)
            print(
                f"| {checkout} | {milliseconds:g} | {row['wait_ms_median']:.1f} "
                f"| {row['wait_share']:.1%} |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
