"""Builds the parts of a run from a config: model shapes, optimizers, population and placement."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import optax
from ml_collections import ConfigDict

from datarater.meta_training.algorithm.language_model import LanguageModelConfig
from datarater.meta_training.algorithm.mesh import Placement, PlacementConfig, make_placement
from datarater.meta_training.algorithm.meta_gradient import MetaGradientConfig
from datarater.meta_training.algorithm.population import PopulationConfig
from datarater.meta_training.errors import ConfigError
from datarater.rater_model.rater import RaterConfig
from datarater.rater_model.tokenizer import Tokenizer
from datarater.rater_model.transformer import TransformerConfig


def rater_config(config: ConfigDict, tokenizer: Tokenizer) -> RaterConfig:
    """Returns the rater's shape, for windows of `config.length` tokens."""
    shape = dict(config.rater)
    own = {name: shape.pop(name) for name in ("ngram_orders", "ngram_rows", "pooling")}
    transformer = TransformerConfig(**shape)

    own["ngram_orders"] = tuple(own["ngram_orders"])
    return RaterConfig(tokenizer.vocabulary_size, config.length, transformer, **own)


def language_model_config(config: ConfigDict, tokenizer: Tokenizer) -> LanguageModelConfig:
    """Returns the shape of the inner models."""
    shape = dict(config.inner_model)
    own = {name: shape.pop(name) for name in ("loss_chunk", "tied_embeddings")}
    return LanguageModelConfig(tokenizer.vocabulary_size, TransformerConfig(**shape), **own)


def inner_optimiser(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the inner models' optimizer, which can be differentiated through.

    Adam's epsilon is inside its square root: outside, the derivative of a parameter that has had no
    gradient yet would be infinite.
    """
    values = config.inner_optimiser
    if values.name == "sgd":
        return optax.sgd(values.learning_rate, momentum=values.momentum)

    moments = {"b1": values.b1, "b2": values.b2, "eps": 0.0, "eps_root": values.eps_root}
    if values.name == "adam":
        return optax.adam(values.learning_rate, **moments)
    return optax.adamw(values.learning_rate, weight_decay=values.weight_decay, **moments)


def warmup_batch(config: ConfigDict) -> int:
    """Returns the number of windows of an update of the warm-up."""
    return int(config.population.warmup_batch or config.inner_batch)


def meta_optimiser(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the meta-optimizer of one inner model.

    It clips by the global norm, then applies Adam, decoupled weight decay, and the learning rate of
    `meta_learning_rate`.
    """
    values = config.meta_optimiser
    constant = values.schedule == "constant" and not values.warmup_steps
    return optax.chain(
        optax.clip_by_global_norm(values.clip_norm),
        optax.scale_by_adam(values.b1, values.b2, values.epsilon),
        optax.add_decayed_weights(values.weight_decay),
        optax.scale_by_learning_rate(
            values.learning_rate if constant else meta_learning_rate(config)
        ),
    )


def meta_learning_rate(config: ConfigDict) -> optax.Schedule:
    """Returns the learning rate of the rater's updates as a function of the meta-step.

    With a the learning rate, W the steps of warm-up, N the meta-steps and f the final share, the
    update of meta-step n = 0..N-1 has the rate

        a (n + 1) / W                               for n < W
        a                                           "constant"
        a (1 - (1 - f) p)                           "linear"
        a (f + (1 - f) (1 + cos(pi p)) / 2)         "cosine"

    where p = (n - m) / (N - 1 - m) and m = max(0, W - 1), so that the rate is `a` at the end of
    the warm-up and f a in the last meta-step.

    Example:
        >>> from datarater.meta_training.configs import default
        >>> config = default.get_config()
        >>> config.meta_steps, config.meta_optimiser.schedule = 200, "linear"
        >>> rate = meta_learning_rate(config)
        >>> [round(float(rate(step)), 5) for step in (0, 9, 199)]
        [0.001, 0.01, 0.0]
    """
    values = config.meta_optimiser
    peak, last_of_warmup = values.learning_rate, max(0, values.warmup_steps - 1)
    warm_up = optax.linear_schedule(peak / max(1, values.warmup_steps), peak, last_of_warmup)
    if values.schedule == "constant":
        return warm_up

    steps = config.meta_steps - 1 - last_of_warmup
    decay = (
        optax.linear_schedule(peak, peak * values.final_share, steps)
        if values.schedule == "linear"
        else optax.cosine_decay_schedule(peak, steps, values.final_share)
    )
    return optax.join_schedules([warm_up, decay], [last_of_warmup])


def population_config(config: ConfigDict) -> PopulationConfig:
    """Returns the size, lifetime and warm-up of the population of inner models."""
    return PopulationConfig(**config.population)


def meta_gradient_config(config: ConfigDict) -> MetaGradientConfig:
    """Returns how the meta-gradient is computed."""
    return MetaGradientConfig(**config.meta_gradient)


def placement(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Placement:
    """Returns the placement of inner models and batches on the devices.

    Args:
        config: The whole config.
        devices: Devices to use; all devices of all processes if None.

    Raises:
        ConfigError: The axes do not fit the devices, the population or the batches.
    """
    placed = make_placement(
        PlacementConfig(**config.placement),
        config.population.size,
        (config.inner_batch, config.outer_batch),
        devices,
    )
    check_micro_batches(config, placed.group_size)
    return placed


def check_micro_batches(config: ConfigDict, group_size: int) -> None:
    """Refuses micro-batches that do not divide the share of one device of a group.

    Raises:
        ConfigError: One does not; the message names it.
    """
    batches = {
        "inner_micro_batch": ("inner_batch", config.inner_batch),
        "outer_micro_batch": ("outer_batch", config.outer_batch),
        "rater_micro_batch": (
            "inner_updates x inner_batch",
            config.inner_updates * config.inner_batch,
        ),
    }
    for name, (batch, batch_size) in batches.items():
        size = config.meta_gradient[name]
        if size and (batch_size // group_size) % size:
            over = (" / devices of a group", f" / {group_size}") if group_size > 1 else ("", "")
            raise ConfigError(
                f"meta_gradient.{name} ({size}) must divide "
                f"{batch}{over[0]} ({batch_size}{over[1]})"
            )
