"""Seconds of a meta-step in this checkout and in others, which take turns.

    git worktree add ../before COMMIT
    python -m tests.benchmarks.step_time --checkouts ../before . --rounds 20

Each checkout runs the compiled meta-step of its config `corruption` in a process of its own, with
the sizes of the last checkout's config, so that all do the same work. How the meta-gradient is
computed remains each checkout's choice. After one meta-step of one checkout comes one of the next,
so that a busy machine is equally busy for all. The windows are random, since the time does not
depend on their content. Checkouts must have the package layout of this one.

The benchmark prints medians of seconds and of processor seconds over all cores, which are what
counts when other programs share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The program of a child, which imports the modules of its own checkout.
CHILD = """
import functools, json, sys, time
import jax, numpy as np
from datarater.meta_training.algorithm.language_model import (
    Windows, initialise_language_model, sequence_losses
)
from datarater.meta_training.algorithm.meta_gradient import make_meta_gradient
from datarater.meta_training.algorithm.meta_step import initial_meta_state, make_meta_step
from datarater.meta_training.algorithm.population import fresh_inner_state, stack
from datarater.meta_training.config import build
from datarater.meta_training.configs import corruption
from datarater.rater_model.rater import initialise_rater, score_tokens
from datarater.rater_model.tokenizer import ByteTokenizer

config = corruption.get_config()
print(config.to_json(), flush=True)
sizes = json.loads(sys.stdin.readline())
for section in ("rater", "inner_model", "population"):
    for name, value in sizes[section].items():
        if name in config[section]:
            config[section][name] = tuple(value) if isinstance(value, list) else value
for name in ("length", "inner_updates", "inner_batch", "outer_batch"):
    config[name] = sizes[name]

rater = build.rater_config(config, ByteTokenizer())
model = build.language_model_config(config, ByteTokenizer())
optimiser, meta_optimiser = build.inner_optimiser(config), build.meta_optimiser(config)
key, size = jax.random.key(0), config.population.size
member = fresh_inner_state(functools.partial(initialise_language_model, model), optimiser, key)
state = initial_meta_state(initialise_rater(rater, key), stack([member] * size), meta_optimiser)
meta_gradient = make_meta_gradient(
    lambda params, windows: score_tokens(rater, params, *windows),
    functools.partial(sequence_losses, model),
    optimiser,
    build.meta_gradient_config(config),
)
step = make_meta_step(meta_gradient, meta_optimiser)
rng = np.random.default_rng(0)

def windows(*shape):
    tokens = rng.integers(0, 256, (size, *shape, config.length)).astype(np.int32)
    return Windows(tokens, np.full((size, *shape), config.length, np.int32))

inner, outer = windows(config.inner_updates, config.inner_batch), windows(config.outer_batch)
for _ in sys.stdin:
    started, processor_started = time.monotonic(), time.process_time()
    state, metrics = step(state, inner, outer)
    jax.block_until_ready(state)
    seconds = time.monotonic() - started, time.process_time() - processor_started
    print(json.dumps(seconds), flush=True)
"""


class Checkout:
    """A checkout's meta-step in a process of its own.

    Args:
        folder: Folder of the checkout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env={**os.environ, "PYTHONPATH": str(folder.resolve()), "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.config = self._answer()

    def say(self, line: str) -> None:
        """Sends one line to the process."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def step(self) -> list[float]:
        """Runs one meta-step; returns seconds and processor seconds."""
        self.say("")
        return [float(value) for value in json.loads(self._answer())]

    def end(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the meta-step of {self.folder} ended with {self._process.wait()}")
        return line.strip()


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkouts",
        nargs="+",
        type=Path,
        default=[Path(".")],
        help="folders; the last one sets the sizes",
    )
    parser.add_argument("--rounds", type=int, default=20, help="timed meta-steps of each checkout")
    arguments = parser.parse_args(argv)

    checkouts = [Checkout(folder) for folder in arguments.checkouts]
    for checkout in checkouts:
        checkout.say(checkouts[-1].config)
        checkout.step()  # compiles
    seconds: list[list[list[float]]] = [[] for _ in checkouts]
    for _ in range(arguments.rounds):
        for checkout, steps in zip(checkouts, seconds, strict=True):
            steps.append(checkout.step())

    title = f"meta-step, medians of {arguments.rounds}"
    print(f"| {title} | seconds | of the first | processor s | of the first |")
    print("|---|---:|---:|---:|---:|")
    medians = [[statistics.median(kind) for kind in zip(*steps, strict=True)] for steps in seconds]
    for checkout, median in zip(checkouts, medians, strict=True):
        cells = [
            f"{value:.2f} | {value / first:.2f}"
            for value, first in zip(median, medians[0], strict=True)
        ]
        print(f"| {checkout.folder} | {' | '.join(cells)} |")
        checkout.end()


if __name__ == "__main__":
    main()
