r"""Time, memory and utilization of a meta-step on one accelerator, mixed against reverse mode.

    python -m tests.benchmarks.gpu_meta_step --output gpu_meta_step.json
    python -m tests.benchmarks.gpu_meta_step --toy      # on any machine, in a minute

A rater of 50M parameters, 8 inner models of 44M with 2 updates each, windows of 512 tokens, 32 in
each batch, in bfloat16: the config `pile` at these sizes, on one device. The arrangements:

    mixed             mixed mode; nothing is recomputed but the inner updates
    mixed, blocks     ... and transformer blocks, so that memory does not grow with depth
    reverse           `jax.grad` through the updates, each recomputed
    reverse, blocks   ... and transformer blocks: what reverse mode needs to reach the same depth

All do the same work. Temporary bytes are those of the compiled program, without arguments. The
utilization divides the FLOPs of the matrix products by the time and the device's peak in bfloat16;
"useful" counts no product twice that is only recomputed, which is the count of the arrangement that
recomputes least. With `--compile_only` the programs only enter the compilation cache, if
JAX_COMPILATION_CACHE_DIR names one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from datarater.meta_training.algorithm.language_model import Windows
from datarater.meta_training.algorithm.mesh import ONE_DEVICE
from tests.benchmarks.benchmark_support import machine
from tests.benchmarks.gpu_scoring import peak_flops
from tests.benchmarks.paper_meta_step import config_of, count_flops, meta_step_of, refusal

# Mode, and whether blocks are recomputed.
ARRANGEMENTS = {
    "mixed": ("mixed", False),
    "mixed, blocks": ("mixed", True),
    "reverse": ("reverse", False),
    "reverse, blocks": ("reverse", True),
}


def arranged(name: str, args: argparse.Namespace) -> ConfigDict:
    """Returns the config of an arrangement."""
    mode, blocks = ARRANGEMENTS[name]
    config = config_of("44M", updates=2, micro_batch=0, mode=mode)
    config.length = args.length
    config.inner_batch = config.outer_batch = args.batch
    config.rater.rematerialise_blocks = config.inner_model.rematerialise_blocks = blocks
    config.rater.attention = config.inner_model.attention = "plain"
    config.meta_gradient.save_inner_gradients = mode == "mixed"
    # Reverse mode keeps the rater's activations of all updates unless it recomputes them too.
    config.meta_gradient.rater_micro_batch = args.batch
    if args.toy:
        for section in (config.rater, config.inner_model):
            section.width, section.heads, section.mlp_width, section.layers = 32, 2, 64, 2
        config.population.size = 2
        config.tokenizer.vocabulary_size = 258
    return config


def random_windows(shapes: Windows, vocabulary: int, seed: int) -> Windows:
    """Returns full windows of random tokens: the time does not depend on them."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, shapes.tokens_BxL.shape).astype(np.int32)
    lengths = np.full(shapes.length_B.shape, tokens.shape[-1], np.int32)
    return Windows(jnp.asarray(tokens), jnp.asarray(lengths))


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of an arrangement."""
    config = arranged(name, args)
    program = meta_step_of(config, ONE_DEVICE)
    started = time.monotonic()
    traced = program.step.trace(program.state, program.inner, program.outer)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return {"arrangement": name, **refusal(error)}

    memory: Any = compiled.memory_analysis()
    tokens = np.prod(program.inner.tokens_BxL.shape) + np.prod(program.outer.tokens_BxL.shape)
    figures: dict[str, Any] = {
        "arrangement": name,
        "compile_seconds": time.monotonic() - started,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": count_flops(traced.jaxpr.jaxpr),
        "tokens": int(tokens),
    }
    if args.compile_only:
        return figures

    vocabulary = config.tokenizer.vocabulary_size
    inner = random_windows(program.inner, vocabulary, 0)
    outer = random_windows(program.outer, vocabulary, 1)
    try:
        state = jax.jit(program.initial_state)()
        seconds = []
        for _ in range(args.runs + 1):
            started = time.monotonic()
            state, metrics = compiled(state, inner, outer)
            jax.block_until_ready(metrics)
            seconds.append(time.monotonic() - started)
    except jax.errors.JaxRuntimeError as error:
        return {**figures, **refusal(error)}

    # The first run includes loading the program.
    return {
        **figures,
        "seconds": statistics.median(seconds[1:]),
        "all_seconds": seconds,
        "outer_loss": float(jnp.mean(metrics.outer_loss_P)),
    }


def show(rows: Sequence[dict[str, Any]], peak: float) -> None:
    """Prints the table, as Markdown."""
    useful = min((row["flops"] for row in rows if "flops" in row), default=0)
    print("| arrangement | arguments GiB | temporary GiB | s a step | tokens/s | MFU | useful |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        cells = [row["arrangement"]]
        if "temporary_bytes" in row:
            cells += [f"{row[f'{kind}_bytes'] / 2**30:.2f}" for kind in ("argument", "temporary")]
        if "seconds" in row:
            cells += [f"{row['seconds']:.3f}", f"{row['tokens'] / row['seconds']:,.0f}"]
            cells += [f"{flops / row['seconds'] / peak:.1%}" for flops in (row["flops"], useful)]
        elif "refused" in row:
            cells.append(f"refused: {row['refused']}")
        print(f"| {' | '.join(cells)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arrangements", nargs="+", choices=ARRANGEMENTS, default=ARRANGEMENTS)
    parser.add_argument("--batch", type=int, default=32, help="windows of a batch")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--runs", type=int, default=5, help="timed meta-steps")
    parser.add_argument("--peak_tflops", type=float, help="peak of the device")
    parser.add_argument("--compile_only", action="store_true", help="compile, run nothing")
    parser.add_argument("--toy", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON of the figures")
    args = parser.parse_args(argv)
    if args.toy:
        args.batch, args.length, args.runs = 4, 32, 2

    device = jax.devices()[0].device_kind
    peak, source = peak_flops(args.peak_tflops, args.toy)
    rows = []
    for name in args.arrangements:
        rows.append(measure(name, args))
        print(json.dumps(rows[-1]), flush=True)
        if args.output is not None:
            result = {"machine": machine(), "device": device, "peak_flops": peak, "rows": rows}
            args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{device}, peak {peak / 1e12:.3g} TFLOP/s ({source})")
    show(rows, peak)


if __name__ == "__main__":
    main()
