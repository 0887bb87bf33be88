"""`datarater-train`: meta-trains a rater and exports it.

    datarater-train --config=meta_training/configs/default.py --workdir=work \
        --config.data.inner='corpus/*.jsonl.gz' --config.data.outer='target/*.jsonl.gz'

What it leaves in the workdir:

    config.json                 the config as it ran
    metrics/                    metrics.csv and TensorBoard event files
    raters/step_00000050/       a rater checkpoint every `export_every` meta-steps, the untrained one as step 0
    rater/                      the rater of the last meta-step
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging as python_logging
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from meta_training import settings
from meta_training.data import DataError, DataSets, TokenWindows, draw_batches, load_texts, make_windows
from meta_training.export import NonFiniteScoresError, export_rater, reference_sample
from meta_training.language_model import LanguageModelConfig, initialise_language_model, sequence_losses
from meta_training.meta_gradient import InnerState, make_meta_gradient
from meta_training.metrics import MetricsWriter
from meta_training.population import (
    MetaState,
    MetaStepMetrics,
    fresh_inner_state,
    initial_meta_state,
    make_meta_step,
    members_to_reset,
    replace_member,
    stack,
    warm_up,
)
from rater_model.checkpoint import CheckpointError, RaterCheckpoint
from rater_model.documents import NoInputError, ReadOptions
from rater_model.rater import RaterConfig, count_parameters, initialise_rater, score_tokens
from rater_model.tokenizer import ByteTokenizer, Tokenizer, train_bpe

EXIT_FAILED, EXIT_USAGE, EXIT_OCCUPIED, EXIT_INTERRUPTED = 1, 2, 3, 75


class NonFiniteError(ArithmeticError):
    """A loss or a meta-gradient that is not finite; the message names the step and the cause."""


class WorkdirError(ValueError):
    """A workdir that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run that stay the same from its first step to its last.

    Attributes:
        config: the whole config.
        tokenizer: turns texts into ids.
        rater: the rater's shape.
        language_model: the inner models' shape.
        data: the inner and outer documents.
        inner: windows of the inner set.
        outer: windows of the outer set.
        reference: documents over which exported scores are centred.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    rater: RaterConfig
    language_model: LanguageModelConfig
    data: DataSets
    inner: TokenWindows
    outer: TokenWindows
    reference: list[str]


def prepare(config: ConfigDict) -> Experiment:
    """Checks the config, reads the data and makes the tokenizer.

    Raises:
        ValueError: a config value or the data cannot be used; the message says which.
    """
    settings.check(config)
    split = functools.partial(str.split, sep=",")
    data = load_texts(
        split(config.data.inner),
        split(config.data.outer) if config.data.outer else [],
        config.data.outer_share,
        ReadOptions(text_field=config.data.text_field),
    )
    tokenizer: Tokenizer = ByteTokenizer()
    if config.tokenizer.kind == "bpe":
        sample = reference_sample(data.inner_texts, config.tokenizer.training_documents)
        tokenizer = train_bpe(sample, config.tokenizer.vocabulary_size)
    windows = functools.partial(
        make_windows,
        tokenizer=tokenizer,
        length=config.length,
        mode=config.data.windows,
        minimum_length=config.data.minimum_length,
    )
    return Experiment(
        config=config,
        tokenizer=tokenizer,
        rater=settings.rater_config(config, tokenizer),
        language_model=settings.language_model_config(config, tokenizer),
        data=data,
        inner=windows(data.inner_texts),
        outer=windows(data.outer_texts),
        reference=reference_sample(data.inner_texts, config.export.reference_documents),
    )


def train(experiment: Experiment, workdir: Path) -> RaterCheckpoint:
    """Runs meta-training from its first step to its last.

    Args:
        experiment: as `prepare` returns it.
        workdir: where everything is written.

    Returns:
        The last rater checkpoint, also in `workdir/rater`.

    Raises:
        NonFiniteError: a loss or a meta-gradient is not finite.
    """
    config = experiment.config
    population = settings.population_config(config)
    inner_optimiser, meta_optimiser = settings.inner_optimiser(config), settings.meta_optimiser(config)
    losses = functools.partial(sequence_losses, experiment.language_model)
    initialise = functools.partial(initialise_language_model, experiment.language_model)
    rater_key, pool_key, fresh_key, choice_key = jax.random.split(jax.random.key(config.seed), 4)

    rater_params = initialise_rater(experiment.rater, rater_key)
    logging.info(
        "rater %s parameters, inner models %d x %s; inner set %s windows of %s documents, outer set %s of %s",
        f"{count_parameters(rater_params):,}",
        population.size,
        f"{count_parameters(jax.eval_shape(initialise, fresh_key)):,}",
        f"{len(experiment.inner.length_N):,}",
        f"{experiment.inner.documents:,}",
        f"{len(experiment.outer.length_N):,}",
        f"{experiment.outer.documents:,}",
    )
    export(experiment, rater_params, 0, workdir)
    pool = warm_up(
        population,
        initialise,
        losses,
        inner_optimiser,
        draw_batches(experiment.inner, (config.inner_batch,), config.seed + 2),
        pool_key,
        lambda done, total, loss: logging.info("warm-up %d/%d  loss %.3f", done, total, loss),
    )

    def newcomer(step: int, member: int) -> InnerState:
        number = step * population.size + member
        if pool:
            # A fresh shuffle of the pool each round: the first members all start from different entries.
            order = jax.random.permutation(jax.random.fold_in(choice_key, number // len(pool)), len(pool))
            return pool[int(order[number % len(pool)])]
        return fresh_inner_state(initialise, inner_optimiser, jax.random.fold_in(fresh_key, number))

    state = initial_meta_state(rater_params, stack([newcomer(0, i) for i in range(population.size)]), meta_optimiser)
    meta_step = make_meta_step(
        make_meta_gradient(
            lambda params, windows: score_tokens(experiment.rater, params, *windows),
            losses,
            inner_optimiser,
            settings.meta_gradient_config(config),
        ),
        meta_optimiser,
    )
    inner_batches = draw_batches(
        experiment.inner, (population.size, config.inner_updates, config.inner_batch), config.seed
    )
    outer_batches = draw_batches(experiment.outer, (population.size, config.outer_batch), config.seed + 1)
    with MetricsWriter(workdir / "metrics") as writer:
        progress = Progress(config.meta_steps)
        for step in range(config.meta_steps):
            for member in members_to_reset(step, population):
                state = state._replace(inner=replace_member(state.inner, member, newcomer(step, member)))
            state, metrics = meta_step(state, next(inner_batches), next(outer_batches))
            scalars = summarise(jax.device_get(metrics), config)
            check_finite(step + 1, scalars)
            writer.write(step + 1, scalars)
            if (step + 1) % config.report_every == 0 or step + 1 == config.meta_steps:
                progress.report(step + 1, scalars)
                if scalars["effective_sample_share"] < config.minimum_effective_sample_share:
                    logging.warning(
                        "the weights are collapsing: effective sample share %.3f; lower meta_optimiser.learning_rate",
                        scalars["effective_sample_share"],
                    )
            if (step + 1) % config.export_every == 0 and step + 1 < config.meta_steps:
                export(experiment, state.rater_params, step + 1, workdir)
    return finish(experiment, state, workdir)


def summarise(metrics: MetaStepMetrics, config: ConfigDict) -> dict[str, float]:
    """Returns a step's metrics as named numbers."""
    return {
        "outer_loss": float(metrics.outer_loss_P.mean()),
        "inner_loss": float(metrics.inner_loss),
        "effective_sample_share": float(metrics.effective_sample_share),
        "weight_entropy_share": float(metrics.weight_entropy_share),
        "score_spread": float(metrics.score_spread),
        "meta_gradient_norm": float(metrics.gradient_norm_P.mean()),
        "meta_gradient_clipped_share": float((metrics.gradient_norm_P > config.meta_optimiser.clip_norm).mean()),
        "meta_gradient_rms_to_epsilon": float(metrics.gradient_rms_P.mean() / config.meta_optimiser.epsilon),
        "update_norm": float(metrics.update_norm),
        "inner_age": float(metrics.age_P.mean()),
        **{f"outer_loss_of_inner_model_{i}": float(loss) for i, loss in enumerate(metrics.outer_loss_P)},
    }


def check_finite(step: int, scalars: dict[str, float]) -> None:
    """Raises NonFiniteError where a step's metrics are not finite."""
    bad = [name for name, value in scalars.items() if not np.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"meta-step {step}: {', '.join(bad)} not finite; the last good rater stands in the workdir's raters/. "
            "Lower inner_optimiser.learning_rate or meta_optimiser.learning_rate, or raise inner_optimiser.eps_root"
        )


class Progress:
    """Says how far a run is, how fast, and how long it still takes.

    Args:
        total: meta-steps in all.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._started: tuple[int, float] | None = None

    def report(self, step: int, scalars: dict[str, float]) -> None:
        """Logs one line; the rate counts from the first report on, so that compilation is left out."""
        now = time.monotonic()
        rate = ""
        if self._started is None:
            self._started = (step, now)
        else:
            a_second = (step - self._started[0]) / max(now - self._started[1], 1e-9)
            left = round((self._total - step) / a_second)
            rate = f"  {a_second:.2f} steps/s, {left // 60}m {left % 60:02d}s left"
        logging.info(
            "step %d/%d  outer loss %.3f  effective sample %.2f  score spread %.2f  meta-gradient %.1e%s",
            step,
            self._total,
            scalars["outer_loss"],
            scalars["effective_sample_share"],
            scalars["score_spread"],
            scalars["meta_gradient_norm"],
            rate,
        )


def export(experiment: Experiment, rater_params: Any, step: int, workdir: Path, name: str = "") -> RaterCheckpoint:
    """Writes the rater checkpoint of a step to `workdir/raters`, or under the name given."""
    return export_rater(
        str(workdir / (name or f"raters/step_{step:08d}")),
        experiment.rater,
        rater_params,
        experiment.tokenizer,
        experiment.reference,
        experiment.config.export.max_windows,
        {
            "config": json.loads(experiment.config.to_json()),
            "step": step,
            "data": {
                "inner_documents": experiment.inner.documents,
                "outer_documents": experiment.outer.documents,
                "rejected": experiment.data.rejected,
            },
            "versions": {name: metadata.version(name) for name in ("datarater", "jax", "flax", "optax", "numpy")},
        },
    )


def finish(experiment: Experiment, state: MetaState, workdir: Path) -> RaterCheckpoint:
    """Writes the last rater twice, as its step and as `workdir/rater`."""
    step = int(state.step)
    export(experiment, state.rater_params, step, workdir)
    return export(experiment, state.rater_params, step, workdir, "rater")


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir and writes the config into it.

    Raises:
        WorkdirError: another run has been there.
    """
    path = workdir / "config.json"
    if path.exists():
        raise WorkdirError(f"{workdir} already holds a run; give another --workdir, or remove it to start anew")
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(config.to_json_best_effort(indent=2) + "\n")


_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="Config file, such as meta_training/configs/default.py; single values by --config.section.key=value.",
    lock_config=True,
)
_WORKDIR: flags.FlagHolder[Any] = flags.DEFINE_string(
    "workdir", None, "Folder for metrics and raters; must not hold another run. Example: --workdir=work"
)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turns the errors that a user can mend into one line and the project's exit codes."""
    try:
        yield
    except WorkdirError as error:
        print(f"datarater-train: {error}", file=sys.stderr)
        sys.exit(EXIT_OCCUPIED)
    except (settings.ConfigError, NoInputError, DataError) as error:
        print(f"datarater-train: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except (NonFiniteError, NonFiniteScoresError, CheckpointError, OSError) as error:
        print(f"datarater-train: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        print("datarater-train: interrupted; the raters written so far stay in the workdir", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def main(argv: Sequence[str]) -> None:
    """Trains by the flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {shlex.join(argv[1:])}")
    workdir = Path(_WORKDIR.value)
    with exit_codes():
        experiment = prepare(_CONFIG.value)
        claim_workdir(workdir, _CONFIG.value)
        checkpoint = train(experiment, workdir)
    print(
        f"rater {checkpoint.digest[:12]} after {_CONFIG.value.meta_steps} meta-steps: {workdir / 'rater'}\n"
        f"next:  datarater-curate --input {shlex.quote(_CONFIG.value.data.inner)} --rater {workdir / 'rater'} "
        "--output curated --keep_fraction 0.5"
    )


def run() -> None:
    """Entry point of the console command."""
    flags.mark_flags_as_required(["config", "workdir"])
    logging.set_verbosity(logging.INFO)
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)  # it tells which backends are not there
    app.run(main)


if __name__ == "__main__":
    run()
