"""The demo: a rater is meta-trained on the built-in corpus, and curates it.

    python -m datarater.meta_training.demo.demo --output demo_output

makes the corpus, runs `datarater train` and `datarater curate` as a user would (each command is
echoed), and says how well the untrained and the trained rater tell intact prose from damaged, and
how much of each kind was kept. The kinds are for this table alone; neither command sees a label.

What it leaves in the output folder: `corpus/` and `heldout/` (kept from run to run), `train/` (the
workdir), `rater/` (the trained rater checkpoint), `curated/` (the run folder) and `demo.json` (the
table for programs).
"""

import argparse
import glob
import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datarater.meta_training.demo.corpus import (
    DAMAGED_KINDS,
    DemoCorpus,
    Kind,
    NotOurFolderError,
    TooLittleTextError,
    build_demo_corpus,
)
from datarater.meta_training.demo.ranking import auc

KEEP_FRACTION = "0.5"
DOCUMENTS_PER_KIND = 300
"""Documents of each kind that both raters' AUCs are taken over."""
_MARKER = ".datarater-demo"
_REMADE = ("train", "rater", "curated")
_SEED = 0


class DemoError(RuntimeError):
    """A step of the demo failed; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class KindResult:
    """What happened to the documents of one kind, or of several together.

    Attributes:
        documents: Their number in the pool.
        kept: How many of them were kept.
        untrained_auc: The chance that the untrained rater scores an intact document above one of
            these, ties counting half; None for intact documents themselves.
        trained_auc: The same of the trained rater, over the same documents.
        trained_auc_all: The same of the trained rater, over all documents of the pool.
    """

    documents: int
    kept: int
    untrained_auc: float | None
    trained_auc: float | None
    trained_auc_all: float | None

    @property
    def kept_share(self) -> float:
        """The share that was kept."""
        return self.kept / self.documents if self.documents else 0.0


def clear_previous(output: Path) -> None:
    """Removes what an earlier demo made in the output folder, except its corpus, and marks the folder.

    Args:
        output: The demo's folder; made if it is not there.

    Raises:
        DemoError: If the folder holds something by these names that no demo made: nothing is
            removed then.
    """
    present = [
        output / name
        for name in _REMADE
        if (output / name).exists() or (output / name).is_symlink()
    ]
    marker = output / _MARKER
    if present and not marker.is_file():
        raise DemoError(
            f"{', '.join(map(str, present))}: not made by the demo (there is no {marker}), so they are left "
            "alone; move them away or give another --output"
        )
    links = [path for path in present if path.is_symlink() or not path.is_dir()]
    if links:
        raise DemoError(
            f"{links[0]} is not a folder that the demo made; move it away or give another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    marker.write_text(
        f"The demo makes {', '.join(_REMADE)} in this folder, and removes them when it runs again.\n"
    )
    for path in present:
        shutil.rmtree(path)


def train_command(corpus: DemoCorpus) -> list[str]:
    """The command that meta-trains the demo's rater."""
    config = Path(__file__).parents[1] / "configs" / "demo.py"
    return [
        "datarater",
        "train",
        f"--config={_short(config)}",
        f"--workdir={corpus.output / 'train'}",
        f"--config.data.inner={corpus.pool_glob}",
        f"--config.data.outer={corpus.held_out_glob}",
    ]


def curate_command(corpus: DemoCorpus) -> list[str]:
    """The command that curates the pool with the demo's rater."""
    return [
        "datarater",
        "curate",
        f"--input={corpus.pool_glob}",
        f"--rater={corpus.output / 'rater'}",
        f"--output={corpus.output / 'curated'}",
        f"--keep_fraction={KEEP_FRACTION}",
    ]


def run_command(step: str, command: Sequence[str]) -> float:
    """Echoes a command and runs it, its output going where ours goes.

    Args:
        step: What the command does, for messages.
        command: The program's name and its arguments. A program beside the running Python comes
            before one on the PATH, so that the environment need not be activated.

    Returns:
        Seconds that it took.

    Raises:
        DemoError: If the program is not installed or fails.
    """
    beside = Path(sys.executable).parent / command[0]
    program = str(beside) if beside.is_file() else shutil.which(command[0])
    if program is None:
        raise DemoError(
            f"{step} failed: {command[0]} is not installed; run `pip install -e .[train]` in this environment"
        )
    print(f"\n$ {shlex.join(command)}", flush=True)
    started = time.monotonic()
    code = subprocess.run([program, *command[1:]], check=False).returncode
    if code:
        how = f"was stopped by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise DemoError(f"{step} failed: `{shlex.join(command)}` {how}; its messages stand above")
    return time.monotonic() - started


def take_rater(output: Path) -> None:
    """Copies the trained rater checkpoint from the workdir to `rater/`.

    Args:
        output: The demo's folder.

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


def read_pool(output: Path) -> list[dict[str, Any]]:
    """The pool's documents, as they were written.

    Args:
        output: The demo's folder.

    Returns:
        One dict a document with `id`, `text`, `source` and `kind`.
    """
    return list(_read_jsonl(sorted(glob.glob(str(output / "corpus" / "*.jsonl.gz")))))


def read_scores(curated: Path) -> dict[str, float]:
    """The scores in a run folder, by document id.

    Args:
        curated: The run folder.

    Returns:
        The score of each scored document.
    """
    from pyarrow import parquet

    scores: dict[str, float] = {}
    for path in sorted(curated.glob("scores/**/*.parquet")):
        if {"key", "score", "status"} <= set(parquet.read_schema(path).names):
            columns = parquet.read_table(path, columns=["key", "score", "status"]).to_pydict()
            for key, score, status in zip(
                columns["key"], columns["score"], columns["status"], strict=True
            ):
                if status == "scored":
                    scores[str(json.loads(key))] = float(score)
    return scores


def read_kept(curated: Path) -> set[str]:
    """The ids of the documents that the run folder's one selection kept.

    Args:
        curated: The run folder.

    Returns:
        Their ids.

    Raises:
        DemoError: If there is not exactly one finished selection.
    """
    finished = [path.parent for path in sorted(curated.glob("selections/*/_SUCCESS"))]
    if len(finished) != 1:
        raise DemoError(
            f"{curated}/selections holds {len(finished)} finished selections, not the one expected"
        )
    return {
        str(record["id"])
        for record in _read_jsonl(sorted(glob.glob(str(finished[0] / "kept" / "*.jsonl*"))))
    }


def measure(
    pool: Sequence[Mapping[str, Any]],
    untrained: Mapping[str, float],
    trained: Mapping[str, float],
    kept: set[str],
) -> dict[str, KindResult]:
    """The table: AUC of intact prose against each kind, and what was kept of it.

    Args:
        pool: All documents of the pool.
        untrained: The untrained rater's scores of some of them, by id; AUCs are compared over
            these.
        trained: The trained rater's scores of all of them, by id.
        kept: The ids of those that were kept.

    Returns:
        The result of each kind that the pool holds, and of the damaged ones together, `damaged`.

    Raises:
        DemoError: If a document of the pool has no score from the trained rater.
    """
    by_kind: dict[str, list[str]] = {}
    for document in pool:
        by_kind.setdefault(str(document["kind"]), []).append(str(document["id"]))
    missing = [str(document["id"]) for document in pool if str(document["id"]) not in trained]
    if missing:
        raise DemoError(
            f"{len(missing)} of the pool's {len(pool)} documents have no score in the run folder, for one "
            f"{missing[0]}; its rejected/ folder says why"
        )
    groups = {kind.value: by_kind[kind] for kind in Kind if kind in by_kind}
    groups["damaged"] = [name for kind in DAMAGED_KINDS for name in by_kind.get(kind, [])]
    results = {}
    for group, names in groups.items():
        aucs: list[float | None] = [None, None, None]
        if group != Kind.INTACT:
            sampled = [name for name in names if name in untrained]
            intact = [name for name in by_kind[Kind.INTACT] if name in untrained]
            aucs = [
                _auc_against(intact, sampled, untrained),
                _auc_against(intact, sampled, trained),
                _auc_against(by_kind[Kind.INTACT], names, trained),
            ]
        results[group] = KindResult(len(names), sum(name in kept for name in names), *aucs)
    return results


def sample_by_kind(pool: Sequence[Mapping[str, Any]], per_kind: int) -> list[Mapping[str, Any]]:
    """The same number of documents of each kind, at random but always the same ones.

    Args:
        pool: Documents.
        per_kind: How many of each kind; all where a kind has fewer.

    Returns:
        The sample, in the pool's order.
    """
    rng = np.random.default_rng(_SEED)
    left = dict.fromkeys((str(document["kind"]) for document in pool), per_kind)
    chosen = []
    for i in rng.permutation(len(pool)):
        kind = str(pool[int(i)]["kind"])
        if left[kind] > 0:
            left[kind] -= 1
            chosen.append(int(i))
    return [pool[i] for i in sorted(chosen)]


def score_with(rater: Path, documents: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Scores of documents by a rater checkpoint, by id.

    Args:
        rater: The rater checkpoint's folder.
        documents: Documents with `id` and `text`.

    Returns:
        A score a document.

    Raises:
        DemoError: If the checkpoint cannot be loaded, or a score is not finite.
    """
    # JAX takes seconds to import, and the corpus and the commands do not need it here.
    from datarater.rater_model.checkpoint import CheckpointError, load_rater
    from datarater.rater_model.scorer import Scorer

    try:
        checkpoint = load_rater(str(rater))
    except (CheckpointError, OSError) as error:
        raise DemoError(f"the rater in {rater} cannot be loaded: {error}") from error
    scores_N = Scorer(checkpoint).score([str(document["text"]) for document in documents]).scores_N
    if not np.isfinite(scores_N).all():
        raise DemoError(f"the rater in {rater} gives scores that are not finite")
    return {
        str(document["id"]): float(score)
        for document, score in zip(documents, scores_N, strict=True)
    }


def run_demo(output: Path, per_kind: int = DOCUMENTS_PER_KIND) -> dict[str, KindResult]:
    """Runs the whole demo and prints its table.

    Args:
        output: The folder that all it makes goes to.
        per_kind: Documents of each kind that AUCs are taken over.

    Returns:
        The results by kind; see `measure`.

    Raises:
        DemoError: If a step fails.
        TooLittleTextError: If this Python carries too little text for the corpus.
        NotOurFolderError: If the corpus's folders hold something else.
        OSError: If the output folder cannot be written.
    """
    started = time.monotonic()
    seconds: dict[str, float] = {}
    clear_previous(output)
    (output / "demo.json").unlink(missing_ok=True)
    corpus = build_demo_corpus(output, say=print)
    seconds["corpus"] = time.monotonic() - started
    print(f"corpus: {_corpus_line(corpus)}", flush=True)
    commands = {"train": train_command(corpus), "curate": curate_command(corpus)}
    seconds["train"] = run_command("meta-training", commands["train"])
    take_rater(output)
    seconds["curate"] = run_command("curation", commands["curate"])
    measuring = time.monotonic()
    pool = read_pool(output)
    untrained = score_with(
        output / "train" / "raters" / "step_00000000", sample_by_kind(pool, per_kind)
    )
    results = measure(
        pool, untrained, read_scores(output / "curated"), read_kept(output / "curated")
    )
    seconds["measure"] = time.monotonic() - measuring
    seconds["all"] = time.monotonic() - started
    _write_json(
        output / "demo.json",
        {
            "results": {
                kind: {**asdict(result), "kept_share": result.kept_share}
                for kind, result in results.items()
            },
            "auc_documents_per_kind": per_kind,
            "keep_fraction": KEEP_FRACTION,
            "commands": {name: shlex.join(command) for name, command in commands.items()},
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
        },
    )
    print_results(results, output, per_kind, seconds)
    return results


def print_results(
    results: Mapping[str, KindResult], output: Path, per_kind: int, seconds: Mapping[str, float]
) -> None:
    """Prints the table, where the files are, and what to do next.

    Args:
        results: As from `measure`.
        output: The demo's folder.
        per_kind: Documents of each kind that AUCs were taken over.
        seconds: How long each step took, and `all` of them.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Does the rater tell intact prose from the rest?")
    for heading in ("documents", "number", "untrained AUC", "trained AUC", "kept"):
        table.add_column(
            heading, justify="left" if heading == "documents" else "right", no_wrap=True
        )
    labels = {
        Kind.INTACT.value: "intact prose",
        Kind.SHUFFLED.value: "bytes shuffled",
        Kind.REDRAWN.value: "bytes redrawn",
        Kind.BOILERPLATE.value: "boilerplate repeated",
        "damaged": "all damaged",
        Kind.CODE.value: "source code (intact)",
    }
    for group, label in labels.items():
        if group in results:
            result = results[group]
            table.add_row(
                label,
                f"{result.documents:,}",
                _figure(result.untrained_auc),
                _figure(result.trained_auc),
                f"{result.kept_share:.1%}",
                end_section=group in (Kind.INTACT.value, "damaged"),
            )
    # A width of its own where there is no terminal, so that a log keeps the table whole.
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print()
    console.print(table)
    steps = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if name != "all")
    lines = [
        f"AUC: the chance that an intact document scores above one of the row's, over {per_kind} documents of each",
        "kind; 0.5 is a coin. Nobody told the rater the kinds: it saw only what training on a text does to the",
        "loss on held-out prose. Code is not damaged, it is merely unlike the held-out prose.",
        "",
        f"{seconds['all']:.0f} s in all ({steps})",
        "",
        "Where things are:",
        f"  {output}/corpus, {output}/heldout   the pool and the held-out target",
        f"  {output}/train    the workdir: metrics, and raters/ as they were during training",
        f"  {output}/rater    the rater checkpoint",
        f"  {output}/curated  the run folder: scores/, and the kept documents with their scores in selections/",
        f"  {output}/demo.json  this table for programs",
        "",
        "What next:",
        "  keep another share, without scoring again:",
        f"    datarater select --output={output}/curated --keep_fraction=0.2",
        "  curate documents of your own with this rater (JSONL with a field text, or Parquet):",
        f"    datarater curate --input='my/*.jsonl.gz' --rater={output}/rater --output=my_run --keep_fraction=0.5",
        "  meta-train a rater on your own corpus: see the README",
    ]
    print("\n".join(lines), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (0 done, 1 failed, 2 wrong usage)."""
    parser = argparse.ArgumentParser(
        prog="python -m datarater.meta_training.demo.demo",
        description="Meta-train a small rater on a built-in corpus, curate the corpus with it, show what happened.",
        epilog="example: python -m datarater.meta_training.demo.demo --output demo_output",
    )
    parser.add_argument(
        "--output", default="demo_output", help="folder for all it makes (default: %(default)s)"
    )
    parser.add_argument(
        "--documents_per_kind",
        type=int,
        default=DOCUMENTS_PER_KIND,
        metavar="N",
        help="documents of each kind that AUCs are taken over (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    if options.documents_per_kind < 1:
        parser.error(f"--documents_per_kind must be at least 1, not {options.documents_per_kind}")
    try:
        run_demo(Path(options.output), options.documents_per_kind)
    except (DemoError, TooLittleTextError, NotOurFolderError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped; run it again to start over (the corpus is kept)", file=sys.stderr)
        return 1
    return 0


def _auc_against(
    intact: Sequence[str], others: Sequence[str], scores: Mapping[str, float]
) -> float | None:
    """AUC of intact documents against others; None if either side is empty."""
    if not intact or not others:
        return None
    scores_N = [scores[name] for name in (*intact, *others)]
    return auc(scores_N, [True] * len(intact) + [False] * len(others))


def _read_jsonl(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            for line in file:
                yield json.loads(line)


def _corpus_line(corpus: DemoCorpus) -> str:
    pool, held_out = corpus.summary["pool"], corpus.summary["held_out"]
    documents = sum(of_kind["documents"] for of_kind in pool.values())
    size = sum(of_kind["characters"] for of_kind in pool.values()) / 1e6
    kept_back = sum(of_kind["documents"] for of_kind in held_out.values())
    how = "made" if corpus.made else "there already"
    return f"{documents:,} documents ({size:.1f} MB) in {corpus.pool_glob}, {kept_back:,} held out; {how}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _short(path: Path) -> str:
    """The path from the working directory if it lies below it, as a user would type it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
