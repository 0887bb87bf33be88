"""Makes the parts of a run that stay the same from its first step to its last."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    Params,
    Windows,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.algorithm.outer_loss import Choices, choice_losses
from datarater.meta_training.config import build
from datarater.meta_training.config.outer_sets import QUESTIONS, outer_weights
from datarater.meta_training.data.outer_sets import (
    OuterSet,
    OuterSets,
    QuestionRows,
    open_questions,
)
from datarater.meta_training.data.prepared import (
    INDEX,
    PreparedWindows,
    check_complete,
    read_index,
)
from datarater.meta_training.data.sets import INNER, VALIDATION, names_of_roles
from datarater.meta_training.data.texts import DataError
from datarater.meta_training.data.windows import WindowSet
from datarater.meta_training.run.preparation import read_reference, read_tokenizer
from datarater.meta_training.run.start_models import INNER_MODEL, Models, params_copy
from datarater.rater_model.rater import RaterConfig
from datarater.rater_model.tokenizer import Tokenizer

_RECORDED = ("datarater", "jax", "jaxlib", "flax", "optax", "numpy", "grain", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run, made from its config.

    Attributes:
        config: The whole config.
        tokenizer: Turns texts into token ids.
        rater: Shape of the rater.
        language_model: Shape of the inner models.
        inner: Windows of the inner set.
        outer: The outer sets, with their weights and losses.
        validation: Windows of the validation set; None if there is none.
        reference: Inner documents on which exported scores are centered and raters compared.
        data: Identity of the texts; it changes whenever a text does.
        provenance: What every rater checkpoint of the run records, apart from the step.
        models: Models of Hugging Face that the run starts from.
        inner_params: Parameters that all inner models start from; None for fresh ones.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    rater: RaterConfig
    language_model: LanguageModelConfig
    inner: WindowSet
    outer: OuterSets
    validation: WindowSet | None
    reference: list[str]
    data: str
    provenance: dict[str, Any]
    models: Models = dataclasses.field(default_factory=dict)
    inner_params: Params | None = None

    def initialise(self, key: jax.Array) -> Params:
        """Returns the parameters of an inner model before its first update."""
        if self.inner_params is not None:
            return params_copy(self.inner_params)
        return initialise_language_model(self.language_model, key)

    def losses(self, params: Params, windows: Windows) -> jax.Array:
        """Returns the losses_B of an inner model; see `sequence_losses`."""
        return sequence_losses(self.language_model, params, windows)


def open_experiment(config: ConfigDict, folder: Path, models: Models | None = None) -> Experiment:
    """Opens the prepared data of a run.

    Args:
        config: The whole config, as `checks.check` accepts it.
        folder: The folder of prepared data.
        models: Models of Hugging Face that the run starts from.

    Raises:
        DataError: The folder is incomplete, or has no set that the config needs.
        OSError: A file cannot be read.
    """
    index = read_index(folder)
    if index is None:
        raise DataError(f"{folder} has no {INDEX}; prepare it again")
    check_complete(folder, index)
    tokenizer = read_tokenizer(config, folder, index)
    sets = {role: PreparedWindows(folder, role) for role in index.sets}
    if config.validate_every and VALIDATION not in sets:
        raise DataError(
            f"validate_every ({config.validate_every}) needs a validation set, and the data in "
            f"{folder} were prepared without one: prepare them with data.validation or "
            "data.validation_share"
        )
    reference = read_reference(folder)
    questions, identity = None, index.data
    if config.data.prepared:
        # A folder prepared again from the same texts may have other sets, by shares that a config
        # without data.inner leaves open.
        made_with = json.dumps(index.made_with, sort_keys=True)
        identity = hashlib.sha256(f"{identity}\n{made_with}".encode()).hexdigest()
    if config.data.questions:
        questions = open_questions(config.data.questions, tokenizer, config.length)
        identity = hashlib.sha256(f"{identity}\n{questions.identity}".encode()).hexdigest()

    models = models or {}
    described = {role: windows.describe() for role, windows in sets.items()}
    described |= {QUESTIONS: questions.describe()} if questions else {}
    rejected = {role: each.rejected for role, each in index.sets.items()}
    provenance = {
        "config": plain(config),
        "data": {"identity": identity, **described, "rejected": rejected},
        "unit": scoring_unit(config),
        "versions": versions(),
    }
    if models:
        provenance["models"] = {role: model.source for role, model in models.items()}
    language_model = build.language_model_config(config, tokenizer)
    return Experiment(
        config=config,
        tokenizer=tokenizer,
        rater=build.rater_config(config, tokenizer),
        language_model=language_model,
        inner=sets[INNER],
        outer=_outer_sets(config, language_model, sets, questions),
        validation=sets.get(VALIDATION),
        reference=reference[: config.export.reference_documents],
        data=identity,
        provenance=provenance,
        models=models,
        inner_params=models[INNER_MODEL].params() if INNER_MODEL in models else None,
    )


def _outer_sets(
    config: ConfigDict,
    language_model: LanguageModelConfig,
    windows: Mapping[str, WindowSet],
    questions: QuestionRows | None,
) -> OuterSets:
    """Returns the outer sets with their weights and losses, the questions last."""
    weights = outer_weights(config)
    names = names_of_roles(weights)
    outer = {names[role]: each for role, each in windows.items() if role in names}
    if {*outer} != {*weights} - {QUESTIONS}:
        raise DataError(
            f"the prepared sets are {', '.join(windows)}, but data.outer names "
            f"{', '.join(sorted({*weights} - {QUESTIONS}))}: give those that were prepared"
        )

    sets = [
        OuterSet(
            name,
            weights[name],
            window_set,
            functools.partial(sequence_losses, language_model),
            config.length,
        )
        for name, window_set in outer.items()
    ]

    if questions:
        sets.append(
            OuterSet(
                QUESTIONS,
                weights[QUESTIONS],
                questions,
                functools.partial(choice_losses, language_model),
                questions.tokens,
                Choices,
            )
        )
    return OuterSets(tuple(sets))


def scoring_unit(config: ConfigDict) -> dict[str, Any]:
    """Returns the unit that a rater is trained on, for comparison with how documents are scored.

    A document is scored in windows of its own, without separators and with a padded last window:
    what a rater meets in training with "document" windows. A packed window is full, and may have
    the ends of several documents with separators between them.
    """
    packed = config.data.windows == "packed"
    return {
        "windows": config.data.windows,
        "tokens": config.length,
        "minimum_tokens": config.length if packed else max(2, config.data.minimum_length),
        "separators": packed,
        "as_scored": not packed,
    }


def plain(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as JSON has it, with lists in place of tuples."""
    values: dict[str, Any] = json.loads(config.to_json())
    return values


def versions() -> dict[str, str]:
    """Returns the versions of the packages that a run's numbers depend on."""
    return {name: metadata.version(name) for name in _RECORDED}
