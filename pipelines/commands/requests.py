"""Turns options into requests, in one way for commands, the Python interface and batches."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from datarater.pipelines import errors
from datarater.pipelines.bad_splits import FAIL
from datarater.pipelines.commands import flags
from datarater.pipelines.commands.ranking import check_rater_name, ranking_options
from datarater.pipelines.errors import UsageError
from datarater.pipelines.graph.inputs import Inputs, Patterns
from datarater.pipelines.graph.requests import (
    DeduplicationRequest,
    ScoringRequest,
    SelectionRequest,
    load_checkpoint,
)
from datarater.pipelines.graph.trainer_formats.array_record import ArrayRecordFormat
from datarater.pipelines.graph.trainer_formats.mds import MAX_SHARD_BYTES, MdsFormat
from datarater.pipelines.graph.trainer_formats.megatron import MegatronFormat
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.duplicates import read_summary
from datarater.pipelines.run_folder.identity import CascadeOptions, RunOptions, read_identity
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.manifest import TokenizerFields
from datarater.pipelines.run_folder.many_sources import MAX_SOURCES
from datarater.pipelines.runners import choice
from datarater.pipelines.runners.execution import Execution
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import KeepFraction, TemperatureSample
from datarater.rater_model.cascade import HeldOut, NotAStudentError
from datarater.rater_model.checkpoint import (
    RECOMMENDATION_FILE,
    CheckpointError,
    load_recommendation,
)
from datarater.rater_model.command_line import print_line
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import (
    expand_home,
    local_path,
    open_file,
    split_on_commas,
)
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.documents.remote_file import WHOLE
from datarater.rater_model.documents.tfds import TFDS_PREFIX, DatasetError, split_patterns
from datarater.rater_model.plain_tokenizer import BYTES, load_plain_tokenizer
from datarater.rater_model.scoring_options import SCORER_VERSION, ScoringOptions
from datarater.rater_model.tokenizer import SEPARATOR_TOKEN, TokenizerError

REMOTE_WORKERS_TO_FILL = 64
"""Workers that big streams are divided for where nobody knows how many a run will have."""


# From options.


def scoring_request(
    execution: Execution,
    *,
    inputs: Inputs,
    rater: str | Path,
    output: str | Path,
    read: ReadOptions,
    scoring: ScoringOptions,
    split_bytes: int,
    max_rejected_fraction: float = 1.0,
    max_read_amplification: float = flags.DEFAULT_READ_AMPLIFICATION,
    workers_to_fill: int | None = None,
    on_bad_split: str = FAIL,
    append: bool = False,
    max_sources: int = MAX_SOURCES,
    other_raters: Mapping[str, str | Path] | None = None,
) -> ScoringRequest:
    """Returns a request for a scoring; loads the rater to read its digest.

    Args:
        execution: The execution, which says where workers are, and may know their number.
        inputs: The input files.
        rater: Rater checkpoint.
        output: Run folder.
        read: How records are read.
        scoring: Options that change a score.
        split_bytes: Stored bytes per split.
        max_rejected_fraction: Share of rejected records past which the run stops.
        max_read_amplification: Maximum number of times that one big stream is decompressed.
        workers_to_fill: Number of workers to divide big streams for; by default the execution's.
        on_bad_split: A value of `--on_bad_split`.
        append: Whether input files may be new to the run folder, and others left out.
        max_sources: Maximum number of sources that are counted apart.
        other_raters: Rater checkpoints that score beside the first one, by name.

    Raises:
        UsageError: There is no such rater, or a path cannot be used.
        CurationError: The rater cannot be loaded.
    """
    output = _output(output, execution)
    rater = usable_path("rater", rater, execution)
    others = {
        name: usable_path(f"rater {name}", path, execution)
        for name, path in (other_raters or {}).items()
    }
    for name in others:
        check_rater_name(name)
    options = RunOptions(
        rater=load_checkpoint("rater", rater).digest,
        read=read,
        scoring=scoring,
        scorer_version=SCORER_VERSION,
        split_bytes=split_bytes,
        other_raters={
            name: load_checkpoint(f"rater {name}", path).digest for name, path in others.items()
        },
    )

    if isinstance(inputs, Patterns):
        inputs = dataclasses.replace(inputs, without=(output,))
    return ScoringRequest(
        inputs,
        rater,
        output,
        options,
        max_rejected_fraction,
        max_read_amplification,
        workers_to_fill or execution.workers or REMOTE_WORKERS_TO_FILL,
        on_bad_split,
        append=append,
        max_sources=max_sources,
        other_raters=others,
    )


def selection_request(
    execution: Execution,
    *,
    output: str | Path,
    policy: Policy,
    seed: int,
    output_format: str,
    output_shard_bytes: int,
    reference: str | Path | None = None,
    name: str | None = None,
    report_texts: int = 0,
    second_read_bytes: int | None = None,
    output_tokenizer: str | Path | None = None,
    output_end_token: str | None = None,
    join: Mapping[str, str | Path | Sequence[str | Path]] | None = None,
    join_key: Mapping[str, str] | None = None,
    where: str = "",
    rank_by: str = "",
    tokens_from: str = "",
    dedup: float | str | None = None,
    other_raters: Iterable[str] | None = None,
) -> SelectionRequest:
    """Returns a request for a selection; see `SelectionRequest` and `ranking_options`.

    The raters that rules can name are `other_raters`, or those of the run folder if it is None.

    Args:
        execution: The execution, which says where workers are.
        output: Run folder.
        policy: The rule and what it applies to.
        seed: Seed for tie-breaking and for the draw of a batch top-K.
        output_format: A value of `--output_format`.
        output_shard_bytes: Approximate size of an output file in bytes of kept text.
        reference: Run folder or rater checkpoint whose distribution of scores decides.
        name: Name of the selection; by default it is made from the policy.
        report_texts: Number of documents in each list of the report.
        second_read_bytes: Stored bytes of input above which an output file is written in pieces.
        output_tokenizer: Path of a `tokenizer.json`, or `byte`, for a format of tokens.
        output_end_token: Token of it that follows each document.
        join: Paths of joined Parquet tables, by name.
        join_key: Key column of each, by name.
        where: Condition that a document must meet.
        rank_by: Number that documents are ranked by, instead of the score.
        tokens_from: Path of a `tokenizer.json`, or column or field that counts tokens.
        dedup: Similarity of near-duplicates to leave out, or name of a complete deduplication.
        other_raters: Names of further raters of the run; None to read them from the run folder.

    Raises:
        UsageError: A path cannot be used, the format of the output files cannot be written with the
            other options, or the options of a ranking do not fit its tables.
        CurationError: A joined table cannot be read.
    """
    _check_output_format(output_format, output_shard_bytes, output_tokenizer, output_end_token)
    if isinstance(policy.rule, TemperatureSample) and output_format == "attributes":
        raise UsageError(
            "--output_format: an attributes file has one line for each document, but "
            "--sample_tokens and --sample_count repeat some; write another format"
        )
    if reference and rank_by:
        raise UsageError(
            "--rank_by: the numbers cannot be compared with the scores of --reference; give one of "
            "the two"
        )

    tokenizer_path, tokenizer = "", None
    if output_tokenizer is not None:
        is_path = os.fspath(output_tokenizer) != BYTES
        tokenizer_path = (
            usable_path("output_tokenizer", output_tokenizer, execution) if is_path else BYTES
        )
        tokenizer = _tokenizer_fields(tokenizer_path, output_end_token or "")

    tables = {
        name: [usable_path(f"join {name}", part, execution) for part in _parts(paths)]
        for name, paths in (join or {}).items()
    }
    if tokens_from:
        tokens_from = usable_path("tokens_from", tokens_from)
    if other_raters is None:
        identity = read_identity(RunFolder(_output(output, execution)))
        other_raters = () if identity is None else identity.other_raters
    deduplication = _deduplication(_output(output, execution), dedup, seed)
    ranking = ranking_options(
        tables,
        join_key,
        where,
        rank_by,
        tokens_from,
        tuple(other_raters),
        "" if deduplication is None else deduplication.name,
    )
    if ranking is not None and ranking.tokenizer:
        path = usable_path("tokens_from", tokens_from, execution)
        ranking = dataclasses.replace(ranking, tokens_from=path)

    return SelectionRequest(
        _output(output, execution),
        policy,
        seed,
        output_format,
        output_shard_bytes,
        usable_path("reference", reference, execution) if reference else None,
        name or "",
        report_texts=report_texts,
        second_read_bytes=second_read_bytes,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        ranking=ranking,
        deduplication=deduplication,
    )


def _check_output_format(
    output_format: str,
    output_shard_bytes: int,
    output_tokenizer: str | Path | None,
    output_end_token: str | None,
) -> None:
    """Refuses options of output files that cannot be combined.

    Raises:
        UsageError: The message names the flags.
    """
    is_tokens = output_format == MegatronFormat.name
    if is_tokens and output_tokenizer is None:
        raise UsageError(
            "--output_format megatron writes tokens: give --output_tokenizer, the tokenizer.json "
            "of the model to be trained, or byte"
        )
    if not is_tokens and output_tokenizer is not None:
        raise UsageError(
            f"--output_tokenizer is for --output_format megatron; {output_format} has texts"
        )
    if output_end_token is not None and output_tokenizer is None:
        raise UsageError("--output_end_token is a token of --output_tokenizer; give that too")
    if output_format == MdsFormat.name and output_shard_bytes > MAX_SHARD_BYTES // 2:
        raise UsageError(
            f"--output_shard_bytes: {output_shard_bytes:,} bytes of text may not fit in an MDS "
            "shard, which has less than 4 GiB; give at most 2GiB"
        )
    if output_format == ArrayRecordFormat.name and importlib.util.find_spec("array_record") is None:
        raise UsageError(
            "--output_format array_record needs the package array_record: "
            "pip install 'datarater[tfds]'"
        )


def _tokenizer_fields(path: str, end_token: str) -> TokenizerFields:
    """Returns what identifies a tokenizer and the token that follows each document.

    Raises:
        UsageError: The tokenizer cannot be loaded, or has no such token; the message names the
            flag.
    """
    try:
        tokenizer = load_plain_tokenizer(path)
    except (TokenizerError, OSError) as error:
        raise UsageError(f"--output_tokenizer: {error}") from error
    end_id = tokenizer.token_id(end_token) if end_token else None
    if end_token and end_id is None:
        hint = f"; that of byte is {SEPARATOR_TOKEN}" if path == BYTES else ""
        raise UsageError(
            f"--output_end_token: the vocabulary of {path} has no token {end_token!r}{hint}"
        )
    return TokenizerFields(
        digest=tokenizer.digest,
        vocabulary_size=tokenizer.vocabulary_size,
        end_token=end_token,
        end_id=end_id,
    )


def _deduplication(
    output: str, dedup: float | str | None, seed: int
) -> DeduplicationRequest | None:
    """Returns how the near-duplicates that a selection leaves out are found; None if none are.

    Args:
        output: Path of the run folder.
        dedup: A similarity, or the name of a complete deduplication.
        seed: Seed of the selection, by which near-duplicates of a similarity are ranked too.

    Raises:
        UsageError: There is no such deduplication, it is not complete, or the similarity is out of
            range.
    """
    if dedup is None:
        return None
    try:
        similarity = flags.similarity(str(float(dedup)))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--dedup: {error}") from error
    except ValueError:
        name = str(dedup)
    else:
        return DeduplicationRequest(output, similarity, seed)
    summary = read_summary(RunFolder(output).duplicates(name))
    if summary is None:
        raise UsageError(
            f"--dedup: {output} has no complete deduplication {name!r}; give a similarity such as "
            f"0.8, or run datarater dedup --name {name}"
        )
    return DeduplicationRequest(output, summary.similarity, summary.seed, name)


def _parts(paths: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, str | Path) else paths


def with_student(
    scoring: ScoringRequest,
    student: str | Path,
    selection: SelectionRequest,
    agreement: float,
    execution: Execution,
) -> ScoringRequest:
    """Returns a scoring in which a student scores first; loads the student.

    Args:
        scoring: The scoring by the rater alone.
        student: Checkpoint of the student.
        selection: What is kept, which decides what the student leaves to the rater.
        agreement: Wished share of the rater's own kept documents among those kept.
        execution: The execution, which says where workers are.

    Raises:
        UsageError: The selection does not keep a share of the whole corpus, there is no such
            student, or it is that of another rater.
        CurationError: The student cannot be loaded.
    """
    rule = selection.policy.rule
    if selection.ranking is not None:
        raise UsageError(
            "--student: a student is in doubt near the cutoff of the score alone; select with "
            "--join, --where, --rank_by, --tokens_from and --dedup from a run of the rater"
        )
    if not isinstance(rule, KeepFraction) or not selection.keeps_share_of_all:
        raise UsageError(
            "--student: a student is in doubt near one cutoff; give --keep_fraction, without --per "
            "source, --min_per_source and --reference"
        )

    if scoring.other_raters:
        raise UsageError("--student: a student scores for one rater; give --rater once")
    path = usable_path("student", student, execution)
    checkpoint = load_checkpoint("student", path)
    taught_by = checkpoint.provenance.get("distilled_from")
    if taught_by != scoring.options.rater:
        raise UsageError(
            f"--student: {path} was distilled from the rater {taught_by}, not from --rater, whose "
            f"digest is {scoring.options.rater}"
        )
    try:
        held_out = HeldOut.of(checkpoint)
    except NotAStudentError as error:
        raise UsageError(f"--student: {path}: {error}") from error

    band = held_out.band(float(rule.fraction), agreement)
    cascade = CascadeOptions(
        student=checkpoint.digest,
        keep=rule.value,
        agreement=agreement,
        surely_kept=band.kept,
        surely_dropped=band.dropped,
        offset=held_out.offset(),
    )
    options = dataclasses.replace(scoring.options, cascade=cascade)
    return dataclasses.replace(scoring, options=options, student=path)


def patterns_of(
    inputs: Sequence[str | Path], execution: Execution, text_field: str, tfds_data_dir: str = ""
) -> Patterns:
    """Returns inputs that mean the same for every worker of an execution.

    Args:
        inputs: Paths, folders, globs and names of datasets, each as `--input` takes it. The paths
            of its shards take the place of a dataset.
        execution: The execution, which says where workers are.
        text_field: Feature of a dataset that contains the text.
        tfds_data_dir: Folder of prepared datasets; "" for the default one.

    Raises:
        UsageError: A path cannot be used, or there is no such dataset, version, split or text
            feature; the message names what there is.
        UnreadableInputError: The folder of datasets cannot be read.
    """
    if tfds_data_dir:
        tfds_data_dir = usable_path("tfds_data_dir", tfds_data_dir)

    patterns: list[str] = []
    for value in (usable_path("input", value) for value in inputs):
        for part in split_on_commas(value) if TFDS_PREFIX in value else [value]:
            if not part.startswith(TFDS_PREFIX):
                patterns.append(part)
                continue
            try:
                patterns += split_patterns(part, text_field, tfds_data_dir)
            except DatasetError as error:
                raise UsageError(f"--input: {error}") from error
            except OSError as error:
                raise errors.reading_failed(tfds_data_dir or part, error) from error

    # A local file's name may contain commas.
    if not execution.local:
        patterns = [part for pattern in patterns for part in split_on_commas(pattern)]
    return Patterns(tuple(usable_path("input", pattern, execution) for pattern in patterns))


def usable_path(flag: str, path: str | Path, execution: Execution | None = None) -> str:
    """Returns a path that means the same for every worker of an execution.

    Args:
        flag: Name of the flag, for the message.
        path: Path or URL.
        execution: The execution, which says where workers are; None for this process alone.

    Raises:
        UsageError: No file system can open the path, or it is on this machine, where no worker of
            the execution can see it.
    """
    path = expand_home(os.fspath(path))
    try:
        path.encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UsageError(f"--{flag}: the name {name} is not UTF-8; use another one") from error
    commits.check_protocols(f"--{flag}", path)
    if execution is None or execution.local or not path:
        return path
    if execution.needs_shared_storage and local_path(path) is not None:
        raise UsageError(
            f"--{flag}: {path} is on this machine, where the workers of {execution.runner} cannot "
            "see it; give a URL of a store that they reach, such as gs://"
        )
    return os.path.abspath(path) if local_path(path) == path else path


def _output(path: str | Path, execution: Execution) -> str:
    """Returns the path of the run folder.

    Raises:
        UsageError: The folder is a file or below one, or its path cannot be used.
    """
    output = usable_path("output", path, execution)
    local = local_path(output)
    if local is not None:
        place = os.path.abspath(local)
        while not os.path.exists(place) and place != os.path.dirname(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            raise UsageError(f"--output: {place} is a file; name a folder")
    return output


# From flags.


def execution_of(
    parser: argparse.ArgumentParser, args: argparse.Namespace, beam_args: Sequence[str]
) -> Execution:
    """Returns the execution that the flags choose.

    Raises:
        UsageError: A runner cannot be used.
        FlinkError: A Flink cluster does not answer, or has fewer slots than requested.
        SystemExit: A flag is neither ours nor Beam's.
    """
    try:
        return choice.choose(beam_args, args.local_workers)
    except choice.UnknownFlagError as error:
        parser.error(str(error))


def scoring_of(
    args: argparse.Namespace, execution: Execution, inputs: Inputs | None = None
) -> ScoringRequest:
    """Returns the scoring that the flags describe; see `scoring_request`.

    Args:
        args: Flags of `add_input_flags` and `add_scoring_flags`.
        execution: The execution.
        inputs: The input files; those of the flags if None.
    """
    return scoring_request(
        execution,
        inputs=inputs or inputs_of(args, execution),
        rater=args.rater,
        output=args.output,
        read=_read_options(args),
        scoring=ScoringOptions(args.max_windows, args.tokens_per_batch, args.dtype),
        split_bytes=args.split_bytes,
        max_rejected_fraction=args.max_rejected_fraction,
        max_read_amplification=args.max_read_amplification,
        workers_to_fill=args.workers_to_fill,
        on_bad_split=args.on_bad_split,
        max_sources=args.max_sources,
        append=getattr(args, "append", False),
        other_raters=args.other_raters,
    )


def _read_options(args: argparse.Namespace) -> ReadOptions:
    try:
        return ReadOptions(
            args.text_field,
            args.id_field,
            args.source_field,
            args.max_record_bytes,
            args.max_zstd_window_bytes,
        )
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def deduplication_of(args: argparse.Namespace, execution: Execution) -> DeduplicationRequest:
    """Returns the deduplication that the flags of `add_duplicates_flags` describe."""
    return deduplication_request(
        execution,
        output=args.output,
        similarity=args.similarity,
        seed=args.seed,
        name=args.name,
    )


def deduplication_request(
    execution: Execution,
    *,
    output: str | Path,
    similarity: float,
    seed: int,
    name: str | None,
) -> DeduplicationRequest:
    """Returns a deduplication; the arguments are those of `datarater.api.dedup`.

    Raises:
        UsageError: The similarity, the name or the path cannot be used.
    """
    try:
        similarity = flags.similarity(str(similarity))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--similarity: {error}") from error
    try:
        name = name if name is None else flags.deduplication_name(name)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--name: {error}") from error
    return DeduplicationRequest(_output(output, execution), similarity, seed, name or "")


def selection_of(args: argparse.Namespace, execution: Execution) -> SelectionRequest:
    """Returns the selection that the flags of `add_selection_flags` describe."""
    return selection_request(
        execution,
        output=args.output,
        policy=flags.policy(args),
        seed=args.seed,
        output_format=args.output_format,
        output_shard_bytes=args.output_shard_bytes,
        reference=args.reference,
        name=args.name,
        report_texts=args.report_texts,
        second_read_bytes=args.second_read_bytes,
        output_tokenizer=args.output_tokenizer,
        output_end_token=args.output_end_token,
        join=_by_name(args.join),
        join_key=_join_keys(args.join_key),
        where=args.where,
        rank_by=args.rank_by,
        tokens_from=args.tokens_from,
        dedup=args.dedup,
        other_raters=getattr(args, "other_raters", None),
    )


def _by_name(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Returns the values of a repeated flag by name."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def _join_keys(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the key columns of joined tables by name.

    Raises:
        UsageError: A table is given two.
    """
    keys = _by_name(pairs)
    for name, columns in keys.items():
        if len(columns) > 1:
            raise UsageError(f"--join_key {name}: a table has one key column, not {len(columns)}")
    return {name: columns[0] for name, columns in keys.items()}


def recommended_rule(
    parser: argparse.ArgumentParser, rater: str, execution: Execution
) -> KeepFraction:
    """Returns the rule that the rater recommends, and reports it in one line.

    Raises:
        UsageError: The rater cannot be read.
        SystemExit: It recommends nothing.
    """
    path = usable_path("rater", rater, execution)
    try:
        found = load_recommendation(path)
    except (CheckpointError, OSError) as error:
        raise UsageError(f"--rater: {error}") from error
    if found is None:
        parser.error(
            "one of the arguments --keep_fraction --keep_count --token_budget --threshold "
            f"--accept_batch --sample_tokens --sample_count is required: {rater} recommends no "
            "share, which datarater evaluate --sweep would write into it"
        )
    print_line(
        f"--keep_fraction {found.keep:g}, as {path}/{RECOMMENDATION_FILE} recommends: an "
        f"evaluation on {counted(found.seeds, 'seed')} found it best, difference in loss "
        f"{found.difference:+.4f} "
        f"({found.low:+.4f}, {found.high:+.4f})",
        sys.stderr,
    )
    return KeepFraction(str(found.keep))


def inputs_of(args: argparse.Namespace, execution: Execution) -> Patterns:
    """Returns the paths and globs of `--input` and `--input_list`; see `patterns_of`.

    Raises:
        UnreadableInputError: The list of inputs cannot be read.
    """
    inputs = [*args.input, *(_listed(args.input_list) if args.input_list else ())]
    return patterns_of(inputs, execution, args.text_field, args.tfds_data_dir)


def _listed(path: str) -> Iterator[str]:
    path = usable_path("input_list", path)
    try:
        with open_file(path, in_order_to=WHOLE) as file:
            text = file.read().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"--input_list: {path} does not exist") from error
    except OSError as error:
        raise errors.reading_failed(path, error) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--input_list: {path} is not a UTF-8 text file; give one path or glob per line"
        ) from error

    lines = [line.strip() for line in text.splitlines()]
    paths = [line for line in lines if line and not line.startswith("#")]
    if not paths:
        raise UsageError(f"--input_list: {path} lists no input; give one path or glob per line")
    yield from paths
