"""The flags that the commands share, by group; every one has its default and an example where one helps."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from fractions import Fraction

from datarater.pipelines import errors
from datarater.pipelines.errors import UsageError
from datarater.pipelines.graph.record_writers import OUTPUT_FORMATS
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.plan import INPUT_LIST
from datarater.pipelines.runners import choice
from datarater.pipelines.runners.execution import Execution
from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.ranking import SelectionError
from datarater.pipelines.selection.rules import (
    BatchTopK,
    KeepCount,
    KeepFraction,
    Rule,
    Threshold,
    TokenBudget,
)
from datarater.rater_model import exit_codes
from datarater.rater_model.documents.files import local_path
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.documents.tfds import (
    TFDS_PREFIX,
    DatasetError,
    default_folder,
    split_patterns,
)

DEFAULT_SPLIT_BYTES = 16 * 2**20
DEFAULT_SHARD_BYTES = 128 * 2**20
_NEAR = 0.8  # of difflib: a letter or two amiss, or a shortened word
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,99}")


def byte_count(text: str) -> int:
    """A number of bytes: `1000`, `64MB`, `16MiB`.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    match = re.fullmatch(r"(\d+)\s*([kmg]i?)?b?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of bytes such as 1000000, 64MB or 16MiB"
        )
    return int(match[1]) * _UNITS[(match[2] or "").lower()]


def whole_number(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def amplification(text: str) -> float:
    """A number of times, 1 or more.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return value


def fraction(text: str) -> float:
    """A share between 0 and 1.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def selection_name(text: str) -> str:
    """A name for a selection, fit for a folder.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if _NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a name has letters, digits and ._=- only, 100 at most"
        )
    return text


def source_weight(text: str) -> tuple[str, Fraction]:
    """A source and its weight: `wiki=2.0`.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    name, _, number = text.rpartition("=")
    try:
        weight = Fraction(number)
    except (ValueError, ZeroDivisionError):
        weight = Fraction(-1)
    if "=" not in text or weight < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a source and its weight such as wiki=2.0"
        )
    return name, weight


def _rule(kind: type) -> "argparse._ActionType":
    def parse(text: str) -> Rule:
        try:
            if kind in (KeepCount, TokenBudget):
                if not text.isascii() or not text.isdigit():
                    raise SelectionError(f"{text!r} is not a whole number")
                return kind(int(text))
            return kind(text)
        except SelectionError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser that ends its help with an example and the exit codes.

    Args:
        command: its name.
        description: what it does.
        example: a command line.
    """
    meanings = "\n".join(
        f"  {code:>2}  {meaning}" for code, meaning in exit_codes.EXIT_CODES.items()
    )
    return argparse.ArgumentParser(
        prog=command,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  {example}\n\n"
        "All other flags go to Beam: --runner=FlinkRunner, --runner=DataflowRunner --project=...\n\n"
        f"exit codes:\n{meanings}",
        # A shortened flag of ours could be one of Beam's.
        allow_abbrev=False,
    )


def add_output_flag(parser: argparse.ArgumentParser) -> None:
    """`--output`."""
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="the run folder, local, gs:// or s3://; run the same command again to go on where it stopped",
    )


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """What is read, and how."""
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input",
        required=True,
        action="append",
        metavar="GLOB[,GLOB...]",
        help="files to read: JSONL, WARC or WET, TFRecord, plain text (each plain or in gzip, zstd, bzip2), Parquet "
        "and ArrayRecord, told apart by content; or a prepared TensorFlow dataset as tfds:NAME[:VERSION][:SPLIT]; may "
        "be given several times",
    )
    group.add_argument(
        "--tfds_data_dir",
        default="",
        metavar="DIR",
        help="the folder of prepared TensorFlow datasets, local or on any file system; default: $TFDS_DATA_DIR, else "
        "~/tensorflow_datasets",
    )
    defaults = ReadOptions()
    group.add_argument(
        "--text_field",
        default=defaults.text_field,
        metavar="NAME",
        help="default: %(default)s; metadata.text for a nested one",
    )
    group.add_argument(
        "--id_field", default=defaults.id_field, metavar="NAME", help="default: %(default)s"
    )
    group.add_argument(
        "--source_field", default=defaults.source_field, metavar="NAME", help="default: %(default)s"
    )
    group.add_argument(
        "--max_record_bytes",
        type=byte_count,
        default=defaults.max_record_bytes,
        metavar="BYTES",
        help="longer records are rejected; default: 64MiB",
    )
    group.add_argument(
        "--split_bytes",
        type=byte_count,
        default=DEFAULT_SPLIT_BYTES,
        metavar="BYTES",
        help="stored bytes in a split, the unit of work and of resuming; default: 16MiB",
    )
    group.add_argument(
        "--max_read_amplification",
        type=amplification,
        default=4.0,
        metavar="TIMES",
        help="how many times the bytes of one big compressed stream may be unpacked, so that several workers can "
        "share it; 1 leaves every stream to one worker; default: %(default)g",
    )
    group.add_argument(
        "--workers_to_fill",
        type=whole_number,
        metavar="N",
        help="big streams are cut up where whole files cannot keep so many workers busy; default: --local_workers on "
        "this machine, the slots of a Flink cluster, 64 elsewhere",
    )


def input_patterns(args: argparse.Namespace) -> tuple[str, ...]:
    """The paths and globs of `--input`, those of a TensorFlow dataset's shards in the place of its name.

    Raises:
        UsageError: no such dataset, version, split or text feature; the message names those that
            there are.
    """
    found: list[str] = []
    for given in args.input:
        if TFDS_PREFIX not in given:
            found.append(given)
            continue
        for part in given.split(","):
            try:
                is_dataset = part.strip().startswith(TFDS_PREFIX)
                found += (
                    split_patterns(part.strip(), args.text_field, args.tfds_data_dir)
                    if is_dataset
                    else [part]
                )
            except DatasetError as error:
                raise UsageError(f"--input: {error}") from error
            except OSError as error:
                raise errors.reading_failed(args.tfds_data_dir or part, error) from error
    return tuple(found)


def read_options(args: argparse.Namespace) -> ReadOptions:
    """The read options from the flags of `add_input_flags`."""
    return ReadOptions(
        text_field=args.text_field,
        id_field=args.id_field,
        source_field=args.source_field,
        max_record_bytes=args.max_record_bytes,
    )


def add_local_flags(parser: argparse.ArgumentParser) -> None:
    """How many processes a run on this machine has."""
    group = parser.add_argument_group("on this machine (unless --runner says otherwise)")
    group.add_argument(
        "--local_workers",
        type=whole_number,
        default=1,
        metavar="N",
        help="worker processes, one a core at most; what is kept does not depend on it; default: 1, in this process",
    )


def add_selection_flags(parser: argparse.ArgumentParser) -> None:
    """What is kept, and how it is written."""
    group = parser.add_argument_group("selection (exactly one rule)")
    rules = group.add_mutually_exclusive_group(required=True)
    rules.add_argument(
        "--keep_fraction",
        dest="rule",
        type=_rule(KeepFraction),
        metavar="F",
        help="keep this share of the scored documents, exactly: round(F * N), half to even; 0.5, 1/3",
    )
    rules.add_argument(
        "--keep_count",
        dest="rule",
        type=_rule(KeepCount),
        metavar="K",
        help="keep the best K documents",
    )
    rules.add_argument(
        "--token_budget",
        dest="rule",
        type=_rule(TokenBudget),
        metavar="T",
        help="keep the best documents that fit T tokens (the rater's)",
    )
    rules.add_argument(
        "--threshold",
        dest="rule",
        type=_rule(Threshold),
        metavar="S",
        help="keep documents that score at least S (write --threshold=-0.5 for a negative one)",
    )
    rules.add_argument(
        "--accept_batch",
        type=whole_number,
        metavar="B",
        help="the paper's batch top-K, with --discard_fraction: keep a document with its chance of being among the "
        "best of a random batch of B; drawn by its key",
    )
    group.add_argument(
        "--discard_fraction",
        metavar="RHO",
        help="of --accept_batch: this share of every batch is dropped; RHO * B must be a whole number",
    )
    group.add_argument(
        "--per",
        type=Scope,
        choices=tuple(Scope),
        default=Scope.CORPUS,
        metavar="{corpus,source}",
        help="apply the rule to the whole corpus, or to each source by itself; default: corpus",
    )
    group.add_argument(
        "--source_weight",
        action="append",
        type=source_weight,
        default=[],
        metavar="NAME=W",
        help="with --per source: W times the share, count or tokens of this source, at most all it has; wiki=2.0; may "
        "be given several times",
    )
    group.add_argument(
        "--min_per_source",
        type=whole_number,
        default=0,
        metavar="M",
        help="keep the best M documents of every source at least; over the corpus the rule's target counts them",
    )
    group.add_argument(
        "--reference",
        metavar="DIR",
        help="with --keep_fraction or --accept_batch: take the distribution of scores from this scored run folder, or "
        "from the quantiles in this rater checkpoint; of the same rater",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the hash that breaks ties between equal scores, and of the draw of --accept_batch; default: 0",
    )
    group.add_argument(
        "--name",
        type=selection_name,
        metavar="NAME",
        help="of the selection; default: from the rule, as in keep-0.5",
    )
    output = parser.add_argument_group("output files")
    output.add_argument(
        "--output_format",
        choices=OUTPUT_FORMATS,
        default="same",
        help="of the kept documents; default: the input's (same); attributes: Dolma's, scores: Parquet without texts",
    )
    output.add_argument(
        "--output_shard_bytes",
        type=byte_count,
        default=DEFAULT_SHARD_BYTES,
        metavar="BYTES",
        help="kept text in an output file, before compression; default: 128MiB",
    )


def selection_request(args: argparse.Namespace) -> SelectionRequest:
    """The selection from the flags of `add_selection_flags`."""
    return SelectionRequest.of(
        _policy(args),
        output=args.output,
        name=args.name,
        seed=args.seed,
        output_format=args.output_format,
        output_shard_bytes=args.output_shard_bytes,
        reference=args.reference,
    )


def _policy(args: argparse.Namespace) -> Policy:
    """The rule and what it applies to.

    Raises:
        SelectionError: flags that do not go together.
    """
    rule = args.rule
    if args.accept_batch is not None:
        if args.discard_fraction is None:
            raise SelectionError(
                "--accept_batch needs --discard_fraction: 0.75 drops three quarters of every batch"
            )
        rule = BatchTopK.discarding(args.accept_batch, args.discard_fraction)
    elif args.discard_fraction is not None:
        raise SelectionError(
            "--discard_fraction belongs to --accept_batch; to keep a share use --keep_fraction"
        )
    weights = dict(args.source_weight)
    if len(weights) < len(args.source_weight):
        raise SelectionError("--source_weight gives one source two weights")
    if args.reference is not None:
        if not isinstance(rule, KeepFraction | BatchTopK):
            raise SelectionError("--reference goes with --keep_fraction or --accept_batch")
        if args.per is not Scope.CORPUS or args.min_per_source:
            raise SelectionError(
                "--reference speaks of a whole corpus: it goes neither with --per source nor with --min_per_source"
            )
    return Policy(rule, args.per, weights, args.min_per_source)


def _refuse_misspelt(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Ends with wrong usage for a flag that is nearly ours and not Beam's: any runner would be silent about it."""
    ours = sorted(parser._option_string_actions)
    strange = {word.split("=")[0] for word in argv if re.match("--[A-Za-z]", word)} - set(ours)
    strange -= choice.beam_flags() if strange else set()
    for flag in sorted(strange):
        near = difflib.get_close_matches(
            flag.replace("-", "_"), [name.replace("-", "_") for name in ours], 1, _NEAR
        )
        if near:
            parser.error(f"unknown flag {flag}; did you mean --{near[0].lstrip('_')}?")


def _refuse_paths(args: argparse.Namespace) -> None:
    """Refuses what no file system can open, and a run folder that is a file or lies below one.

    Raises:
        UsageError: naming the flag.
    """
    for flag in ("input", "rater", "output", "reference", "tfds_data_dir"):
        given = getattr(args, flag, None) or []
        for path in [given] if isinstance(given, str) else given:
            commits.check_protocols(f"--{flag}", path)
    local = local_path(args.output) if "output" in args else None
    if local is not None:
        place = os.path.abspath(local)
        while not os.path.exists(place) and place != os.path.dirname(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            raise UsageError(f"--output: {place} is a file, give a folder")


def parse_run(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, Execution]:
    """Our flags, and where the run happens, which the rest of the flags says.

    Raises:
        UsageError: a path or a runner that cannot be meant.
        FlinkError: a Flink cluster that does not answer, or has fewer slots than are asked for.
        SystemExit: any other wrong usage.
    """
    args, beam_args = parse(parser, argv)
    try:
        execution = choice.choose(beam_args, args.local_workers)
    except choice.UnknownFlagError as error:
        parser.error(str(error))
    make_absolute(args, execution)
    return args, execution


def make_absolute(args: argparse.Namespace, execution: Execution) -> None:
    """Makes local paths absolute where the workers are other processes, started in folders of their own.

    Args:
        args: the flags, which are changed.
        execution: says where the workers are.

    Raises:
        UsageError: a path is on this machine's disk, and no worker can see that.
    """
    if execution.local:
        return
    if any(
        part.strip().startswith(TFDS_PREFIX)
        for given in getattr(args, "input", ())
        for part in given.split(",")
    ):
        args.tfds_data_dir = os.path.expanduser(args.tfds_data_dir or default_folder())
    for flag in ("rater", "output", "reference", "tfds_data_dir"):
        given = getattr(args, flag, None)
        if given:
            setattr(args, flag, _absolute(flag, given, execution))
    if "input" in args:
        args.input = [
            ",".join(_absolute("input", part.strip(), execution) for part in given.split(","))
            for given in args.input
        ]


def _absolute(flag: str, path: str, execution: Execution) -> str:
    if path.startswith(INPUT_LIST):
        return INPUT_LIST + _absolute(flag, path.removeprefix(INPUT_LIST), execution)
    if not path or path.startswith(TFDS_PREFIX):
        return path
    if execution.needs_shared_storage and local_path(path) is not None:
        raise UsageError(
            f"--{flag}: {path} lies on this machine, where the workers of {execution.runner} cannot see it; give a URL of "
            "a store that they reach, such as gs://"
        )
    return os.path.abspath(path) if local_path(path) == path else path


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and the rest, which is Beam's.

    Raises:
        UsageError: a path that cannot be meant.
        SystemExit: any other wrong usage.
    """
    argv = sys.argv[1:] if argv is None else argv
    _refuse_misspelt(parser, argv)
    args, beam_args = parser.parse_known_args(argv)
    strays = [word for word in beam_args if not word.startswith("-")]
    if strays and not any(word.startswith("--") and "=" not in word for word in beam_args):
        parser.error(
            f"unexpected: {' '.join(strays)}; quote a glob so that the shell leaves it alone"
        )
    if "accept_batch" in args:
        try:
            _policy(args)
        except SelectionError as error:
            parser.error(str(error))
    _refuse_paths(args)
    return args, beam_args
