r"""How near the rater's forward pass comes to the processor's peak, beside ONNX Runtime's.

    python -m venv /tmp/onnx && /tmp/onnx/bin/pip install onnx onnxruntime
    python -m tests.benchmarks.forward_pass --onnx /tmp/onnx --output /tmp/forward_pass.json

Each cell is the share of the peak: the floating-point operations of the encoder's products per
second of processor time, over those of a product of matrices of 1,024 x 1,024 in the same rounds.
One thread of one process runs the peak, the forward pass of training, that of scoring and a graph
of ONNX Runtime, in turns. The graph consists of ONNX Runtime's fused operators for attention with a
mask of the padding, rotary positions, norms with residuals, and the activation. All have the same
random parameters and windows, and the benchmark ends if their scores differ.

Rates are medians of the rounds, and so is the ratio, which compares the two in each round.

ONNX Runtime is no requirement of the project. Without `--onnx`, the environment's own is used; if
it has none, its column is left out, with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datarater.rater_model.scoring_options import limit_cpu_threads
from tests.benchmarks.benchmark_support import machine

# Width, heads, width of the MLP and layers of the encoder.
SIZES = {
    "0.1M": (48, 2, 96, 2),
    "1M": (128, 4, 344, 5),
    "10M": (320, 5, 864, 8),
    "50M": (512, 8, 1408, 10),
}
VOCABULARY = 4096
TOKENS_PER_BATCH = 1024
PEAK_SIZE = 1024
# The last windows of a batch are padded, a little.
PADDED = 7
TOLERANCE = 2e-5

Call = Callable[[], Any]


@dataclasses.dataclass
class Engine:
    """A computation that is timed.

    Attributes:
        call: Runs it once and waits for the result.
        flops: Floating-point operations of its products.
        calls: Number of calls in a round.
        rates: Operations per second of processor time in each round.
    """

    call: Call
    flops: float
    calls: int = 1
    rates: list[float] = dataclasses.field(default_factory=list)

    def calibrate(self, seconds: float) -> None:
        """Sets the number of calls that take some seconds; the first call has compiled."""
        self.call()
        self.calls = max(1, round(seconds / max(self._seconds(1), 1e-6)))

    def run(self) -> None:
        """Runs a round."""
        self.rates.append(self.flops * self.calls / self._seconds(self.calls))

    def _seconds(self, calls: int) -> float:
        started = time.process_time()
        for _ in range(calls):
            self.call()
        return time.process_time() - started


def encoder_flops(size: str, batch: int, length: int) -> float:
    """Returns the floating-point operations of an encoder's products of matrices."""
    width, _, mlp_width, layers = SIZES[size]
    projections = 2 * (4 * width**2 + 3 * width * mlp_width)
    return batch * length * layers * (projections + 4 * length * width)


def finished(function: Callable[..., Any], *arguments: Any) -> Call:
    """Returns a call of a function of JAX that waits for the result."""
    return lambda: function(*arguments).block_until_ready()


def find_onnx(venv: Path | None) -> str | None:
    """Makes the packages of an environment importable; returns why they are not, or None."""
    if venv is not None:
        folders = [str(folder) for folder in venv.glob("lib/python*/site-packages")]
        if not folders:
            return f"{venv} is not a virtual environment"
        sys.path.extend(folders)
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        return f"{error}; the module's docstring says how to install it"
    del onnx, onnxruntime
    return None


def onnx_session(size: str, length: int, params: Any) -> Any:
    """Returns a session of ONNX Runtime with a rater's graph of fused operators, in one thread."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    width, heads, _, layers = SIZES[size]
    head_width = width // heads
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, array: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(kind: str, inputs: list[str], name: str, domain: str = "", **attributes: Any) -> str:
        outputs = [name]
        if kind == "SkipSimplifiedLayerNormalization":
            outputs = [name, "", "", f"{name}_sum"]
        nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return name

    fused = functools.partial(node, domain="com.microsoft")
    frequencies = 10_000.0 ** (-np.arange(0, head_width, 2) / head_width)
    angles = np.arange(length)[:, None] * frequencies
    cosine = constant("cosine", np.cos(angles).astype(np.float32))
    sine = constant("sine", np.sin(angles).astype(np.float32))
    first = constant("first_position", np.zeros(1, np.int64))

    # Each norm adds the output of the layer before it to the residual stream.
    table = constant("embedding", params["token_embedding"]["embedding"])
    stream = node("Gather", [table, "tokens"], "embedded")
    scales = params["transformer"]
    scale = constant("scale", scales["block_0"]["attention_norm"]["scale"])
    x = node("SimplifiedLayerNormalization", [stream, scale], "normed", epsilon=1e-6, axis=-1)
    for layer in range(layers):
        block = scales[f"block_{layer}"]
        after = scales[f"block_{layer + 1}"]["attention_norm"] if layer + 1 < layers else None

        def product(x: str, section: str, name: str, layer: int = layer, block: Any = block) -> str:
            kernel = np.asarray(block[section][name]["kernel"])
            rows = width if section == "attention" else kernel.shape[0]
            kernel = kernel.reshape(rows, -1)
            weight = constant(f"{section}_{name}_{layer}", kernel)
            return node("MatMul", [x, weight], f"{section}_{name}_{layer}_product")

        query, key, value = (product(x, "attention", name) for name in ("query", "key", "value"))
        query, key = (
            fused("RotaryEmbedding", [y, first, cosine, sine], f"{y}_rotated", num_heads=heads)
            for y in (query, key)
        )
        inputs = [query, key, value, "", "valid"]
        mixed = fused("MultiHeadAttention", inputs, f"mixed_{layer}", num_heads=heads)
        attended = product(mixed, "attention", "output")

        scale = constant(f"mlp_scale_{layer}", block["mlp_norm"]["scale"])
        kind = "SkipSimplifiedLayerNormalization"
        x = fused(kind, [stream, attended, scale], f"mlp_normed_{layer}", epsilon=1e-6)
        stream = f"{x}_sum"

        gate, up = product(x, "mlp", "gate"), product(x, "mlp", "up")
        gated = fused("QuickGelu", [gate], f"gated_{layer}", alpha=1.0)
        down = product(node("Mul", [gated, up], f"both_{layer}"), "mlp", "down")
        scale = constant(f"scale_{layer}", (after or scales["norm"])["scale"])
        x = fused(kind, [stream, down, scale], f"normed_{layer}", epsilon=1e-6)
        stream = f"{x}_sum"

    # The mean over valid positions.
    node("Mul", [x, "weights"], "weighted")
    node("ReduceSum", ["weighted", constant("axis", np.array([1]))], "pooled", keepdims=0)
    node("MatMul", ["pooled", constant("head", params["head"])], "scores")

    graph = helper.make_graph(
        nodes,
        "rater",
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT32, [None, length]),
            helper.make_tensor_value_info("valid", TensorProto.INT32, [None, length]),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, [None, length, 1]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None])],
        constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def measure(size: str, length: int, rounds: int, seconds: float, with_onnx: bool) -> dict[str, Any]:
    """Returns the medians for an encoder and a length."""
    import jax

    from datarater.rater_model.rater import RaterConfig, initialise_rater, score_tokens
    from datarater.rater_model.transformer import TransformerConfig

    config = RaterConfig(VOCABULARY, length, TransformerConfig(*SIZES[size]), ngram_orders=())
    scoring = dataclasses.replace(config, transformer=config.transformer.for_scoring("float32"))
    params = jax.jit(functools.partial(initialise_rater, config))(jax.random.key(0))

    batch = max(1, TOKENS_PER_BATCH // length)
    rng = np.random.default_rng(0)
    tokens_BxL = rng.integers(0, VOCABULARY, (batch, length)).astype(np.int32)
    length_B = np.full(batch, length - PADDED, np.int32)
    square = rng.standard_normal((PEAK_SIZE, PEAK_SIZE)).astype(np.float32)

    flops = encoder_flops(size, batch, length)
    multiply = jax.jit(lambda square: square @ square)
    engines = {
        "peak": Engine(finished(multiply, square), 2 * PEAK_SIZE**3),
    }
    for name, shape in (("training", config), ("scoring", scoring)):
        score = jax.jit(functools.partial(score_tokens, shape))
        engines[name] = Engine(finished(score, params, tokens_BxL, length_B), flops)
    if with_onnx:
        session = onnx_session(size, length, jax.tree.map(np.asarray, params))
        valid_BxL = np.arange(length) < length_B[:, None]
        weights_BxL = (valid_BxL / length_B[:, None]).astype(np.float32)
        inputs = {
            "tokens": tokens_BxL,
            "valid": valid_BxL.astype(np.int32),
            "weights": weights_BxL[..., None],
        }
        engines["onnx"] = Engine(lambda: session.run(None, inputs)[0], flops)

    # The same work, or the comparison means nothing.
    expected = np.asarray(engines["training"].call())
    for name in ("scoring", "onnx"):
        if name in engines:
            difference = float(np.abs(np.asarray(engines[name].call()) - expected).max())
            if difference > TOLERANCE:
                raise SystemExit(f"{size}, length {length}: scores of {name} differ: {difference}")

    for engine in engines.values():
        engine.calibrate(seconds)
    for _ in range(rounds):
        for engine in engines.values():
            engine.run()

    peaks = engines["peak"].rates
    row: dict[str, Any] = {"encoder": size, "length": length, "peak": statistics.median(peaks)}
    for name, engine in list(engines.items())[1:]:
        shares = [rate / peak for rate, peak in zip(engine.rates, peaks, strict=True)]
        row[name] = statistics.median(shares)
    if with_onnx:
        pairs = zip(engines["scoring"].rates, engines["onnx"].rates, strict=True)
        row["of_onnx"] = statistics.median(ours / theirs for ours, theirs in pairs)
    return row


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--onnx", type=Path, metavar="VENV", help="environment of ONNX Runtime")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2, help="of an engine in a round, about")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON of the figures")
    args = parser.parse_args()

    limit_cpu_threads()
    missing = find_onnx(args.onnx)
    if missing:
        print(f"ONNX Runtime is left out: {missing}", file=sys.stderr)
    print("| encoder, length | peak, GF/s | training's pass | scoring's | ONNX Runtime | of it |")
    print("|---|---:|---:|---:|---:|---:|")

    rows = []
    for size in args.sizes:
        for length in args.lengths:
            row = measure(size, length, args.rounds, args.seconds, not missing)
            rows.append(row)
            shares = [f"{row[name]:.0%}" for name in ("training", "scoring")]
            shares += ["-", "-"] if missing else [f"{row['onnx']:.0%}", f"{row['of_onnx']:.2f}"]
            print(
                f"| {size}, {length} | {row['peak'] / 1e9:.0f} | {' | '.join(shares)} |", flush=True
            )

    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": machine(), "rows": rows}
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
