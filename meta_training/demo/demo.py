"""`datarater demo`: meta-trains a rater on a built-in corpus and curates the corpus with it.

    datarater demo --output=demo_output

The demo makes the corpus, then runs `datarater evaluate`, `train`, `curate` and `evaluate` again as
a user would and echoes each command. The first evaluation sets apart the part of the target that
the rater may learn from, and shows what a random half of the pool is worth.

It ends with two tables. One tells how well the untrained and the trained rater tell intact prose
from damaged, and how much of each kind was kept. The kinds are used for this table alone; no
command sees a label. The other compares language models trained on the pool, on a random half of it
and on the half that the rater prefers, with intervals over seeds.

The output folder then contains

    corpus/, heldout/   the pool and the held-out target, reused by later runs
    train/              the workdir of meta-training
    rater/              the trained rater checkpoint
    curated/            the run folder of curation
    evaluation/         the parts of the target, and the evaluation of the rater
    demo.json           the first table for programs
"""

from __future__ import annotations

import errno
import importlib.util
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from datarater.meta_training.demo.errors import CommandError, DemoError, NotOurFolderError
from datarater.rater_model import exit_codes
from datarater.rater_model.atomic_files import write_json
from datarater.rater_model.command_line import CommandParser
from datarater.rater_model.counted import counted

if TYPE_CHECKING:  # imported where they are used, so that --help starts at once
    from datarater.meta_training.demo.corpus import DemoCorpus
    from datarater.meta_training.demo.results import KindResult

KEEP_FRACTION = "0.5"
EVALUATION = (
    "--model=0.05M",
    "--steps=150",
    "--evaluations=5",
    "--validation_windows=256",
    "--seeds=4",
)
"""Flags for a small evaluation, about two minutes of processor time."""
DOCUMENTS_PER_KIND = 300
"""Documents of each kind over which the AUCs of both raters are computed."""
PROGRAM = (sys.executable, "-m", "datarater")
"""How `datarater` is started: by the running Python, so that its environment need not be active."""
TRAIN_MODULES = ("grain", "ml_collections", "optax", "orbax")
_MARKER = ".datarater-demo"
_REMADE = ("train", "rater", "curated", "evaluation")


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        "datarater demo",
        "Meta-trains a small rater on a built-in corpus, curates the corpus with it, and shows\n"
        "what the rater keeps and is worth. Takes a few minutes on two CPU cores.",
        "datarater demo --output=demo_output",
        takes_beam_flags=False,
    )

    parser.add_argument(
        "--output",
        default="demo_output",
        metavar="DIR",
        help="Folder for everything the demo makes. Default: %(default)s.",
    )
    parser.add_argument(
        "--documents_per_kind",
        type=int,
        default=DOCUMENTS_PER_KIND,
        metavar="N",
        help="Number of documents of each kind for the AUCs. Default: %(default)s.",
    )
    return parser


def _check_extra(train_modules: Sequence[str]) -> None:
    """Raises ModuleNotFoundError, as importing it does, if what training needs is not installed."""
    for name in train_modules:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _exit_code_of(error: OSError) -> int:
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return exit_codes.NO_PERMISSION
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return exit_codes.DISK_FULL
    return exit_codes.FAILED


def run_demo(output: Path, per_kind: int = DOCUMENTS_PER_KIND) -> dict[str, KindResult]:
    """Runs the whole demo and prints its tables.

    Args:
        output: Folder for everything the demo makes.
        per_kind: Documents of each kind over which AUCs are computed.

    Returns:
        The results by kind; see `datarater.meta_training.demo.results.measure`.

    Raises:
        DemoError: If a step fails; its `exit_code` is the command's.
        OSError: If the output folder cannot be written.
    """
    from datarater.meta_training.demo import results as demo_results
    from datarater.meta_training.demo.corpus import build_demo_corpus

    started = time.monotonic()
    seconds: dict[str, float] = {}
    clear_previous(output)

    corpus = build_demo_corpus(output, say=print)
    seconds["corpus"] = time.monotonic() - started
    print(f"corpus: {_corpus_line(corpus)}", flush=True)

    commands = {
        "evaluate_random": evaluate_command(corpus),
        "train": train_command(corpus),
        "curate": curate_command(corpus),
        "evaluate": evaluate_command(corpus, with_rater=True),
    }
    seconds["evaluate"] = run_command("evaluation", commands["evaluate_random"])
    seconds["train"] = run_command("meta-training", commands["train"])
    take_rater(output)
    seconds["curate"] = run_command("curation", commands["curate"])

    # The untrained rater is the one that training exported before its first meta-step.
    measuring = time.monotonic()
    pool = demo_results.read_pool(output)
    results = demo_results.measure(
        pool,
        untrained=demo_results.score_with(
            output / "train" / "raters" / "step_00000000",
            demo_results.sample_by_kind(pool, per_kind),
        ),
        trained=demo_results.read_scores(output / "curated"),
        kept=demo_results.read_kept(output / "curated"),
    )
    seconds["measure"] = time.monotonic() - measuring
    demo_results.print_table(results)
    seconds["evaluate"] += run_command("evaluation", commands["evaluate"])
    seconds["all"] = time.monotonic() - started

    write_json(
        output / "demo.json",
        {
            "results": {
                kind: {**asdict(result), "kept_share": result.kept_share}
                for kind, result in results.items()
            },
            "auc_documents_per_kind": per_kind,
            "keep_fraction": KEEP_FRACTION,
            "commands": {name: _as_typed(command) for name, command in commands.items()},
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
        },
    )
    print(closing_words(output, per_kind, seconds), flush=True)
    return results


def clear_previous(output: Path) -> None:
    """Removes what an earlier demo made in the output folder, except its corpus.

    The folder is marked as the demo's, so that nothing that the demo did not make is ever removed.

    Args:
        output: Output folder of the demo; created if it does not exist.

    Raises:
        NotOurFolderError: If the folder contains something by these names that no demo made.
            Nothing is removed then.
    """
    present = [
        output / name
        for name in _REMADE
        if (output / name).exists() or (output / name).is_symlink()
    ]
    marker = output / _MARKER
    if present and not marker.is_file():
        raise NotOurFolderError(
            f"{', '.join(map(str, present))}: not made by the demo (there is no {marker}), so "
            "nothing was removed; move it away or give another --output"
        )
    links = [path for path in present if path.is_symlink() or not path.is_dir()]
    if links:
        raise NotOurFolderError(
            f"{links[0]} is not a folder that the demo made; move it away or give another --output"
        )

    output.mkdir(parents=True, exist_ok=True)
    marker.write_text(
        f"The demo makes {', '.join(_REMADE)} in this folder and removes them when it runs again.\n"
    )
    for path in present:
        shutil.rmtree(path)
    (output / "demo.json").unlink(missing_ok=True)


def train_command(corpus: DemoCorpus) -> list[str]:
    """Returns the arguments of the `datarater` command that meta-trains the demo's rater."""
    return [
        "train",
        "--config=demo",
        f"--workdir={corpus.output / 'train'}",
        f"--config.data.inner={corpus.pool_glob}",
        f"--config.data.outer={corpus.output / 'evaluation/target/0/learning.jsonl.gz'}",
    ]


def curate_command(corpus: DemoCorpus) -> list[str]:
    """Returns the arguments of the `datarater` command that curates the pool."""
    return [
        "curate",
        f"--input={corpus.pool_glob}",
        f"--rater={corpus.output / 'rater'}",
        f"--output={corpus.output / 'curated'}",
        f"--keep_fraction={KEEP_FRACTION}",
    ]


def evaluate_command(corpus: DemoCorpus, with_rater: bool = False) -> list[str]:
    """Returns the arguments of the `datarater` command that evaluates a random half of the pool.

    Args:
        corpus: The demo's corpus.
        with_rater: Whether to evaluate the half with the best scores of curation as well.
    """
    scores = corpus.output / "curated" / "scores"
    return [
        "evaluate",
        f"--pool={corpus.pool_glob}",
        f"--target={corpus.held_out_glob}",
        f"--output={corpus.output / 'evaluation'}",
        *EVALUATION,
        f"--keep={KEEP_FRACTION}",
        *(["--arms=random,rated", f"--scores=rated={scores}"] if with_rater else ["--arms=random"]),
    ]


def run_command(step: str, arguments: Sequence[str], program: Sequence[str] = PROGRAM) -> float:
    """Echoes a `datarater` command and runs it; its output goes where ours goes.

    Args:
        step: Name of what the command does, for messages.
        arguments: Arguments of `datarater`.
        program: What starts `datarater`.

    Returns:
        The seconds that it took.

    Raises:
        CommandError: If the command fails. A known exit code is passed on; any other, and death by
            a signal, becomes `exit_codes.FAILED`.
    """
    print(f"\n$ {_as_typed(arguments)}", flush=True)
    started = time.monotonic()
    code = subprocess.run([*program, *arguments], check=False).returncode
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise CommandError(
            f"{step} failed: `{_as_typed(arguments)}` {how}; see its messages above",
            code if code in exit_codes.EXIT_CODES else exit_codes.FAILED,
        )
    return time.monotonic() - started


def take_rater(output: Path) -> None:
    """Copies the trained rater checkpoint from the workdir to `rater/`.

    Args:
        output: Output folder of the demo.

    Raises:
        DemoError: If training left no rater.
    """
    trained = output / "train" / "rater"
    if not (trained / "rater.json").is_file():
        raise DemoError(f"meta-training ended without a rater checkpoint in {trained}")
    temporary = output / "rater.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(trained, temporary)
    temporary.rename(output / "rater")


def closing_words(output: Path, per_kind: int, seconds: Mapping[str, float]) -> str:
    """Returns what follows the tables: how to read it, where the files are and what to do next.

    Args:
        output: Output folder of the demo.
        per_kind: Documents of each kind over which AUCs were computed.
        seconds: Duration of each step, and of "all" of them.
    """
    steps = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if name != "all")
    curated, rater = output / "curated", output / "rater"
    places = {
        output / "corpus": "the pool",
        output / "heldout": "the held-out target",
        output
        / "train": "the workdir: metrics, and in raters/ the raters exported during training",
        rater: "the rater checkpoint",
        curated: "the run folder: scores/, and the kept documents in selections/",
        output / "evaluation": "the parts of the target, and evaluation.json",
        output / "demo.json": "the first table for programs",
    }
    width = max(len(str(place)) for place in places)
    where = "\n".join(f"  {place!s:<{width}}  {content}" for place, content in places.items())
    report = curated / "selections" / f"keep-{KEEP_FRACTION}" / "report.html"
    select = ["select", f"--output={curated}", "--keep_fraction=0.2"]
    curate = ["curate", "--input=my/*.jsonl.gz", f"--rater={rater}", "--output=my_run"]
    return f"""
AUC: the probability that an intact document scores above one of the row's kind, over {per_kind}
documents of each kind; 0.5 is a coin toss. The rater never sees the kinds: it learned only from how
training on a text changes the loss on held-out prose. Code is not damaged, only unlike that prose.

Loss: that of fresh language models on held-out prose from which the rater learned nothing. `rated`
is the half of the pool that the rater scores highest. A model trained on it is better than one
trained on everything if the interval of their difference is below 0. The cost of scoring is not in
this table: it pays for larger models than these.

{seconds["all"]:.0f} s in all ({steps})

Where things are:
{where}

What next:
  keep another share, without scoring again:
    {_as_typed(select)}
  curate your own documents with this rater (JSONL with a field "text", or Parquet):
    {_as_typed([*curate, f"--keep_fraction={KEEP_FRACTION}"])}
  meta-train a rater on your own corpus:
    datarater train --help

Look at what was kept, and at the best and worst documents, in a browser:
  {report}"""


def _as_typed(arguments: Sequence[str]) -> str:
    """Returns a `datarater` command as a user would type it."""
    return shlex.join(["datarater", *arguments])


def _corpus_line(corpus: DemoCorpus) -> str:
    pool, held_out = corpus.summary["pool"], corpus.summary["held_out"]
    documents = sum(of_kind["documents"] for of_kind in pool.values())
    size = sum(of_kind["characters"] for of_kind in pool.values()) / 1e6
    held_out_documents = sum(of_kind["documents"] for of_kind in held_out.values())
    return (
        f"{counted(documents, 'document')} ({size:.1f} MB) in {corpus.pool_glob}, "
        f"{held_out_documents:,} held out; {'made now' if corpus.made else 'made earlier'}"
    )


def main(
    argv: Sequence[str] | None = None,
    run: Callable[[Path, int], object] = run_demo,
    train_modules: Sequence[str] = TRAIN_MODULES,
) -> int:
    """Runs `datarater demo`.

    Args:
        argv: Arguments after the command's name; those of the process if None.
        run: Runs the demo, as `run_demo` does.
        train_modules: Packages that must be installed.

    Returns:
        The exit code, one of `datarater.rater_model.exit_codes`.

    Raises:
        ModuleNotFoundError: If the extra `datarater[train]` is not installed.
    """
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.documents_per_kind < 1:
        parser.error(f"--documents_per_kind must be at least 1, not {options.documents_per_kind}")
    _check_extra(train_modules)

    try:
        run(Path(options.output).expanduser(), options.documents_per_kind)
    except DemoError as error:
        print(f"datarater demo: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # handled by `datarater` as in every command
        raise
    except OSError as error:
        print(f"datarater demo: {error}", file=sys.stderr)
        return _exit_code_of(error)
    except KeyboardInterrupt:
        print(
            "datarater demo: interrupted; run the same command to start over (the corpus is kept)",
            file=sys.stderr,
        )
        return exit_codes.STOPPED
    return exit_codes.DONE


if __name__ == "__main__":
    sys.exit(main())
