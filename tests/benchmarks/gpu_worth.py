"""What is a rater worth to a model of 10M parameters? One script for one accelerator.

    python -m tests.benchmarks.gpu_worth prepare --output gpu_worth  # needs DATARATER_CORPORA
    python -m tests.benchmarks.gpu_worth train --output gpu_worth    # minutes on an accelerator

Setting (a) of `tests.benchmarks.worth`: the pool `dev/` and clean held-out prose as the target, in
BPE tokens. `prepare` reads the corpora and scores the pool with the rival; it needs no accelerator.
`train` reads the output folder alone, can run on another machine, and continues where it was
stopped: it trains a fresh rater for each of four seeds, several at a time, and then all language
models side by side. Arms: the whole pool, the rater and the classifier. Raters read bytes, whatever
the language models read, so `prepare --raters worth` takes those that `tests.benchmarks.worth`
confirmed setting (a) with: small raters keep an accelerator waiting for its host.
Windows have 512 tokens, and no model reads what an arm keeps more than twice.

With `--toy` both steps take a few minutes on a CPU: a part of the pool, small models, few steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from datarater.meta_training.evaluate.arm_names import RATER
from datarater.meta_training.evaluate.pool import Data, DataOptions, open_data
from datarater.meta_training.evaluate.raters import rater_training
from tests.benchmarks.worth import (
    CONFIRMED_SEEDS,
    add_flags,
    prepare_setting,
    run,
    write_held_out,
)
from tests.support import corpora_folder

_RIVAL = "classifier"
_PASSES = 2


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of the experiment.

    Attributes:
        pool: Glob of the pool's files within `dev/`.
        vocabulary_size: Ids of the BPE.
        model: Size of the language models.
        keep: Share of the pool that an arm keeps.
        batch: Windows of an update.
        length: Tokens of a window.
        seeds: Seeds, each with a rater of its own.
        maximum_steps: Maximum number of updates; fewer if an arm would be read too often.
        rater: Fields of the raters' config.
    """

    pool: str = "*"
    vocabulary_size: int = 8192
    model: str = "10M"
    keep: float = 0.5
    batch: int = 32
    length: int = 512
    seeds: int = 4
    maximum_steps: int = 600
    rater: tuple[str, ...] = ()

    def steps(self, tokens: int) -> int:
        """Returns the updates in which what is kept of a pool is read at most twice.

        Example:
            >>> Scale().steps(10_000_000), Scale().steps(4_000_000)
            (600, 244)
        """
        kept = int(tokens * self.keep)
        return max(1, min(self.maximum_steps, _PASSES * kept // (self.batch * self.length)))


FULL = Scale()
TOY = Scale(
    pool="shard-00000-*",
    vocabulary_size=1024,
    model="0.05M",
    batch=8,
    length=64,
    seeds=2,
    maximum_steps=20,
    rater=("meta_steps=4", "population.warmup_steps=20", "length=64", "inner_batch=8"),
)


def prepare(output: Path, corpora: Path, scale: Scale, raters: Path | None) -> None:
    """Prepares the data and the scores of the rival, and takes raters if a folder has them."""
    held_out = write_held_out(corpora, output / "sources")
    options = DataOptions(
        (str(corpora / "dev" / scale.pool),),
        (str(held_out),),
        work_field="work",
        tokenizer="bpe",
        vocabulary_size=scale.vocabulary_size,
    )
    data = prepare_setting(output / "a", options, [_RIVAL])
    steps = scale.steps(len(data.tokens_T))
    (output / "steps.json").write_text(json.dumps(steps) + "\n", encoding="utf-8")
    print(f"{len(data.tokens_T):,} tokens: {steps} updates of {scale.batch} x {scale.length}")
    if raters is not None:
        take_raters(data, output / "a", raters / "a", scale)


def take_raters(data: Data, folder: Path, source: Path, scale: Scale) -> None:
    """Copies raters that another evaluation trained on the same pool and the same folds.

    Args:
        data: The data of this evaluation.
        folder: Folder of this evaluation.
        source: Folder of the other one.
        scale: Sizes, with the number of seeds and the fields of the raters' config.

    Raises:
        SystemExit: The pools or the folds differ, or a rater is not trained.
    """
    (prepared,) = (source / "data").iterdir()
    theirs = open_data(str(prepared))
    if list(theirs.texts()) != list(data.texts()):
        raise SystemExit(f"--raters: {source} has another pool")

    flags = ("--config=default", *(f"--config.{field}" for field in scale.rater))
    for seed in range(CONFIRMED_SEEDS, CONFIRMED_SEEDS + scale.seeds):
        their_fold, our_fold = theirs.at(seed), data.at(seed)
        trained = rater_training(their_fold, flags, seed, source)
        if their_fold.learning_digest != our_fold.learning_digest or not trained.finished:
            raise SystemExit(f"--raters: {source} has no rater of seed {seed} for these folds")

        workdir = Path(rater_training(our_fold, flags, seed, folder).workdir)
        shutil.copytree(trained.rater, workdir / "rater", dirs_exist_ok=True)
        shutil.copy(Path(trained.workdir) / "summary.json", workdir)


def train(output: Path, scale: Scale, flags: Sequence[str]) -> None:
    """Trains the raters and the language models, and writes `a/gpu.json`."""
    steps = json.loads((output / "steps.json").read_text(encoding="utf-8"))
    run(
        output / "a",
        "gpu",
        [
            *("--train_raters=default", *(f"--rater_config={field}" for field in scale.rater)),
            *(f"--arms={RATER},{_RIVAL}", f"--keep={scale.keep}", f"--seeds={scale.seeds}"),
            f"--first_seed={CONFIRMED_SEEDS}",
            *(f"--model={scale.model}", f"--steps={steps}", "--learning_rate=1e-3"),
            *(f"--batch={scale.batch}", f"--length={scale.length}", *flags),
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", nargs="+", choices=("prepare", "train"))
    parser.add_argument("--toy", action="store_true", help="Small enough to try it on a CPU.")
    parser.add_argument(
        "--raters", type=Path, metavar="DIR", help="Output of tests.benchmarks.worth with raters."
    )
    add_flags(parser, processes=4)
    args = parser.parse_args(argv)

    scale = TOY if args.toy else FULL
    for step in args.step:
        if step == "prepare":
            prepare(args.output, corpora_folder(), scale, args.raters)
        else:
            train(args.output, scale, [f"--processes={args.processes}", *args.flag])
    return 0


if __name__ == "__main__":
    sys.exit(main())
