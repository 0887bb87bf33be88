"""Memory and time of one meta-gradient, in every arrangement of mixed and of reverse mode.

    python tests/benchmarks/meta_gradient_memory.py --output memory_output

Inner models of about 0.25M and 1M parameters on bytes, length 128, batch 16, T in {2, 4, 8}; the rater is the default
config's. Memory is the compiled program's temporary bytes, which are exact and do not hold the arguments and results
(parameters, moments, windows, meta-gradient). Time is the median of a few runs, and good for ratios within one run of
the benchmark only; where other programs share the machine, go by the processor's seconds, summed over its cores.

XLA's CPU scheduler weighs as much as the method, so every arrangement is compiled under both: "concurrent", its
default, and "sequential" (`--xla_cpu_enable_concurrency_optimized_scheduler=false`).

What the names of the arrangements mean:

    blocks      every transformer block is recomputed in the backward pass (rematerialise_blocks)
    looped      blocks run in a scan, so that none is recomputed before its turn (scan_blocks)
    updates     every inner update is recomputed (rematerialise_updates)
    saved       ... but for its inner gradient, which is kept (save_inner_gradients)
    rater       the rater's activations are recomputed, by micro-batches of 16 windows (rater_micro_batch)
    micro       inner and outer batches are taken 4 windows at a time (inner_micro_batch, outer_micro_batch)
    unrolled    the T updates one after the other; the others run them in a scan

"reverse, unrolled" is what `jax.grad` through the updates gives, "reverse: updates, blocks" the strongest rival
arrangement of the same batches. Figures are printed as they come and kept in `meta_gradient_memory.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, from any folder

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from meta_training.language_model import (
    LanguageModelConfig,
    Windows,
    initialise_language_model,
    sequence_losses,
)
from meta_training.meta_gradient import InnerState, MetaGradientConfig, make_meta_gradient
from rater_model.rater import RaterConfig, count_parameters, initialise_rater, score_tokens
from rater_model.transformer import TransformerConfig
from tests.benchmarks.benchmark_support import machine

LENGTH, BATCH, VOCABULARY = 128, 16, 258
SIZES = {
    "0.25M": TransformerConfig(width=96, heads=4, mlp_width=208, layers=2),
    "1M": TransformerConfig(width=128, heads=4, mlp_width=344, layers=5),
}
SCHEDULERS = {"concurrent": "", "sequential": "--xla_cpu_enable_concurrency_optimized_scheduler=false"}
PLAIN, STRONGEST = "reverse, unrolled", "reverse: updates, blocks"


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """One way to the same meta-gradient."""

    config: MetaGradientConfig
    blocks: bool = False
    looped: bool = False


def _arrange(mode: str, words: str, scan: bool = True) -> Arrangement:
    given = set(words.split())
    return Arrangement(
        MetaGradientConfig(
            mode=mode,
            rematerialise_updates="updates" in given,
            save_inner_gradients="saved" in given,
            scan_updates=scan,
            inner_micro_batch=4 if "micro" in given else 0,
            outer_micro_batch=4 if "micro" in given else 0,
            rater_micro_batch=16 if "rater" in given else 0,
        ),
        "blocks" in given,
        "looped" in given,
    )


ARRANGEMENTS = {
    PLAIN: _arrange("reverse", "", scan=False),
    STRONGEST: _arrange("reverse", "updates blocks"),
    "mixed: blocks": _arrange("mixed", "blocks"),
    "reverse: updates, blocks looped": _arrange("reverse", "updates blocks looped"),
    "reverse: updates, blocks looped, rater": _arrange("reverse", "updates blocks looped rater"),
    "mixed: updates saved, blocks looped": _arrange("mixed", "updates saved blocks looped"),
    "mixed: updates saved, blocks looped, rater": _arrange("mixed", "updates saved blocks looped rater"),
    "mixed: updates saved, blocks looped, rater, micro": _arrange("mixed", "updates saved blocks looped rater micro"),
    "mixed: updates saved, blocks": _arrange("mixed", "updates saved blocks"),
    "mixed: updates saved, blocks, rater": _arrange("mixed", "updates saved blocks rater"),
    "mixed: updates saved, blocks, rater, micro": _arrange("mixed", "updates saved blocks rater micro"),
    "mixed, unrolled": _arrange("mixed", "", scan=False),
    "mixed: blocks, unrolled": _arrange("mixed", "blocks", scan=False),
    "mixed: updates saved, blocks, rater, unrolled": _arrange("mixed", "updates saved blocks rater", scan=False),
    "reverse: updates, blocks, rater": _arrange("reverse", "updates blocks rater"),
    "reverse: updates, blocks, rater, micro": _arrange("reverse", "updates blocks rater micro"),
    "reverse: updates saved, blocks": _arrange("reverse", "updates saved blocks"),
    "reverse: updates": _arrange("reverse", "updates"),
    "reverse: blocks": _arrange("reverse", "blocks"),
    "reverse": _arrange("reverse", ""),
    "mixed: updates saved": _arrange("mixed", "updates saved"),
    "mixed: updates, blocks": _arrange("mixed", "updates blocks"),
    "mixed": _arrange("mixed", ""),
}


def measure(size: str, updates: int, name: str, runs: int) -> dict[str, Any]:
    """Compiles one arrangement and runs it.

    Args:
        size: of the inner model, a key of `SIZES`.
        updates: T.
        name: a key of `ARRANGEMENTS`.
        runs: timed runs; 0 to compile only.

    Returns:
        Temporary bytes, seconds of compiling and of a run, and the norm of the meta-gradient.
    """
    arrangement = ARRANGEMENTS[name]
    shape = dataclasses.replace(SIZES[size], rematerialise_blocks=arrangement.blocks, scan_blocks=arrangement.looped)
    model = LanguageModelConfig(VOCABULARY, shape)
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
    compiled = jax.jit(function).lower(*arguments).compile()
    found: dict[str, Any] = {
        "compile_seconds": time.monotonic() - started,
        "parameters": count_parameters(theta),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,  # type: ignore[union-attr]
    }
    seconds, processor_seconds = [], []
    for _ in range(runs + 1 if runs else 0):  # the first is not counted
        started, processor_started = time.monotonic(), time.process_time()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.monotonic() - started)
        processor_seconds.append(time.process_time() - processor_started)
    if runs:
        found["step_seconds"] = statistics.median(seconds[1:])
        found["step_processor_seconds"] = statistics.median(processor_seconds[1:])
        found["meta_gradient_norm"] = float(optax.global_norm(result.gradient))
    return found


def measure_in_processes(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields every figure asked for; a process for each scheduler, since XLA reads its flags once."""
    for scheduler in arguments.schedulers:
        command = [sys.executable, __file__, "--child", scheduler, "--runs", str(arguments.runs)]
        for name in ("sizes", "updates", "arrangements"):
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
    """Measures under one scheduler, and prints each figure as a line of JSON."""
    for size in arguments.sizes:
        for updates in arguments.updates:
            for name in arguments.arrangements:
                found = measure(size, updates, name, arguments.runs)
                place = {"size": size, "updates": updates, "scheduler": arguments.child, "arrangement": name}
                print(json.dumps({**place, **found}), flush=True)


def show(figures: list[dict[str, Any]], console: Console) -> None:
    """Prints a table for each size, T and scheduler, with ratios to plain and to strongest reverse mode."""
    for key in sorted({(f["size"], f["updates"], f["scheduler"]) for f in figures}):
        rows = [f for f in figures if (f["size"], f["updates"], f["scheduler"]) == key]
        named = {row["arrangement"]: row for row in rows}
        floor = 3 * key[1] * rows[0]["parameters"] * np.dtype(np.float32).itemsize
        table = Table(
            title=f"{key[0]} ({rows[0]['parameters']:,} parameters), T={key[1]}, {key[2]} scheduler; "
            f"T x (parameters and moments) is {floor / 1e6:.0f} MB",
            title_justify="left",
        )
        for column in (
            "arrangement",
            "temporary MB",
            "of plain",
            "of strongest",
            "step s",
            "of strongest ",
            "processor s",
            "of strongest  ",
        ):
            table.add_column(column, justify="left" if column == "arrangement" else "right", no_wrap=True)

        def ratio(row: dict[str, Any], to: str, field: str, named: dict[str, Any] = named) -> str:
            return f"{row[field] / named[to][field]:.3f}" if to in named and field in row else ""

        for row in rows:
            table.add_row(
                row["arrangement"],
                f"{row['temporary_bytes'] / 1e6:.1f}",
                ratio(row, PLAIN, "temporary_bytes"),
                ratio(row, STRONGEST, "temporary_bytes"),
                f"{row['step_seconds']:.2f}" if "step_seconds" in row else "",
                ratio(row, STRONGEST, "step_seconds"),
                f"{row['step_processor_seconds']:.2f}" if "step_processor_seconds" in row else "",
                ratio(row, STRONGEST, "step_processor_seconds"),
            )
        console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("memory_output"))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--updates", nargs="+", type=int, default=[2, 4, 8], help="values of T")
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--arrangements", nargs="+", choices=ARRANGEMENTS, default=list(ARRANGEMENTS), metavar="NAME")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each; 0 for memory alone")
    parser.add_argument("--child", choices=SCHEDULERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        run_child(arguments)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "meta_gradient_memory.json"
    figures: list[dict[str, Any]] = []
    for figure in measure_in_processes(arguments):
        figures.append(figure)
        step = f", {figure['step_seconds']:.2f} s" if "step_seconds" in figure else ""
        place = f"{figure['size']} T={figure['updates']} {figure['scheduler']}"
        print(f"{place}: {figure['arrangement']}: {figure['temporary_bytes'] / 1e6:.1f} MB{step}", flush=True)
        path.write_text(
            json.dumps({"machine": machine(), "length": LENGTH, "batch": BATCH, "figures": figures}, indent=1)
        )
    show(figures, Console(width=150))
    print(path)


if __name__ == "__main__":
    main()
