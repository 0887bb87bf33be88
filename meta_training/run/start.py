"""Makes the rater that meta-training starts from: untrained, read, or fitted to scores.

    WORKDIR/start/   the rater of the start as a checkpoint, unless it is untrained; written once

A resumed run reads its start from the workdir: nothing is fitted again, and the checkpoint that it
came from may be gone.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from datarater.meta_training.errors import WorkdirError
from datarater.meta_training.run.prepared_run import Experiment
from datarater.meta_training.run.processes import gather_texts
from datarater.meta_training.run.start_models import RATER
from datarater.meta_training.run.start_rater import check_fits, start_checkpoint
from datarater.meta_training.run.start_regression import fit_to_scores
from datarater.meta_training.run.start_scores import scored_texts
from datarater.meta_training.run.workdir import Workdir
from datarater.rater_model.checkpoint import (
    RATER_FILE,
    CheckpointError,
    RaterCheckpoint,
    load_rater,
    save_rater,
)
from datarater.rater_model.rater import Params, initialise_rater

_LOG = logging.getLogger("datarater")


class Start(NamedTuple):
    """The rater before the first meta-step.

    Attributes:
        params: Its parameters.
        provenance: What every rater checkpoint of the run records of the start; empty for an
            untrained rater.
    """

    params: Params
    provenance: dict[str, Any]


def first_rater(experiment: Experiment, workdir: Workdir, key: jax.Array) -> Start:
    """Returns the rater that meta-training starts from.

    All processes of a run call it together, and get the same parameters.

    Args:
        experiment: Parts of the run.
        workdir: Folder of the run, which keeps the start.
        key: Random key of untrained parameters; those of the head and of n-gram tables, which an
            encoder does not have.

    Raises:
        ConfigError: The checkpoint of `start.rater` does not fit the run, or the scores of
            `start.scores` cannot be used.
        DataError: The data cannot be read again.
        NonFiniteError: The rater cannot be fitted to the scores.
        WorkdirError: The start in the workdir is damaged, or of another shape.
        OSError: A file cannot be read or written.
    """
    start = experiment.config.start
    if not (start.rater or start.scores):
        return Start(initialise_rater(experiment.rater, key), {})

    # All processes look before one of them writes.
    is_made = (workdir.start / RATER_FILE).exists()
    if not all(gather_texts("made" if is_made else "")):
        made = _make(experiment, key)
        if workdir.writes:
            save_rater(
                workdir.start,
                RaterCheckpoint(
                    experiment.rater,
                    made.params,
                    experiment.tokenizer,
                    provenance=made.provenance,
                ),
            )
        gather_texts("")  # no process reads it before it is written
    return _stored(workdir)


def _make(experiment: Experiment, key: jax.Array) -> Start:
    """Returns the rater of the config's section `start`: read, then fitted to scores."""
    config, shape, tokenizer = experiment.config, experiment.rater, experiment.tokenizer
    params, provenance = _read_start(experiment, key)
    if config.start.scores:
        fit = fit_to_scores(config, shape, params, tokenizer, scored_texts(config))
        _LOG.info(
            "start: rank correlation %.3f with the scores of %d documents held out",
            fit.measures["rank_correlation"],
            fit.measures["held_out"],
        )
        params = jax.device_get(fit.params)
        provenance |= {"scores": config.start.scores, **fit.measures}
    return Start(params, {"start": provenance})


def _read_start(experiment: Experiment, key: jax.Array) -> tuple[Params, dict[str, Any]]:
    """Returns the parameters that scores are fitted from, and where they are from."""
    if RATER in experiment.models:
        model = experiment.models[RATER]
        fresh = jax.device_get(initialise_rater(experiment.rater, key))
        return {**fresh, **model.params()}, {"encoder": model.source}

    checkpoint = start_checkpoint(experiment.config)
    if checkpoint is None:
        return jax.device_get(initialise_rater(experiment.rater, key)), {}
    check_fits(checkpoint, experiment.rater, experiment.tokenizer)
    of_step = checkpoint.provenance.get("step")
    return checkpoint.params, {"rater": checkpoint.digest, "of_step": of_step}


def _stored(workdir: Workdir) -> Start:
    try:
        checkpoint = load_rater(workdir.start)
    except CheckpointError as error:
        raise WorkdirError(
            f"{error}; restore {workdir.start}, or give another --workdir"
        ) from error
    params = jax.tree.map(jnp.asarray, checkpoint.params)
    return Start(params, {"start": checkpoint.provenance["start"]})
