"""`datarater evaluate`: measures what a rater saves, against rivals, on the user's own data.

This module reads the command line. It stays free of JAX, so that `--help` and wrong usage answer at
once; the work is in `datarater.meta_training.evaluate.harness`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datarater.meta_training.evaluate.command_run import (
    fraction,
    natural_number,
    patterns_of,
    positive,
    run_command,
    share_or_all,
    whole_number,
)
from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.protocol import MODELS, QUESTIONS, Protocol
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import CommandParser, near_miss, print_line
from datarater.rater_model.documents.files import expand_home

if TYPE_CHECKING:
    from datarater.meta_training.evaluate.harness import Evaluation

COMMAND = "datarater evaluate"
SWEEP = (0.9, 0.75, 0.5, 0.25, 0.1)
_DEFAULT_KEEP = 0.5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}
_DEFAULTS = Protocol()
# What the [train] extra installs and every evaluation imports.
_MODULES = ("grain", "ml_collections", "optax", "orbax", "sklearn")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `datarater evaluate`.

    Args:
        argv: Arguments after the command's name; those of the process if None.

    Returns:
        The exit code, one of `datarater.rater_model.exit_codes`.

    Raises:
        ModuleNotFoundError: If the extra `datarater[train]` is not installed.
    """
    return run_command(make_parser(), argv, _run, _MODULES)


def _run(args: argparse.Namespace) -> int:
    from datarater.meta_training.evaluate import harness, results

    evaluation, output = evaluation_of(args), Path(expand_home(args.output))
    output.mkdir(parents=True, exist_ok=True)
    report = harness.run_evaluation(evaluation, output, lambda line: print_line(line, sys.stderr))
    results.print_table(report)
    for warning in report["warnings"]:
        print_line(f"warning: {warning}")
    print_line(f"written to {output / harness.REPORT}")
    return exit_codes.DONE


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Measures what a rater is worth. Trains fresh language models on the pool and on what each "
        "arm keeps of it, and compares their losses on the part of the target that no arm has "
        "learned from.",
        f"{COMMAND} --pool 'crawl/*.jsonl.gz' --target 'target/*.jsonl.gz' \\\n"
        "      --rater work/rater --output worth --keep 0.5 --budget 1h",
        takes_beam_flags=False,
    )
    _add_data_flags(parser)
    _add_arm_flags(parser)
    _add_run_flags(parser)
    return parser


def _add_data_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--pool",
        action="append",
        default=[],
        metavar="FILES",
        help="Paths or globs of the pool to filter, separated by commas. Repeatable. Required "
        "without --prepared.",
    )
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="FILES",
        help="Paths or globs of the target. It is cut into three folds: raters and rivals learn "
        "from one (written to OUTPUT/target/0/learning.jsonl.gz), choices use one, and one is the "
        "test. Default: a share of the pool is held out, the paper's setting.",
    )
    parser.add_argument(
        "--validation",
        action="append",
        default=[],
        metavar="FILES",
        help="Paths or globs for choices and the test alone; the whole target is then learned "
        "from.",
    )
    parser.add_argument(
        "--target_share",
        type=fraction,
        default=0.1,
        metavar="SHARE",
        help="Share of the pool that is held out without --target. Default: %(default)s.",
    )

    # Where data comes from and results go.
    parser.add_argument(
        "--prepared",
        default="",
        metavar="DIR",
        help="Data that an earlier evaluation prepared, OUTPUT/data/..., in place of reading "
        "files: to train on another machine than the one with the corpus.",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="Folder for the report, the prepared data and the finished runs. The same command "
        "continues from it.",
    )

    # Fields of a document.
    for field, meaning in (
        ("text", "text"),
        ("id", "id"),
        ("source", "name of the document's source"),
    ):
        parser.add_argument(
            f"--{field}_field",
            default=field,
            metavar="NAME",
            help=f"Field of the {meaning}. Default: %(default)s.",
        )
    parser.add_argument(
        "--work_field",
        default="",
        metavar="NAME",
        help="Field of the work (book, site) of the target's documents. One work is in one fold.",
    )
    parser.add_argument(
        "--label_field",
        default="",
        metavar="NAME",
        help="Numeric field of the pool that the arm label ranks by; higher is better.",
    )


def _add_arm_flags(parser: CommandParser) -> None:
    from datarater.meta_training.evaluate.arm_names import ARMS, BATCH_TOP_K, DOCUMENTS

    parser.add_argument(
        "--rater",
        action="append",
        default=[],
        metavar="DIR",
        help="Rater checkpoint. Repeatable: seed s uses number s, so that the interval covers the "
        "spread between raters.",
    )
    parser.add_argument(
        "--train_raters",
        metavar="CONFIG",
        help="Train a fresh rater for each seed by this config of datarater train, such as "
        "default. The folds of the target then change their roles from seed to seed.",
    )
    parser.add_argument(
        "--rater_config",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="Field of that config to change, such as meta_steps=400. Repeatable.",
    )
    parser.add_argument(
        "--fixed_rater",
        metavar="DIR",
        help="Rater checkpoint for all seeds: the result is about this rater alone.",
    )
    parser.add_argument(
        "--start_raters",
        action="store_true",
        help="Also evaluate each rater as it was before its first meta-step, as the arm start: "
        "raters/step_00000000 of its workdir. The paired difference of the two is what "
        "meta-training adds to its start.",
    )

    # What is compared with it.
    parser.add_argument(
        "--arms",
        metavar="NAMES",
        help="Arms to compare, separated by commas, besides unfiltered, with shares of their own "
        f"if you like (rater:0.75): {', '.join(ARMS)}. "
        "Default: random, random_again, trigram, importance, classifier, and rater, start, label, "
        "--scores, --kept and --combine where given.",
    )
    parser.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="NAME=FILES",
        help="Arm of one's own: Parquet files with the columns score, and key or id, such as "
        "RUN/scores. Repeatable.",
    )
    parser.add_argument(
        "--kept",
        action="append",
        default=[],
        metavar="NAME=FILES",
        help="Arm of the documents in files, at their own share of the pool's bytes, such as "
        "RUN/selections/NAME/kept of a curation. They are found in the pool by key or text. "
        "Repeatable.",
    )

    parser.add_argument(
        "--combine",
        action="append",
        default=[],
        metavar="NAME=ARMS",
        help="Arm that ranks by the mean of the ranks of other arms' scores, such as "
        "both=rater+classifier, or with weights, both=2*rater+classifier. The other arms need not "
        "run themselves. Repeatable.",
    )

    # How much an arm keeps, and in which way.
    parser.add_argument(
        "--keep",
        action="append",
        type=fraction,
        default=[],
        metavar="SHARE",
        help=f"Share of the pool that each arm keeps. Repeatable. Default: {_DEFAULT_KEEP}.",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="Keep each of 90, 75, 50, 25 and 10%% and name the best.",
    )
    parser.add_argument(
        "--selection",
        choices=(DOCUMENTS, BATCH_TOP_K),
        default=DOCUMENTS,
        help="What an arm keeps: the best documents of the pool, as curate does, or the best "
        "windows of each oversampled batch, as the paper does. Default: %(default)s.",
    )
    parser.add_argument(
        "--source_floor",
        type=share_or_all,
        metavar="SHARE",
        help="Run every arm that scores documents also with a floor: each source keeps at least "
        "this share of its own bytes (or tokens), and never more than --keep asks for. 1 keeps the "
        "same share of each source. A table shows what the floor costs.",
    )
    parser.add_argument(
        "--keep_unit",
        choices=("bytes", "tokens"),
        default="bytes",
        help="Unit of kept shares of documents. Default: %(default)s.",
    )


def _add_run_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--seeds",
        type=whole_number,
        metavar="N",
        help="Seeds, each a fresh model and data order for every arm; with --budget, the maximum. "
        "Default: 4, or as many as the budget allows.",
    )
    parser.add_argument(
        "--first_seed",
        type=natural_number,
        default=0,
        metavar="N",
        help="The first seed, to confirm on fresh seeds what others led to. Default: %(default)s.",
    )
    parser.add_argument(
        "--together",
        type=whole_number,
        default=0,
        metavar="N",
        help="Models that an accelerator trains side by side. Default: as many as fit.",
    )

    # How long it may take, and on how many processes.
    parser.add_argument(
        "--budget",
        type=_seconds,
        metavar="TIME",
        help="Wall time for scoring and training, such as 30m or 1h, finished runs included. Half "
        "of it screens arms and shares on two seeds, those of --sweep unless --keep is given; the "
        "rest confirms the rater and the best rivals on fresh seeds.",
    )
    parser.add_argument(
        "--processes",
        type=whole_number,
        default=2,
        metavar="N",
        help="Single-threaded processes at a time. Default: %(default)s.",
    )

    # The language models.
    parser.add_argument(
        "--model",
        choices=tuple(MODELS),
        default="0.14M",
        help="Size of the language models, with a byte vocabulary. Default: %(default)s.",
    )
    parser.add_argument(
        "--tokenizer",
        choices=("byte", "bpe"),
        default="byte",
        help="Tokenizer; bpe is trained on the pool. Default: %(default)s.",
    )
    parser.add_argument(
        "--vocabulary_size",
        type=whole_number,
        default=8192,
        metavar="N",
        help="Number of ids of the BPE. Default: %(default)s.",
    )

    # What they are asked besides.
    parser.add_argument(
        "--tasks",
        action="append",
        default=[],
        metavar="NAME=FILES",
        help="Downstream task: JSONL files of multiple-choice questions in the form of HellaSwag, "
        "PIQA or ARC, or with the fields context, choices and label. Every trained model ranks the "
        "choices by likelihood. Repeatable.",
    )
    parser.add_argument(
        "--task_questions",
        type=whole_number,
        default=QUESTIONS,
        metavar="N",
        help="Maximum number of questions of a task, taken evenly. Default: %(default)s.",
    )

    # How they are trained.
    for name, meaning in (
        ("steps", "Updates of each model"),
        ("batch", "Windows of an update"),
        ("length", "Tokens of a window"),
        ("evaluations", "Evaluations of each model on its way"),
        ("validation_windows", "Maximum number of validation windows"),
    ):
        parser.add_argument(
            f"--{name}",
            type=whole_number,
            default=getattr(_DEFAULTS, name),
            metavar="N",
            help=f"{meaning}. Default: %(default)s.",
        )
    parser.add_argument(
        "--warmup_steps",
        type=whole_number,
        metavar="N",
        help="Updates of linear warm-up. Default: a twentieth of the steps.",
    )
    parser.add_argument(
        "--learning_rate",
        type=positive,
        default=_DEFAULTS.learning_rate,
        metavar="RATE",
        help="Peak learning rate of Adam. Default: %(default)s.",
    )


def evaluation_of(args: argparse.Namespace) -> Evaluation:
    """Returns the evaluation that the flags ask for.

    Raises:
        FlagError: If flags contradict each other or an arm lacks what it needs.
    """
    from datarater.meta_training.evaluate.arm_names import ARMS, DOCUMENTS, UNSCORED, floored
    from datarater.meta_training.evaluate.arms import ArmOptions
    from datarater.meta_training.evaluate.harness import MAX_SEEDS, Evaluation
    from datarater.meta_training.evaluate.pool import DataOptions
    from datarater.meta_training.evaluate.raters import check_start_rater

    given = [args.rater, args.fixed_rater, args.train_raters is not None]
    if sum(map(bool, given)) > 1:
        raise FlagError("give one of --rater, --fixed_rater and --train_raters")
    if not args.pool and not args.prepared:
        raise FlagError("--pool is missing: give the files of the pool to filter")
    if args.prepared and (args.pool or args.target or args.validation):
        raise FlagError("--prepared takes the place of --pool, --target and --validation")
    if args.validation and not args.target:
        raise FlagError("--validation needs --target: the documents to learn from")
    training = _training_flags(args)
    raters = tuple(map(expand_home, [args.fixed_rater] if args.fixed_rater else args.rater))
    scores = _named_files("--scores", args.scores, ARMS)
    kept = _named_files("--kept", args.kept, [*ARMS, *scores])
    combined = _combined(args.combine, scores, kept)
    names, arm_keeps = _arms(args, bool(raters) or training is not None, [*scores, *kept], combined)
    if args.start_raters:
        for rater in raters:
            check_start_rater(rater)
    if args.source_floor is not None:
        if args.selection != DOCUMENTS:
            raise FlagError(f"--source_floor needs --selection {DOCUMENTS}")
        # Each twin follows its arm.
        names = tuple(
            twin
            for name in names
            for twin in ((name,) if name in UNSCORED or name in kept else (name, floored(name)))
        )
        arm_keeps |= {floored(name): keeps for name, keeps in arm_keeps.items()}
    sweep = args.sweep or (args.budget is not None and not args.keep)
    keeps = tuple(dict.fromkeys([*args.keep, *(SWEEP if sweep else ())])) or (_DEFAULT_KEEP,)
    warmup = args.steps // 20 if args.warmup_steps is None else args.warmup_steps
    if warmup >= args.steps:
        raise FlagError(f"--warmup_steps ({warmup}) must be below --steps ({args.steps})")
    if args.length < 2:
        raise FlagError("--length must be at least 2 tokens: one to read and one to predict")
    if args.tokenizer == "bpe" and args.vocabulary_size < 258:
        raise FlagError(f"--vocabulary_size must be at least 258, not {args.vocabulary_size}")

    protocol = Protocol(
        steps=args.steps,
        batch=args.batch,
        length=args.length,
        learning_rate=args.learning_rate,
        warmup_steps=warmup,
        evaluations=args.evaluations,
        validation_windows=args.validation_windows,
    )
    data = DataOptions(
        pool=patterns_of(args.pool),
        target=patterns_of(args.target),
        validation=patterns_of(args.validation),
        target_share=args.target_share,
        text_field=args.text_field,
        id_field=args.id_field,
        source_field=args.source_field,
        work_field=args.work_field,
        label_field=args.label_field,
        tokenizer=args.tokenizer,
        vocabulary_size=args.vocabulary_size if args.tokenizer == "bpe" else 0,
    )
    return Evaluation(
        data=data,
        arms=ArmOptions(
            names=names,
            raters=raters,
            training=training,
            rotate=training is not None,
            scores=scores,
            kept=kept,
            combined=combined,
            fields=data.read_options,
            selection=args.selection,
            source_floor=args.source_floor,
            keep_unit=args.keep_unit,
            protocol=Protocol(
                steps=args.steps,
                batch=args.batch,
                length=args.length,
                learning_rate=args.learning_rate,
                warmup_steps=warmup,
                evaluations=1,
            ),
        ),
        keeps=keeps,
        model=MODELS[args.model],
        protocol=protocol,
        seeds=args.seeds or (MAX_SEEDS if args.budget else 4),
        budget=args.budget,
        processes=args.processes,
        one_rater=bool(args.fixed_rater),
        first_seed=args.first_seed,
        arm_keeps=arm_keeps,
        prepared=expand_home(args.prepared),
        together=args.together,
        tasks=_named_files("--tasks", args.tasks, ()),
        task_questions=args.task_questions,
    )


def _training_flags(args: argparse.Namespace) -> tuple[str, ...] | None:
    """Returns flags of `datarater train`; None where no raters are to be trained."""
    from datarater.meta_training.evaluate.raters import check_flags

    if args.train_raters is None:
        if args.rater_config:
            raise FlagError("--rater_config needs --train_raters, such as --train_raters default")
        return None
    flags = (
        f"--config={args.train_raters}",
        *(f"--config.{assignment}" for assignment in args.rater_config),
    )
    check_flags(flags)
    return flags


def _named_files(
    flag: str, values: Sequence[str], taken: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Returns the files of values NAME=FILES by name."""
    from datarater.meta_training.evaluate.arm_names import without_floor

    files: dict[str, tuple[str, ...]] = {}
    for value in values:
        name, equals, patterns = value.partition("=")
        if not equals or not patterns or not _NAME.fullmatch(name):
            raise FlagError(
                f"argument {flag}: {value!r} is not NAME=FILES, such as mine='run/*.parquet'"
            )
        if name in taken or name in files or name != without_floor(name):
            raise FlagError(f"argument {flag}: the name {name!r} is taken; give another")
        files[name] = patterns_of([patterns])
    return files


def _combined(
    values: Sequence[str], scores: Collection[str], kept: Collection[str]
) -> dict[str, dict[str, float]]:
    """Returns the weights of the parts of each combined arm, by its name."""
    from datarater.meta_training.evaluate.arm_names import ARMS, UNSCORED, without_floor
    from datarater.meta_training.evaluate.combining import parse_combination

    combined: dict[str, dict[str, float]] = {}
    for value in values:
        name, equals, parts = value.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise FlagError(
                f"argument --combine: {value!r} is not NAME=ARMS, such as both=rater+classifier"
            )
        if name in {*ARMS, *scores, *kept, *combined} or name != without_floor(name):
            raise FlagError(f"argument --combine: the name {name!r} is taken; give another")
        combined[name] = parse_combination(parts, [*(ARMS.keys() - UNSCORED), *scores])
    return combined


def _arms(
    args: argparse.Namespace,
    has_rater: bool,
    own: Sequence[str],
    combined: Mapping[str, Collection[str]],
) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Returns the names of the arms, and the shares of those that have their own."""
    from datarater.meta_training.evaluate.arm_names import (
        ARMS,
        DEFAULT,
        LABEL,
        OF_RATER,
        RATER,
        START,
        UNFILTERED,
    )

    own = [*own, *combined]
    given = [
        *([RATER] if has_rater else []),
        *([START] if args.start_raters else []),
        *([LABEL] if args.label_field else []),
        *own,
    ]
    shares: dict[str, tuple[float, ...]] = {}
    if args.arms is None:
        names = [*DEFAULT, *given]
    else:
        known, names = [*ARMS, *own], []
        for word in filter(None, map(str.strip, args.arms.split(","))):
            name, colon, share = word.partition(":")
            names.append(name)
            if colon:
                shares[name] = (*shares.get(name, ()), _share_of(word, share))
            if name not in known:
                near = near_miss(name, known)
                hint = f"did you mean {near}?" if near else f"the arms are {', '.join(known)}"
                raise FlagError(f"argument --arms: unknown arm {name!r}; {hint}")

    # What the arms, and those that they combine, need.
    needed = {part for name in names for part in combined.get(name, (name,))}
    if not has_rater and (args.start_raters or needed & OF_RATER):
        arm = START if args.start_raters or START in needed else RATER
        raise FlagError(f"the arm {arm} needs --rater, --train_raters or --fixed_rater")
    if START in needed and not args.start_raters:
        raise FlagError("the arm start needs --start_raters")
    if LABEL in needed and not args.label_field and not args.prepared:
        raise FlagError("the arm label needs --label_field")
    return tuple(dict.fromkeys([UNFILTERED, *names])), shares


def _share_of(word: str, share: str) -> float:
    try:
        return fraction(share)
    except argparse.ArgumentTypeError as error:
        raise FlagError(f"argument --arms: {word}: {error}") from error


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h)", text.strip())
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m or 1.5h")
    return float(match[1]) * _SECONDS[match[2]]


if __name__ == "__main__":
    sys.exit(main())
