"""Public transforms for Beam pipelines: score documents, keep the best, or use `RunInference`.

This pipeline scores three documents and prints the best one, and the one that has no text:

    import apache_beam as beam

    from datarater.pipelines.transforms import KeepTop, ScoreDocuments

    documents = [
        {"id": 1, "text": "The ship reached the harbor at noon."},
        {"id": 2, "text": "click here click here click here"},
        {"id": 3, "text": None},
    ]
    with beam.Pipeline() as pipeline:
        outputs = pipeline | beam.Create(documents) | ScoreDocuments("demo_output/rater")
        outputs["scored"] | KeepTop(keep_fraction="0.5") | "Kept" >> beam.Map(print)
        outputs["rejected"] | "Rejected" >> beam.Map(print)

The scores are bit for bit those of the commands: a score depends only on the text, the rater and
the scoring options. In Beam YAML (`pip install 'datarater[yaml]'`):

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

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type

from datarater.pipelines.errors import CurationError
from datarater.pipelines.graph.cutoff_search import MergeAnswers, add_rounds
from datarater.pipelines.run_folder.score_files import SCORE_NOT_FINITE
from datarater.pipelines.selection.cutoffs import CORPUS_GROUP, Answers, Cutoffs, Family
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.policy_options import policy_from_options, rule_from_options
from datarater.pipelines.selection.ranking import RankKeys, key_hash
from datarater.rater_model.checkpoint import CheckpointError, load_rater
from datarater.rater_model.documents.json_lines import SCORE_FIELD
from datarater.rater_model.documents.jsonl import document_of, field_getter, key_of, source_of
from datarater.rater_model.documents.records import BadRecord, ReadOptions
from datarater.rater_model.ngram_scorer import make_scorer
from datarater.rater_model.scoring_options import ScoringOptions, limit_cpu_threads
from datarater.rater_model.text_scorer import TextScorer

TOKENS_FIELD = "datarater_tokens"
_KEYS_TOGETHER = 512


class Score(NamedTuple):
    """The result of scoring one example.

    Attributes:
        score: Score of the text; None if the example cannot be scored.
        tokens: Number of tokens of the whole text.
        reason: Why there is no score, as in files of rejected records; None if there is one.
        detail: The reason as one sentence.
    """

    score: float | None
    tokens: int = 0
    reason: str | None = None
    detail: str | None = None


def _fields_of(element: Any) -> dict[str, Any] | None:
    """Returns the fields of a mapping or row; None for anything else."""
    if isinstance(element, Mapping):
        return dict(element)
    for name in ("as_dict", "_asdict"):
        method = getattr(element, name, None)
        if method is not None:
            fields: dict[str, Any] = method()
            return fields
    return None


class RaterModelHandler(ModelHandler[Any, PredictionResult, TextScorer]):
    """A rater for Beam's `RunInference`.

    An example is a text, or a mapping or row with a text in a field. Each example becomes a
    `PredictionResult` whose inference is a `Score`. One that cannot be scored gets a reason instead
    of a score; the rest of its batch is scored as usual. All of Beam's options for batching and for
    sharing a model are accepted: `min_batch_size`, `max_batch_size`, `max_batch_duration_secs`,
    `large_model`, `model_copies`, ...

    Args:
        rater: Path of the rater checkpoint, on any file system.
        text_field: Field of the text in a mapping or row; a dotted path for a nested field.
        scoring: Every option that changes a score; None for the commands' defaults.
        **batching: Options of `apache_beam.ml.inference.base.ModelHandler`.

    Example:
        >>> with beam.Pipeline() as pipeline:  # doctest: +SKIP
        ...     texts = pipeline | beam.Create(["A text of 24 characters."])
        ...     results = texts | RunInference(RaterModelHandler("demo_output/rater"))
        ...     _ = results | beam.Map(lambda result: print(result.inference.tokens))
        24
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

    def load_model(self) -> TextScorer:
        """Loads the rater, once per process.

        Raises:
            CurationError: The rater cannot be loaded; the message says why.
        """
        limit_cpu_threads()
        try:
            return make_scorer(load_rater(self._rater), self._scoring)
        except (CheckpointError, OSError) as error:
            raise CurationError(f"rater: {error}") from error

    def run_inference(
        self, batch: Sequence[Any], model: TextScorer, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        """Scores a batch of examples.

        Args:
            batch: Texts, mappings or rows.
            model: The loaded rater.
            inference_args: Ignored.

        Yields:
            One result for each example, in order.
        """
        # Find the texts; an example without one gets its reason.
        get_text = field_getter(self._read.text_field)
        problems: list[Score | None] = []
        texts: list[str] = []
        for example in batch:
            text, problem = example, None
            if not isinstance(example, str):
                fields = _fields_of(example)
                text = None if fields is None else get_text(fields)

            record = document_of(text, None, None, 0, None, self._read)
            if isinstance(record, BadRecord):
                problem = Score(None, 0, str(record.reason), record.detail)
            else:
                texts.append(record.text)
            problems.append(problem)

        # Score the texts, and put the results back among the problems.
        scored = model.score(texts)
        scores = iter(zip(scored.scores_N.tolist(), scored.tokens_N.tolist(), strict=True))
        for example, problem in zip(batch, problems, strict=True):
            result = problem
            if result is None:
                score, tokens = next(scores)
                result = Score(score, tokens)
                if not np.isfinite(score):
                    result = Score(None, tokens, SCORE_NOT_FINITE, f"the rater's score is {score}")
            yield PredictionResult(example, result)

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Returns the approximate size of a batch in bytes, for Beam's metrics."""
        return sum(len(example) if isinstance(example, str) else 100 for example in batch)

    def get_metrics_namespace(self) -> str:
        """Returns the namespace of the metrics of `RunInference`."""
        return "datarater_run_inference"


def _input_fields(element_type: Any) -> list[tuple[str, Any]] | None:
    """Returns the fields of a row type; None for mappings and texts."""
    try:
        return list(named_fields_from_element_type(element_type))
    except (TypeError, ValueError, AttributeError):
        return None


def _with_fields(element: Any, more: Mapping[str, Any]) -> Any:
    """Returns an element with fields added; a text becomes a mapping."""
    if isinstance(element, str):
        return {"text": element, **more}
    if isinstance(element, Mapping):
        return {**element, **more}
    fields = _fields_of(element)
    return beam.Row(**({"element": element} if fields is None else fields), **more)


class _Sort(beam.DoFn):
    """Separates scored from rejected elements."""

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

    Returns two collections by name. `scored` contains the elements with a score, with the fields
    `datarater_score` and `datarater_tokens` added. `rejected` contains the other elements, with
    `datarater_reason` and `datarater_detail`. A plain text becomes a mapping with the field `text`.

    Args:
        rater: Path of the rater checkpoint, on any file system.
        text_field: Field of the text; a dotted path for a nested field.
        max_windows: Maximum number of windows scored per document; None for the commands' default.
        tokens_per_batch: Number of tokens in one model call; None for the commands' default.
        min_batch_size: Minimum number of elements in a batch; None for Beam's default.
        max_batch_size: Maximum number of elements in a batch; None for Beam's default.

    Example:
        >>> with beam.Pipeline() as pipeline:  # doctest: +SKIP
        ...     documents = pipeline | beam.Create(["A text.", "Another text."])
        ...     outputs = documents | ScoreDocuments("demo_output/rater")
        ...     best = outputs["scored"] | KeepTop(keep_count=1)
        ...     _ = best | beam.Map(lambda row: print(sorted(row)))
        ['datarater_score', 'datarater_tokens', 'text']
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

    # Beam's type hints know no transform with named outputs: it warns about the annotation.
    @beam.typehints.no_annotations
    def expand(self, documents: beam.PCollection) -> dict[str, beam.PCollection]:
        """Adds the steps to a collection of documents."""
        outputs = (
            documents
            | "Infer" >> RunInference(self._handler)
            | "Sort" >> beam.ParDo(_Sort()).with_outputs(_Sort.REJECTED, main="scored")
        )
        scored, rejected = outputs["scored"], outputs[_Sort.REJECTED]

        # Rows keep their schema, with the new fields added.
        fields = _input_fields(documents.element_type)
        if fields is not None:
            scored.element_type = RowTypeConstraint.from_fields(
                [*fields, (SCORE_FIELD, float), (TOKENS_FIELD, int)]
            )
            rejected.element_type = RowTypeConstraint.from_fields(
                [*fields, ("datarater_reason", str), ("datarater_detail", str)]
            )
        return {"scored": scored, "rejected": rejected}


# Keeping the best.

Keys = tuple[RankKeys, np.ndarray, list[str]]


@dataclasses.dataclass(frozen=True)
class _KeyReader:
    """Reads rank keys from elements, given the names of their fields and the seed."""

    text_field: str
    id_field: str
    source_field: str
    seed: int

    def keys_of(self, elements: Iterable[Any]) -> Keys:
        """Returns the rank keys of elements, the source of each as a code, and the sources.

        Raises:
            CurationError: An element has no finite score.
        """
        text_of, id_of, source_of_fields = map(
            field_getter, (self.text_field, self.id_field, self.source_field)
        )

        scores, hashes, contents, tokens, codes = [], [], [], [], []
        names: dict[str, int] = {}
        for element in elements:
            fields = _fields_of(element) or {}
            score = fields.get(SCORE_FIELD)
            if score is None or not np.isfinite(score):
                raise CurationError(
                    f"KeepTop: an element has {score!r} as {SCORE_FIELD}; "
                    "give it the `scored` output of ScoreDocuments"
                )

            text = text_of(fields)
            text = text if isinstance(text, str) else ""
            scores.append(score)
            hashes.append(key_hash(key_of(id_of(fields), text)))
            contents.append(_content_hash(fields))
            tokens.append(fields.get(TOKENS_FIELD) or 0)
            codes.append(names.setdefault(source_of(source_of_fields(fields)), len(names)))

        # Elements have no place in a file; the hash of their content is their position instead.
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
    """Returns a hash that distinguishes elements with one key, the same in every process."""
    return key_hash(repr(_stable(fields)))


def _stable(value: Any) -> Any:
    """Returns a value whose `repr` does not depend on the order of fields."""
    if isinstance(value, Mapping):
        return sorted((str(name), _stable(inner)) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return [_stable(inner) for inner in value]
    fields = _fields_of(value)
    return value if fields is None else _stable(fields)


@beam.typehints.with_output_types(Answers)
def _survey(part: Keys) -> Answers:
    """Counts the first level of the search by source."""
    return Answers(
        {(Family.RULE, source): counted for source, counted in Histogram.by_source(*part).items()},
        {},
    )


@beam.typehints.with_output_types(Cutoffs)
def _begin(survey: Answers, policy: Policy) -> Cutoffs:
    sources = {source: (part.documents, part.tokens) for (_, source), part in survey.counts.items()}
    return Cutoffs.begin(policy, Histogram.merge(survey.counts.values()), sources)


@beam.typehints.with_output_types(Answers)
class _Answer(beam.DoFn):
    """Answers the questions of a round for some keys."""

    def process(self, part: Keys, cutoffs: Cutoffs) -> Iterator[Answers]:
        if not cutoffs.done:
            yield cutoffs.answers(*part)


class _Keep(beam.DoFn):
    """Emits the elements that the cutoffs keep; tags those equal to the last one kept.

    Of identical elements some may have to be kept, which `_take_equal` decides.
    """

    EQUAL = "equal"

    def __init__(self, reader: _KeyReader):
        self._reader = reader

    def process(self, elements: list[Any], cutoffs: Cutoffs) -> Iterator[Any]:
        keys, codes_N, sources = self._reader.keys_of(elements)
        kept = cutoffs.keeps(keys, codes_N, sources, self._reader.seed).tolist()
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
    """Emits as many of a group's identical elements as the cutoff keeps."""
    group, elements = item
    yield from itertools.islice(elements, cutoffs.equals()[group][1])


class KeepTop(beam.PTransform):
    """Keeps the best of scored documents, exactly as many as a rule asks for.

    The input is the `scored` output of `ScoreDocuments`, as a bounded collection. Exactly one rule
    is required. The rules, and the order among equal scores, are those of the commands. Texts do
    not move between workers: only rank keys are gathered, and only histograms of them are merged.

    Args:
        keep_fraction: Share of the documents to keep, exactly, such as "0.1" or "1/3".
        keep_count: Number of documents to keep.
        token_budget: Maximum number of tokens to keep.
        threshold: Minimum score of the documents to keep.
        accept_batch: Batch size of the paper's batch top-K; requires `discard_fraction`.
        discard_fraction: Share of each batch that batch top-K drops.
        per: Whether the rule applies to the whole "corpus" or to each "source".
        source_weights: Factors by source for the rule's number; requires `per` source.
        min_per_source: Minimum number of documents to keep from every source.
        seed: Seed for tie-breaking and for the draw of batch top-K.
        text_field: Field of the text, which is the key of documents without an id.
        id_field: Field of the id.
        source_field: Field of the source's name.

    Raises:
        ValueError: There is not exactly one rule, or the options cannot be combined.

    Example:
        >>> rows = [{"text": "a", "datarater_score": 0.5}, {"text": "b", "datarater_score": 0.7}]
        >>> with beam.Pipeline() as pipeline:  # doctest: +SKIP
        ...     kept = pipeline | beam.Create(rows) | KeepTop(keep_fraction="0.5")
        ...     _ = kept | beam.Map(lambda row: print(row["text"]))
        b
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

        rule = rule_from_options(keep_fraction, keep_count, token_budget, threshold, accept_batch)
        self._policy = policy_from_options(
            rule,
            accept_batch=accept_batch,
            discard_fraction=discard_fraction,
            per=per,
            source_weights=source_weights,
            min_per_source=min_per_source,
        )
        self._reader = _KeyReader(text_field, id_field, source_field, seed)

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        """Adds the steps to a collection of scored documents."""
        # The keys are read once and used in every round, so nothing is scored again.
        batches = scored | "Batch" >> beam.BatchElements(
            min_batch_size=16, max_batch_size=_KEYS_TOGETHER
        )
        keys = (
            batches
            | "Take keys" >> beam.Map(self._reader.keys_of).with_output_types(Keys)
            | "Hold keys" >> beam.Reshuffle()
        )

        # The descent: every round answers the cutoffs' questions, until everything is decided.
        cutoffs = (
            keys
            | "Survey" >> beam.Map(_survey)
            | "Merge survey" >> beam.CombineGlobally(MergeAnswers())
            | "Begin" >> beam.Map(_begin, self._policy)
        )
        cutoffs = add_rounds(cutoffs, keys, _Answer(), self._policy.rounds)

        # The elements that the last cutoffs keep, and as many of identical ones as are due.
        last = beam.pvalue.AsSingleton(cutoffs)
        kept = batches | "Keep" >> beam.ParDo(_Keep(self._reader), last).with_outputs(
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
