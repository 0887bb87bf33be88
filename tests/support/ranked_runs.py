"""Scored corpora and selections from them with a ranking, made without a runner, and the oracle."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

from datarater.pipelines.graph import joined_tables, kept_rows, output_files, planning, ranking
from datarater.pipelines.graph.cutoff_search import advance, begin_selection
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.output_files import WriteShard
from datarater.pipelines.graph.publishing import MergeSources, publish
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.graph.score_split import score_split
from datarater.pipelines.graph.scoring import finish_scoring
from datarater.pipelines.run_folder import commits, summaries
from datarater.pipelines.run_folder.kept_counts import KeptSplits
from datarater.pipelines.run_folder.plan import plan_of, read_group
from datarater.pipelines.run_folder.ranking_options import JoinCounts
from datarater.pipelines.run_folder.score_files import SCORED, ScoreFile
from datarater.pipelines.selection import sampling
from datarater.pipelines.selection.cutoffs import merge_answers
from datarater.pipelines.selection.ranking import key_hash, seeded_hash
from datarater.pipelines.selection.rules import (
    Rule,
    TemperatureSample,
    Threshold,
    TokenBudget,
)
from datarater.rater_model.text_scorer import TextScorer
from tests.support.run_folders import run_options


def score_corpus(corpus: Path, output: Path, scorer: TextScorer, **changes: Any) -> ScoringRequest:
    """Plans and scores a corpus, to the last file that scoring commits."""
    request = ScoringRequest(Patterns((str(corpus),)), "rater", str(output), run_options())
    request = dataclasses.replace(request, **changes)
    planning.plan_now(request)
    total = summaries.Summary()
    for group in range(plan_of(request.folder).groups):
        tasks = read_group(request.folder, group)
        for task in tasks:
            content = score_split(task, request.options.read, scorer)
            commits.commit_file(request.folder.score_path(task.split.ordinal), content)
        summaries.summarise_group(request.folder, group, [task.split.ordinal for task in tasks])
        total.add(summaries.read_summary(request.folder, group))
    finish_scoring(total, request.folder)
    return request


def write_table(
    folder: Path, name: str, files: Iterable[list[dict[str, Any]]], **types: Any
) -> str:
    """Writes the files of a table to join; returns their glob."""
    for number, rows in enumerate(files):
        columns = {column: [row.get(column) for row in rows] for column in types}
        table = pa.table(
            {column: pa.array(columns[column], kind) for column, kind in types.items()}
        )
        pq.write_table(table, folder / f"{name}-{number}.parquet", row_group_size=3)
    return str(folder / f"{name}-*.parquet")


def rank_now(request: SelectionRequest, rows_at_once: int = 5) -> None:
    """Takes the steps of `Rank` one by one."""
    groups = list(ranking._begin(None, request))
    tasks = [task for group in groups for task in read_group(request.folder, group)]
    assert request.ranking is not None
    joins = request.ranking.joins
    by_bucket: dict[int, dict[str, list[Any]]] = {}
    counts: list[dict[str, JoinCounts]] = []

    def put(tag: str, results: Iterable[Any]) -> None:
        for result in results:
            if isinstance(result, beam.pvalue.TaggedOutput):
                counts.append(result.value)
                continue
            bucket, chunk = getattr(result, "value", result)
            tags = ["documents", *map(str, range(len(joins)))]
            by_bucket.setdefault(bucket, {tag: [] for tag in tags})[tag].append(chunk)

    keys = ranking.DocumentKeys(request, rows_at_once)
    keys.start_bundle()
    for task in tasks:
        put("documents", keys.process(task))
    put("documents", keys.finish_bundle())
    for number, table in enumerate(joins):
        for listed in ranking._list_table(None, request, number, len(tasks)):
            for part in joined_tables.parts_of(table, listed[1], listed[0], part_bytes=1):
                put(str(number), ranking.ReadTable(request, number).process(part))

    found: dict[int, list[bytes]] = {}
    for element in by_bucket.items():
        for result in ranking.FindRows(request).process(element):
            if isinstance(result, beam.pvalue.TaggedOutput):
                counts.append(result.value)
            else:
                found.setdefault(result[0], []).append(result[1])
    list(ranking.CommitJoins(request).process(ranking._added(counts)))

    for task in tasks:
        ordinal = task.split.ordinal
        parts: dict[str, list[Any]] = {"task": [task], "joined": found.get(ordinal, [])}
        list(ranking.RankSplit(request).process((ordinal, parts)))
    total = summaries.Summary()
    for group in groups:
        ordinals = [task.split.ordinal for task in read_group(request.folder, group)]
        list(ranking.SummariseRanking(request).process((group, ordinals)))
        total.add(summaries.read_summary(request.ranking_folder, group))
    ranking.finish_ranking(request, total)


def select_now(request: SelectionRequest) -> None:
    """Takes the steps of a selection one by one, from the ranking to the manifest."""
    if request.ranking is not None:
        rank_now(request)
    cutoffs = begin_selection(request)
    groups = range(plan_of(request.folder).groups)
    while not cutoffs.done:
        files = [
            file
            for group in groups
            for task in read_group(request.folder, group)
            for file in ScoreFile.in_chunks(request.ranked, task.split.ordinal)
        ]
        keys = [kept_rows.keys_by_source(file, request.seed) for file in files]
        cutoffs = advance(merge_answers(cutoffs.answers(*one) for one in keys), cutoffs)

    counts = [kept_rows.count_group(request, group, cutoffs) for group in groups]
    splits = KeptSplits.merge(group.splits for group in counts)
    sources = MergeSources().merge_accumulators([group.sources for group in counts])
    written = [
        shard
        for task in output_files.plan_shards(
            splits, request.output_format, request.output_shard_bytes
        )
        for shard in WriteShard(request).process(task, cutoffs)
    ]
    publish(request, cutoffs, counts, sources, written)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A document as the oracle ranks it.

    Attributes:
        row: Row of the run's score file.
        score: Number that it is ranked by; None if it is excluded.
        tokens: Number of tokens that budgets count.
        order: What sorts documents, the best first.
    """

    row: dict[str, Any]
    score: float | None
    tokens: int
    order: tuple[Any, ...]


def oracle(
    request: SelectionRequest,
    judge: Callable[[dict[str, Any]], tuple[float | None, int | None]],
) -> list[Ranked]:
    """Returns all documents, the best first and the excluded ones last, in plain Python.

    Args:
        request: The selection.
        judge: Returns the number and the tokens of a document, given the row of its score file;
            None for the number, or for the tokens, excludes it.
    """
    documents = []
    for row, ordinal in scored_rows(request):
        score, tokens = judge(row)
        if score is not None:
            score = float(np.float32(score))
        if tokens is None or (score is not None and not np.isfinite(score)):
            score = None
        (hashed,) = seeded_hash(np.asarray([key_hash(row["key"])], np.uint64), request.seed)
        last = (int(hashed), ordinal, row["position"])
        order = (1, 0.0, *last) if score is None else (0, -score, *last)
        documents.append(Ranked(row, score, tokens or 0, order))
    return sorted(documents, key=lambda document: document.order)


def scored_rows(request: SelectionRequest) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields the rows of all scored documents with the ordinals of their files."""
    for group in range(plan_of(request.folder).groups):
        for task in read_group(request.folder, group):
            file = ScoreFile.read(request.folder, task.split.ordinal)
            ordinals = file.ordinals().tolist()
            for row, ordinal in zip(file.table.to_pylist(), ordinals, strict=True):
                if row["status"] == SCORED:
                    yield row, ordinal


def first_rows(files: Iterable[list[dict[str, Any]]], key: str) -> Mapping[Any, dict[str, Any]]:
    """Returns the first row of each key of a table, in the order of its files."""
    first: dict[Any, dict[str, Any]] = {}
    for rows in files:
        for row in rows:
            if row[key] is not None:
                first.setdefault(row[key], row)
    return first


def expected_kept(documents: list[Ranked], rule: Rule) -> list[Ranked]:
    """Returns what a rule keeps of documents in order."""
    ranked = [document for document in documents if document.score is not None]
    if isinstance(rule, Threshold):
        return [one for one in ranked if one.score is not None and one.score >= rule.score]
    if isinstance(rule, TokenBudget):
        totals = np.cumsum([document.tokens for document in ranked])
        return ranked[: int(np.searchsorted(totals, rule.tokens, side="right"))]
    return ranked[: rule.target(len(ranked), 0)]


def a_tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer of words that adds tokens and truncates, unless it is told not to."""
    vocabulary = {"[UNK]": 0, "the": 1, "fox": 2, "[CLS]": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[CLS]"])
    template = tokenizers.processors.TemplateProcessing("[CLS] $0", None, [("[CLS]", 3)])
    tokenizer.post_processor = template
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    return tokenizer


def words_in(text: str) -> int:
    """Returns the number of tokens of a text in the tokens of `a_tokenizer`."""
    return len(re.findall(r"\w+|[^\w\s]+", text))


def place_of(document: Ranked) -> tuple[str, int]:
    """Returns the file of a document and its position there."""
    return document.row["file"], document.row["position"]


def copies_one_by_one(documents: list[Ranked], rule: TemperatureSample, seed: int) -> list[int]:
    """Returns the copies of documents, the best first, of which the best get the maximum."""
    scores = [float(document.score or 0) for document in documents]
    sizes = [document.tokens if rule.in_tokens else 1 for document in documents]
    means = [float(rule.max_copies)] * len(documents)
    left = float(rule.target_size)
    for first in range(len(documents)):
        weights = [math.exp((s - scores[first]) / float(rule.temperature)) for s in scores[first:]]
        total = sum(weight * size for weight, size in zip(weights, sizes[first:], strict=True))
        if left <= rule.max_copies * total:
            means[first:] = [left / total * weight if total else 0.0 for weight in weights]
            break
        left -= rule.max_copies * sizes[first]
    keys = np.asarray([key_hash(document.row["key"]) for document in documents], np.uint64)
    draws_N = seeded_hash(seeded_hash(keys, seed), seed ^ sampling._DRAW) / 2.0**64
    means_N = np.asarray(means)
    copies: list[int] = (np.floor(means_N) + (draws_N < means_N % 1)).astype(int).tolist()
    return copies
