"""Scores and selects from Python as the commands do, and returns the results.

The functions take the flags of the commands as keyword arguments, and resume as the commands do:
the same call continues an unfinished run, and returns at once where nothing is left to do.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datarater.pipelines.bad_splits import FAIL, ON_BAD_SPLIT
from datarater.pipelines.commands import printing, requests, running
from datarater.pipelines.commands.flags import (
    DEFAULT_AGREEMENT,
    DEFAULT_REPORT_TEXTS,
    DEFAULT_SHARD_BYTES,
    DEFAULT_SIMILARITY,
    DEFAULT_SPLIT_BYTES,
    OUTPUT_FORMATS,
    is_selection_name,
)
from datarater.pipelines.errors import CurationError, UsageError
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest, Work
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import at_once, score_entries
from datarater.pipelines.run_folder.duplicates import read_summary
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.manifest import read_manifest
from datarater.pipelines.run_folder.score_files import RECORDS, with_records
from datarater.pipelines.run_folder.scored import find_scoring
from datarater.pipelines.run_folder.stores import Entry
from datarater.pipelines.runners import choice
from datarater.pipelines.runners.execution import Execution
from datarater.pipelines.selection.policy_options import (
    DEFAULT_MAX_COPIES,
    policy_from_options,
    rule_from_options,
)
from datarater.rater_model.documents.records import DEFAULT_ZSTD_WINDOW_BYTES, ReadOptions
from datarater.rater_model.json_codec import to_plain
from datarater.rater_model.scoring_options import ScoringOptions

PathLike = str | Path


def curate(
    inputs: PathLike | Sequence[PathLike],
    rater: PathLike,
    output: PathLike,
    *,
    scoring: ScoringOptions | None = None,
    text_field: str = "text",
    id_field: str = "id",
    source_field: str = "source",
    split_bytes: int = DEFAULT_SPLIT_BYTES,
    max_rejected_fraction: float = 1.0,
    on_bad_split: str = FAIL,
    append: bool = False,
    student: PathLike | None = None,
    agreement: float = DEFAULT_AGREEMENT,
    other_raters: Mapping[str, PathLike] | None = None,
    local_workers: int = 1,
    beam_args: Sequence[str] = (),
    progress: bool = False,
    **selection: Any,
) -> dict[str, Any]:
    """Scores a corpus and keeps its best part.

    Args:
        inputs: Paths, folders or globs, as `--input` takes them.
        rater: Rater checkpoint.
        output: Run folder.
        scoring: Options that change a score.
        text_field: Field or column with the text.
        id_field: Field or column with the document's id.
        source_field: Field or column with the name of the document's source.
        split_bytes: Stored bytes per split, the unit of work and of resuming.
        max_rejected_fraction: Share of rejected records past which the run stops.
        on_bad_split: What happens with a file that cannot be read, and with a split that repeatedly
            ends its worker: `"fail"` ends the run, `"reject"` rejects it whole.
        append: Whether input files may be new to the run folder, and others left out.
        student: Student of the rater, which scores every document first; the rater scores those of
            which it is in doubt. With `keep_fraction`.
        agreement: With a student: share, on average, of the documents that the rater alone would
            keep among those kept.
        other_raters: Rater checkpoints that score the same texts, by name; each into a column
            `score_NAME`, which rules call by its name.
        local_workers: Number of worker processes of a local run.
        beam_args: Flags for Beam, such as `["--runner=FlinkRunner", ...]`.
        progress: Whether to print progress lines.
        **selection: Rule and options of the selection; see `select`.

    Returns:
        The manifest, with counts, the cutoff and the kept files with their digests. Empty if
        the job was submitted and continues elsewhere.

    Raises:
        CurationError: The run cannot continue; the message says why and what to do.
        SelectionError: The rule and its options cannot be combined.

    Example:
        >>> manifest = datarater.curate(
        ...     "crawl/*.jsonl.gz", "rater", "run", keep_fraction=0.5
        ... )  # doctest: +SKIP
        >>> manifest["counts"]["kept"]  # doctest: +SKIP
        2745
    """
    execution = choice.choose(beam_args, local_workers)
    request = _selection_request(
        output, execution, other_raters=tuple(other_raters or ()), **selection
    )
    to_score = _scoring_request(
        inputs,
        rater,
        output,
        execution,
        scoring or ScoringOptions(),
        ReadOptions(
            text_field,
            id_field,
            source_field,
            max_zstd_window_bytes=DEFAULT_ZSTD_WINDOW_BYTES,
        ),
        split_bytes,
        max_rejected_fraction,
        on_bad_split,
        append,
        other_raters,
    )
    if student is not None:
        to_score = requests.with_student(to_score, student, request, agreement, execution)
    return _run(Work(to_score, request), execution, progress)


def score(
    inputs: PathLike | Sequence[PathLike],
    rater: PathLike,
    output: PathLike,
    *,
    scoring: ScoringOptions | None = None,
    text_field: str = "text",
    id_field: str = "id",
    source_field: str = "source",
    split_bytes: int = DEFAULT_SPLIT_BYTES,
    max_rejected_fraction: float = 1.0,
    on_bad_split: str = FAIL,
    append: bool = False,
    other_raters: Mapping[str, PathLike] | None = None,
    local_workers: int = 1,
    beam_args: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Scores a corpus into a run folder; see `curate` for the arguments.

    Returns:
        The fields of `scoring.json` (versions, options, counts). Empty if the job was submitted
        and continues elsewhere.

    Raises:
        CurationError: The run cannot continue; the message says why and what to do.
    """
    execution = choice.choose(beam_args, local_workers)
    to_score = _scoring_request(
        inputs,
        rater,
        output,
        execution,
        scoring or ScoringOptions(),
        ReadOptions(
            text_field,
            id_field,
            source_field,
            max_zstd_window_bytes=DEFAULT_ZSTD_WINDOW_BYTES,
        ),
        split_bytes,
        max_rejected_fraction,
        on_bad_split,
        append,
        other_raters,
    )
    return _run(Work(to_score), execution, progress)


def select(
    output: PathLike,
    *,
    local_workers: int = 1,
    beam_args: Sequence[str] = (),
    progress: bool = False,
    **selection: Any,
) -> dict[str, Any]:
    """Keeps the best part of a scored corpus; nothing is scored again.

    Args:
        output: Run folder that `score` or `curate` filled.
        local_workers: Number of worker processes of a local run.
        beam_args: Flags for Beam.
        progress: Whether to print progress lines.
        **selection: Exactly one rule (`keep_fraction`, `keep_count`, `token_budget`, `threshold`,
            `accept_batch` with `discard_fraction`, or `sample_tokens` or `sample_count` with
            `temperature` and `max_copies`), and any of `per`, `source_weights`,
            `min_per_source`, `reference`, `seed`, `name`, `output_format`, `output_shard_bytes`,
            `output_tokenizer`, `output_end_token`, `second_read_bytes`, `report_texts`, `join` and
            `join_key` (paths and key columns by name), `where`, `rank_by`, `tokens_from`, `dedup`,
            each as the flag of that name.

    Returns:
        The manifest; see `curate`.

    Raises:
        CurationError: The run cannot continue; the message says why and what to do.
        SelectionError: The rule and its options cannot be combined.
    """
    execution = choice.choose(beam_args, local_workers)
    request = _selection_request(output, execution, **selection)
    return _run(Work(selection=request), execution, progress)


def dedup(
    output: PathLike,
    similarity: float = DEFAULT_SIMILARITY,
    name: str | None = None,
    *,
    seed: int = 0,
    local_workers: int = 1,
    beam_args: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Finds the near-duplicates of a scored corpus: all but the best document of similar ones.

    `select` leaves them out with `dedup=NAME`. The table of all of them, with the neighbor of each,
    is in `duplicates/NAME/documents/` of the run folder.

    Args:
        output: Run folder that `score` or `curate` filled.
        similarity: Jaccard similarity of the shingles of two documents, sequences of 5 words, from
            which they are near-duplicates; from 0.3 to 1.
        name: Name of the deduplication; by default it is made from the similarity and the seed.
        seed: Seed for the order of documents with the same score.
        local_workers: Number of worker processes of a local run.
        beam_args: Flags for Beam.
        progress: Whether to print progress lines.

    Returns:
        The fields of `summary.json`: the name, the options, and the counts, of which `read` is the
        sum of `kept`, `exact`, `near` and `rejected`. Empty if the job was submitted and continues
        elsewhere.

    Raises:
        CurationError: The run cannot continue; the message says why and what to do.

    Example:
        >>> found = datarater.dedup("run", similarity=0.8)  # doctest: +SKIP
        >>> manifest = datarater.select(
        ...     "run", keep_fraction=0.5, dedup=found["name"]
        ... )  # doctest: +SKIP
    """
    execution = choice.choose(beam_args, local_workers)
    request = requests.deduplication_request(
        execution, output=output, similarity=similarity, seed=seed, name=name
    )
    return _run(Work(duplicates=request), execution, progress)


def read_scores(output: PathLike, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the scores of a run folder.

    Args:
        output: Run folder.
        columns: Names of the columns to read; None for all: position, key, key_hash, score, tokens,
            bytes, source, status, detail, excerpt, records.

    Returns:
        One row for each record that was read, rejected ones included. Records that are lost
        together, such as the rows of a damaged Parquet row group, are one row with their number as
        `records`.

    Raises:
        CurationError: The folder does not exist or has no scores.
    """
    folder = RunFolder(requests.usable_path("output", output))
    entries = [entry for part in score_entries(folder) for _, entry in part]
    if not entries:
        raise CurationError(f"{folder.path} has no scores; run `datarater score` into it first")

    def read(entry: Entry) -> pa.Table:
        try:
            table = pq.read_table(
                io.BytesIO(commits.read_bytes(entry.path)),
                columns=None if columns is None else list(columns),
            )
            return with_records(table) if columns is None or RECORDS in columns else table
        except pa.ArrowInvalid as error:
            raise CurationError(f"{entry.path} is not a score file: {error}") from error

    tables = at_once(read, sorted(entries, key=lambda entry: entry.path))
    return pa.concat_tables(tables, promote_options="default")


def _run(work: Work, execution: Execution, progress: bool) -> dict[str, Any]:
    """Runs the work; returns the fields of the file that it commits last, as far as it is there."""
    running.run(work, execution, printing.say if progress else _silent, progress)
    content: Any
    if work.selection is not None:
        content = read_manifest(work.selection.selection)
    elif work.duplicates is not None:
        content = read_summary(work.duplicates.duplicates)
    else:
        content = find_scoring(work.folder)
    return {} if content is None else to_plain(content)


def _silent(line: str) -> None:
    """Discards a line of progress."""


def _scoring_request(
    inputs: PathLike | Sequence[PathLike],
    rater: PathLike,
    output: PathLike,
    execution: Execution,
    scoring: ScoringOptions,
    read: ReadOptions,
    split_bytes: int,
    max_rejected_fraction: float,
    on_bad_split: str,
    append: bool,
    other_raters: Mapping[str, PathLike] | None,
) -> ScoringRequest:
    if on_bad_split not in ON_BAD_SPLIT:
        raise UsageError(f"on_bad_split: {on_bad_split!r} is not one of {', '.join(ON_BAD_SPLIT)}")
    values = [inputs] if isinstance(inputs, str | Path) else inputs
    return requests.scoring_request(
        execution,
        inputs=requests.patterns_of(values, execution, read.text_field),
        rater=rater,
        output=output,
        read=read,
        scoring=scoring,
        split_bytes=split_bytes,
        max_rejected_fraction=max_rejected_fraction,
        on_bad_split=on_bad_split,
        append=append,
        other_raters=other_raters,
    )


def _selection_request(
    output: PathLike,
    execution: Execution,
    *,
    keep_fraction: Any = None,
    keep_count: int | None = None,
    token_budget: int | None = None,
    threshold: Any = None,
    accept_batch: int | None = None,
    sample_tokens: int | None = None,
    sample_count: int | None = None,
    temperature: Any = None,
    max_copies: int = DEFAULT_MAX_COPIES,
    discard_fraction: Any = None,
    per: str = "corpus",
    source_weights: Mapping[str, Any] | None = None,
    min_per_source: int = 0,
    reference: PathLike | None = None,
    seed: int = 0,
    name: str | None = None,
    output_format: str = "same",
    output_shard_bytes: int = DEFAULT_SHARD_BYTES,
    second_read_bytes: int | None = None,
    report_texts: int = DEFAULT_REPORT_TEXTS,
    output_tokenizer: PathLike | None = None,
    output_end_token: str | None = None,
    join: Mapping[str, PathLike | Sequence[PathLike]] | None = None,
    join_key: Mapping[str, str] | None = None,
    where: str = "",
    rank_by: str = "",
    tokens_from: str = "",
    dedup: float | str | None = None,
    other_raters: Sequence[str] | None = None,
) -> SelectionRequest:
    if output_format not in OUTPUT_FORMATS:
        raise UsageError(
            f"output_format: {output_format!r} is not one of {', '.join(OUTPUT_FORMATS)}"
        )
    if name is not None and not is_selection_name(name):
        raise UsageError(f"name: {name!r} is not a name of letters, digits and ._=- (at most 100)")

    rule = rule_from_options(
        keep_fraction,
        keep_count,
        token_budget,
        threshold,
        accept_batch,
        sample_tokens,
        sample_count,
        temperature,
        max_copies,
    )
    policy = policy_from_options(
        rule,
        accept_batch=accept_batch,
        discard_fraction=discard_fraction,
        per=per,
        source_weights=source_weights,
        min_per_source=min_per_source,
        by_reference=reference is not None,
    )

    return requests.selection_request(
        execution,
        output=output,
        policy=policy,
        seed=seed,
        output_format=output_format,
        output_shard_bytes=output_shard_bytes,
        second_read_bytes=second_read_bytes,
        reference=reference,
        name=name,
        report_texts=report_texts,
        output_tokenizer=output_tokenizer,
        output_end_token=output_end_token,
        join=join,
        join_key=join_key,
        where=where,
        rank_by=rank_by,
        tokens_from=tokens_from,
        dedup=dedup,
        other_raters=other_raters,
    )
