"""Makes the warm-up pool in a workdir, resuming from the part of it that exists."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from datarater.meta_training.algorithm.mesh import Placement
from datarater.meta_training.algorithm.meta_gradient import InnerState
from datarater.meta_training.algorithm.population import fresh_inner_state
from datarater.meta_training.algorithm.warm_up import make_train_step, pool_steps, warm_up
from datarater.meta_training.config import build
from datarater.meta_training.data.windows import draw_batches, iterator_state, restore_iterator
from datarater.meta_training.errors import StoppedError
from datarater.meta_training.run.checkpoints import Checkpoints, Saved
from datarater.meta_training.run.health import check_warmup_losses, check_warmup_state
from datarater.meta_training.run.prepared_run import Experiment
from datarater.meta_training.run.stopping import StopSignal
from datarater.meta_training.run.summary import Progress
from datarater.meta_training.run.workdir import Workdir

_LOG = logging.getLogger("datarater")
_REPORT_EVERY = 50


@dataclasses.dataclass(frozen=True)
class WarmUpPosition:
    """What a checkpoint of the warm-up stores beside the model.

    Attributes:
        batches: Position of the batches.
    """

    batches: Any


class WarmUp:
    """The warm-up of a run. Every entry of the pool is a checkpoint that is kept.

    Args:
        experiment: Parts of the run, as `prepare` returns them.
        workdir: Folder of the run, which keeps the pool.
        stop: Asked after every step whether to save and leave.
        key: Random key of the trajectories.
        placement: Devices that share a batch.

    Attributes:
        fresh: Makes an inner model without an update from a random key.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Workdir,
        stop: StopSignal,
        key: jax.Array,
        placement: Placement,
    ) -> None:
        self._experiment, self._workdir, self._stop = experiment, workdir, stop
        self._key, self._placement = key, placement
        self._population = build.population_config(experiment.config)
        self._optimiser = build.inner_optimiser(experiment.config)
        self.fresh = functools.partial(fresh_inner_state, experiment.initialise, self._optimiser)
        self._entry_steps = pool_steps(self._population)
        self._total = max(self._entry_steps, default=0)
        self._entries: list[InnerState] = []
        self._unchecked_losses: list[jax.Array] = []
        self._progress = Progress("warm-up", self._total)

    def pool(self) -> list[InnerState]:
        """Returns the warm-up pool, of which the workdir may have a part.

        Raises:
            NonFiniteError: A loss or a model is not finite.
            StoppedError: A signal arrived; the warm-up is saved.
            OSError: A checkpoint could not be read or written.
        """
        if not self._total:
            return []
        with (
            self._stop.deferred(),
            Checkpoints(self._workdir.pool, WarmUpPosition) as self._checkpoints,
        ):
            newest = self.restore()
            if newest is None or newest.step < self._total:
                self.train(newest)
                self.tidy()
        return self._entries

    def restore(self) -> Saved[WarmUpPosition] | None:
        """Reads the entries made so far; returns the newest checkpoint, if there is one."""
        series = self._checkpoints.restore_series(self.fresh(self._key), self._entry_steps)
        self._entries = [
            _copy_on_host(saved.state) for saved in series if saved.step in self._entry_steps
        ]
        newest = series[-1] if series else None
        if self._stop.requested():
            done = newest.step if newest else 0
            raise StoppedError(
                f"stopped at warm-up step {done} of {self._total}, before any new work"
            )
        return newest

    def train(self, newest: Saved[WarmUpPosition] | None) -> None:
        """Trains the entries that follow the newest checkpoint."""
        config = self._experiment.config
        batch = build.warmup_batch(config)
        shape = (batch,)
        spec = PartitionSpec(self._placement.batch_axis(batch).name)
        windows = draw_batches(
            self._experiment.inner,
            shape,
            config.seed + 2,
            own=self._placement.own_rows(shape, spec),
            processes=config.data.reader_processes,
        )
        with contextlib.closing(windows) as batches:
            if newest:
                restore_iterator(batches, newest.position.batches)
                _LOG.info("resuming warm-up at step %d of %d", newest.step, self._total)
            train_step = make_train_step(
                self._experiment.losses,
                self._optimiser,
                batch,
                config.meta_gradient.inner_micro_batch,
                self._placement,
            )
            resume = (newest.step, newest.state) if newest else None

            for step, state, loss in warm_up(
                self._population, self.fresh, train_step, batches, self._key, resume
            ):
                self._unchecked_losses.append(loss)
                entry, stopping = step in self._entry_steps, self._stop.requested()
                if entry:
                    self._entries.append(_copy_on_host(state))

                if step % _REPORT_EVERY == 0 or step == self._total:
                    self._progress.report(step, f"loss {self._checked_loss(step):.3f}")
                if entry or step % config.warmup_checkpoint_every == 0 or stopping:
                    self.save(step, state, WarmUpPosition(iterator_state(batches)))
                if stopping:
                    self._checkpoints.wait()
                    raise StoppedError(f"stopped after warm-up step {step} of {self._total}; saved")

    def save(self, step: int, state: InnerState, position: WarmUpPosition) -> None:
        """Starts to write a checkpoint, if the model and all losses that led to it are finite."""
        self._checked_loss(step)
        check_warmup_state(step, state)
        self._checkpoints.save(step, state, position)

    def tidy(self) -> None:
        """Deletes all checkpoints but the entries, which alone are needed from now on."""
        self._checkpoints.wait()
        for step in set(self._checkpoints.steps()) - set(self._entry_steps):
            self._checkpoints.delete(step)
        self._checkpoints.delete_superseded()

    def _checked_loss(self, step: int) -> float:
        """Returns the last loss, once all losses since the last check are found finite."""
        losses = [float(loss) for loss in self._unchecked_losses]
        check_warmup_losses(step - len(losses) + 1, losses)
        self._unchecked_losses = self._unchecked_losses[-1:]
        return losses[-1]


def _copy_on_host(state: InnerState) -> InnerState:
    """Returns a copy of a model that outlives it: on a CPU the host reads a device's own arrays."""
    copy: InnerState = jax.tree.map(np.array, jax.device_get(state))
    return copy
