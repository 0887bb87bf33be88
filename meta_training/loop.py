"""Runs meta-training: warm-up, then meta-steps with their exports, metrics and checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import jax
import numpy as np

from datarater.meta_training.algorithm.language_model import Params
from datarater.meta_training.algorithm.mesh import Placement
from datarater.meta_training.algorithm.meta_gradient import make_meta_gradient
from datarater.meta_training.algorithm.meta_step import (
    MetaState,
    MetaStepMetrics,
    batch_spec,
    initial_meta_state,
    make_meta_step,
    place_meta_state,
    place_windows,
    stored_state,
)
from datarater.meta_training.algorithm.population import (
    initial_population,
    make_newcomer,
    members_to_reset,
    replace_member,
)
from datarater.meta_training.algorithm.rater_average import averaged_rater, make_rater_average
from datarater.meta_training.config import build
from datarater.meta_training.data.windows import draw_batches, iterator_state, restore_iterator
from datarater.meta_training.errors import StoppedError, WorkdirError
from datarater.meta_training.run.checkpoints import Checkpoints, tree_digest
from datarater.meta_training.run.cost import spending_of
from datarater.meta_training.run.export import NonFiniteScoresError, export_rater
from datarater.meta_training.run.health import check_finite, check_state, what_remains
from datarater.meta_training.run.metrics import MetricsWriter, Writer, Writers
from datarater.meta_training.run.peak import run_peak_flops
from datarater.meta_training.run.pending import Arrived, PendingMetrics
from datarater.meta_training.run.prepared_run import Experiment, plain
from datarater.meta_training.run.processes import lost_processes
from datarater.meta_training.run.profiler import Profiler
from datarater.meta_training.run.start import first_rater
from datarater.meta_training.run.stopping import StopSignal
from datarater.meta_training.run.summary import Progress, score_correlation, step_text, summarise
from datarater.meta_training.run.validation import (
    NO_VALIDATION,
    Standing,
    Validation,
    chosen_by,
    log_validation,
)
from datarater.meta_training.run.wandb_writer import WandbWriter
from datarater.meta_training.run.warm_up_run import WarmUp
from datarater.meta_training.run.workdir import Workdir
from datarater.rater_model.checkpoint import (
    CheckpointError,
    RaterCheckpoint,
    load_rater,
    save_rater,
)
from datarater.rater_model.counted import counted
from datarater.rater_model.rater import (
    count_parameters,
    initialise_rater_shapes,
    score_tokens,
)

_LOG = logging.getLogger("datarater")


def train(experiment: Experiment, workdir: Workdir, stop: StopSignal) -> RaterCheckpoint:
    """Runs meta-training to its end, from the newest checkpoint in the workdir.

    Args:
        experiment: Parts of the run, as `prepare` returns them.
        workdir: Folder of the run, claimed for this experiment.
        stop: Asked after every step whether to save and leave.

    Returns:
        The chosen rater checkpoint, also in `workdir.rater`.

    Raises:
        ConfigError: The placement does not fit the devices or the mode.
        NonFiniteError: A loss, a meta-gradient or a state is not finite; all saved checkpoints are.
        NonFiniteScoresError: The scores of a rater to be exported are not finite.
        StoppedError: A signal arrived; the run is saved.
        WorkdirError: The workdir's checkpoints are damaged.
        OSError: A checkpoint could not be read or written.
    """
    config, run = experiment.config, TrainingRun(experiment, workdir, stop)
    run.warm_up()
    with run.restored():
        while not run.finished:
            asked = stop.ask()
            run.dispatch()
            stopping = asked()

            # The devices have this step to do while Python reports the one before. Nothing is
            # validated, exported or saved before all metrics up to it are known to be finite.
            if not (run.must_settle or stopping):
                run.report_arrived(left=1)
                continue
            run.settle()
            if run.due(config.checkpoint_every) or stopping:
                run.save()
            if stopping and not run.finished:
                run.wait()
                raise StoppedError(f"stopped after {run.position}; saved")
        rater = run.chosen_rater()
    return save_rater(workdir.rater, rater) if workdir.writes else rater


@dataclasses.dataclass(frozen=True)
class Position:
    """What a training checkpoint stores beside the arrays.

    Attributes:
        pool: Digest of the warm-up pool that inner models start from.
        inner_batches: Position of the inner batches.
        outer_batches: Position of the outer batches.
        reference_scores: Scores of the reference documents at the last export to compare with.
        standing: What the validations have shown so far.
    """

    pool: str
    inner_batches: Any
    outer_batches: Any
    reference_scores: list[float]
    standing: Standing = dataclasses.field(default_factory=Standing)


class TrainingRun:
    """A meta-training run: the state that meta-steps update, and what the workdir records of it.

    Args:
        experiment: Parts of the run, as `prepare` returns them.
        workdir: Folder of the run.
        stop: Asked after the warm-up's steps, and on restoring, whether to leave.

    Attributes:
        done: Meta-steps done, or given to the devices to do.
        state: State after them.
        profiler: Traces some of them.

    Raises:
        ConfigError: The placement does not fit the devices or the mode.
    """

    done: int
    state: MetaState

    def __init__(self, experiment: Experiment, workdir: Workdir, stop: StopSignal) -> None:
        self._experiment, self._workdir, self._stop = experiment, workdir, stop
        self._config = config = experiment.config
        self._population = build.population_config(config)
        self._placement = build.placement(config)

        key = jax.random.key(config.seed)
        rater_shapes = initialise_rater_shapes(experiment.rater)
        inner_shapes = jax.eval_shape(experiment.initialise, key)
        self._keys = jax.random.split(key, 4)
        self._spending = spending_of(experiment, rater_shapes, inner_shapes)
        _log_sizes(experiment, rater_shapes, inner_shapes, self._placement)

        self._meta_optimiser = build.meta_optimiser(config)
        meta_gradient = make_meta_gradient(
            lambda params, windows: score_tokens(experiment.rater, params, *windows),
            experiment.losses,
            build.inner_optimiser(config),
            build.meta_gradient_config(config),
            self._placement.data_axis(inner_shapes),
            experiment.outer.losses,
            temperature=config.softmax_temperature,
        )
        self._average = make_rater_average(config.rater_average.decay)
        self._meta_step = make_meta_step(
            meta_gradient,
            self._meta_optimiser,
            self._placement,
            self._average,
            config.softmax_temperature,
        )

        self._peak = run_peak_flops(config, self._placement.size)
        self._pending: PendingMetrics[MetaStepMetrics] = PendingMetrics()
        self.profiler = Profiler(config.profile, workdir.profile if workdir.writes else None)
        self._validation: Validation | None = None
        self._standing = Standing()
        self._rater: RaterCheckpoint | None = None  # as exported last
        self._scores_N = np.zeros(0, np.float32)  # of the last export to compare with

    @property
    def finished(self) -> bool:
        """Whether all meta-steps are done, or the validations ended the run before."""
        return self.done >= int(self._config.meta_steps) or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether the gain in validations has not improved for as many as the patience allows."""
        return self._standing.ends_run(self._config.early_stopping.patience)

    @property
    def validates(self) -> bool:
        """Whether this step's rater is validated.

        The last meta-step has no validation of its own, so that an extended run has the same ones
        as a run that was as long from the start.
        """
        every = int(self._config.validate_every)
        return every > 0 and self.done % every == 0

    @property
    def must_settle(self) -> bool:
        """Whether this step ends a trace, or its rater is validated, exported or saved."""
        config = self._config
        return (
            self.validates
            or self.due(config.export_every)
            or self.due(config.checkpoint_every)
            or self.profiler.ends_with(self.done)
        )

    @property
    def must_export_best(self) -> bool:
        """Whether this step's rater is the best so far, and may be the one that is chosen."""
        by_validation = self._config.choose_checkpoint == "validation"
        return by_validation and self._standing.best_step == self.done

    @property
    def position(self) -> str:
        """How far the run is, for messages."""
        return f"meta-step {self.done} of {self._config.meta_steps}"

    def due(self, every: int) -> bool:
        """Returns whether to do now what is done every so many meta-steps and after the last."""
        return self.done % every == 0 or self.finished

    def warm_up(self) -> None:
        """Makes the first rater and the warm-up pool, and the first state from them."""
        experiment, size = self._experiment, self._population.size
        rater_key, pool_key, fresh_key, choice_key = self._keys
        # First, because what is wrong with it is found before the long warm-up.
        self._start = first_rater(experiment, self._workdir, rater_key)

        warm_up = WarmUp(experiment, self._workdir, self._stop, pool_key, self._placement)
        pool = warm_up.pool()
        self._pool_digest = tree_digest(pool)

        self._newcomer = make_newcomer(size, pool, warm_up.fresh, fresh_key, choice_key)
        inner_models = initial_population(
            size, functools.partial(self._newcomer, 0), self._placement
        )
        state = initial_meta_state(
            self._start.params, inner_models, self._meta_optimiser, self._average
        )
        self.done, self.state = 0, place_meta_state(state, self._placement)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Opens the run's data and files, where its newest checkpoint left them.

        Raises:
            StoppedError: A signal arrived meanwhile.
            WorkdirError: The workdir's checkpoints are damaged, or of another pool.
        """
        config, experiment = self._config, self._experiment
        inner_shape = (config.population.size, config.inner_updates, config.inner_batch)
        outer_shape = (config.population.size, config.outer_batch)

        with (
            self._stop.deferred(),
            closing(
                draw_batches(
                    experiment.inner,
                    inner_shape,
                    config.seed,
                    config.data.within_source_share,
                    own=self._placement.own_rows(inner_shape, batch_spec(3)),
                    processes=config.data.reader_processes,
                )
            ) as self._inner,
            closing(
                experiment.outer.draw(
                    outer_shape,
                    config.seed + 1,
                    own=self._placement.own_rows(outer_shape, batch_spec(2)),
                    processes=config.data.reader_processes,
                )
            ) as self._outer,
            Checkpoints(
                self._workdir.checkpoints, Position, config.keep_checkpoints
            ) as self._checkpoints,
        ):
            self.restore()
            if self._stop.requested():
                raise StoppedError(f"stopped at {self.position}, before any new work")

            self._progress = Progress("step", config.meta_steps)
            # A lost process is noticed before the checkpoints' exit, which would wait for it.
            with self._writers() as self._writer, self.profiler, lost_processes():
                yield

    def _writers(self) -> Writers:
        """Returns what metrics are written to: the workdir and, where configured, wandb."""
        config, workdir = self._config, self._workdir
        if not workdir.writes:
            return Writers()
        writers: list[Writer] = [MetricsWriter(workdir.metrics, self.done)]
        if config.wandb.project:
            writers.append(WandbWriter(workdir.path, config.wandb.to_dict(), plain(config)))
        return Writers(*writers)

    def restore(self) -> None:
        """Continues from the newest checkpoint, or exports the untrained rater as step 0."""
        restored = self._checkpoints.restore_latest(stored_state(self.state))
        if restored is None:
            self.export()
            return

        self.done, self.state, position = (
            restored.step,
            MetaState(*restored.state),
            restored.position,
        )
        if position.pool != self._pool_digest:
            raise WorkdirError(
                f"{self._workdir.pool} is not the warm-up pool that {self._workdir.checkpoints} "
                "was trained with: it is damaged or was replaced; restore it, or give another "
                "--workdir"
            )
        try:
            restore_iterator(self._inner, position.inner_batches)
            restore_iterator(self._outer, position.outer_batches)
        except (KeyError, TypeError) as error:
            raise WorkdirError(
                f"{self._workdir.path}: an earlier version began the run on a TensorFlow dataset, "
                "and this one cannot find its position in the data again: continue it with that "
                "version, or give another --workdir"
            ) from error
        self._scores_N = np.asarray(position.reference_scores, np.float32)
        self._standing = position.standing
        _LOG.info("resuming at %s", self.position)

    def dispatch(self) -> None:
        """Dispatches one meta-step, with fresh inner models for those whose lifetime is over.

        It returns while the devices compute; `report_arrived` waits for the metrics.
        """
        started = time.monotonic()
        self.profiler.before(self.done + 1)
        for member in members_to_reset(self.done, self._population):
            newcomer = self._newcomer(self.done, member)
            inner_models = replace_member(self.state.inner, member, newcomer, self._placement)
            self.state = self.state._replace(inner=inner_models)

        inner, outer = (
            place_windows(next(batches), self._placement) for batches in (self._inner, self._outer)
        )
        self.state, metrics = self._meta_step(self.state, inner, outer)
        self.done += 1
        self._pending.add(self.done, metrics, started)

    def report_arrived(self, left: int) -> None:
        """Waits for the metrics of dispatched steps and reports them.

        Args:
            left: Number of newest steps to leave to the devices.

        Raises:
            NonFiniteError: A metric is not finite.
        """
        for arrived in self._pending.arrived(left):
            self.report(arrived.step, self.checked(arrived))

    def settle(self) -> None:
        """Waits for all dispatched steps and reports them; validates and exports where it is due.

        Raises:
            NonFiniteError: A metric is not finite.
            NonFiniteScoresError: A score is not finite.
        """
        self.report_arrived(left=1)
        for arrived in self._pending.arrived():
            scalars = self.checked(arrived) | self.validate()
            if self.due(self._config.export_every) or self.must_export_best:
                scalars |= self.export()
            self.report(arrived.step, scalars)
            self.profiler.after(arrived.step)

    def checked(self, arrived: Arrived[MetaStepMetrics]) -> dict[str, float | None]:
        """Returns the metrics of a step by name, without a comparison of scores.

        Raises:
            NonFiniteError: A metric is not finite.
        """
        optimiser = self._config.meta_optimiser
        scalars = summarise(
            arrived.metrics,
            optimiser.clip_norm,
            optimiser.epsilon,
            self._experiment.outer.names,
        )
        scalars |= self._spending.at(arrived.step)
        check_finite(arrived.step, scalars, self._checkpoints.last_written)
        scalars |= {"score_autocorrelation": None, "score_autocorrelation_since": None}
        scalars |= NO_VALIDATION if self._config.validate_every else {}
        return scalars | self._spending.rates(arrived.seconds, self._peak)

    def validate(self) -> dict[str, float | None]:
        """Validates this step's rater if it is due; returns the metrics of the validation."""
        config = self._config
        if not self.validates:
            return {}

        self._validation = self._validation or Validation(self._experiment, self._newcomer)
        scalars = self._validation.measure(self.rater_params())
        gain, error = scalars["validation_gain"], scalars["validation_gain_error"]
        assert gain is not None
        assert error is not None
        self._standing = self._standing.after(self.done, gain, error)

        log_validation(self.done, scalars, self._standing)
        if self.stopped_early:
            _LOG.info(
                "stopping early at %s: no improvement in %s",
                self.position,
                counted(config.early_stopping.patience, "validation"),
            )
        return scalars

    def rater_params(self) -> Params:
        """Returns the parameters to export: the rater's, or their average over meta-steps."""
        decay = self._config.rater_average.decay
        return averaged_rater(decay, self.state.rater_params, self.state.average)

    def export(self) -> dict[str, float | None]:
        """Writes the rater checkpoint of this step to the workdir.

        Returns:
            The metrics that compare its scores with those of the last export, if there are any. The
            last export of a run may follow the one before sooner, and is then not compared.

        Raises:
            NonFiniteScoresError: A score is not finite.
        """
        experiment, before_N = self._experiment, self._scores_N
        try:
            self._rater, scores_N = export_rater(
                str(self._workdir.rater_of_step(self.done)),
                experiment.rater,
                self.rater_params(),
                experiment.tokenizer,
                experiment.reference,
                self._config.export.max_windows,
                {**experiment.provenance, **self._start.provenance, "step": self.done},
                self._workdir.writes,
            )
        except NonFiniteScoresError as error:
            raise NonFiniteScoresError(
                f"meta-step {self.done}: {error}; {what_remains(self._checkpoints.last_written())}"
            ) from error

        if self.done % self._config.export_every:
            return {}
        self._scores_N = scores_N
        correlation = score_correlation(before_N, scores_N)
        if correlation is None:
            return {}
        return {
            "score_autocorrelation": correlation,
            "score_autocorrelation_since": self.done - self._config.export_every,
        }

    def report(self, step: int, scalars: dict[str, float | None]) -> None:
        """Writes a step's metrics to the workdir and, where they are due, to the log."""
        self._writer.write(step, scalars)
        if step % self._config.report_every and step != self._config.meta_steps:
            return

        self._progress.report(step, step_text(scalars))
        share = scalars["effective_sample_share"]
        if share is not None and share < self._config.minimum_effective_sample_share:
            _LOG.warning(
                "the weights are collapsing: effective sample share %.3f; "
                "lower meta_optimiser.learning_rate",
                share,
            )

    def save(self) -> None:
        """Starts to write a training checkpoint.

        Raises:
            NonFiniteError: A part of the state is not finite.
            OSError: This checkpoint or the one before could not be written.
        """
        check_state(self.done, self.state, self._checkpoints.last_written)
        position = Position(
            self._pool_digest,
            iterator_state(self._inner),
            iterator_state(self._outer),
            self._scores_N.tolist(),
            self._standing,
        )
        self._checkpoints.save(self.done, stored_state(self.state), position)

    def wait(self) -> None:
        """Waits until all checkpoints are written."""
        self._checkpoints.wait()

    def chosen_rater(self) -> RaterCheckpoint:
        """Returns the rater of a finished run, once all checkpoints are written.

        It is that of the last meta-step, or the best in the validations. In a run with validations,
        its provenance says which and why.

        Raises:
            WorkdirError: The best rater is no longer in the workdir, or is damaged.
        """
        self.wait()
        if self._rater is None:  # a finished run whose last exports were not written, or were lost
            self.export()
        assert self._rater is not None
        config, rater = self._config, self._rater
        if not config.validate_every or not self._workdir.writes:
            return rater

        chosen = chosen_by(config.choose_checkpoint, self.done, self._standing)
        if chosen["step"] != self.done:
            path = self._workdir.rater_of_step(chosen["step"])
            try:
                rater = load_rater(path)
            except CheckpointError as error:
                raise WorkdirError(
                    f"{path}, the best rater in the validations, cannot be read: {error}; restore "
                    "it, or give another --workdir"
                ) from error
        return dataclasses.replace(rater, provenance={**rater.provenance, "chosen": chosen})


def _log_sizes(
    experiment: Experiment, rater_shapes: Params, inner_shapes: Params, placement: Placement
) -> None:
    _LOG.info(
        "rater %s parameters, inner models %d x %s; inner set: %s; outer set: %s",
        f"{count_parameters(rater_shapes):,}",
        experiment.config.population.size,
        f"{count_parameters(inner_shapes):,}",
        experiment.inner.describe(),
        experiment.outer.describe(),
    )
    if placement.size > 1:
        _LOG.info("on %s", placement.describe())
