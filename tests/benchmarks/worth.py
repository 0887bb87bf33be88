"""What is a rater worth? Three settings, a screen on two seeds and a confirmation on fresh ones.

    python -m tests.benchmarks.worth prepare --output worth     # needs DATARATER_CORPORA
    python -m tests.benchmarks.worth screen --output worth
    python -m tests.benchmarks.worth confirm --output worth
    python -m tests.benchmarks.worth large --output worth

The settings: (a) the pool `dev/` with clean held-out prose as the target; (b) `dev/` with held-out
documents of its own, the paper's setting; (c) the demo's damaged corpus with its intact held-out
prose, where an oracle knows what is damaged.

`prepare` reads the corpora, cuts the targets into folds by work and near-duplicate cluster, and
scores the pools with the rivals that need no accelerator. The rest reads `worth/SETTING/` alone and
can run on another machine: `screen` trains all arms on seeds 0 and 1, `confirm` the arms that the
screen chose on seeds 100 to 107, each at its screened fraction, `large` four of them at 1M
parameters. Choices use the choice fold alone; the losses reported are those of the test fold. Every
step is `datarater evaluate`, which caches what is finished.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datarater.meta_training.evaluate.arm_names import (
    ARMS,
    LABEL,
    OF_RATER,
    OF_SMALL_MODEL,
    OF_TARGET,
    RANDOM,
    RANDOM_AGAIN,
    RATER,
    START,
    UNFILTERED,
)
from datarater.meta_training.evaluate.command import main as evaluate
from tests.support import corpora_folder

if TYPE_CHECKING:
    from datarater.meta_training.evaluate.pool import Data, DataOptions

SETTINGS = ("a", "b", "c")
CONFIRMED_SEEDS = 100
_NEED_A_MODEL = {*OF_RATER, *OF_SMALL_MODEL}
_SWEPT = (RATER, "bigram", "trigram", "word_bigram", "importance", "classifier")


def write_held_out(corpora: Path, sources: Path) -> Path:
    """Writes the clean held-out prose with the work of each document; returns the file."""
    from tests.benchmarks.benchmark_support import read_documents
    from tests.benchmarks.held_out_works import assign

    held_out = [
        {"text": each.text, "source": each.source, "work": each.work}
        for document, _ in read_documents(str(corpora / "dev_heldout" / "*"))
        for each in [assign(document.key, document.text, document.source)]
    ]
    return write_records(sources / "held_out.jsonl", held_out)


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Writes records as JSONL; returns the file.

    A file with the same records stays, since data are prepared anew from files that were modified.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if not path.exists() or path.read_text(encoding="utf-8") != lines:
        path.write_text(lines, encoding="utf-8")
    return path


def prepare(output: Path, corpora: Path) -> None:
    """Prepares the data of each setting and scores it with the rivals that need no model."""
    from datarater.meta_training.demo.corpus import Installation, Kind, make_documents
    from datarater.meta_training.evaluate.pool import DataOptions

    sources = output / "sources"
    held_out = write_held_out(corpora, sources)
    documents, clean = make_documents(Installation.running())
    intact = write_records(
        sources / "intact.jsonl", ({"text": each.text, "source": each.source} for each in clean)
    )
    damaged = write_records(
        sources / "damaged.jsonl",
        (
            {"text": each.text, "source": each.kind, "intact": int(each.kind == Kind.INTACT)}
            for each in documents
        ),
    )

    dev = (str(corpora / "dev" / "*"),)
    options = {
        "a": DataOptions(dev, (str(held_out),), work_field="work"),
        "b": DataOptions(dev),
        "c": DataOptions((str(damaged),), (str(intact),), label_field="intact"),
    }
    names = [name for name in ARMS if name not in _NEED_A_MODEL]
    for setting, wanted in options.items():
        prepare_setting(output / setting, wanted, names)


def prepare_setting(folder: Path, options: DataOptions, arms: Sequence[str]) -> Data:
    """Prepares the data of a setting and scores it with some rivals, for every fold."""
    from datarater.meta_training.evaluate.arms import ArmOptions, Arms
    from datarater.meta_training.evaluate.pool import prepare_data
    from datarater.meta_training.evaluate.workers import Workers

    data = prepare_data(options, folder)
    print(f"({folder.name}) {data.counts}", flush=True)
    with Workers(1, folder / "compiled") as workers:
        scored = Arms(data, ArmOptions(tuple(arms), rotate=True), folder, workers, _print)
        for rotation in range(data.target.rotations):
            for name in arms:
                if name not in (UNFILTERED, LABEL) and (rotation == 0 or name in OF_TARGET):
                    scored.scores(name, rotation)
    return data


def _print(line: str) -> None:
    print(line, flush=True)


def run(folder: Path, name: str, flags: Sequence[str]) -> dict[str, Any]:
    """Evaluates in a setting's folder and returns the report, stored under a name of its own."""
    (prepared,) = (folder / "data").iterdir()
    arguments = [f"--prepared={prepared}", f"--output={folder}", *flags]
    print(f"\n{folder.name}: datarater evaluate {' '.join(arguments)}", flush=True)
    code = evaluate(arguments)
    if code:
        raise SystemExit(code)
    report = folder / "evaluation.json"
    content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    # Without the paths of this machine and in one line, so that it can be kept.
    for path in ("data", "prepared"):
        content["options"].pop(path)
    text = json.dumps(content, separators=(",", ":")) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return content


def _arms_of(setting: str) -> list[str]:
    left_out = {UNFILTERED, START, *([] if setting == "c" else [LABEL])}
    return [name for name in ARMS if name not in left_out]


def screen(folder: Path, common: Sequence[str]) -> None:
    """Trains all arms at keep 90 and 50%, and the most promising at 75 and 25% too."""
    shares = {
        name: (0.9, 0.75, 0.5, 0.25) if name in _SWEPT else (0.9, 0.5)
        for name in _arms_of(folder.name)
    }
    words = [f"{name}:{share}" for name, own in shares.items() for share in own]
    run(folder, "screen", ["--seeds=2", f"--arms={','.join(words)}", *common])


def chosen(folder: Path, rivals: int = 3) -> list[tuple[str, float]]:
    """Returns the rater and the best rivals of a screen, each with its best share.

    The order and the shares are those of the mean loss on the choice fold.
    """
    report = json.loads((folder / "screen.json").read_text(encoding="utf-8"))
    best: dict[str, tuple[float, float]] = {}
    for row in report["arms"]:
        loss = sum(row["choice_losses"]) / len(row["choice_losses"])
        if row["arm"] not in best or loss < best[row["arm"]][0]:
            best[row["arm"]] = (loss, row["keep"])
    known = (UNFILTERED, RANDOM, RANDOM_AGAIN, RATER, LABEL)
    ranked = sorted((own[0], name) for name, own in best.items() if name not in known)
    names = [RATER, *(name for _, name in ranked[:rivals])]
    if LABEL in best:
        names.append(LABEL)
    return [(name, best[name][1]) for name in names]


def confirm(folder: Path, common: Sequence[str]) -> None:
    """Trains the chosen arms on fresh seeds; in (a) also with half of each source."""
    arms = chosen(folder)
    shares = sorted({share for _, share in arms} | {0.5})
    words = [f"{RANDOM}:{share}" for share in shares] + [f"{RANDOM_AGAIN}:0.5"]
    words += [f"{name}:{share}" for name, share in arms]
    seeds = ["--seeds=8", f"--first_seed={CONFIRMED_SEEDS}"]
    run(folder, "confirm", [*seeds, f"--arms={','.join(words)}", *common])
    if folder.name == "a":
        halves = ",".join([f"{RANDOM}:0.5", *(f"{name}:0.5" for name, _ in arms)])
        run(
            folder,
            "confirm_each_source",
            [*seeds, "--source_floor=0.5", f"--arms={halves}", *common],
        )


def large(folder: Path, common: Sequence[str]) -> None:
    """Trains four arms at 1M parameters on three seeds, the rater at several shares.

    The whole pool, a random half, the rater and its best rival. The rater's shares are its best one
    and its neighbors of the screen, to see whether the best share is the same at both sizes.
    """
    if folder.name == "c":
        return
    (_, best), (rival, rival_share), *_ = chosen(folder)
    shares = sorted({0.5, 0.9, best})
    words = [f"{RANDOM}:0.5", f"{RATER}:{best}", f"{rival}:{rival_share}"]
    words += [f"{RATER}:{share}" for share in shares if share != best]
    run(
        folder,
        "large",
        [
            *("--model=1M", "--steps=500", "--seeds=3", f"--first_seed={CONFIRMED_SEEDS}"),
            *("--learning_rate=2e-3", f"--arms={','.join(words)}", *common),
        ],
    )


def add_flags(parser: argparse.ArgumentParser, processes: int) -> None:
    """Adds the flags of every experiment that runs `datarater evaluate`."""
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=processes, help="Default: %(default)s.")
    parser.add_argument(
        "--flag",
        action="append",
        default=[],
        help="Further flag of `datarater evaluate`, such as --flag=--together=2. Repeatable.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one step in every setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", nargs="+", choices=("prepare", "screen", "confirm", "large"))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="Default: %(default)s.")
    add_flags(parser, processes=2)
    args = parser.parse_args(argv)

    common = ["--train_raters=default", f"--processes={args.processes}", *args.flag]
    steps = {"screen": screen, "confirm": confirm, "large": large}
    for step in args.step:
        if step == "prepare":
            prepare(args.output, corpora_folder())
            continue
        for setting in args.settings.split(","):
            steps[step](args.output / setting, common)
    return 0


if __name__ == "__main__":
    sys.exit(main())
