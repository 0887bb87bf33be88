"""Checks every value of a config before work begins."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
from ml_collections import ConfigDict

from datarater.meta_training.config.build import (
    check_micro_batches,
    language_model_config,
    rater_config,
)
from datarater.meta_training.config.outer_sets import outer_patterns, outer_weights
from datarater.meta_training.config.start_scores import MIN_DOCUMENTS, check_start_scores
from datarater.meta_training.configs import default
from datarater.meta_training.data.cutting import WINDOW_MODES
from datarater.meta_training.errors import ConfigError
from datarater.meta_training.run.wandb_writer import check_wandb
from datarater.rater_model.documents.tfds import TFDS_PREFIX
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.tokenizer import ByteTokenizer


def check(config: ConfigDict) -> None:
    """Refuses a config that cannot be trained with, before any work.

    Raises:
        ConfigError: A value is missing or out of its range.
    """
    for rule in _RULES:
        _check_rule(config, rule)
    for field in flax.traverse_util.flatten_dict(default.get_config().to_dict(), sep="."):
        if _value(config, field) is None:
            raise ConfigError(f"{field} must be given, not None")
    if not config.data.inner and not config.data.prepared:
        raise ConfigError(
            "data.inner is empty: give the pool, such as --config.data.inner='corpus/*.jsonl.gz'"
        )
    _check_shares(config)
    if config.data.within_source_share and TFDS_PREFIX in config.data.inner:
        raise ConfigError(
            f"data.within_source_share ({config.data.within_source_share}) must be 0 with a "
            f"TensorFlow dataset ({config.data.inner}), which is read without the sources of its "
            "documents; give files"
        )
    if config.data.windows == "document" and config.data.minimum_length > config.length:
        raise ConfigError(
            f"data.minimum_length ({config.data.minimum_length}) must be at most "
            f"length ({config.length})"
        )
    _check_schedule(config)
    _check_profile(config)
    check_wandb(config)
    _check_validation(config)
    outer_weights(config)  # refuses sets and weights that it cannot read

    # The classes of the models and of scoring check their own fields.
    with _named("rater"):
        rater_config(config, ByteTokenizer())
    with _named("inner_model"):
        language_model_config(config, ByteTokenizer())
    with _named("export"):
        ScoringOptions(max_windows=config.export.max_windows)
    check_micro_batches(config, 1)
    check_start_scores(config)


def _check_shares(config: ConfigDict) -> None:
    """Refuses held-out shares that leave nothing of the target, or that are of several."""
    data = config.data
    roles = ("validation", "test") if data.outer else ("outer", "validation", "test")
    held_out = {
        f"data.{role}_share": data[f"{role}_share"]
        for role in roles
        if not data[role] and data[f"{role}_share"]
    }
    given = " + ".join(f"{name} ({share})" for name, share in held_out.items())
    if sum(held_out.values()) >= 1:
        rest = "outer set" if data.outer else "inner set"
        raise ConfigError(f"{given} must be below 1: the rest is the {rest}")
    if held_out and len(outer_patterns(data.outer)) > 1:
        raise ConfigError(
            f"{given} cannot be a share of several outer sets: give files, as data.validation or "
            "data.test"
        )


def _check_validation(config: ConfigDict) -> None:
    """Refuses validations that have no texts, or nothing that they decide."""
    data = config.data
    # A prepared folder may have a validation set that the config does not name.
    if config.validate_every and not (data.validation or data.validation_share or data.prepared):
        raise ConfigError(
            f"validate_every ({config.validate_every}) needs a validation set: give "
            "data.validation, or data.validation_share for a share of the target"
        )
    if config.validate_every > config.meta_steps:
        raise ConfigError(
            f"validate_every ({config.validate_every}) must be at most meta_steps "
            f"({config.meta_steps}): no rater would be validated"
        )

    for field, value, off in (
        ("early_stopping.patience", config.early_stopping.patience, 0),
        ("choose_checkpoint", config.choose_checkpoint, "last"),
    ):
        if value != off and not config.validate_every:
            raise ConfigError(f"{field} {value!r} needs validations: set validate_every too")

    if config.validate_every and config.placement.shard_parameters:
        raise ConfigError(
            "validate_every needs models that fit on one device, so it cannot be used with "
            "placement.shard_parameters"
        )


def _check_schedule(config: ConfigDict) -> None:
    """Refuses a learning rate that decays over no step."""
    values = config.meta_optimiser
    if values.schedule != "constant" and config.meta_steps <= max(1, values.warmup_steps):
        raise ConfigError(
            f"meta_optimiser.schedule {values.schedule!r} has no step to decay over: meta_steps "
            f"({config.meta_steps}) must be above meta_optimiser.warmup_steps "
            f"({values.warmup_steps}) and 1"
        )


def _check_profile(config: ConfigDict) -> None:
    """Refuses a trace of no step, or of steps that the run does not have."""
    values = config.profile
    if values.last_step < values.first_step or (values.last_step and not values.first_step):
        raise ConfigError(
            f"profile.first_step ({values.first_step}) and profile.last_step "
            f"({values.last_step}) must be the ends of a range of meta-steps, counted from 1, or "
            "both 0"
        )
    if values.last_step > config.meta_steps:
        raise ConfigError(
            f"profile.last_step ({values.last_step}) must be at most meta_steps "
            f"({config.meta_steps})"
        )


@contextlib.contextmanager
def _named(section: str) -> Iterator[None]:
    """Turns the error of a class about one of its fields into one about the config's field."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{section}.{error}") from error


def _check_rule(config: ConfigDict, rule: _Rule) -> None:
    """Refuses a value that a rule does not allow."""
    value = _value(config, rule.field)
    try:
        is_allowed = not rule.applies(config) or rule.allowed.test(value)
    except TypeError:  # None, which a field of any type can be set to
        is_allowed = False
    if not is_allowed:
        reason = f": {rule.reason}" if rule.reason else ""
        raise ConfigError(f"{rule.field} must {rule.allowed.must}, not {value!r}{reason}")


def _value(config: ConfigDict, field: str) -> Any:
    """Returns the value of a field, given its dotted name."""
    try:
        return functools.reduce(lambda part, name: part[name], field.split("."), config)
    except KeyError as error:
        raise ConfigError(
            f"the config has no field {field}: start from the default config and change it"
        ) from error


class _Allowed(NamedTuple):
    test: Callable[[Any], bool]
    must: str  # the message's words between the field and its value


class _Rule(NamedTuple):
    """The allowed values of a field; it is checked only in configs that it applies to."""

    field: str
    allowed: _Allowed
    applies: Callable[[ConfigDict], bool] = lambda config: True
    reason: str = ""


def _at_least(minimum: int, unit: str = "") -> _Allowed:
    return _Allowed(lambda x: x >= minimum, f"be at least {minimum}{unit}")


def _one_of(*choices: str) -> _Allowed:
    return _Allowed(lambda x: x in choices, f"be one of {choices}")


def _is_dtype(name: str) -> bool:
    return name in ("float32", "bfloat16") or (
        name == "float64" and jax.dtypes.canonicalize_dtype(name) == name
    )


# Bounds of float32, in which all of these values are used: a smaller epsilon would be 0, a larger
# decay rate 1.
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_BELOW_1 = float(np.nextafter(np.float32(1), np.float32(0)))

_COUNT, _COUNT_OR_0 = _at_least(1), _at_least(0)
_POSITIVE = _Allowed(lambda x: _TINY <= x <= _HUGE, "be above 0 and finite in float32")
_NOT_NEGATIVE = _Allowed(lambda x: 0 <= x <= _HUGE, "be at least 0 and finite in float32")
_DECAY_RATE = _Allowed(lambda x: 0 <= x <= _BELOW_1, "lie in [0, 1) in float32")
_DTYPE = _Allowed(
    _is_dtype, "be 'float32' or 'bfloat16' (or 'float64' where JAX_ENABLE_X64 is set)"
)
_SHARE = _Allowed(lambda x: 0 <= x <= 1, "lie in [0, 1]")
_OFF = _Allowed(lambda x: not x, "be False")


def _adam(config: ConfigDict) -> bool:
    return config.inner_optimiser.name != "sgd"


def _imitates(config: ConfigDict) -> bool:
    return bool(config.start.scores)


def _bpe(config: ConfigDict) -> bool:
    return config.tokenizer.kind == "bpe"


def _warmed_up(config: ConfigDict) -> bool:
    return config.population.warmup_steps != 0


# Every field of `configs/default.py` in its order, except free texts, independent switches, and the
# fields of classes that check themselves, because they also come from elsewhere.
_RULES = (
    # seed + 2 must fit into 32 bits.
    _Rule("seed", _Allowed(lambda x: 0 <= x <= 2**32 - 3, "be from 0 to 2**32 - 3")),
    _Rule("meta_steps", _COUNT),
    _Rule("inner_updates", _COUNT),
    _Rule(
        "inner_batch",
        _at_least(2),
        reason="with a single window the softmax over the batch is 1, whatever its score",
    ),
    _Rule("outer_batch", _COUNT),
    _Rule("softmax_temperature", _POSITIVE),
    _Rule("length", _at_least(2, " tokens")),
    _Rule(
        "data.outer_share",
        _Allowed(lambda x: 0 < x < 1, "be between 0 and 1"),
        lambda config: not config.data.outer,
        "data.outer is empty, so that share of the pool is held out",
    ),
    _Rule("data.source_field", _Allowed(bool, "be the name of a field")),
    _Rule("data.within_source_share", _SHARE),
    _Rule(
        "data.validation_share",
        _Allowed(lambda x: 0 <= x < 1, "lie in [0, 1)"),
        lambda config: not config.data.validation,
    ),
    _Rule(
        "data.test_share",
        _Allowed(lambda x: 0 <= x < 1, "lie in [0, 1)"),
        lambda config: not config.data.test,
    ),
    _Rule("data.windows", _one_of(*WINDOW_MODES)),
    _Rule("data.minimum_length", _COUNT_OR_0),
    _Rule("data.reader_processes", _COUNT_OR_0),
    _Rule("tokenizer.kind", _one_of("byte", "bpe", "file")),
    _Rule(
        "tokenizer.kind",
        _one_of("byte", "bpe"),
        lambda config: not config.start.rater and not config.start.inner_model,
        "'file' is the tokenizer of the model that a run starts from, and start is empty",
    ),
    _Rule(
        "tokenizer.vocabulary_size",
        _Allowed(
            lambda x: x >= ByteTokenizer.vocabulary_size, "be a vocabulary of at least 258 ids"
        ),
        _bpe,
        "each byte has an id, and two ids are special",
    ),
    _Rule("tokenizer.training_documents", _COUNT, _bpe),
    _Rule("rater.dtype", _DTYPE),
    _Rule("start.documents", _at_least(MIN_DOCUMENTS), _imitates),
    _Rule("start.scale", _POSITIVE, _imitates),
    _Rule("start.steps", _COUNT, _imitates),
    _Rule(
        "start.batch",
        _at_least(2),
        _imitates,
        "scores are defined up to a constant, so that a single one says nothing",
    ),
    _Rule("start.learning_rate", _POSITIVE, _imitates),
    _Rule("inner_model.dtype", _DTYPE),
    _Rule(
        "inner_model.save_products",
        _OFF,
        lambda config: not config.inner_model.rematerialise_blocks,
        "without recomputation it has nothing to save; set inner_model.rematerialise_blocks too",
    ),
    _Rule("inner_model.loss_chunk", _COUNT_OR_0),
    _Rule("inner_optimiser.name", _one_of("adam", "adamw", "sgd")),
    _Rule("inner_optimiser.learning_rate", _POSITIVE),
    _Rule("inner_optimiser.b1", _DECAY_RATE, _adam),
    _Rule("inner_optimiser.b2", _DECAY_RATE, _adam),
    _Rule("inner_optimiser.eps_root", _POSITIVE, _adam, "Adam is differentiated at zero moments"),
    _Rule(
        "inner_optimiser.weight_decay",
        _NOT_NEGATIVE,
        lambda config: config.inner_optimiser.name == "adamw",
    ),
    _Rule(
        "inner_optimiser.momentum", _DECAY_RATE, lambda config: config.inner_optimiser.name == "sgd"
    ),
    _Rule("meta_optimiser.learning_rate", _POSITIVE),
    _Rule("meta_optimiser.warmup_steps", _COUNT_OR_0),
    _Rule("meta_optimiser.schedule", _one_of("constant", "linear", "cosine")),
    _Rule("meta_optimiser.final_share", _Allowed(lambda x: 0 <= x <= 1, "lie in [0, 1]")),
    _Rule("meta_optimiser.clip_norm", _POSITIVE),
    _Rule("meta_optimiser.weight_decay", _NOT_NEGATIVE),
    _Rule("meta_optimiser.b1", _DECAY_RATE),
    _Rule("meta_optimiser.b2", _DECAY_RATE),
    _Rule(
        "meta_optimiser.epsilon",
        _POSITIVE,
        reason="a parameter that has had no gradient yet would become NaN",
    ),
    _Rule("rater_average.decay", _DECAY_RATE),
    _Rule("population.size", _COUNT),
    _Rule("population.lifetime", _COUNT_OR_0),
    _Rule("population.warmup_steps", _COUNT_OR_0),
    _Rule("population.warmup_batch", _COUNT_OR_0),
    _Rule("population.warmup_trajectories", _COUNT, _warmed_up),
    _Rule("population.warmup_entries", _COUNT, _warmed_up),
    _Rule("population.warmup_first_share", _Allowed(lambda x: 0 < x <= 1, "lie in (0, 1]")),
    _Rule("meta_gradient.mode", _one_of("mixed", "reverse")),
    _Rule(
        "meta_gradient.save_inner_gradients",
        _OFF,
        lambda config: not config.meta_gradient.rematerialise_updates,
        "without recomputation it has nothing to save; set meta_gradient.rematerialise_updates too",
    ),
    _Rule("meta_gradient.inner_micro_batch", _COUNT_OR_0),
    _Rule("meta_gradient.outer_micro_batch", _COUNT_OR_0),
    _Rule("meta_gradient.rater_micro_batch", _COUNT_OR_0),
    _Rule("placement.population", _COUNT_OR_0),
    _Rule("placement.data", _COUNT_OR_0),
    _Rule("report_every", _COUNT),
    _Rule("peak_flops", _NOT_NEGATIVE),
    _Rule("profile.first_step", _COUNT_OR_0),
    _Rule("profile.last_step", _COUNT_OR_0),
    _Rule("wandb.mode", _one_of("", "online", "offline")),
    _Rule("validate_every", _COUNT_OR_0),
    _Rule("validation.models", _COUNT),
    _Rule("validation.updates", _COUNT),
    _Rule("validation.windows", _COUNT),
    _Rule("early_stopping.patience", _COUNT_OR_0),
    _Rule("choose_checkpoint", _one_of("last", "validation")),
    _Rule("export_every", _COUNT),
    _Rule("checkpoint_every", _COUNT),
    _Rule("warmup_checkpoint_every", _COUNT),
    _Rule("keep_checkpoints", _COUNT),
    _Rule("export.reference_documents", _COUNT),
    _Rule("minimum_effective_sample_share", _SHARE),
)
