"""The run itself: warm-up, meta-steps, exports and checkpoints, from wherever its workdir stands."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from datarater.meta_training.algorithm.language_model import (
    Params,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.algorithm.mesh import Placement
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
    what_stands,
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
    """Runs meta-training from where the workdir stands to its last step.

    Args:
        experiment: as `prepare` returns it.
        workdir: where everything is written, claimed for this experiment.
        stop: asked after every step whether to save and leave.

    Returns:
        The last rater checkpoint, also in `workdir.rater`.

    Raises:
        NonFiniteError: a loss, a meta-gradient or a state is not finite; the checkpoints that stand
            are.
        NonFiniteScoresError: a rater to be exported gives scores that are not finite.
        StoppedError: a signal came; the run is saved.
        WorkdirError: the workdir's checkpoints are damaged.
        OSError: a checkpoint could not be read or written.
    """
    config = experiment.config
    population = build.population_config(config)
    inner_optimiser, meta_optimiser = build.inner_optimiser(config), build.meta_optimiser(config)
    losses = functools.partial(sequence_losses, experiment.language_model)
    initialise = functools.partial(initialise_language_model, experiment.language_model)
    rater_key, pool_key, fresh_key, choice_key = jax.random.split(jax.random.key(config.seed), 4)
    rater_params = initialise_rater(experiment.rater, rater_key)
    inner_shapes = jax.eval_shape(initialise, fresh_key)
    _LOG.info(
        "rater %s parameters, inner models %d x %s; inner set: %s; outer set: %s",
        f"{count_parameters(rater_params):,}",
        population.size,
        f"{count_parameters(inner_shapes):,}",
        experiment.inner.describe(),
        experiment.outer.describe(),
    )
    spending = spending_of(experiment, rater_params, inner_shapes)
    placement = build.placement(config)
    if placement:
        _LOG.info("on %s", placement.describe())

    pool = warm_up_pool(experiment, workdir, stop, initialise, pool_key, placement)
    pool_digest = tree_digest(pool)

    def newcomer(step: int, member: int) -> InnerState:
        number = step * population.size + member
        if pool:
            # A fresh shuffle of the pool each round: the first members all start from different
            # entries.
            order = jax.random.permutation(
                jax.random.fold_in(choice_key, number // len(pool)), len(pool)
            )
            return pool[int(order[number % len(pool)])]
        return fresh_inner_state(initialise, inner_optimiser, jax.random.fold_in(fresh_key, number))

    inner_models = initial_population(population.size, functools.partial(newcomer, 0), placement)
    state = initial_meta_state(rater_params, inner_models, meta_optimiser)
    meta_step = make_meta_step(
        make_meta_gradient(
            lambda params, windows: score_tokens(experiment.rater, params, *windows),
            losses,
            inner_optimiser,
            build.meta_gradient_config(config),
            placement.data_axis(inner_shapes) if placement else None,
        ),
        meta_optimiser,
        placement,
    )
    state = place_meta_state(state, placement)
    with contextlib.ExitStack() as stack_of:
        stack_of.enter_context(stop.deferred())
        inner_batches = stack_of.enter_context(
            drawing(
                experiment.inner,
                (population.size, config.inner_updates, config.inner_batch),
                config.seed,
            )
        )
        outer_batches = stack_of.enter_context(
            drawing(experiment.outer, (population.size, config.outer_batch), config.seed + 1)
        )
        checkpoints = stack_of.enter_context(
            Checkpoints(workdir.checkpoints, config.keep_checkpoints)
        )
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
                    f"{workdir.pool} is not the warm-up pool that {workdir.checkpoints} was trained with: it "
                    "is damaged or was exchanged; restore it, or give another --workdir"
                )
            restore_iterator(inner_batches, host["inner_batches"])
            restore_iterator(outer_batches, host["outer_batches"])
            scores_N = np.asarray(host["reference_scores"], np.float32)
            _LOG.info("resuming at meta-step %d of %d", start, config.meta_steps)
        if stop.requested():
            raise StoppedError(
                f"stopped at meta-step {start} of {config.meta_steps}, before anything new"
            )
        writer = (
            stack_of.enter_context(MetricsWriter(workdir.metrics, after=start))
            if workdir.writes
            else None
        )
        progress = Progress("step", config.meta_steps)
        stack_of.enter_context(
            lost_processes()
        )  # before the checkpoints' own leave-taking, which would wait for them
        for step in range(start, config.meta_steps):
            for member in members_to_reset(step, population):
                state = state._replace(
                    inner=replace_member(state.inner, member, newcomer(step, member), placement)
                )
            inner, outer = (
                place_windows(next(drawn), placement) for drawn in (inner_batches, outer_batches)
            )
            state, metrics = meta_step(state, inner, outer)
            done, last = step + 1, step + 1 == config.meta_steps
            scalars = summarise(
                jax.device_get(metrics),
                config.meta_optimiser.clip_norm,
                config.meta_optimiser.epsilon,
            )
            scalars |= spending.at(done)
            check_finite(done, scalars, checkpoints.last_written)
            scalars |= {"score_autocorrelation": None, "score_autocorrelation_since": None}
            if done % config.export_every == 0 or last:
                exported, exported_scores_N = export(
                    experiment, workdir, state.rater_params, done, checkpoints.last_written
                )
                if (
                    done % config.export_every == 0
                ):  # the last export may follow sooner: it is compared with none
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
                        "the weights are collapsing: effective sample share %.3f; lower meta_optimiser.learning_rate",
                        scalars["effective_sample_share"],
                    )
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


def warm_up_pool(
    experiment: Experiment,
    workdir: Workdir,
    stop: StopSignal,
    initialise: Initialise,
    key: jax.Array,
    placement: Placement | None = None,
) -> list[InnerState]:
    """Returns the warm-up pool: read from the workdir as far as it is there, trained from there on.

    Every entry is a checkpoint of the warm-up, and stays; those between entries go when the pool is
    complete.

    Args:
        experiment: as `prepare` returns it.
        workdir: where the pool is kept.
        stop: asked after every step whether to save and leave.
        initialise: makes an inner model's parameters of a random key.
        key: random key of the trajectories.
        placement: the devices that share a batch; None for one device.

    Raises:
        NonFiniteError: a loss or a model is not finite.
        StoppedError: a signal came; the warm-up is saved.
        OSError: a checkpoint could not be read or written.
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
        contextlib.ExitStack() as stack_of,
    ):
        like = fresh_inner_state(initialise, optimiser, key)
        series = checkpoints.restore_series(like, entry_steps)
        pool = [jax.device_get(entry) for step, entry, _ in series if step in entry_steps]
        restored = series[-1] if series else None
        if stop.requested():
            begun = restored[0] if restored else 0
            raise StoppedError(
                f"stopped at warm-up step {begun} of {entry_steps[-1]}, before anything new"
            )
        if restored and restored[0] == entry_steps[-1]:
            return pool
        batches = stack_of.enter_context(
            drawing(experiment.inner, (config.inner_batch,), config.seed + 2)
        )
        progress = Progress("warm-up", entry_steps[-1])
        recent: list[jax.Array] = []

        def check(step: int) -> float:
            losses = [float(loss) for loss in recent]
            check_warmup_losses(step - len(losses) + 1, losses)
            recent.clear()
            return losses[-1]

        def observe(step: int, state: InnerState, loss: jax.Array) -> None:
            recent.append(loss)
            stopping = stop.requested()
            save = step in entry_steps or step % config.warmup_checkpoint_every == 0 or stopping
            report = step % _WARMUP_REPORT_EVERY == 0 or step == entry_steps[-1]
            if save or report:
                last_loss = check(step)
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
        pool = warm_up(
            population,
            initialise,
            make_train_step(
                functools.partial(sequence_losses, experiment.language_model),
                optimiser,
                config.inner_batch,
                config.meta_gradient.inner_micro_batch,
                placement,
            ),
            optimiser,
            batches,
            key,
            observe,
            pool,
            restored[:2] if restored else None,
        )
        checkpoints.wait()
        for step in set(checkpoints.steps()) - set(entry_steps):
            checkpoints.delete(step)
        checkpoints.delete_superseded()
    return pool


@contextlib.contextmanager
def drawing(windows: Any, shape: tuple[int, ...], seed: int) -> Iterator[Any]:
    """Draws batches; ends the iterator's threads on leaving, without which the process may abort as it ends."""
    batches = draw_batches(windows, shape, seed)
    try:
        yield batches
    finally:
        batches.close()


def spending_of(experiment: Experiment, rater_params: Params, inner_shapes: Params) -> Spending:
    """Returns what a run's steps cost in tokens and FLOPs.

    Args:
        experiment: as `prepare` returns it.
        rater_params: the rater's parameters, or their shapes.
        inner_shapes: an inner model's.
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


def export(
    experiment: Experiment,
    workdir: Workdir,
    rater_params: Params,
    step: int,
    last_checkpoint: Callable[[], int | None],
) -> tuple[RaterCheckpoint, np.ndarray]:
    """Writes the rater checkpoint of a step to the workdir's raters, and returns it with its reference scores."""
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
            f"meta-step {step}: {error}; {what_stands(last_checkpoint())}"
        ) from error
