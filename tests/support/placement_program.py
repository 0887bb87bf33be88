"""Meta-trains a very small population under several placements and writes the outcome as JSON.

Tests run it in separate processes, since the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import numpy as np
import optax
from jax.sharding import PartitionSpec

from datarater.meta_training.algorithm.mesh import (
    ONE_DEVICE,
    Placement,
    PlacementConfig,
    make_placement,
)
from datarater.meta_training.algorithm.meta_gradient import MetaGradientConfig, make_meta_gradient
from datarater.meta_training.algorithm.meta_step import (
    initial_meta_state,
    make_meta_step,
    place_meta_state,
    place_windows,
)
from datarater.meta_training.algorithm.population import replace_member, stack
from datarater.meta_training.run.processes import join_processes
from tests.support.small_models import (
    Problem,
    inner_state,
    random_windows,
    small_problem,
    transformer_problem,
)

POPULATION, UPDATES, BATCH = 4, 2, 8
QUICK: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}


def run(
    problem: Problem,
    placement: Placement,
    meta_optimiser: Any,
    steps: int,
    permuted: bool = False,
) -> tuple[Any, Any, Any]:
    """Runs some meta-steps.

    Returns:
        eta, the last metrics, and a tuple of the compiled meta-step, the shapes of theta's parts on
        a device, and a row with the state of each inner model's meta-optimizer.
    """
    optimiser = optax.adam(1e-2, eps=1e-8, eps_root=1e-8)
    keys = jax.random.split(jax.random.key(0), POPULATION + 2)
    members = [inner_state(problem.initialise_model(key), optimiser) for key in keys[2:]]

    inner_part, outer_part = (1, 1) if placement.group_size == BATCH else (2, 4)
    meta_gradient = make_meta_gradient(
        problem.score,
        problem.losses,
        optimiser,
        MetaGradientConfig(
            inner_micro_batch=inner_part,
            outer_micro_batch=outer_part,
            rater_micro_batch=2 * inner_part,
        ),
        placement.data_axis(members[0].params),
    )
    state = initial_meta_state(problem.initialise_rater(keys[0]), stack(members), meta_optimiser)
    state = place_meta_state(state, placement)

    compiled = None
    for step in range(steps):
        key = jax.random.fold_in(keys[1], step)
        inner = random_windows(key, POPULATION, UPDATES, BATCH)
        outer = random_windows(jax.random.fold_in(key, 1), POPULATION, BATCH)
        if permuted:
            order = np.random.default_rng(step).permutation(BATCH)
            inner = jax.tree.map(lambda x, order=order: x[:, :, order], inner)
            outer = jax.tree.map(lambda x, order=order: x[:, order], outer)
        if step == 3:  # a reset
            fresh = inner_state(problem.initialise_model(jax.random.fold_in(key, 2)), optimiser)
            state = state._replace(inner=replace_member(state.inner, 1, fresh, placement))
        arguments = state, place_windows(inner, placement), place_windows(outer, placement)
        if compiled is None:
            compiled = (
                make_meta_step(meta_gradient, meta_optimiser, placement)
                .lower(*arguments)
                .compile(QUICK)
            )
        state, metrics = compiled(*arguments)

    cut = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(state.inner.params)]
    optimiser_state = placement.place(state.meta_optimiser_state, PartitionSpec())
    rows = np.concatenate(
        [np.reshape(leaf, (POPULATION, -1)) for leaf in jax.tree.leaves(optimiser_state)], axis=1
    )
    eta = np.asarray(jax.flatten_util.ravel_pytree(state.rater_params)[0])
    return eta, jax.device_get(metrics), (compiled, cut, rows)


def collectives(text: str) -> list[str]:
    """Returns every exchange of a compiled program: its kind, devices and count of numbers."""
    exchanges = []
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    pattern = rf"= (\(?[a-z0-9]+\[.*?) ({kinds})(?:-start)?\("
    for line in text.splitlines():
        match = re.search(pattern, line)
        groups = re.search(r"replica_groups=(\{\{.*?\}\}|\[.*?\]<=\[.*?\](?:T\(.*?\))?)", line)
        if match and groups:
            shapes = re.findall(r"[a-z]+[0-9]+\[([0-9,]*)\]", match[1])
            numbers = sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
            exchanges.append(f"{match[2]} {groups[1]} {numbers}")
    return exchanges


def distance(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", choices=("small", "transformer"), default="small")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--coordinator", default="")
    arguments = parser.parse_args()

    jax.config.update("jax_enable_x64", arguments.dtype == "float64")
    join_processes(arguments.coordinator, arguments.processes, arguments.process)
    problem = {"small": small_problem, "transformer": transformer_problem}[arguments.model](
        arguments.dtype
    )
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    # With this optimizer the update is the mean meta-gradient itself, large compared with eta, and
    # the momenta are each inner model's own gradient.
    plain = optax.sgd(1e6, momentum=0.5)

    def place(groups: int, data: int, shard_parameters: bool) -> Placement:
        return make_placement(PlacementConfig(groups, data, shard_parameters), POPULATION, (BATCH,))

    one_step, one_metrics, (*_, one_rows) = run(problem, ONE_DEVICE, plain, 1)
    ten_steps, _, _ = run(problem, ONE_DEVICE, adam, arguments.steps)
    permuted, _, _ = run(problem, ONE_DEVICE, adam, arguments.steps, permuted=True)
    report: dict[str, Any] = {
        "devices": jax.device_count(),
        "permuted": distance(permuted, ten_steps),
    }
    for name, groups, data, shard_parameters in (
        ("whole", POPULATION, 2, False),
        ("cut", POPULATION, 2, True),
        ("cut over all", 1, 8, True),
    ):
        one, metrics, (compiled, cut, rows) = run(
            problem, place(groups, data, shard_parameters), plain, 1
        )
        ten, _, _ = run(problem, place(groups, data, shard_parameters), adam, arguments.steps)
        report[name] = {
            "meta_gradient": distance(one, one_step),
            "of_members": [distance(*both) for both in zip(rows, one_rows, strict=True)],
            "metrics": max(
                float(np.max(np.abs(a - b))) for a, b in zip(metrics, one_metrics, strict=True)
            ),
            "steps": distance(ten, ten_steps),
            "shards": [list(shape) for shape in cut],
            "collectives": collectives(compiled.as_text()),
        }
    arguments.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
