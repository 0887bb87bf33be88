"""What are a rater's scores worth as weights? A screen of settings with little noise.

Models of one seed start alike and are trained on the same windows of the whole pool in the same
order. In one arm all windows count alike; in the others, window i of a batch of B counts

    w_i = B softmax(s z)_i

with z the normal quantiles of the documents' ranks by score, and s the strength. Arms differ by
these weights alone, so their losses differ by less chance than those of models that are trained on
different documents. "Overall" ranks all documents; "within" ranks those of each source, so that the
mix of sources hardly changes.

The training is the protocol of `datarater evaluate`, and losses are of the choice fold.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from datarater.meta_training.evaluate.arms import ArmOptions, Arms
from datarater.meta_training.evaluate.pool import open_data
from datarater.meta_training.evaluate.protocol import MODELS, Protocol
from datarater.meta_training.evaluate.workers import Workers

OVERALL, WITHIN = "overall", "within"
STRENGTHS = {OVERALL: 1.0, WITHIN: 0.5}
PROTOCOL = Protocol(evaluations=1)


@dataclasses.dataclass(frozen=True)
class WeightedTraining:
    """A task that trains a model on weighted windows of the whole pool.

    Attributes:
        data: Folder of the data.
        rotation: Which folds of the target have which role.
        logits_N: Logarithm of each document's weight, up to a constant.
        seed: Seed of the model and of the order of windows.
    """

    data: str
    rotation: int
    logits_N: NDArray[np.float64]
    seed: int

    def __call__(self, report: Callable[[float], None]) -> float:
        """Returns the loss on the choice fold after the training."""
        import jax
        import jax.numpy as jnp
        import optax

        from datarater.meta_training.algorithm.language_model import (
            Windows,
            initialise_language_model,
            sequence_losses,
        )
        from datarater.meta_training.algorithm.meta_gradient import make_inner_gradient
        from datarater.meta_training.evaluate import training, walk

        protocol, data = PROTOCOL, open_data(self.data).at(self.rotation)
        config = training.language_model_config(MODELS["0.14M"], data.tokenizer.vocabulary_size)
        optimiser = training.make_optimiser(protocol)
        gradient_of = make_inner_gradient(
            functools.partial(sequence_losses, config),
            "reverse",
            training.micro_batch(protocol.batch, protocol.length),
        )
        length_B = jnp.full(protocol.batch, protocol.length, jnp.int32)

        @jax.jit
        def step(state: Any, tokens_BxL: jax.Array, weights_B: jax.Array) -> Any:
            params, moments = state
            gradient, _ = gradient_of(params, weights_B, Windows(tokens_BxL, length_B))
            updates, moments = optimiser.update(gradient, moments, params)
            return optax.apply_updates(params, updates), moments

        params = initialise_language_model(config, jax.random.key(self.seed))
        state = (params, optimiser.init(params))
        chunks = walk.cut_into_chunks(data.token_ends_N, protocol.length)
        full_C = np.flatnonzero(chunks.size_C == protocol.length)
        order_C = np.random.default_rng(self.seed).permutation(full_C)
        for number in range(protocol.steps):
            chosen_B = order_C[np.arange(protocol.batch) + number * protocol.batch]
            tokens_BxL = np.stack(
                [data.tokens_T[at : at + protocol.length] for at in chunks.start_C[chosen_B]]
            )
            weights_B = jax.nn.softmax(jnp.asarray(self.logits_N[chunks.document_C[chosen_B]]))
            state = step(state, tokens_BxL.astype(np.int32), weights_B)

        choice = training.evaluation_set(data.roles.choice, protocol, data.tokenizer)
        windows = len(choice.lengths_W)
        ((final, _),) = training.make_evaluation(config, protocol, [choice], windows)(state[0])
        return final


def normal_scores(
    scores_N: NDArray[np.float64], bytes_N: NDArray[np.int64], groups_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the quantile of the normal distribution at each document's rank in its group.

    The rank is the share of the group's bytes in worse documents and half of the own ones, so that
    scores count by their order alone. Documents without a score come before all others.
    """
    worst_first_N = np.lexsort((np.nan_to_num(scores_N, nan=-np.inf), groups_N))
    group_N, size_N = groups_N[worst_first_N], bytes_N[worst_first_N].astype(np.float64)
    total_G = np.bincount(groups_N, bytes_N)
    before_G = np.cumsum(total_G) - total_G
    rank_N = np.empty(len(scores_N))
    middle_N = np.cumsum(size_N) - size_N / 2 - before_G[group_N]
    rank_N[worst_first_N] = middle_N / total_G[group_N]
    return scipy.stats.norm.ppf(rank_N)


def weighted_losses(
    folder: Path, names: list[str], flags: tuple[str, ...], seeds: range, processes: int
) -> dict[str, dict[str, list[float]]]:
    """Returns the choice losses by arm ("uniform", or a name) and kind, in the order of seeds.

    Args:
        folder: Folder of a setting, prepared.
        names: Arms of `datarater evaluate` that score documents, such as "rater".
        flags: Flags of `datarater train`, for the arm "rater".
        seeds: The seeds.
        processes: Number of single-threaded processes.
    """
    from datarater.meta_training.evaluate.pool import take_data

    (prepared,) = (folder / "data").iterdir()
    data = take_data(prepared, folder)
    _, source_N = np.unique(data.column("source"), return_inverse=True)
    groups = {OVERALL: np.zeros_like(source_N), WITHIN: source_N}

    with Workers(processes, folder / "compiled") as workers:
        options = ArmOptions(tuple(names), training=flags, rotate=True)
        arms = Arms(data, options, folder, workers, lambda line: print(line, flush=True))
        arms.train_raters(seeds)
        tasks: dict[tuple[str, str, int], WeightedTraining] = {}
        for seed in seeds:
            own = arms.data(seed)
            for name in names:
                for kind, groups_N in groups.items():
                    if name == "uniform":
                        logits_N = np.zeros(len(source_N))
                    else:
                        scores_N = (
                            np.random.default_rng(seed).random(len(source_N))
                            if name == "random"
                            else arms.scores(name, seed)
                        )
                        logits_N = STRENGTHS[kind] * normal_scores(scores_N, data.bytes_N, groups_N)
                    if name != "uniform" or kind == OVERALL:
                        tasks[name, kind, seed] = WeightedTraining(
                            str(prepared), own.rotation, logits_N, seed
                        )
        found: dict[str, dict[str, list[float]]] = {}
        keys = list(tasks)
        losses = {
            keys[event.task]: event.result
            for event in workers.run(list(tasks.values()))
            if event.finished
        }
    for name, kind, seed in sorted(losses, key=lambda key: key[2]):
        found.setdefault(name, {}).setdefault(kind, []).append(losses[name, kind, seed])
    return found


def agreements(
    folder: Path, flags: tuple[str, ...], seeds: range, others: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Returns how far the trained raters of seeds agree with one another, and with other arms.

    An agreement is the correlation of `normal_scores`, by bytes: 1 for the same order. That of
    seeds says how little of the scores is chance, whatever they are worth.

    Args:
        folder: Folder of a setting, with the trained raters.
        flags: Flags of `datarater train` that the raters were trained with.
        seeds: Their seeds.
        others: Arms to compare with, such as "trigram".
    """
    (prepared,) = (folder / "data").iterdir()
    data = open_data(str(prepared))
    _, source_N = np.unique(data.column("source"), return_inverse=True)

    with Workers(1, folder / "compiled") as workers:
        options = ArmOptions(("rater", *others), training=flags, rotate=True)
        arms = Arms(data, options, folder, workers, print)
        found: dict[str, dict[str, float]] = {}
        for kind, groups_N in ((OVERALL, np.zeros_like(source_N)), (WITHIN, source_N)):
            z_SxN, *z_of_others = (
                np.stack(
                    [normal_scores(arms.scores(name, s), data.bytes_N, groups_N) for s in seeds]
                )
                for name in ("rater", *others)
            )
            weights_N = data.bytes_N / data.bytes_N.sum()
            between = z_SxN * weights_N @ z_SxN.T
            found[kind] = {"seeds": float(np.mean(between[np.triu_indices(len(seeds), 1)]))}
            for name, other_SxN in zip(others, z_of_others, strict=True):
                found[kind][name] = float(np.mean(np.sum(z_SxN * weights_N * other_SxN, axis=1)))
    return found
