"""Flags that the commands share, by group.

This module is light: it loads neither Beam nor JAX nor NumPy, so `--help` answers at once. What
turns flags into work is in `datarater.pipelines.commands.requests`.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from datarater.pipelines.bad_splits import FAIL, ON_BAD_SPLIT
from datarater.pipelines.run_folder.many_sources import MAX_SOURCES
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import near_miss
from datarater.rater_model.documents.records import (
    DEFAULT_ZSTD_WINDOW_BYTES,
    ReadOptions,
)
from datarater.rater_model.scoring_options import ScoringOptions

if TYPE_CHECKING:
    from datarater.pipelines.selection.policy import Policy, Scope
    from datarater.pipelines.selection.rules import Rule

DEFAULT_SPLIT_BYTES = 16 * 2**20
DEFAULT_SHARD_BYTES = 128 * 2**20
DEFAULT_READ_AMPLIFICATION = 4.0
DEFAULT_REPORT_TEXTS = 10
DEFAULT_AGREEMENT = 0.98
DEFAULT_SIMILARITY = 0.8
MAX_REPORT_TEXTS = 100
MIN_SIMILARITY = 0.3
"""Below it, too many pairs of unrelated documents would be compared."""
OUTPUT_FORMATS = (
    "same",
    "jsonl",
    "jsonl.gz",
    "jsonl.zst",
    "jsonl.bz2",
    "parquet",
    "attributes",
    "scores",
    "array_record",
    "huggingface",
    "mds",
    "megatron",
)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SELECTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,99}")
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


# Types of values. argparse prints the message of an ArgumentTypeError after the flag's name.


def byte_count(text: str) -> int:
    """Parses a number of bytes: `1000`, `64MB`, `16MiB`.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid number.
    """
    match = re.fullmatch(r"(\d+)\s*([kmg]i?)?b?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of bytes such as 1000000, 64MB or 16MiB"
        )
    return int(match[1]) * _UNITS[(match[2] or "").lower()]


def whole_number(text: str) -> int:
    """Parses a whole number above 0.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid number.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def integer(text: str) -> int:
    """Parses an integer.

    Raises:
        argparse.ArgumentTypeError: The text is not an integer.
    """
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None


def amplification(text: str) -> float:
    """Parses a factor of at least 1 and below 1000.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid number.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return value


def yes_or_no(text: str) -> bool:
    """Parses `true` or `false`.

    Raises:
        argparse.ArgumentTypeError: The text is neither.
    """
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def fraction(text: str) -> float:
    """Parses a fraction from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid number.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def similarity(text: str) -> float:
    """Parses a similarity above 0 and up to 1.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid number.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not MIN_SIMILARITY <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {MIN_SIMILARITY} to 1")
    return value


def deduplication(text: str) -> float | str:
    """Parses a similarity, or the name of a deduplication.

    Raises:
        argparse.ArgumentTypeError: The text is neither.
    """
    return similarity(text) if _is_number(text) else selection_name(text)


def deduplication_name(text: str) -> str:
    """Parses a name for a deduplication: one that `--dedup` cannot take for a similarity.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid name.
    """
    if _is_number(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is a number, which --dedup would take for a similarity; give a name such as "
            f"{'pages-' + text!r}"
        )
    return selection_name(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def positive_number(text: str) -> float:
    """Parses a number above 0.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid number.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def report_texts(text: str) -> int:
    """Parses a number of documents for a report.

    Raises:
        argparse.ArgumentTypeError: The text is not a number from 0 to the maximum.
    """
    if not text.isascii() or not text.isdigit() or int(text) > MAX_REPORT_TEXTS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from 0 to {MAX_REPORT_TEXTS}"
        )
    return int(text)


def scope(text: str) -> Scope:
    """Parses what a rule applies to: `corpus` or `source`.

    Raises:
        argparse.ArgumentTypeError: The text is neither.
    """
    from datarater.pipelines.selection.policy import Scope

    try:
        return Scope(text)
    except ValueError:
        choices = " or ".join(Scope)
        raise argparse.ArgumentTypeError(f"{text!r} is not {choices}") from None


def selection_name(text: str) -> str:
    """Parses a name for a selection, which becomes a folder's name.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid name.
    """
    if not is_selection_name(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name of letters, digits and ._=- (at most 100)"
        )
    return text


def is_selection_name(text: str) -> bool:
    """Returns whether a text can name a selection and its folder."""
    return _SELECTION_NAME.fullmatch(text) is not None


def source_weight(text: str) -> tuple[str, Fraction]:
    """Parses a source and its weight: `wiki=2.0`.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid pair.
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


COLUMN_NAME = "name of letters, digits and _ that is no word of rules, such as `in` or `true`"


def is_column_name(text: str) -> bool:
    """Returns whether a text can name a joined table or a rater in the expressions of rules."""
    is_word = keyword.iskeyword(text) or text in ("true", "false")
    return _COLUMN_NAME.fullmatch(text) is not None and not is_word


def raters(values: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Returns the values of `--rater`: the rater without a name, and the others by name.

    Raises:
        ValueError: Not exactly one has no name, or two have the same; the message says so.
    """
    unnamed, named = [], dict[str, str]()
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not _COLUMN_NAME.fullmatch(name):
            unnamed.append(value)
        elif name in named:
            raise ValueError(f"--rater {name}: two raters have this name")
        elif not path:
            raise ValueError(f"--rater {name}: write {name}=DIR")
        else:
            named[name] = path
    if len(unnamed) != 1:
        raise ValueError(
            f"--rater: give one rater without a name, whose score is `rater` in rules, not "
            f"{len(unnamed)}; give others as NAME=DIR"
        )
    return unnamed[0], named


def named_value(text: str) -> tuple[str, str]:
    """Parses a name and a value: `lang=labels/*.parquet`.

    Raises:
        argparse.ArgumentTypeError: The text is not a valid pair.
    """
    name, equals, value = text.partition("=")
    if not equals or not value or not is_column_name(name):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a {COLUMN_NAME}, and a value; write lang=labels/*.parquet, for "
            "example"
        )
    return name, value


def _rule(name: str) -> argparse._ActionType:
    """Returns the parser of a rule, given by the name of its class."""

    def parse_rule(text: str) -> Rule:
        from datarater.pipelines.selection import rules
        from datarater.pipelines.selection.ranking import SelectionError

        kind = getattr(rules, name)
        is_number = kind in (rules.KeepCount, rules.TokenBudget)
        try:
            if is_number and not (text.isascii() and text.isdigit()):
                raise SelectionError(f"{text!r} is not a whole number")
            rule: Rule = kind(int(text) if is_number else text)
            return rule
        except SelectionError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_rule


# Groups of flags.


def add_output_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--output`."""
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="Run folder: a local path, gs:// or s3://. The same command resumes an unfinished "
        "run there.",
    )


def add_append_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--append`."""
    parser.add_argument(
        "--append",
        type=yes_or_no,
        nargs="?",
        const=True,
        default=False,
        metavar="true",
        help="Score input files that are new to the run folder into it. Selections then cover the "
        "documents of all its files, those included that --input no longer names.",
    )


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for what is read, and how."""
    group = parser.add_argument_group("input")

    group.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="PATH[,PATH...]",
        help="Files to read: a file, a folder, a glob ('crawl/**/*.jsonl.gz', 'part-{0,1}*'), or a "
        "prepared TensorFlow dataset as tfds:NAME[:VERSION][:SPLIT]. Formats are recognized by "
        "content: JSONL, plain text, WARC, WET and TFRecord (each plain or in gzip, zstd, bzip2), "
        "Parquet, ArrayRecord. Can be repeated.",
    )

    group.add_argument(
        "--input_list",
        metavar="FILE",
        help="Text file that lists inputs, one path or glob per line; lines that begin with # are "
        "comments. Can be combined with --input.",
    )

    group.add_argument(
        "--tfds_data_dir",
        default="",
        metavar="DIR",
        help="Folder of prepared TensorFlow datasets. Default: $TFDS_DATA_DIR, else "
        "~/tensorflow_datasets.",
    )

    defaults = ReadOptions()

    group.add_argument(
        "--text_field",
        default=defaults.text_field,
        metavar="NAME",
        help="Field or column with the text; metadata.text for a nested one. Default: %(default)s.",
    )

    group.add_argument(
        "--id_field",
        default=defaults.id_field,
        metavar="NAME",
        help="Field or column with the document's id. Default: %(default)s.",
    )

    group.add_argument(
        "--source_field",
        default=defaults.source_field,
        metavar="NAME",
        help="Field or column with the name of the document's source. Default: %(default)s.",
    )

    group.add_argument(
        "--max_record_bytes",
        type=byte_count,
        default=defaults.max_record_bytes,
        metavar="BYTES",
        help="Maximum size of a record; larger ones are rejected. Default: 64MiB.",
    )

    group.add_argument(
        "--max_zstd_window_bytes",
        type=byte_count,
        default=DEFAULT_ZSTD_WINDOW_BYTES,
        metavar="BYTES",
        help="Maximum window of a zstd stream, which each worker holds in memory; a stream with a "
        "larger one is rejected. 2GiB reads what zstd --long=31 wrote. Default: 128MiB.",
    )

    group.add_argument(
        "--split_bytes",
        type=byte_count,
        default=DEFAULT_SPLIT_BYTES,
        metavar="BYTES",
        help="Stored bytes per split, the unit of work and of resuming. Default: 16MiB.",
    )

    group.add_argument(
        "--max_read_amplification",
        type=amplification,
        default=DEFAULT_READ_AMPLIFICATION,
        metavar="FACTOR",
        help="Maximum number of times that one big compressed stream is decompressed in all, so "
        "that several workers can share it; 1 leaves each stream to one worker. "
        "Default: %(default)g.",
    )

    group.add_argument(
        "--workers_to_fill",
        type=whole_number,
        metavar="N",
        help="Number of workers to divide big streams for, where whole files cannot keep that "
        "many busy. Default: --local_workers on this machine, the slots of a Flink cluster, "
        "64 elsewhere.",
    )


def add_scoring_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the rater and the flags that change a score."""
    group = parser.add_argument_group("scoring")

    group.add_argument(
        "--rater",
        action="append",
        required=True,
        metavar="DIR",
        help="Rater checkpoint, such as WORKDIR/rater: a local path or any fsspec URL. NAME=DIR is "
        "another rater that scores the same texts into a column score_NAME, which --where and "
        "--rank_by call NAME. Can be repeated.",
    )

    defaults = ScoringOptions()

    group.add_argument(
        "--max_windows",
        type=whole_number,
        default=defaults.max_windows,
        metavar="N",
        help="Maximum number of windows scored per document, spread evenly over it. "
        "Default: %(default)s.",
    )

    group.add_argument(
        "--tokens_per_batch",
        type=whole_number,
        default=defaults.tokens_per_batch,
        metavar="N",
        help="Tokens per model call. Default: %(default)s, good on a CPU; try 65536 on a GPU.",
    )

    group.add_argument(
        "--max_rejected_fraction",
        type=fraction,
        default=1.0,
        metavar="F",
        help="Stop with exit code 4 if more than this share of the records is rejected, as soon as "
        "that is certain, which may be at the end. Default: 1, never.",
    )

    group.add_argument(
        "--max_sources",
        type=whole_number,
        default=MAX_SOURCES,
        metavar="N",
        help="Maximum number of sources that are counted apart; all others are counted as one. A "
        "selection per source needs all of them apart. Default: %(default)s.",
    )

    group.add_argument(
        "--on_bad_split",
        choices=ON_BAD_SPLIT,
        default=FAIL,
        help="What to do with a file that cannot be read, and with a split that repeatedly ends "
        "its worker: end the run, or reject it whole with its reason, continue, and end with exit "
        f"code {exit_codes.BAD_SPLITS}. Workers are watched where --local_workers is 2 or more; "
        "elsewhere the runner's retries decide about a worker that ends. Default: %(default)s.",
    )

    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default=defaults.dtype,
        help="Floating-point type of the rater's arithmetic. Default: %(default)s.",
    )


def add_student_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a cascade."""
    group = parser.add_argument_group("first pass by a student")

    group.add_argument(
        "--student",
        metavar="DIR",
        help="Student of the rater, which datarater distil made: it scores every document first, "
        "and the rater only those whose rank the student leaves in doubt. With --keep_fraction of "
        "the whole corpus.",
    )

    group.add_argument(
        "--agreement",
        type=fraction,
        default=DEFAULT_AGREEMENT,
        metavar="A",
        help="With --student: average share of the documents that the rater alone would keep that "
        "should be kept. A higher one leaves more to the rater. Default: %(default)s.",
    )


def add_selection_flags(parser: argparse.ArgumentParser, *, rater_may_rule: bool = False) -> None:
    """Adds the flags for what is kept, and how it is written.

    Args:
        parser: The command's parser.
        rater_may_rule: Whether the rater's recommendation serves where no rule is given.
    """
    count = (
        "one rule; default: the share that the rater recommends"
        if rater_may_rule
        else ("exactly one rule")
    )
    group = parser.add_argument_group(f"selection ({count})")
    rules = group.add_mutually_exclusive_group(required=not rater_may_rule)

    rules.add_argument(
        "--keep_fraction",
        dest="rule",
        type=_rule("KeepFraction"),
        metavar="F",
        help="Keep this share of the scored documents, exactly: round(F * N), half to even. "
        "Examples: 0.5, 1/3.",
    )

    rules.add_argument(
        "--keep_count",
        dest="rule",
        type=_rule("KeepCount"),
        metavar="K",
        help="Keep the best K documents.",
    )

    rules.add_argument(
        "--token_budget",
        dest="rule",
        type=_rule("TokenBudget"),
        metavar="T",
        help="Keep the best documents that fit in T tokens of the rater's tokenizer, or of "
        "--tokens_from.",
    )

    rules.add_argument(
        "--threshold",
        dest="rule",
        type=_rule("Threshold"),
        metavar="S",
        help="Keep documents that score at least S. Write --threshold=-0.5 for a negative one.",
    )

    rules.add_argument(
        "--accept_batch",
        type=whole_number,
        metavar="B",
        help="Batch top-K of the paper, with --discard_fraction: keep a document with the "
        "probability that it is among the best of a random batch of B.",
    )

    rules.add_argument(
        "--sample_tokens",
        type=whole_number,
        metavar="T",
        help="Temperature sampling, with --temperature: keep documents in as many copies as their "
        "scores deserve, T tokens in all on average. The copies of a document are proportional to "
        "exp(score / temperature), up to --max_copies.",
    )

    rules.add_argument(
        "--sample_count",
        type=whole_number,
        metavar="N",
        help="The same with N copies in all.",
    )

    group.add_argument(
        "--temperature",
        metavar="TAU",
        help="Difference of scores that multiplies the copies of --sample_tokens and "
        "--sample_count by e. A high one samples evenly.",
    )

    group.add_argument(
        "--max_copies",
        type=whole_number,
        metavar="N",
        help="Maximum number of copies of a document of --sample_tokens and --sample_count. "
        "Default: 4.",
    )

    group.add_argument(
        "--discard_fraction",
        metavar="RHO",
        help="Share of each batch that --accept_batch drops; RHO * B must be a whole number.",
    )

    group.add_argument(
        "--per",
        type=scope,
        default="corpus",
        metavar="{corpus,source}",
        help="Apply the rule to the whole corpus, or to each source separately. Default: corpus.",
    )

    group.add_argument(
        "--source_weight",
        action="append",
        type=source_weight,
        default=[],
        metavar="NAME=W",
        help="With --per source: multiply the share, count or tokens of this source by W, up to "
        "all of it. Example: wiki=2.0. Can be repeated.",
    )

    group.add_argument(
        "--min_per_source",
        type=whole_number,
        default=0,
        metavar="M",
        help="Keep at least the best M documents of each source. With --per corpus they count "
        "toward the target of --keep_fraction, --keep_count and --token_budget; --accept_batch, "
        "--sample_tokens and --sample_count draw from all documents and keep them too.",
    )

    group.add_argument(
        "--reference",
        metavar="DIR",
        help="With --keep_fraction or --accept_batch: take the distribution of scores from this "
        "scored run folder, or from the quantiles in this rater checkpoint. The rater must be the "
        "same.",
    )

    group.add_argument(
        "--seed",
        type=integer,
        default=0,
        metavar="N",
        help="Seed for tie-breaking and for the --accept_batch draw. Default: 0.",
    )

    group.add_argument(
        "--name",
        type=selection_name,
        metavar="NAME",
        help="Name of the selection. Default: made from the rule, such as keep-0.5.",
    )

    _add_ranking_flags(parser)
    output = parser.add_argument_group("output files")

    output.add_argument(
        "--output_format",
        choices=OUTPUT_FORMATS,
        default="same",
        help="Format of the kept documents. same: the input's; attributes: Dolma attributes; "
        "scores: Parquet without texts; array_record: tf.train.Example in ArrayRecord; "
        "huggingface: a folder for datasets.load_dataset, with its card; mds: shards and index of "
        "MosaicML Streaming; megatron: .bin and .idx, with --output_tokenizer. "
        "Default: %(default)s.",
    )

    output.add_argument(
        "--output_tokenizer",
        metavar="FILE",
        help="With --output_format megatron: tokenizer.json of a Hugging Face tokenizer, a local "
        "path or any fsspec URL; byte for the bytes of the text. It neither cuts texts nor adds "
        "special tokens. Example: llama/tokenizer.json.",
    )

    output.add_argument(
        "--output_end_token",
        metavar="TOKEN",
        help="With --output_tokenizer: token of its vocabulary that follows each document; "
        "<separator> for byte. Example: '<|endoftext|>'. Default: none.",
    )

    output.add_argument(
        "--output_shard_bytes",
        type=byte_count,
        default=DEFAULT_SHARD_BYTES,
        metavar="BYTES",
        help="Bytes of kept text per output file, before compression. Default: 128MiB.",
    )

    output.add_argument(
        "--second_read_bytes",
        type=byte_count,
        metavar="BYTES",
        help="Stored bytes of input that a worker reads at a time to write kept documents. An "
        "output file that needs more is written in pieces, which are then put together. "
        "Default: 1GiB.",
    )

    add_report_flag(output)


def _add_ranking_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for what a selection ranks by, apart from the score."""
    group = parser.add_argument_group("more signals than the score")

    group.add_argument(
        "--join",
        action="append",
        type=named_value,
        default=[],
        metavar="NAME=PATH",
        help="Join the documents with scores or labels made elsewhere: Parquet files, a folder or "
        "a glob, such as another run's scores/. Its columns are then called NAME.COLUMN in "
        "--where, --rank_by and --tokens_from. A name given again adds files. Can be repeated.",
    )

    group.add_argument(
        "--dedup",
        type=deduplication,
        metavar="J|NAME",
        help="Leave out near-duplicates of better documents, at this similarity such as 0.8, or as "
        "a complete datarater dedup of this name found them. The rule and conditions apply to the "
        "documents that are left. Default: none are left out.",
    )

    group.add_argument(
        "--join_key",
        action="append",
        type=named_value,
        default=[],
        metavar="NAME=COLUMN",
        help="Column of a joined table with the documents' ids. Default: key, with keys as score "
        "files have them, else id. Can be repeated.",
    )

    group.add_argument(
        "--where",
        default="",
        metavar="CONDITION",
        help="Drop documents that do not meet a condition; the rule applies to those left. "
        "Columns are rater (the score), tokens, bytes, source, and those of joined tables. A "
        "comparison with a missing value is not met. For near-duplicates there is --dedup. "
        "Example: \"lang.language == 'en' and quality.score >= 0.3\".",
    )

    group.add_argument(
        "--rank_by",
        default="",
        metavar="NUMBER",
        help="Rank documents by this number in place of the score; documents without it are "
        'dropped. Example: "0.7 * rater + 0.3 * quality.score".',
    )

    group.add_argument(
        "--tokens_from",
        default="",
        metavar="FILE",
        help="Count tokens with this tokenizer.json of the tokenizers library, by a column such as "
        "quality.tokens, or by a field of the records such as record.token_count, for "
        "--token_budget and in all counts of the selection. Default: the rater's tokenizer.",
    )


def add_report_flag(parser: argparse._ActionsContainer, *, as_before: bool = False) -> None:
    """Adds `--report_texts`.

    Args:
        parser: Parser, or group of its flags.
        as_before: Whether the default, None, follows the report that is replaced.
    """
    before = "0 if the replaced report leaves it out, else " if as_before else ""
    parser.add_argument(
        "--report_texts",
        type=report_texts,
        default=None if as_before else DEFAULT_REPORT_TEXTS,
        metavar="N",
        help="Number of the best, borderline and worst documents that report.html shows; 0 leaves "
        f"the text of the corpus out of it. Default: {before}{DEFAULT_REPORT_TEXTS}.",
    )


def add_duplicates_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that decide which documents are near-duplicates."""
    group = parser.add_argument_group("near-duplicates")

    group.add_argument(
        "--similarity",
        type=similarity,
        default=DEFAULT_SIMILARITY,
        metavar="J",
        help="Jaccard similarity of the shingles of two documents, sequences of 5 words, from "
        f"which they are near-duplicates; from {MIN_SIMILARITY} to 1. It is estimated with a "
        "standard error of 0.04. Default: %(default)s.",
    )

    group.add_argument(
        "--seed",
        type=integer,
        default=0,
        metavar="N",
        help="Seed for the order of documents with the same score. Default: 0.",
    )

    group.add_argument(
        "--name",
        type=deduplication_name,
        metavar="NAME",
        help="Name of the deduplication. Default: made from the similarity and the seed, such as "
        "similarity-0.8.",
    )


def add_local_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the number of worker processes of a run on this machine."""
    group = parser.add_argument_group("this machine (unless --runner names another runner)")

    group.add_argument(
        "--local_workers",
        type=whole_number,
        default=1,
        metavar="N",
        help="Number of worker processes; no more than there are cores or splits are started. The "
        "result does not depend on it. Default: 1, this process.",
    )


def add_dry_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--dry_run` and the machine type that its estimate is for."""
    group = parser.add_argument_group("cost")

    group.add_argument(
        "--dry_run",
        action="store_true",
        help="Estimate the number of documents, the hours and the price from a sample of the "
        "input, print them and stop. Nothing is submitted or written.",
    )

    group.add_argument(
        "--worker_type",
        metavar="TYPE",
        help="Machine type for the price that --dry_run prints, such as n2-standard-16. Types "
        "without a known price need --worker_price. Default: Beam's --machine_type, else "
        "n2-standard-8.",
    )

    group.add_argument(
        "--worker_price",
        type=positive_number,
        metavar="USD",
        help="Price of one machine-hour of that type. Default: Compute Engine's list price.",
    )


# From the command line to values.


def policy(args: argparse.Namespace) -> Policy:
    """Returns the rule and what it applies to, from the flags of `add_selection_flags`.

    Raises:
        SelectionError: Two flags cannot be combined; the message names them.
    """
    from datarater.pipelines.selection.policy_options import (
        DEFAULT_MAX_COPIES,
        policy_from_options,
        sample_rule,
    )
    from datarater.pipelines.selection.ranking import SelectionError

    rule, sampled = args.rule, (args.sample_tokens, args.sample_count)
    if sampled != (None, None):
        max_copies = args.max_copies or DEFAULT_MAX_COPIES
        rule = sample_rule(*sampled, args.temperature, max_copies, "--")
    for name in ("temperature", "max_copies"):
        if sampled == (None, None) and getattr(args, name) is not None:
            raise SelectionError(f"--{name} needs --sample_tokens or --sample_count")
    weights = dict(args.source_weight)
    if len(weights) < len(args.source_weight):
        raise SelectionError("--source_weight gives one source two weights")
    return policy_from_options(
        rule,
        accept_batch=args.accept_batch,
        discard_fraction=args.discard_fraction,
        per=args.per,
        source_weights=weights,
        min_per_source=args.min_per_source,
        by_reference=args.reference is not None,
        prefix="--",
    )


def has_rule(args: argparse.Namespace) -> bool:
    """Returns whether the flags of `add_selection_flags` give a rule."""
    rules = (args.rule, args.accept_batch, args.sample_tokens, args.sample_count)
    return any(rule is not None for rule in rules)


def parse(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    given: argparse.Namespace | None = None,
) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line.

    Args:
        parser: The command's parser.
        argv: The command's arguments; those of this process if None.
        given: Values that are known already, which take the place of defaults.

    Returns:
        The command's own flags, and the words that are left for Beam.

    Raises:
        SystemExit: Wrong usage, and `--help`.
    """
    argv = sys.argv[1:] if argv is None else argv
    _refuse_misspelt(parser, argv)
    args, beam_args = parser.parse_known_args(argv, given)

    # A word that is not a flag is usually a glob that the shell expanded. After a flag without `=`
    # it may be that flag's value, which only Beam can tell.
    strays = [word for word in beam_args if not word.startswith("-")]
    if strays and not any(word.startswith("--") and "=" not in word for word in beam_args):
        parser.error(
            f"unexpected arguments: {' '.join(strays)}; quote a glob so that the shell does not "
            "expand it"
        )

    # Flags that go together are checked before any file is opened.
    if isinstance(getattr(args, "rater", None), list):
        try:
            args.rater, args.other_raters = raters(args.rater)
        except ValueError as error:
            parser.error(str(error))
    if "accept_batch" in args:
        from datarater.pipelines.selection.ranking import SelectionError
        from datarater.pipelines.selection.rules import KeepFraction

        checked = args
        if not has_rule(args):
            # What the rater recommends is a share, and is not known yet.
            checked = argparse.Namespace(**{**vars(args), "rule": KeepFraction(1)})
        try:
            policy(checked)
        except SelectionError as error:
            parser.error(str(error))
    if "input" in args and not args.input and not args.input_list:
        parser.error("the following arguments are required: --input or --input_list")
    return args, beam_args


def _refuse_misspelt(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Exits for a flag that is nearly one of ours and not one of Beam's.

    Beam ignores flags that it does not know, so a typing error would go unnoticed.
    """
    own_flags = sorted(parser._option_string_actions)
    unknown = {word.split("=")[0] for word in argv if re.match("--[A-Za-z]", word)} - set(own_flags)
    if unknown:
        from datarater.pipelines.runners import choice  # loads Beam, which --help does without

        unknown -= choice.beam_flags()
    for flag in sorted(unknown):
        near = near_miss(flag.replace("-", "_"), [name.replace("-", "_") for name in own_flags])
        if near:
            parser.error(f"unknown flag {flag}; did you mean --{near.lstrip('_')}?")
