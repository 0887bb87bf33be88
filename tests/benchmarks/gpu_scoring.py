r"""Tokens per second and model FLOPs utilization of scoring on an accelerator.

    python -m tests.benchmarks.gpu_scoring --output gpu_scoring.json
    python -m tests.benchmarks.gpu_scoring --toy      # on any machine, in a minute

Raters of 1M, 10M and 50M parameters score windows of 512 and of 2,048 tokens in bfloat16, in two
ways. "model" is the compiled model alone, with its calls queued at the device. "scorer" is
`Scorer.submit` with texts: tokenized, cut, padded and fetched as `datarater score` does it, its
batches submitted ahead. The documents are as long as windows, so that nothing is padded.

The utilization is the floating-point operations of the encoder's products of matrices per second,
divided by the device's peak in bfloat16, `--peak_tflops`, and by the number of devices. Without the
flag the peak is that of the device's name where it is known, and else that of a product of large
matrices, measured here.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarater.rater_model.checkpoint import RaterCheckpoint
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.scorer import Scorer
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig
from tests.benchmarks.benchmark_support import machine

# Width, heads, width of the MLP and layers. The widths of the heads are multiples of 8, as cuDNN's
# attention needs.
SIZES = {
    "1M": (128, 2, 344, 5),
    "10M": (320, 5, 864, 8),
    "50M": (512, 8, 1408, 10),
}
TOY_SIZES = {"toy": (32, 2, 64, 2)}
# Dense bfloat16, from the manufacturers' data sheets.
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L4": 121}
CALLS_AHEAD = 8


def flops_per_token(shape: tuple[int, int, int, int], length: int) -> float:
    """Returns the floating-point operations of the encoder's products for a token."""
    width, _, mlp_width, layers = shape
    return layers * (2 * (4 * width**2 + 3 * width * mlp_width) + 4 * length * width)


def peak_flops(given: float | None, toy: bool) -> tuple[float, str]:
    """Returns the peak of a device in operations per second, and where it comes from."""
    if given is not None:
        return given * 1e12, "--peak_tflops"
    kind = jax.devices()[0].device_kind
    for name, tflops in PEAK_TFLOPS.items():
        if name in kind:
            return tflops * 1e12, f"data sheet of {kind}"

    size, times = (512, 4) if toy else (8192, 20)
    square = jnp.ones((size, size), jnp.bfloat16)
    multiply = jax.jit(lambda square: square @ square)
    multiply(square).block_until_ready()
    started = time.monotonic()
    for _ in range(times):
        product = multiply(square)
    product.block_until_ready()
    return 2 * size**3 * times / (time.monotonic() - started), f"measured on {kind}"


def model_rate(scorer: Scorer, length: int, calls: int) -> tuple[float, float]:
    """Returns the model's tokens per second, and the seconds of its first call, which compiles."""
    rows = scorer.batch_size(length)
    rng = np.random.default_rng(0)
    tokens_BxL = rng.integers(0, 256, (rows, length)).astype(np.int32)
    length_B = np.full(rows, length, np.int32)

    started = time.monotonic()
    scorer._call(tokens_BxL, length_B).block_until_ready()
    first = time.monotonic() - started

    started = time.monotonic()
    queued: deque[jax.Array] = deque()
    for _ in range(calls):
        queued.append(scorer._call(tokens_BxL, length_B))
        if len(queued) > CALLS_AHEAD:
            queued.popleft().block_until_ready()
    jax.block_until_ready(list(queued))
    return rows * length * calls / (time.monotonic() - started), first


def scorer_rate(scorer: Scorer, length: int, calls: int) -> float:
    """Returns the tokens per second of texts that are submitted as `datarater score` does."""
    rows = scorer.batch_size(length)
    batches = [["x" * length] * rows for _ in range(calls)]
    scorer.submit(batches[0]).result()

    started = time.monotonic()
    pending: deque[Any] = deque()
    for texts in batches:
        pending.append(scorer.submit(texts))
        if len(pending) > scorer.batches_ahead:
            pending.popleft().result()
    for scores in pending:
        assert np.isfinite(scores.result().scores_N).all()
    return rows * length * calls / (time.monotonic() - started)


def measure(
    name: str, shape: tuple[int, int, int, int], length: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Returns the figures of a rater and a length."""
    config = RaterConfig(258, length, TransformerConfig(*shape), ngram_orders=())
    params = jax.jit(functools.partial(initialise_rater, config))(jax.random.key(0))
    options = ScoringOptions(tokens_per_batch=args.tokens_per_batch, dtype=args.dtype)
    checkpoint = RaterCheckpoint(config, params, ByteTokenizer())
    scorer = Scorer(checkpoint, options, batches_ahead=CALLS_AHEAD)

    model, first = model_rate(scorer, length, args.calls)
    return {
        "rater": name,
        "length": length,
        "rows": scorer.batch_size(length),
        "first_call_seconds": first,
        "model": model,
        "scorer": scorer_rate(scorer, length, args.calls),
        "flops_per_token": flops_per_token(shape, length),
    }


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--tokens_per_batch", type=int, default=131_072, help="on each device")
    parser.add_argument("--calls", type=int, default=50, help="timed calls of the model")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--peak_tflops", type=float, help="peak of a device")
    parser.add_argument("--toy", action="store_true", help="a tiny rater, to try the script")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON of the figures")
    args = parser.parse_args()
    sizes = SIZES
    if args.toy:
        sizes = TOY_SIZES
        args.lengths, args.tokens_per_batch, args.calls = [64, 128], 512, 4

    devices = jax.local_devices()
    peak, source = peak_flops(args.peak_tflops, args.toy)
    print(f"{len(devices)} x {devices[0].device_kind}, peak {peak / 1e12:.3g} TFLOP/s ({source})")
    print(
        "| rater, length | rows | first call, s | model, tokens/s | MFU | scorer, tokens/s | MFU |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")

    rows = []
    for name, shape in sizes.items():
        for length in args.lengths:
            row = measure(name, shape, length, args)
            available = peak * (len(devices) if jax.default_backend() != "cpu" else 1)
            for way in ("model", "scorer"):
                row[f"{way}_mfu"] = row[way] * row["flops_per_token"] / available
            rows.append(row)
            cells = [f"{row[way]:,.0f} | {row[f'{way}_mfu']:.1%}" for way in ("model", "scorer")]
            print(
                f"| {name}, {length} | {row['rows']} | {row['first_call_seconds']:.1f} "
                f"| {' | '.join(cells)} |",
                flush=True,
            )

    if args.output is not None:
        arguments = {key: str(value) for key, value in vars(args).items()}
        result = {"machine": machine(), "device": devices[0].device_kind, "rows": rows}
        args.output.write_text(json.dumps({**result, "arguments": arguments}, indent=2) + "\n")


if __name__ == "__main__":
    main()
