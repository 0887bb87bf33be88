"""How large may the epsilon in the inner Adam's root be, and how small? sqrt(v) and meta-gradients.

    DATARATER_CORPORA=corpora python -m tests.benchmarks.adam_epsilon

The inner Adam divides by sqrt(v + eps_root). Where sqrt(eps_root) is not small against sqrt(v), it
is closer to SGD than to Adam; where it is too small, float32 cannot differentiate through the
root. Inner models of the config `default` and of 1M parameters are trained on the pool `dev`, and
at several ages the benchmark prints

- the 1st percentile and the median of sqrt(v) over parameters, with v corrected for its bias;
- for each eps_root, the meta-gradient's norm, its cosine with that of eps_root 1e-8, and of the
  small model also the relative error of float32 against float64.

With 1e-12 for eps_root, float32 is exact to 1e-5 at every age but 0, where the error is 1e-3; with
1e-14 it is 5e-2 there. It took 7 minutes on 2 busy cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
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
    MetaGradient,
    MetaGradientConfig,
    make_meta_gradient,
)
from datarater.meta_training.configs import default
from datarater.meta_training.data.sets import TextSet
from datarater.meta_training.data.texts import FileTexts
from datarater.meta_training.data.windows import draw_batches
from datarater.rater_model.rater import RaterConfig, initialise_rater, score_tokens
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig
from tests.support.prepared import windows_of

EPSILONS = (1e-8, 1e-10, 1e-12, 1e-14, 1e-16, 1e-20)
AGES = (0, 1, 10, 80, 300)
SHAPES = {"0.14M": (64, 2, 192, 2), "1M": (144, 4, 432, 4)}
BATCH, LENGTH, UPDATES = 16, 128, 2


def shape_of(size: str, dtype: str) -> TransformerConfig:
    """Returns the shape of an inner model."""
    return TransformerConfig(*SHAPES[size], dtype=dtype, param_dtype=dtype)


def optimiser(eps_root: Any) -> optax.GradientTransformation:
    """Returns the inner Adam of the default config, but for its epsilon."""
    values = default.get_config().inner_optimiser
    return optax.adam(values.learning_rate, b1=values.b1, b2=values.b2, eps=0.0, eps_root=eps_root)


def trained(size: str, batches: Any) -> dict[int, InnerState]:
    """Returns an inner model at several ages, trained with eps_root 1e-16."""
    model = LanguageModelConfig(ByteTokenizer.vocabulary_size, shape_of(size, "float32"))
    adam = optimiser(1e-16)

    @jax.jit
    def step(state: InnerState, windows: Windows) -> InnerState:
        gradient = jax.grad(lambda theta: jnp.mean(sequence_losses(model, theta, windows)))(
            state.params
        )
        updates, moments = adam.update(gradient, state.optimiser_state, state.params)
        return InnerState(optax.apply_updates(state.params, updates), moments, state.age + 1)

    theta = initialise_language_model(model, jax.random.key(0))
    state = InnerState(theta, adam.init(theta), jnp.int32(0))
    states = {0: jax.device_get(state)}
    for age in range(1, max(AGES) + 1):
        state = step(state, next(batches))
        if age in AGES:
            states[age] = jax.device_get(state)
    return states


def roots(state: InnerState) -> np.ndarray:
    """Returns sqrt(v) of all parameters, v corrected for its bias; zeros at age 0."""
    moments: Any = state.optimiser_state[0]
    correction = 1 - default.get_config().inner_optimiser.b2 ** max(1, int(moments.count))
    return np.sqrt(np.asarray(jax.flatten_util.ravel_pytree(moments.nu)[0]) / correction)


@functools.cache
def compiled(size: str, dtype: str) -> Callable[..., MetaGradient]:
    """Returns the meta-gradient as a function of (eps_root, eta, inner model, windows ...)."""
    model = LanguageModelConfig(ByteTokenizer.vocabulary_size, shape_of(size, dtype))
    rater = rater_of(dtype)

    def meta_gradient(eps_root: jax.Array, *arguments: Any) -> MetaGradient:
        return make_meta_gradient(
            lambda eta, windows: score_tokens(rater, eta, *windows),
            functools.partial(sequence_losses, model),
            optimiser(eps_root),
            MetaGradientConfig(scan_updates=True),
        )(*arguments)

    return jax.jit(meta_gradient)


def rater_of(dtype: str) -> RaterConfig:
    """Returns a small rater."""
    shape = TransformerConfig(32, 2, 64, 1, dtype=dtype, param_dtype=dtype)
    return RaterConfig(window=LENGTH, transformer=shape, ngram_rows=512)


def flat_gradients(size: str, dtype: str, state: InnerState, inner: Any, outer: Any) -> np.ndarray:
    """Returns the meta-gradient for each epsilon, one row each."""
    eta = initialise_rater(rater_of("float32"), jax.random.key(1))

    def cast(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x, tree
        )

    with jax.enable_x64(dtype == "float64"):
        arguments = (cast(eta), cast(state), inner, outer)
        rows = [
            compiled(size, dtype)(jnp.asarray(eps, dtype), *arguments).gradient for eps in EPSILONS
        ]
        return np.stack([np.asarray(jax.flatten_util.ravel_pytree(row)[0]) for row in rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--ages", nargs="+", type=int, default=list(AGES), choices=AGES)
    parser.add_argument("--documents", type=int, default=3000, help="Documents of the pool.")
    arguments = parser.parse_args(argv)

    corpus = Path(os.environ["DATARATER_CORPORA"]) / "dev"
    source = FileTexts([f"{corpus}/*.jsonl.gz"])
    texts = TextSet("inner", source, np.ones(len(source), bool)).spread(arguments.documents)
    folder = tempfile.TemporaryDirectory()  # deleted with the process
    windows = windows_of(Path(folder.name), texts, LENGTH, "packed")
    inner = jax.device_get(next(draw_batches(windows, (UPDATES, BATCH), 1)))
    outer = jax.device_get(next(draw_batches(windows, (BATCH,), 2)))

    for size in arguments.sizes:
        states = trained(size, draw_batches(windows, (BATCH,), 0))
        for age in arguments.ages:
            state = states[age]
            root_N = roots(state)
            gradients_ExN = flat_gradients(size, "float32", state, inner, outer)
            norm_E = np.linalg.norm(gradients_ExN.astype(np.float64), axis=1)
            line: dict[str, Any] = {
                "size": size,
                "parameters": len(root_N),
                "age": age,
                "zero_share": float((root_N == 0).mean()),
                "sqrt_v_percentiles_1_10_50": [
                    float(np.percentile(root_N[root_N > 0], share)) if root_N.any() else 0.0
                    for share in (1, 10, 50)
                ],
                "epsilons": EPSILONS,
                "norms": norm_E.tolist(),
                "cosines": (gradients_ExN @ gradients_ExN[0] / norm_E / norm_E[0]).tolist(),
            }
            if size == "0.14M":
                exact_ExN = flat_gradients(size, "float64", state, inner, outer)
                error_E = np.linalg.norm(gradients_ExN - exact_ExN, axis=1)
                line["float32_errors"] = (error_E / np.linalg.norm(exact_ExN, axis=1)).tolist()
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
