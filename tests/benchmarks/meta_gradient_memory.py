"""Memory and time of one meta-gradient, in every arrangement of mixed and of reverse mode.

    python -m tests.benchmarks.meta_gradient_memory --output memory_output

Inner models of about 0.25M and 1M parameters on bytes, length 128, batch 16, T in {2, 4, 8}; the
rater is the default config's. Memory is the compiled program's temporary bytes, which are exact and
exclude arguments and results (parameters, moments, windows, meta-gradient). XLA's CPU scheduler
matters as much as the method, so every arrangement is compiled under both: "concurrent", the
default, and "sequential" (`--xla_cpu_enable_concurrency_optimized_scheduler=false`).

Time is measured for the arrangements in `--timed`, at the T of `--timed_updates`, under the default
scheduler. They take turns, and the medians of their runs are good for ratios only. If other
programs share the machine, use the processor seconds, which are summed over its cores.

The names of the arrangements:

    blocks      every transformer block is recomputed in the backward pass (rematerialise_blocks),
                and blocks run in a scan (scan_blocks), since XLA starts to recompute unrolled ones
                before their turn
    unscanned   ... but blocks run one after the other, without that scan
    products    ... and their most expensive products are kept (save_products)
    updates     every inner update is recomputed (rematerialise_updates)
    saved       ... except its inner gradient, which is kept (save_inner_gradients)
    rater       the rater's activations are recomputed, in micro-batches of 16 windows
                (rater_micro_batch)
    micro       inner and outer batches are processed 4 windows at a time (inner_micro_batch,
                outer_micro_batch)
    unrolled    the T updates run one after the other; otherwise they run in a scan

"reverse, unrolled" is `jax.grad` through the updates; "reverse: updates, blocks, rater" is the
strongest rival arrangement that processes a batch at once. Figures are written to
`meta_gradient_memory.json` one by one, and replace those that the folder contains (with
`--missing`, those are kept), so that the whole can be measured in parts. The tables (Markdown) are
of all figures in the folder. `--runs 0` skips the times. One compilation takes 15 seconds of one
core, the whole matrix almost an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    Windows,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.algorithm.meta_gradient import (
    InnerState,
    MetaGradientConfig,
    make_meta_gradient,
)
from datarater.rater_model.rater import (
    RaterConfig,
    count_parameters,
    initialise_rater,
    score_tokens,
)
from datarater.rater_model.transformer import TransformerConfig
from tests.benchmarks.benchmark_support import machine

LENGTH, BATCH, VOCABULARY = 128, 16, 258
SIZES = {
    "0.25M": TransformerConfig(width=96, heads=4, mlp_width=208, layers=2),
    "1M": TransformerConfig(width=128, heads=4, mlp_width=344, layers=5),
}
SCHEDULERS = {
    "concurrent": "",
    "sequential": "--xla_cpu_enable_concurrency_optimized_scheduler=false",
}
PLAIN, STRONGEST = "reverse, unrolled", "reverse: updates, blocks, rater"


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """One way to compute the same meta-gradient."""

    config: MetaGradientConfig
    transformer: dict[str, Any]


def arrange(name: str) -> Arrangement:
    """Returns the arrangement of a name."""
    mode, *given = re.findall(r"\w+", name)
    micro = 4 if "micro" in given else 0
    return Arrangement(
        MetaGradientConfig(
            mode=mode,
            rematerialise_updates="updates" in given,
            save_inner_gradients="saved" in given,
            scan_updates="unrolled" not in given,
            inner_micro_batch=micro,
            outer_micro_batch=micro,
            rater_micro_batch=16 if "rater" in given else 0,
        ),
        {
            "rematerialise_blocks": "blocks" in given,
            "scan_blocks": "blocks" in given and "unscanned" not in given,
            "save_products": "products" in given,
        },
    )


# {reverse, mixed} x {block remat} x {saved inner gradients}, then other ways to save or spend
# memory.
MATRIX = [
    f"{mode}: updates{saved}{blocks}"
    for mode in ("reverse", "mixed")
    for blocks in ("", ", blocks")
    for saved in ("", " saved")
]
ARRANGEMENTS = [
    PLAIN,
    *MATRIX,
    STRONGEST,
    "mixed: updates saved, blocks, rater",
    "mixed: updates saved, blocks products, rater",
    "reverse: updates, blocks products, rater",
    "reverse: updates, blocks, rater, micro",
    "mixed: updates saved, blocks, rater, micro",
]
OTHERS = [
    "mixed, unrolled",
    "mixed",
    "mixed: blocks",
    "mixed: blocks unscanned",
    "mixed: blocks unscanned, unrolled",
    "mixed: updates saved, blocks unscanned, rater",
    "reverse",
    "reverse: blocks",
    "reverse: updates, blocks unscanned",
]
TIMED = [PLAIN, STRONGEST, *ARRANGEMENTS[-5:]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled meta-gradient with its arguments."""

    compiled: jax.stages.Compiled
    arguments: tuple[Any, ...]
    figures: dict[str, Any]

    def run(self) -> tuple[float, float]:
        """Runs once; returns seconds and processor seconds."""
        started, processor_started = time.monotonic(), time.process_time()
        jax.block_until_ready(self.compiled(*self.arguments))
        return time.monotonic() - started, time.process_time() - processor_started


def build(size: str, updates: int, name: str, to_run: bool = True) -> Program:
    """Compiles one arrangement.

    Args:
        size: Size of the inner model, a key of `SIZES`.
        updates: T, the inner updates.
        name: Name of the arrangement.
        to_run: Whether the program will be run. If not, machine code is not optimized, which
            changes no buffer and saves time.

    Returns:
        The program; its figures are the temporary bytes, the inner model's parameters and the
        seconds of compiling.
    """
    arrangement = arrange(name)
    model = LanguageModelConfig(
        VOCABULARY, dataclasses.replace(SIZES[size], **arrangement.transformer)
    )
    rater = RaterConfig(VOCABULARY, LENGTH, TransformerConfig(64, 2, 128, 1))
    optimiser = optax.adam(3e-3, eps=0.0, eps_root=1e-8)

    keys = jax.random.split(jax.random.key(0), 4)
    theta, eta = initialise_language_model(model, keys[0]), initialise_rater(rater, keys[1])

    def windows(key: jax.Array, *shape: int) -> Windows:
        tokens = jax.random.randint(key, (*shape, LENGTH), 0, VOCABULARY, jnp.int32)
        return Windows(tokens, jnp.full(shape, LENGTH, jnp.int32))

    function = make_meta_gradient(
        lambda params, batch: score_tokens(rater, params, *batch),
        lambda params, batch: sequence_losses(model, params, batch),
        optimiser,
        arrangement.config,
    )
    arguments = (
        eta,
        InnerState(theta, optimiser.init(theta), jnp.int32(0)),
        windows(keys[2], updates, BATCH),
        windows(keys[3], BATCH),
    )

    started = time.monotonic()
    options: dict[str, str | bool] = {} if to_run else {"xla_backend_optimization_level": "0"}
    compiled = jax.jit(function).lower(*arguments).compile(options)
    memory: Any = compiled.memory_analysis()
    return Program(
        compiled,
        arguments,
        {
            "parameters": count_parameters(theta),
            "temporary_bytes": memory.temp_size_in_bytes,
            "compile_seconds": time.monotonic() - started,
        },
    )


def measure(
    size: str, updates: int, names: Sequence[str], timed: Sequence[str], runs: int
) -> Iterator[dict[str, Any]]:
    """Yields the figures of each arrangement when it is compiled, and again when it is timed.

    Args:
        size: Size of the inner model, a key of `SIZES`.
        updates: T, the inner updates.
        names: Names of the arrangements.
        timed: Names of those to time.
        runs: Timed runs of each; the arrangements take turns, after one untimed run of each.
    """
    programs = {}
    for name in names:
        to_run = bool(runs) and name in timed
        program = build(size, updates, name, to_run)
        yield {"arrangement": name, **program.figures}
        if to_run:
            programs[name] = program

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(runs + 1):
        for name, program in programs.items():
            seconds[name].append(program.run())

    for name, program in programs.items():
        step, processor = (statistics.median(kind) for kind in zip(*seconds[name][1:], strict=True))
        times = {"runs": runs, "step_seconds": step, "step_processor_seconds": processor}
        yield {"arrangement": name, **program.figures, **times}


def measure_in_processes(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields every requested figure; each scheduler has a process, since XLA reads flags once."""
    for scheduler in arguments.schedulers:
        command = [sys.executable, "-m", "tests.benchmarks.meta_gradient_memory"]
        command += ["--child", scheduler, "--runs", str(arguments.runs)]
        command += ["--output", str(arguments.output), *["--missing"] * arguments.missing]
        for name in ("sizes", "updates", "arrangements", "timed", "timed_updates"):
            command += [f"--{name}", *map(str, getattr(arguments, name))]
        flags = f"{os.environ.get('XLA_FLAGS', '')} {SCHEDULERS[scheduler]}".strip()
        with subprocess.Popen(
            command, env={**os.environ, "XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                yield json.loads(line)
        if child.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")


def run_child(arguments: argparse.Namespace) -> None:
    """Measures under one scheduler and prints each figure as a line of JSON."""
    default = next(iter(SCHEDULERS))
    for size in arguments.sizes:
        for updates in arguments.updates:
            runs = (
                arguments.runs
                if arguments.child == default and updates in arguments.timed_updates
                else 0
            )
            existing = read_figures(arguments.output) if arguments.missing else {}
            names = [
                n
                for n in arguments.arrangements
                if (size, updates, arguments.child, n) not in existing
            ]

            for figure in measure(size, updates, names, arguments.timed, runs):
                print(
                    json.dumps(
                        {"size": size, "updates": updates, "scheduler": arguments.child, **figure}
                    ),
                    flush=True,
                )


PLACE = ("size", "updates", "scheduler", "arrangement")
FILE = "meta_gradient_memory.json"


def read_figures(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Returns the figures in a folder, by size, T, scheduler and arrangement."""
    path = folder / FILE
    figures = json.loads(path.read_text())["figures"] if path.exists() else []
    return {tuple(figure[name] for name in PLACE): figure for figure in figures}


def memory_table(figures: Sequence[dict[str, Any]], size: str) -> list[str]:
    """Returns a Markdown table's lines for one size: temporary MB by scheduler and T."""
    by_place = {
        tuple(figure[name] for name in PLACE[1:]): figure
        for figure in figures
        if figure["size"] == size
    }
    columns = sorted({place[:2] for place in by_place})
    present = {place[2] for place in by_place}
    names = [name for name in (*ARRANGEMENTS, *OTHERS) if name in present]
    heads = [f"T={updates} {scheduler}" for updates, scheduler in columns]
    lines = [f"| temporary MB, {size} | {' | '.join(heads)} |", "|---|" + "---:|" * len(columns)]
    for name in names:
        cells = [by_place.get((*column, name)) for column in columns]
        shown = [f"{cell['temporary_bytes'] / 1e6:.0f}" if cell else "" for cell in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def time_table(figures: Sequence[dict[str, Any]], size: str, updates: int) -> list[str]:
    """Returns a Markdown table's lines for the timed arrangements of one size and T."""
    rows = [
        f for f in figures if (f["size"], f["updates"]) == (size, updates) and "step_seconds" in f
    ]
    named = {row["arrangement"]: row for row in rows}
    if STRONGEST not in named:
        return []
    head = f"{size}, T={updates}, medians of {rows[0]['runs']} runs"
    columns = (
        "MB",
        "of plain",
        "of strongest",
        "step s",
        "of strongest",
        "processor s",
        "of strongest",
    )
    lines = [f"| {head} | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]

    def ratio(row: dict[str, Any], to: str, field: str) -> str:
        return f"{row[field] / named[to][field]:.2f}" if to in named else ""

    for name in (name for name in (*ARRANGEMENTS, *OTHERS) if name in named):
        row = named[name]
        cells = [f"{row['temporary_bytes'] / 1e6:.0f}", ratio(row, PLAIN, "temporary_bytes")]
        cells += [ratio(row, STRONGEST, "temporary_bytes")]
        for field in ("step_seconds", "step_processor_seconds"):
            cells += [f"{row[field]:.2f}", ratio(row, STRONGEST, field)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def processor_table(figures: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a Markdown table's lines: processor seconds of a step, and the ratio to STRONGEST."""
    timed = {
        (f["size"], f["updates"], f["arrangement"]): f["step_processor_seconds"]
        for f in figures
        if "runs" in f
    }
    columns = sorted({place[:2] for place in timed if (*place[:2], STRONGEST) in timed})
    lines = [f"| processor s | {' | '.join(f'{size}, T={updates}' for size, updates in columns)} |"]
    lines += ["|---|" + "---:|" * len(columns)]

    for name in (*ARRANGEMENTS, *OTHERS):
        if any((*column, name) in timed for column in columns):
            pairs = [
                (timed.get((*column, name)), timed[(*column, STRONGEST)]) for column in columns
            ]
            cells = [
                "" if own is None else f"{own:.2f} ({own / strongest:.2f})"
                for own, strongest in pairs
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines if columns else []


def show(figures: Sequence[dict[str, Any]]) -> None:
    """Prints the tables, as Markdown."""
    for size in sorted({figure["size"] for figure in figures}):
        parameters = next(figure["parameters"] for figure in figures if figure["size"] == size)
        floor = 3 * parameters * np.dtype(np.float32).itemsize / 1e6
        print(
            f"\n{size}: {parameters:,} parameters; parameters and moments alone take "
            f"T x {floor:.0f} MB\n"
        )
        print("\n".join(memory_table(figures, size)))
    for size, updates in sorted({(figure["size"], figure["updates"]) for figure in figures}):
        print("\n".join(["", *time_table(figures, size, updates)]))
    print("\n".join(["", *processor_table(figures)]))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("memory_output"), help="folder for the figures"
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sizes of the inner model"
    )
    parser.add_argument("--updates", nargs="+", type=int, default=[2, 4, 8], help="values of T")
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    every = [*ARRANGEMENTS, *OTHERS]
    parser.add_argument(
        "--arrangements", nargs="+", choices=every, default=ARRANGEMENTS, metavar="NAME"
    )
    parser.add_argument("--timed", nargs="*", choices=every, default=TIMED, metavar="NAME")
    parser.add_argument(
        "--timed_updates", nargs="+", type=int, default=[2], help="values of T to time at"
    )
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each; 0 for memory only")
    parser.add_argument(
        "--missing", action="store_true", help="measure only figures that are not in the folder"
    )
    parser.add_argument(
        "--show", action="store_true", help="measure nothing, print the tables of existing figures"
    )
    parser.add_argument("--child", choices=SCHEDULERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        run_child(arguments)
        return

    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / FILE
    figures = read_figures(arguments.output)
    for figure in () if arguments.show else measure_in_processes(arguments):
        figures[tuple(figure[name] for name in PLACE)] = figure
        step = (
            f", {figure['step_processor_seconds']:.2f} processor s"
            if "step_seconds" in figure
            else ""
        )
        place = f"{figure['size']} T={figure['updates']} {figure['scheduler']}"
        print(
            f"{place}: {figure['arrangement']}: {figure['temporary_bytes'] / 1e6:.1f} MB{step}",
            flush=True,
        )
        everything = {
            "machine": machine(),
            "length": LENGTH,
            "batch": BATCH,
            "figures": list(figures.values()),
        }
        path.write_text(json.dumps(everything, indent=1))
    show(list(figures.values()))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
