"""Makes the parts of a run that stay the same from its first step to its last."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from importlib import metadata
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
from datarater.meta_training.config.outer_sets import (
    ONLY_SET,
    QUESTIONS,
    outer_patterns,
    outer_weights,
)
from datarater.meta_training.data.outer_sets import (
    OuterSet,
    OuterSets,
    QuestionRows,
    open_questions,
)
from datarater.meta_training.data.texts import FileTexts, TextSet, open_sets
from datarater.meta_training.data.windows import StreamedWindows, WindowSet, make_windows
from datarater.meta_training.run.start_models import (
    INNER_MODEL,
    RATER,
    Models,
    params_copy,
)
from datarater.meta_training.run.start_rater import (
    check_fits,
    start_checkpoint,
    start_tokenizer,
)
from datarater.rater_model.rater import RaterConfig
from datarater.rater_model.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
)

_LOG = logging.getLogger("datarater")
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


def prepare(
    config: ConfigDict, tokenizer: bytes | None = None, models: Models | None = None
) -> Experiment:
    """Opens the data and makes the tokenizer.

    Args:
        config: The whole config, as `checks.check` accepts it.
        tokenizer: Serialized tokenizer of a run that is resumed; without it, that of the rater to
            start from is taken over, or a BPE is trained.
        models: Models of Hugging Face that the run starts from.

    Raises:
        ConfigError: The run cannot start from the rater of `start.rater`.
        DataError: The data cannot be used.
        NoInputError: No file matches.
        OSError: A file cannot be read.
    """
    data = config.data
    patterns = outer_patterns(data.outer)
    inner, *outer = open_sets(
        data.inner,
        patterns,
        data.outer_share,
        data.text_field,
        data.tfds_data_dir,
        data.source_field,
    )

    models = models or {}
    start = None if tokenizer or RATER in models else start_checkpoint(config)
    if tokenizer:
        made_tokenizer = load_tokenizer(config.tokenizer.kind, tokenizer)
    elif models:
        made_tokenizer = next(iter(models.values())).tokenizer
    elif start:
        made_tokenizer = start_tokenizer(config, start)
    else:
        made_tokenizer = make_tokenizer(config, inner)
    rater = build.rater_config(config, made_tokenizer)
    if start:  # checked here too, before any work
        check_fits(start, rater, made_tokenizer)

    reference = inner.spread(config.export.reference_documents)
    windows = {texts.role: _windows(texts, made_tokenizer, config) for texts in (inner, *outer)}
    questions = (
        open_questions(data.questions, made_tokenizer, config.length) if data.questions else None
    )
    identity = _identity(inner, outer, questions, bool(data.within_source_share))

    # Files are counted completely when they are opened. For a dataset, the count is of what
    # happens to have been read so far, which differs between a fresh and a resumed run; but what a
    # rater's digest covers must not differ.
    rejected = {
        texts.role: dict(texts.source.rejected)
        for texts in (inner, *outer)
        if isinstance(texts.source, FileTexts)
    }
    described = {role: window_set.describe() for role, window_set in windows.items()}
    described |= {QUESTIONS: questions.describe()} if questions else {}
    provenance = {
        "config": plain(config),
        "data": {"identity": identity, **described, "rejected": rejected},
        "unit": scoring_unit(config),
        "versions": versions(),
    }
    if models:
        provenance["models"] = {role: model.source for role, model in models.items()}
    language_model = build.language_model_config(config, made_tokenizer)
    sets = dict(zip(patterns or [ONLY_SET], (windows[texts.role] for texts in outer), strict=True))
    return Experiment(
        config=config,
        tokenizer=made_tokenizer,
        rater=rater,
        language_model=language_model,
        inner=windows["inner"],
        outer=_outer_sets(config, language_model, sets, questions),
        reference=reference,
        data=identity,
        provenance=provenance,
        models=models,
        inner_params=models[INNER_MODEL].params() if INNER_MODEL in models else None,
    )


def _identity(
    inner: TextSet, outer: Sequence[TextSet], questions: QuestionRows | None, with_sources: bool
) -> str:
    """Returns the digest of the texts, and of the inner set's sources if batches depend on them."""
    identities = [texts.source.identity for texts in (inner, *outer)]
    identities += [questions.identity] if questions else []
    digest = hashlib.sha256("\n".join(identities).encode())
    if with_sources and isinstance(inner.source, FileTexts):
        digest.update(inner.source.source_N.tobytes())
    return digest.hexdigest()


def _outer_sets(
    config: ConfigDict,
    language_model: LanguageModelConfig,
    windows: dict[str, WindowSet],
    questions: QuestionRows | None,
) -> OuterSets:
    """Returns the outer sets with their weights and losses, the questions last."""
    weights = outer_weights(config)
    sets = [
        OuterSet(
            name,
            weights[name],
            window_set,
            functools.partial(sequence_losses, language_model),
            config.length,
        )
        for name, window_set in windows.items()
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


def make_tokenizer(config: ConfigDict, inner: TextSet) -> Tokenizer:
    """Returns the tokenizer of a config; a BPE is trained on documents from all over the set."""
    if config.tokenizer.kind == ByteTokenizer.kind:
        return ByteTokenizer()

    sample = inner.spread(config.tokenizer.training_documents)
    tokenizer = train_bpe(sample, config.tokenizer.vocabulary_size)
    _LOG.info(
        "trained a BPE of %s ids on %s documents",
        f"{tokenizer.vocabulary_size:,}",
        f"{len(sample):,}",
    )
    return tokenizer


def _windows(texts: TextSet, tokenizer: Tokenizer, config: ConfigDict) -> WindowSet:
    options = (texts, tokenizer, config.length, config.data.windows, config.data.minimum_length)
    if isinstance(texts.source, FileTexts):
        within = texts.role == "inner" and config.data.within_source_share > 0
        made = make_windows(*options, within_sources=within)
        excluded = len(texts.source) - made.documents
        if excluded and texts.membership.excluded_N.size:
            _LOG.info(
                "excluded %s of %s inner documents, which are in the outer set too",
                f"{excluded:,}",
                f"{len(texts.source):,}",
            )
        return made
    return StreamedWindows(*options, config.data.shuffle_buffer)


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
