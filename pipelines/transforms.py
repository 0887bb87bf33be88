"""For Beam pipelines of one's own: a model handler, scoring and selecting as transforms, a provider for Beam YAML.

    with beam.Pipeline() as pipeline:
        found = (
            pipeline
            | beam.Create([{"id": 1, "text": "A sentence that says something."}, {"id": 2, "text": None}])
            | ScoreDocuments("demo_output/rater")
        )
        found["scored"] | KeepTop(keep_fraction="0.5") | beam.Map(print)
        found["rejected"] | "Why" >> beam.Map(print)

The scores are those of the commands, bit for bit: a score depends on the text, the rater and the
scoring options alone. In Beam YAML (`pip install 'datarater[yaml]'`):

    providers:
      - include: PATH_OF/pipelines/providers.yaml
    pipeline:
      transforms:
        - type: ScoreDocuments
          config: {rater: demo_output/rater}
        - type: KeepTop
          input: ScoreDocuments.scored
          config: {keep_fraction: 0.5}
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type

from datarater.pipelines.errors import CurationError
from datarater.pipelines.graph.cutoff_search import MergeAnswers, advance
from datarater.pipelines.graph.record_writers import SCORE_FIELD
from datarater.pipelines.run_folder.score_files import SCORE_NOT_FINITE
from datarater.pipelines.selection.cutoffs import CORPUS_GROUP, Answers, Cutoffs, Family
from datarater.pipelines.selection.descent import Histogram
from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.ranking import RankKeys, key_hash
from datarater.pipelines.selection.rules import (
    BatchTopK,
    KeepCount,
    KeepFraction,
    Rule,
    Threshold,
    TokenBudget,
)
from datarater.rater_model.checkpoint import CheckpointError, load_rater
from datarater.rater_model.documents.jsonl import document_of, field_getter, key_of, source_of
from datarater.rater_model.documents.records import BadRecord, ReadOptions, Reason
from datarater.rater_model.scorer import Scorer, limit_cpu_threads
from datarater.rater_model.scoring_options import ScoringOptions

TOKENS_FIELD = "datarater_tokens"
_KEYS_TOGETHER = 512


class Score(NamedTuple):
    """What became of one example.

    Attributes:
        score: None where it has none.
        tokens: of the whole text.
        reason: why it has none, as in files of rejected records; None for a scored one.
        detail: one sentence for a person.
    """

    score: float | None
    tokens: int = 0
    reason: str | None = None
    detail: str | None = None


def _fields_of(element: Any) -> dict[str, Any] | None:
    if isinstance(element, Mapping):
        return dict(element)
    for name in ("as_dict", "_asdict"):
        method = getattr(element, name, None)
        if method is not None:
            fields: dict[str, Any] = method()
            return fields
    return None


class RaterModelHandler(ModelHandler[Any, PredictionResult, Scorer]):
    """A rater for Beam's `RunInference`.

    An example is a text, or a mapping or row that has one in a field. Each gives a
    `PredictionResult` whose inference is a `Score`; one that cannot be scored gets a reason in
    place of a score, and the others of its batch are scored all the same. All of Beam's options for
    batching and for sharing a model are taken: `min_batch_size`, `max_batch_size`,
    `max_batch_duration_secs`, `large_model`, `model_copies`, ...

    Args:
        rater: the rater checkpoint, local or on any file system.
        text_field: where the text of a mapping or row stands; a dotted path for a nested one.
        scoring: every option that changes a score; the commands' defaults if None.
        **batching: options of `apache_beam.ml.inference.base.ModelHandler`.

    Example:
        >>> with beam.Pipeline() as pipeline:  # doctest: +SKIP
        ...     texts = pipeline | beam.Create(["one text", "another"])
        ...     texts | RunInference(RaterModelHandler("demo_output/rater", max_batch_size=64)) | beam.Map(print)
    """

    def __init__(
        self,
        rater: str,
        *,
        text_field: str = "text",
        scoring: ScoringOptions | None = None,
        **batching: Any,
    ) -> None:
        super().__init__(**batching)
        self._rater = str(rater)
        self._read = ReadOptions(text_field=text_field)
        self._scoring = scoring

    def load_model(self) -> Scorer:
        """Loads the rater, once a process.

        Raises:
            CurationError: it cannot be loaded; the message says why.
        """
        limit_cpu_threads()
        try:
            return Scorer(load_rater(self._rater), self._scoring)
        except (CheckpointError, OSError) as error:
            raise CurationError(f"rater: {error}") from error

    def run_inference(
        self, batch: Sequence[Any], model: Scorer, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        """Scores a batch; see the class."""
        get_text = field_getter(self._read.text_field)
        problems: list[Score | None] = []
        texts: list[str] = []
        for example in batch:
            text, problem = example, None
            if not isinstance(example, str):
                fields = _fields_of(example)
                text = None if fields is None else get_text(fields)
            if isinstance(text, str) and not _is_unicode(text):
                problem = Score(
                    None, 0, str(Reason.TEXT_NOT_UNICODE), "the text holds a lone surrogate"
                )
            else:
                record = document_of(text, None, None, 0, None, self._read)
                if isinstance(record, BadRecord):
                    problem = Score(None, 0, str(record.reason), record.detail)
                else:
                    texts.append(record.text)
            problems.append(problem)
        scored = model.score(texts)
        found = iter(zip(scored.scores_N.tolist(), scored.tokens_N.tolist(), strict=True))
        for example, problem in zip(batch, problems, strict=True):
            if problem is None:
                score, tokens = next(found)
                problem = Score(score, tokens)
                if not np.isfinite(score):
                    problem = Score(None, tokens, SCORE_NOT_FINITE, f"the rater's score is {score}")
            yield PredictionResult(example, problem)

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """About the bytes of a batch, for Beam's metrics."""
        return sum(len(example) if isinstance(example, str) else 100 for example in batch)

    def get_metrics_namespace(self) -> str:
        """Where `RunInference` counts."""
        return "datarater_run_inference"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _input_fields(element_type: Any) -> list[tuple[str, Any]] | None:
    """The fields of a row type, None for elements that are mappings or texts."""
    try:
        return list(named_fields_from_element_type(element_type))
    except (TypeError, ValueError, AttributeError):
        return None


def _with_fields(element: Any, more: Mapping[str, Any]) -> Any:
    if isinstance(element, str):
        return {"text": element, **more}
    if isinstance(element, Mapping):
        return {**element, **more}
    fields = _fields_of(element)
    return beam.Row(**({"element": element} if fields is None else fields), **more)


class _Sort(beam.DoFn):
    """Sends results to the scored and the rejected."""

    REJECTED = "rejected"

    def process(self, result: PredictionResult) -> Iterator[Any]:
        score: Score = result.inference
        if score.reason is None:
            assert score.score is not None
            yield _with_fields(
                result.example, {SCORE_FIELD: score.score, TOKENS_FIELD: score.tokens}
            )
        else:
            more = {"datarater_reason": score.reason, "datarater_detail": score.detail or ""}
            element = result.example
            if not isinstance(element, str) and _fields_of(element) is None:
                element = {"element": element}
            yield beam.pvalue.TaggedOutput(self.REJECTED, _with_fields(element, more))


class ScoreDocuments(beam.PTransform):
    """Scores documents: mappings or rows with a text, or texts.

    Gives two collections, by name: `scored`, the elements with the fields `datarater_score` and
    `datarater_tokens` added, and `rejected`, those that have no score with `datarater_reason` and
    `datarater_detail`. A text alone becomes a mapping with the field `text`.

    Args:
        rater: the rater checkpoint, local or on any file system.
        text_field: where the text stands; a dotted path for a nested one.
        max_windows: windows scored of one document at most; None: the commands' default.
        tokens_per_batch: tokens in one model call; None: the commands' default.
        min_batch_size: of Beam's batching.
        max_batch_size: of Beam's batching.

    Example:
        >>> found = documents | ScoreDocuments("demo_output/rater")  # doctest: +SKIP
        >>> found["scored"] | KeepTop(keep_fraction="0.1")  # doctest: +SKIP
    """

    def __init__(
        self,
        rater: str,
        text_field: str = "text",
        max_windows: int | None = None,
        tokens_per_batch: int | None = None,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        defaults = ScoringOptions()
        scoring = ScoringOptions(
            max_windows=defaults.max_windows if max_windows is None else max_windows,
            tokens_per_batch=defaults.tokens_per_batch
            if tokens_per_batch is None
            else tokens_per_batch,
        )
        self._handler = RaterModelHandler(
            rater,
            text_field=text_field,
            scoring=scoring,
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
        )

    def expand(self, documents: beam.PCollection) -> dict[str, beam.PCollection]:
        """Documents in; `scored` and `rejected` out."""
        found = (
            documents
            | "Infer" >> RunInference(self._handler)
            | "Sort" >> beam.ParDo(_Sort()).with_outputs(_Sort.REJECTED, main="scored")
        )
        scored, rejected = found["scored"], found[_Sort.REJECTED]
        fields = _input_fields(documents.element_type)
        if fields is not None:
            scored.element_type = RowTypeConstraint.from_fields(
                [*fields, (SCORE_FIELD, float), (TOKENS_FIELD, int)]
            )
            rejected.element_type = RowTypeConstraint.from_fields(
                [*fields, ("datarater_reason", str), ("datarater_detail", str)]
            )
        return {"scored": scored, "rejected": rejected}


# --- keeping the best
# ---------------------------------------------------------------------------------

Keys = tuple[RankKeys, np.ndarray, list[str]]


class _Names:
    """How elements are ranked: the names of their fields, and the seed."""

    def __init__(self, text_field: str, id_field: str, source_field: str, seed: int):
        self.text_field = text_field
        self.id_field = id_field
        self.source_field = source_field
        self.seed = seed

    def keys_of(self, elements: Iterable[Any]) -> Keys:
        """The rank keys of elements, and their sources.

        Raises:
            CurationError: an element has no score.
        """
        scores, hashes, contents, tokens, codes = [], [], [], [], []
        names: dict[str, int] = {}
        text_of, id_of, source_of_fields = map(
            field_getter, (self.text_field, self.id_field, self.source_field)
        )
        for element in elements:
            fields = _fields_of(element) or {}
            score = fields.get(SCORE_FIELD)
            if score is None or not np.isfinite(score):
                raise CurationError(
                    f"KeepTop: an element has {score!r} as {SCORE_FIELD}; pass it what ScoreDocuments gives as scored"
                )
            text = text_of(fields)
            text = text if isinstance(text, str) else ""
            scores.append(score)
            hashes.append(key_hash(key_of(id_of(fields), text)))
            contents.append(_content_hash(fields))
            tokens.append(fields.get(TOKENS_FIELD) or 0)
            codes.append(names.setdefault(source_of(source_of_fields(fields)), len(names)))
        keys = RankKeys.of(
            np.asarray(scores, np.float32),
            np.asarray(hashes, np.uint64),
            self.seed,
            0,
            np.asarray(contents, np.uint64),
            tokens,
        )
        return keys, np.asarray(codes, np.int64), list(names)


def _content_hash(fields: Mapping[str, Any]) -> int:
    """Tells elements of one key apart: they have no place in a file to do so. The same in every process."""
    text = repr(sorted((str(name), _stable(value)) for name, value in fields.items()))
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def _stable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted((str(name), _stable(inner)) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return [_stable(inner) for inner in value]
    fields = _fields_of(value)
    return value if fields is None else _stable(fields)


def _survey(part: Keys) -> Answers:
    keys, codes_N, names = part
    return {
        (Family.RULE, names[code]): Histogram.of(keys.take(codes_N == code), 0)
        for code in np.unique(codes_N).tolist()
    }


def _begin(found: Answers, policy: dict[str, Any]) -> Cutoffs:
    histograms = {
        source: part for (_, source), part in found.items() if isinstance(part, Histogram)
    }
    sources = {source: (part.documents, part.tokens) for source, part in histograms.items()}
    return Cutoffs.begin(Policy.from_json(policy), Histogram.merge(histograms.values()), sources)


def _answer(part: Keys, cutoffs: Cutoffs) -> Iterator[Answers]:
    if not cutoffs.done:
        yield cutoffs.answers(*part)


class _Keep(beam.DoFn):
    """Lets through what the cutoffs keep; elements that equal the last one kept in everything are set aside."""

    EQUAL = "equal"

    def __init__(self, names: _Names):
        self._names = names

    def process(self, elements: list[Any], cutoffs: Cutoffs) -> Iterator[Any]:
        keys, codes_N, sources = self._names.keys_of(elements)
        kept = cutoffs.keeps(keys, codes_N, sources, self._names.seed).tolist()
        equals = cutoffs.equals()
        for index, element in enumerate(elements):
            if kept[index]:
                yield element
            elif equals:
                group = (
                    sources[codes_N[index]] if cutoffs.policy.per is Scope.SOURCE else CORPUS_GROUP
                )
                if group in equals and keys.key(index) == equals[group][0]:
                    yield beam.pvalue.TaggedOutput(self.EQUAL, (group, element))


def _take_equal(item: tuple[str, Iterable[Any]], cutoffs: Cutoffs) -> Iterator[Any]:
    group, elements = item
    yield from itertools.islice(elements, cutoffs.equals()[group][1])


class KeepTop(beam.PTransform):
    """Keeps the best of scored documents, exactly as many as were asked for.

    Takes what `ScoreDocuments` gives as `scored`, bounded. One rule is given; the rules, and the
    order among equal scores, are those of the commands. The texts stay where they are: only rank
    keys are gathered, and of those only histograms leave the workers.

    Args:
        keep_fraction: this share, exactly: "0.1", "1/3".
        keep_count: so many.
        token_budget: the best that fit so many tokens.
        threshold: those that score at least this.
        accept_batch: the paper's batch top-K, with `discard_fraction`.
        discard_fraction: of `accept_batch`.
        per: "corpus" or "source".
        source_weights: by source, with `per` source.
        min_per_source: the best so many of every source at least.
        seed: of the hash that breaks ties and draws.
        text_field: where the text stands, the key of documents without an id.
        id_field: where the id stands.
        source_field: where the name of the source stands.

    Raises:
        ValueError: not exactly one rule, or options that do not go together.
    """

    def __init__(
        self,
        keep_fraction: Any = None,
        keep_count: int | None = None,
        token_budget: int | None = None,
        threshold: Any = None,
        accept_batch: int | None = None,
        discard_fraction: Any = None,
        per: str = "corpus",
        source_weights: Any = None,
        min_per_source: int = 0,
        seed: int = 0,
        text_field: str = "text",
        id_field: str = "id",
        source_field: str = "source",
    ) -> None:
        super().__init__()
        given = {
            "keep_fraction": keep_fraction,
            "keep_count": keep_count,
            "token_budget": token_budget,
            "threshold": threshold,
            "accept_batch": accept_batch,
        }
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) != 1:
            raise ValueError(
                f"KeepTop takes exactly one of {', '.join(given)}; given: {', '.join(chosen) or 'none'}"
            )
        makers: dict[str, Callable[[Any], Rule]] = {
            # str: a float of a config file means the decimal that was written there.
            "keep_fraction": lambda value: KeepFraction(str(value)),
            "keep_count": KeepCount,
            "token_budget": TokenBudget,
            "threshold": lambda value: Threshold(str(value)),
            "accept_batch": lambda value: BatchTopK.discarding(value, str(discard_fraction)),
        }
        weights = {
            source: Fraction(str(weight)) for source, weight in (source_weights or {}).items()
        }
        rule = makers[chosen[0]](given[chosen[0]])
        self._policy = Policy(rule, Scope(per), weights, min_per_source)
        self._names = _Names(text_field, id_field, source_field, seed)

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        """Scored documents in; the kept ones out, untouched."""
        # What is ranked is used in every round: it is taken once, and not scored again.
        batches = scored | "Batch" >> beam.BatchElements(
            min_batch_size=16, max_batch_size=_KEYS_TOGETHER
        )
        keys = (
            batches | "Take keys" >> beam.Map(self._names.keys_of) | "Hold keys" >> beam.Reshuffle()
        )
        cutoffs = (
            keys
            | "Survey" >> beam.Map(_survey)
            | "Merge survey" >> beam.CombineGlobally(MergeAnswers())
            | "Begin" >> beam.Map(_begin, self._policy.to_json())
        )
        for number in range(1, self._policy.rounds + 1):
            answers = (
                keys
                | f"Answer {number}" >> beam.FlatMap(_answer, beam.pvalue.AsSingleton(cutoffs))
                | f"Merge answers {number}" >> beam.CombineGlobally(MergeAnswers())
            )
            cutoffs = answers | f"Advance {number}" >> beam.Map(
                advance, beam.pvalue.AsSingleton(cutoffs)
            )
        last = beam.pvalue.AsSingleton(cutoffs)
        kept = batches | "Keep" >> beam.ParDo(_Keep(self._names), last).with_outputs(
            _Keep.EQUAL, main="kept"
        )
        equal = (
            kept[_Keep.EQUAL]
            | "Group equal" >> beam.GroupByKey()
            | "Take equal" >> beam.FlatMap(_take_equal, last)
        )
        result = (kept["kept"], equal) | "All kept" >> beam.Flatten()
        result.element_type = scored.element_type
        return result
