"""`datarater inspect`: shows single documents of a run with their scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datarater.pipelines.commands import flags, outcome
from datarater.pipelines.errors import CurationError, UsageError
from datarater.pipelines.inspection.question import Question, Show
from datarater.rater_model.command_line import CommandParser, print_line

if TYPE_CHECKING:
    from datarater.pipelines.inspection.inspection import Inspection, ShownDocument
    from datarater.pipelines.inspection.judge import Decision
    from datarater.pipelines.run_folder.layout import RunFolder

COMMAND = "datarater inspect"
DEFAULT_CHARACTERS = 600
MAX_LINES = 12
DEFAULT_SCORE_FILES = 256
DEFAULT_UNPACKED_BYTES = 256 * 2**20
_KNOWN = ("score", "tokens", "rater_tokens", "bytes", "source", "scored_by")


def natural_number(text: str) -> int:
    """Parses a whole number from 0 on.

    Raises:
        argparse.ArgumentTypeError: The text is not such a number.
    """
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Shows documents of a run with their scores: the best, the worst, those near a cutoff, by "
        "source, by key, what a selection excludes, or records that were rejected. It reads score "
        "files, and of the input nothing but what it shows. It works while the run is being "
        "scored.",
        f"{COMMAND} gs://bucket/run --show cutoff --selection keep-0.5",
        usage=f"{COMMAND} RUN_DIR [flags]",
        takes_beam_flags=False,
    )
    parser.add_argument(
        "folder", metavar="RUN_DIR", help="Run folder: a local path or any fsspec URL."
    )

    which = parser.add_argument_group("which documents")
    which.add_argument(
        "--show",
        choices=tuple(map(str, Show)),
        help="best or worst by score, or by the number that --selection ranks by; cutoff: nearest "
        "to the cutoff of --selection, on both sides; random; key: those of --key; excluded: what "
        "the conditions of --selection, or its search for near-duplicates, leave out; rejected: "
        "records without a score. Default: best, or what --key or --reason needs.",
    )
    which.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="KEY",
        help="Id of a document, or its key in score files. Can be repeated. Example: doc-17.",
    )
    which.add_argument(
        "--source", metavar="NAME", help="Only documents of this source. Example: wiki."
    )
    which.add_argument(
        "--reason",
        metavar="REASON",
        help="Only records that were rejected, or documents that were excluded, for this reason. "
        "Examples: not_json, near_duplicate.",
    )
    which.add_argument(
        "--selection",
        metavar="NAME",
        help="Show what this selection keeps. Default: the finished selection, if there is one "
        "alone.",
    )
    which.add_argument(
        "--count",
        type=flags.whole_number,
        default=10,
        metavar="N",
        help="Number of documents. Default: %(default)s.",
    )
    which.add_argument(
        "--skip",
        type=natural_number,
        default=0,
        metavar="N",
        help="Number of documents to pass over first, to see the next page; with --show cutoff on "
        "each side. Default: 0.",
    )
    which.add_argument(
        "--seed",
        type=flags.integer,
        default=0,
        metavar="N",
        help="Seed of --show random, and of the draw of score files. Default: 0.",
    )

    how = parser.add_argument_group("how they are shown")
    how.add_argument(
        "--characters",
        type=flags.whole_number,
        default=DEFAULT_CHARACTERS,
        metavar="N",
        help="Number of characters of each text. Default: %(default)s.",
    )
    how.add_argument("--whole", action="store_true", help="Show whole texts.")
    how.add_argument(
        "--json", action="store_true", help="Print a JSON object for each document, for programs."
    )

    cost = parser.add_argument_group("how much is read")
    cost.add_argument(
        "--max_score_files",
        type=natural_number,
        default=DEFAULT_SCORE_FILES,
        metavar="N",
        help="Maximum number of score files, of summaries and of lists of rejected records to "
        "read. Where that is too few, the answer is from a sample and says so. 0: no maximum. "
        "Default: %(default)s.",
    )
    cost.add_argument(
        "--max_unpacked_bytes",
        type=flags.byte_count,
        default=DEFAULT_UNPACKED_BYTES,
        metavar="BYTES",
        help="Maximum number of bytes of a compressed stream to unpack to reach a text. "
        "Default: 256MiB.",
    )
    return parser


def run(argv: Sequence[str] | None = None) -> Inspection:
    """Shows documents of a run.

    Args:
        argv: The command's arguments; those of this process if None.

    Returns:
        What was shown.

    Raises:
        UsageError: There is no such run, or flags cannot be combined; the message names the flag.
        CurationError: The run folder cannot be read.
        SystemExit: Wrong usage, and `--help`.
    """
    args = make_parser().parse_args(argv)
    show = shown_by(args)

    # Imported after parsing, so that --help does not wait for NumPy, pyarrow and fsspec.
    from datarater.pipelines.commands.status import begun_run
    from datarater.pipelines.inspection.inspection import inspect_run
    from datarater.pipelines.run_folder import commits
    from datarater.pipelines.run_folder.layout import RunFolder
    from datarater.rater_model.documents.files import expand_home
    from datarater.rater_model.documents.store_errors import in_time

    path = expand_home(args.folder)
    commits.check_protocols("RUN_DIR", path)
    question = Question(
        show=show,
        count=args.count,
        skip=args.skip,
        source=args.source,
        reason=args.reason,
        keys=tuple(args.key),
        seed=args.seed,
        max_score_files=args.max_score_files,
    )
    try:
        folder: RunFolder = in_time(path, lambda: begun_run(RunFolder(path)))
        inspection = inspect_run(folder, question, args.selection, args.max_unpacked_bytes)
    except OSError as error:
        raise CurationError(f"{path} cannot be read: {error}") from error

    characters = sys.maxsize if args.whole else args.characters
    lines = sys.maxsize if args.whole else MAX_LINES
    if args.json:
        print_json(inspection, characters)
    else:
        print_documents(inspection, characters, lines)
    return inspection


def shown_by(args: argparse.Namespace) -> Show:
    """Returns which documents the flags ask for.

    Raises:
        UsageError: Flags cannot be combined; the message names them.
    """
    # Imported here, so that --help does not wait for pyarrow.
    from datarater.pipelines.run_folder.ranking_options import EXCLUSIONS

    of_reason = Show.EXCLUDED if args.reason in EXCLUSIONS else Show.REJECTED
    by_flag = {"--key": (Show.KEY, bool(args.key)), "--reason": (of_reason, bool(args.reason))}
    given = [(flag, show) for flag, (show, is_given) in by_flag.items() if is_given]
    if len(given) > 1:
        raise UsageError("--key and --reason: give one of them")
    show = Show(args.show) if args.show else (given[0][1] if given else Show.BEST)
    for flag, needs in given:
        if show is not needs:
            raise UsageError(f"{flag} goes with --show {needs}, not with --show {show}")
    if show is Show.KEY and not args.key:
        raise UsageError("--show key: give the ids of documents with --key")
    if show is Show.REJECTED and args.source is not None:
        raise UsageError("--source: records that were rejected have no source; leave it out")
    return show


def print_documents(inspection: Inspection, characters: int, max_lines: int) -> None:
    """Prints documents for people, with every character that a terminal obeys escaped."""
    for line in inspection.notes:
        print_line(line)
    for number, shown in enumerate(inspection.documents, inspection.first_number):
        print_line("")
        for line in _heading(number, shown):
            print_line(line)
        if shown.text is None:
            print_line(f"    [{shown.reason}]")
            continue
        head, left = _cut(shown.text, characters, max_lines)
        for line in head.split("\n"):
            print_line(f"    {line.removesuffix(chr(13))}")
        if left:
            print_line(f"    [{left:,} more characters; --whole shows them]")


def _heading(number: int, shown: ShownDocument) -> Iterator[str]:
    row = shown.row
    facts = [str(number)]
    if shown.is_rejected:
        facts += [f"rejected: {row['reason']}"]
        if row["records"] != 1:
            facts += [f"{row['records']:,} records"]
    else:
        facts += [f"{name} {_number(value)}" for name, value in shown.scores.items()]
        facts += [str(shown.decision)] if shown.decision else []
        facts += [f"{name} {row[name]}" for name in ("source", "scored_by") if row.get(name)]
        facts += [f"tokens {row['tokens']:,}", f"bytes {row['bytes']:,}"]
    yield "  ".join(facts)
    key = f"  key {row['key']}" if row["key"] else ""
    yield f"    {shown.file} at {row['position']}{key}"
    neighbor = None if shown.decision is None else shown.decision.neighbor
    if neighbor is not None:
        how = "same words" if neighbor.is_exact else f"similarity {neighbor.similarity:.2f}"
        yield f"    near-duplicate of {neighbor.key}  {how}"
    if shown.is_rejected and row["detail"]:
        yield f"    {row['detail']}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "missing" if value is None else str(value)


def _cut(text: str, characters: int, max_lines: int) -> tuple[str, int]:
    from datarater.report.visible import cut

    return cut(text, characters, max_lines)


def print_json(inspection: Inspection, characters: int) -> None:
    """Prints a JSON object for each document; what was read goes to standard error."""
    import orjson

    for line in inspection.notes:
        print_line(line, sys.stderr)
    for shown in inspection.documents:
        print_line(orjson.dumps(_fields(shown, characters)).decode())


def _fields(shown: ShownDocument, characters: int) -> Mapping[str, Any]:
    text = shown.text
    fields: dict[str, Any] = {
        "file": shown.file,
        "position": shown.row["position"],
        "key": shown.row["key"],
    }
    if shown.is_rejected:
        fields |= {name: shown.row[name] for name in ("reason", "detail", "records")}
    else:
        fields |= {"scores": shown.scores}
        fields |= {name: shown.row[name] for name in _KNOWN if name in shown.row}
        if shown.decision is not None:
            fields |= _decided(shown.decision)
    cut = 0 if text is None else max(0, len(text) - characters)
    return fields | {
        "text": None if text is None else text[:characters],
        "characters_left": cut,
        "unreadable": shown.reason,
    }


def _decided(decision: Decision) -> dict[str, Any]:
    neighbor = decision.neighbor
    fields = {
        "selection": decision.selection,
        "kept": decision.kept,
        "chance": decision.chance,
        "copies": decision.copies,
        "excluded": decision.excluded or None,
        "duplicate_of": None if neighbor is None else neighbor.key,
        "similarity": None if neighbor is None else neighbor.similarity,
    }
    always = ("selection", "kept", "chance")
    return {name: value for name, value in fields.items() if name in always or value is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return outcome.exit_code_of(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
