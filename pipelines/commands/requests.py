"""Turns parsed flags into requests and an execution."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

from datarater.pipelines import errors
from datarater.pipelines.commands import flags
from datarater.pipelines.errors import UsageError
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest, rater_digest
from datarater.pipelines.run_folder.plan import INPUT_LIST
from datarater.pipelines.runners import choice
from datarater.pipelines.runners.execution import Execution
from datarater.rater_model.documents.files import (
    expand_home,
    local_path,
    open_file,
    split_on_commas,
)
from datarater.rater_model.documents.tfds import (
    TFDS_PREFIX,
    DatasetError,
    default_folder,
    split_patterns,
)
from datarater.rater_model.scoring_options import ScoringOptions

REMOTE_WORKERS_TO_FILL = 64
"""Workers that big streams are divided for where nobody knows how many a run will have."""


def parse_run(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, Execution]:
    """Parses a command line whose other flags choose the runner.

    Args:
        parser: The command's parser.
        argv: The command's arguments; those of this process if None.

    Raises:
        UsageError: A path or a runner cannot be used.
        FlinkError: A Flink cluster does not answer, or has fewer slots than requested.
        SystemExit: Any other wrong usage, and `--help`.
    """
    args, beam_args = flags.parse(parser, argv)
    return args, execution_for(parser, args, beam_args)


def execution_for(
    parser: argparse.ArgumentParser, args: argparse.Namespace, beam_args: Sequence[str]
) -> Execution:
    """Returns the execution that the flags choose, and makes local paths absolute for it.

    Raises:
        UsageError: A path or a runner cannot be used.
        FlinkError: A Flink cluster does not answer, or has fewer slots than requested.
        SystemExit: A flag is neither ours nor Beam's.
    """
    try:
        execution = choice.choose(beam_args, args.local_workers)
    except choice.UnknownFlagError as error:
        parser.error(str(error))
    make_absolute(args, execution)
    return execution


def scoring_request(args: argparse.Namespace, execution: Execution) -> ScoringRequest:
    """Returns the scoring that the flags describe; loads the rater to read its digest.

    Args:
        args: The flags.
        execution: The execution, which may know its number of workers.

    Raises:
        UsageError: There is no such rater or dataset.
        CurationError: The rater cannot be loaded.
    """
    return ScoringRequest(
        inputs=input_patterns(args),
        rater=args.rater,
        rater_digest=rater_digest(args.rater),
        output=args.output,
        read=flags.read_options(args),
        scoring=ScoringOptions(
            max_windows=args.max_windows,
            tokens_per_batch=args.tokens_per_batch,
            dtype=args.dtype,
        ),
        split_bytes=args.split_bytes,
        max_rejected_fraction=args.max_rejected_fraction,
        max_read_amplification=args.max_read_amplification,
        workers_to_fill=args.workers_to_fill or execution.workers or REMOTE_WORKERS_TO_FILL,
    )


def selection_request(args: argparse.Namespace) -> SelectionRequest:
    """Returns the selection that the flags of `add_selection_flags` describe."""
    return SelectionRequest(
        args.output,
        flags.policy(args),
        seed=args.seed,
        output_format=args.output_format,
        output_shard_bytes=args.output_shard_bytes,
        reference=args.reference,
        name=args.name or "",
    )


def input_patterns(args: argparse.Namespace) -> tuple[str, ...]:
    """Returns the paths and globs of `--input` and `--input_list`; see `resolve_inputs`.

    Raises:
        UnreadableInputError: The list of inputs cannot be read.
    """
    inputs = [*args.input, *_listed_inputs(args.input_list)]
    return resolve_inputs(inputs, args.text_field, args.tfds_data_dir)


def resolve_inputs(
    inputs: Sequence[str], text_field: str, tfds_data_dir: str = ""
) -> tuple[str, ...]:
    """Returns paths and globs, with the paths of its shards in place of a TensorFlow dataset.

    Args:
        inputs: Paths, folders, globs and names of datasets, each as `--input` takes it.
        text_field: Feature of a dataset that contains the text.
        tfds_data_dir: Folder of prepared datasets; "" for the default one.

    Raises:
        UsageError: There is no such dataset, version, split or text feature; the message names
            what there is.
        UnreadableInputError: The folder of datasets cannot be read.
    """
    patterns: list[str] = []
    for value in inputs:
        if TFDS_PREFIX not in value:
            patterns.append(value)
            continue
        for part in split_on_commas(value):
            try:
                if part.startswith(TFDS_PREFIX):
                    patterns += split_patterns(part, text_field, tfds_data_dir)
                else:
                    patterns.append(part)
            except DatasetError as error:
                raise UsageError(f"--input: {error}") from error
            except OSError as error:
                raise errors.reading_failed(tfds_data_dir or part, error) from error
    return tuple(patterns)


def _listed_inputs(path: str | None) -> Iterator[str]:
    if path is None:
        return
    try:
        with open_file(path) as file:
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
    yield from (expand_home(line) for line in paths)


def make_absolute(args: argparse.Namespace, execution: Execution) -> None:
    """Makes local paths absolute where workers are processes with working folders of their own.

    Args:
        args: The flags, which are changed.
        execution: The execution, which says where workers are.

    Raises:
        UsageError: A path is on this machine, where no worker of the execution can see it.
    """
    if execution.local:
        return
    inputs = [*getattr(args, "input", ()), *_listed_inputs(getattr(args, "input_list", None))]
    names_dataset = any(
        part.startswith(TFDS_PREFIX) for value in inputs for part in split_on_commas(value)
    )
    if names_dataset:
        args.tfds_data_dir = expand_home(args.tfds_data_dir or default_folder())
    for flag in ("rater", "output", "reference", "tfds_data_dir"):
        path = getattr(args, flag, None)
        if path:
            setattr(args, flag, absolute_path(flag, path, execution))
    if "input" in args:
        args.input = [absolute_input(value, execution) for value in inputs]
        args.input_list = None


def absolute_input(value: str, execution: Execution) -> str:
    """Returns an input with its local paths made absolute for an execution; see `absolute_path`."""
    return ",".join(absolute_path("input", part, execution) for part in split_on_commas(value))


def absolute_path(flag: str, path: str, execution: Execution) -> str:
    """Returns a path that means the same for every worker of an execution.

    Args:
        flag: Name of the flag, for the message.
        path: Path or URL, or the name of a dataset.
        execution: The execution, which says where workers are.

    Raises:
        UsageError: The path is on this machine, where no worker of the execution can see it.
    """
    if execution.local:
        return path
    if path.startswith(INPUT_LIST):
        return INPUT_LIST + absolute_path(flag, path.removeprefix(INPUT_LIST), execution)
    if not path or path.startswith(TFDS_PREFIX):
        return path
    if execution.needs_shared_storage and local_path(path) is not None:
        raise UsageError(
            f"--{flag}: {path} is on this machine, where the workers of {execution.runner} cannot "
            "see it; give a URL of a store that they reach, such as gs://"
        )
    return os.path.abspath(expand_home(path)) if local_path(path) == path else path
