"""Runs meta-training: warm-up, meta-steps, exports and checkpoints, resuming from the workdir."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from ml_collections import ConfigDict

from datarater.meta_training.algorithm.language_model import (
    Params,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.algorithm.mesh import ONE_DEVICE, Placement
from datarater.meta_training.algorithm.meta_gradient import InnerState, make_meta_gradient
from datarater.meta_training.algorithm.meta_step import (
    initial_meta_state,
    make_meta_step,
    place_meta_state,
    place_windows,
)
from datarater.meta_training.algorithm.population import (
    Initialise,
    fresh_inner_state,
    initial_population,
    members_to_reset,
    replace_member,
)
from datarater.meta_training.algorithm.warm_up import make_train_step, pool_steps, warm_up
from datarater.meta_training.config import build
from datarater.meta_training.data.windows import draw_batches, iterator_state, restore_iterator
from datarater.meta_training.errors import StoppedError, WorkdirError
from datarater.meta_training.run.checkpoints import Checkpoints, tree_digest
from datarater.meta_training.run.cost import ModelCost, Spending, warmup_tokens
from datarater.meta_training.run.export import NonFiniteScoresError, export_rater
from datarater.meta_training.run.health import (
    check_finite,
    check_state,
    check_warmup_losses,
    check_warmup_state,
    what_remains,
)
from datarater.meta_training.run.metrics import MetricsWriter
from datarater.meta_training.run.prepared_run import Experiment
from datarater.meta_training.run.processes import lost_processes
from datarater.meta_training.run.stopping import StopSignal
from datarater.meta_training.run.summary import Progress, score_correlation, step_text, summarise
from datarater.meta_training.run.workdir import Workdir
from datarater.rater_model.checkpoint import RaterCheckpoint, save_rater
from datarater.rater_model.rater import count_parameters, initialise_rater, score_tokens

_LOG = logging.getLogger("datarater")
_WARMUP_REPORT_EVERY = 50


def train(experiment: Experiment, workdir: Workdir, stop: StopSignal) -> RaterCheckpoint:
    """Runs meta-training to its last step, from the newest checkpoint in the workdir.

    Args:
        experiment: Parts of the run, as `prepare` returns them.
        workdir: Folder of the run, claimed for this experiment.
        stop: Asked after every step whether to save and leave.

    Returns:
        The last rater checkpoint, also in `workdir.rater`.

    Raises:
        NonFiniteError: A loss, a meta-gradient or a state is not finite; all saved checkpoints are.
        NonFiniteScoresError: The scores of a rater to be exported are not finite.
        StoppedError: A signal arrived; the run is saved.
        WorkdirError: The workdir's checkpoints are damaged.
        OSError: A checkpoint could not be read or written.
    """
    config = experiment.config
    population = build.population_config(config)
    rater_key, pool_key, fresh_key, choice_key = jax.random.split(jax.random.key(config.seed), 4)
    rater_params = initialise_rater(experiment.rater, rater_key)
    initialise = functools.partial(initialise_language_model, experiment.language_model)
    inner_shapes = jax.eval_shape(initialise, fresh_key)
    spending = spending_of(experiment, rater_params, inner_shapes)
    placement = build.placement(config)
    _log_sizes(experiment, rater_params, inner_shapes, placement)
    with build.named("meta_gradient"):
        meta_gradient = make_meta_gradient(
            lambda params, windows: score_tokens(experiment.rater, params, *windows),
            functools.partial(sequence_losses, experiment.language_model),
            build.inner_optimiser(config),
            build.meta_gradient_config(config),
            placement.data_axis(inner_shapes),
        )

    # The population, which starts from the pool.
    pool = warm_up_pool(experiment, workdir, stop, initialise, pool_key, placement)
    pool_digest = tree_digest(pool)
    newcomer = newcomers(config, pool, initialise, fresh_key, choice_key)
    inner_models = initial_population(population.size, functools.partial(newcomer, 0), placement)

    # The state, and the step that updates it.
    meta_optimiser = build.meta_optimiser(config)
    state = initial_meta_state(rater_params, inner_models, meta_optimiser)
    meta_step = make_meta_step(meta_gradient, meta_optimiser, placement)
    state = place_meta_state(state, placement)

    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.deferred())
        inner_shape = (population.size, config.inner_updates, config.inner_batch)
        inner_batches = stack.enter_context(drawing(experiment.inner, inner_shape, config.seed))
        outer_shape = (population.size, config.outer_batch)
        outer_batches = stack.enter_context(drawing(experiment.outer, outer_shape, config.seed + 1))
        checkpoints = stack.enter_context(Checkpoints(workdir.checkpoints, config.keep_checkpoints))

        # Resume from the newest checkpoint, or export the untrained rater as step 0.
        start, exported = 0, None
        restored = checkpoints.restore_latest(state)
        if restored is None:
            exported, scores_N = export(
                experiment, workdir, state.rater_params, 0, checkpoints.last_written
            )
        else:
            start, state, host = restored
            if host["pool"] != pool_digest:
                raise WorkdirError(
                    f"{workdir.pool} is not the warm-up pool that {workdir.checkpoints} was "
                    "trained with: it is damaged or was replaced; restore it, or give another "
                    "--workdir"
                )
            restore_iterator(inner_batches, host["inner_batches"])
            restore_iterator(outer_batches, host["outer_batches"])
            scores_N = np.asarray(host["reference_scores"], np.float32)
            _LOG.info("resuming at meta-step %d of %d", start, config.meta_steps)
        if stop.requested():
            raise StoppedError(
                f"stopped at meta-step {start} of {config.meta_steps}, before any new work"
            )

        writer = None
        if workdir.writes:
            writer = stack.enter_context(MetricsWriter(workdir.metrics, after=start))
        progress = Progress("step", config.meta_steps)
        # Entered last, so that it comes before the checkpoints' own exit, which would wait for
        # lost processes.
        stack.enter_context(lost_processes())

        for step in range(start, config.meta_steps):
            # One step, with fresh models for those whose lifetime is over.
            for member in members_to_reset(step, population):
                state = state._replace(
                    inner=replace_member(state.inner, member, newcomer(step, member), placement)
                )
            inner, outer = (
                place_windows(next(batches), placement)
                for batches in (inner_batches, outer_batches)
            )
            state, metrics = meta_step(state, inner, outer)
            done, last = step + 1, step + 1 == config.meta_steps

            # Its metrics, checked before anything is saved.
            scalars = summarise(
                jax.device_get(metrics),
                config.meta_optimiser.clip_norm,
                config.meta_optimiser.epsilon,
            )
            scalars |= spending.at(done)
            check_finite(done, scalars, checkpoints.last_written)
            scalars |= {"score_autocorrelation": None, "score_autocorrelation_since": None}

            # Export. The last export may follow the one before sooner, so it is not compared.
            if done % config.export_every == 0 or last:
                exported, exported_scores_N = export(
                    experiment, workdir, state.rater_params, done, checkpoints.last_written
                )
                if done % config.export_every == 0:
                    correlation = score_correlation(scores_N, exported_scores_N)
                    if correlation is not None:
                        scalars["score_autocorrelation"] = correlation
                        scalars["score_autocorrelation_since"] = done - config.export_every
                    scores_N = exported_scores_N

            if writer:
                writer.write(done, scalars)
            if done % config.report_every == 0 or last:
                progress.report(done, step_text(scalars))
                if scalars["effective_sample_share"] < config.minimum_effective_sample_share:
                    _LOG.warning(
                        "the weights are collapsing: effective sample share %.3f; "
                        "lower meta_optimiser.learning_rate",
                        scalars["effective_sample_share"],
                    )

            # Save, and leave on a signal.
            stopping = stop.requested()
            if done % config.checkpoint_every == 0 or last or stopping:
                host = {
                    "pool": pool_digest,
                    "inner_batches": iterator_state(inner_batches),
                    "outer_batches": iterator_state(outer_batches),
                    "reference_scores": scores_N.tolist(),
                }
                check_state(done, state, checkpoints.last_written)
                checkpoints.save(done, state, host)
            if stopping and not last:
                checkpoints.wait()
                raise StoppedError(f"stopped after meta-step {done} of {config.meta_steps}; saved")

        checkpoints.wait()
        if exported is None:  # a finished run whose last exports were not written, or were lost
            exported, _ = export(
                experiment, workdir, state.rater_params, config.meta_steps, checkpoints.last_written
            )
    return save_rater(workdir.rater, exported) if workdir.writes else exported


def newcomers(
    config: ConfigDict,
    pool: Sequence[InnerState],
    initialise: Initialise,
    fresh_key: jax.Array,
    choice_key: jax.Array,
) -> Callable[[int, int], InnerState]:
    """Returns the function (step, member) -> the state from which the member starts after the step.

    Args:
        config: The whole config.
        pool: Warm-up pool; if it is empty, members start from fresh parameters.
        initialise: Makes the parameters of an inner model from a random key.
        fresh_key: Random key of fresh parameters.
        choice_key: Random key of the choice from the pool.
    """
    inner_optimiser = build.inner_optimiser(config)

    def newcomer(step: int, member: int) -> InnerState:
        number = step * config.population.size + member
        if not pool:
            key = jax.random.fold_in(fresh_key, number)
            return fresh_inner_state(initialise, inner_optimiser, key)

        # Each round has a fresh shuffle of the pool, so the first members all start from different
        # entries.
        round_key = jax.random.fold_in(choice_key, number // len(pool))
        order = jax.random.permutation(round_key, len(pool))
        return pool[int(order[number % len(pool)])]

    return newcomer


def warm_up_pool(
    experiment: Experiment,
    workdir: Workdir,
    stop: StopSignal,
    initialise: Initialise,
    key: jax.Array,
    placement: Placement = ONE_DEVICE,
) -> list[InnerState]:
    """Returns the warm-up pool, of which the workdir may have a part.

    Every entry is a checkpoint of the warm-up that is kept; those between entries are deleted when
    the pool is complete.

    Args:
        experiment: Parts of the run, as `prepare` returns them.
        workdir: Folder of the run, which keeps the pool.
        stop: Asked after every step whether to save and leave.
        initialise: Makes the parameters of an inner model from a random key.
        key: Random key of the trajectories.
        placement: Devices that share a batch.

    Raises:
        NonFiniteError: A loss or a model is not finite.
        StoppedError: A signal arrived; the warm-up is saved.
        OSError: A checkpoint could not be read or written.
    """
    config = experiment.config
    population = build.population_config(config)
    if not population.warmup_steps:
        return []

    optimiser = build.inner_optimiser(config)
    entry_steps = pool_steps(population)
    with (
        stop.deferred(),
        Checkpoints(workdir.pool) as checkpoints,
        contextlib.ExitStack() as stack,
    ):
        # The entries made so far, and the newest checkpoint after them.
        like = fresh_inner_state(initialise, optimiser, key)
        series = checkpoints.restore_series(like, entry_steps)
        pool = [jax.device_get(entry) for step, entry, _ in series if step in entry_steps]
        restored = series[-1] if series else None
        if stop.requested():
            start = restored[0] if restored else 0
            raise StoppedError(
                f"stopped at warm-up step {start} of {entry_steps[-1]}, before any new work"
            )
        if restored and restored[0] == entry_steps[-1]:
            return pool

        batches = stack.enter_context(
            drawing(experiment.inner, (config.inner_batch,), config.seed + 2)
        )
        progress = Progress("warm-up", entry_steps[-1])
        unchecked_losses: list[jax.Array] = []

        def check_losses(step: int) -> float:
            losses = [float(loss) for loss in unchecked_losses]
            check_warmup_losses(step - len(losses) + 1, losses)
            unchecked_losses.clear()
            return losses[-1]

        def observe(step: int, state: InnerState, loss: jax.Array) -> None:
            unchecked_losses.append(loss)
            stopping = stop.requested()
            save = step in entry_steps or step % config.warmup_checkpoint_every == 0 or stopping
            report = step % _WARMUP_REPORT_EVERY == 0 or step == entry_steps[-1]

            if save or report:
                last_loss = check_losses(step)
            if report:
                progress.report(step, f"loss {last_loss:.3f}")
            if save:
                check_warmup_state(step, state)
                checkpoints.save(step, state, {"batches": iterator_state(batches)})
            if stopping:
                checkpoints.wait()
                raise StoppedError(f"stopped after warm-up step {step} of {entry_steps[-1]}; saved")

        if restored:
            restore_iterator(batches, restored[2]["batches"])
            _LOG.info("resuming warm-up at step %d of %d", restored[0], entry_steps[-1])
        train_step = make_train_step(
            functools.partial(sequence_losses, experiment.language_model),
            optimiser,
            config.inner_batch,
            config.meta_gradient.inner_micro_batch,
            placement,
        )
        pool = warm_up(
            population,
            initialise,
            train_step,
            optimiser,
            batches,
            key,
            observe,
            pool,
            restored[:2] if restored else None,
        )

        # Only the entries are needed from now on.
        checkpoints.wait()
        for step in set(checkpoints.steps()) - set(entry_steps):
            checkpoints.delete(step)
        checkpoints.delete_superseded()
    return pool


@contextlib.contextmanager
def drawing(windows: Any, shape: tuple[int, ...], seed: int) -> Iterator[Any]:
    """Draws batches, and ends the iterator's threads on leaving.

    With threads left, the process may abort as it ends.
    """
    batches = draw_batches(windows, shape, seed)
    try:
        yield batches
    finally:
        batches.close()


def spending_of(experiment: Experiment, rater_params: Params, inner_shapes: Params) -> Spending:
    """Returns the cost of a run's steps in tokens and FLOPs.

    Args:
        experiment: Parts of the run, as `prepare` returns them.
        rater_params: Parameters of the rater, or their shapes.
        inner_shapes: Parameters of an inner model, or their shapes.
    """
    config = experiment.config
    length = config.length

    def multiplying(params: Params) -> int:
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        return sum(
            leaf.size for name, leaf in flat.items() if not name.endswith("embedding/embedding")
        )

    return Spending(
        inner=ModelCost.of(
            experiment.language_model.transformer, multiplying(inner_shapes), length
        ),
        rater=ModelCost.of(experiment.rater.transformer, multiplying(rater_params), length),
        warmup_tokens=warmup_tokens(build.population_config(config), config.inner_batch, length),
        inner_tokens=config.population.size * config.inner_updates * config.inner_batch * length,
        outer_tokens=config.population.size * config.outer_batch * length,
    )


def _log_sizes(
    experiment: Experiment,
    rater_params: Params,
    inner_shapes: Params,
    placement: Placement,
) -> None:
    _LOG.info(
        "rater %s parameters, inner models %d x %s; inner set: %s; outer set: %s",
        f"{count_parameters(rater_params):,}",
        experiment.config.population.size,
        f"{count_parameters(inner_shapes):,}",
        experiment.inner.describe(),
        experiment.outer.describe(),
    )
    if placement.size > 1:
        _LOG.info("on %s", placement.describe())


def export(
    experiment: Experiment,
    workdir: Workdir,
    rater_params: Params,
    step: int,
    last_checkpoint: Callable[[], int | None],
) -> tuple[RaterCheckpoint, np.ndarray]:
    """Writes the rater checkpoint of a step to the workdir.

    Returns:
        The checkpoint, and the scores of the reference documents, float32.

    Raises:
        NonFiniteScoresError: A score is not finite.
    """
    try:
        return export_rater(
            str(workdir.rater_of_step(step)),
            experiment.rater,
            rater_params,
            experiment.tokenizer,
            experiment.reference,
            experiment.config.export.max_windows,
            {**experiment.provenance, "step": step},
            workdir.writes,
        )
    except NonFiniteScoresError as error:
        raise NonFiniteScoresError(
            f"meta-step {step}: {error}; {what_remains(last_checkpoint())}"
        ) from error
