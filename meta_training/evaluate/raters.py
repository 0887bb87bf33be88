"""Where the rater of a seed comes from: from the user, or freshly trained.

OUTPUT/raters/DIGEST/       workdir of `datarater train`, from which a stopped training continues
OUTPUT/raters/DIGEST.json   the seconds that it took
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.pool import Data
from datarater.meta_training.evaluate.workers import Workers

RATER_VERSION = 2
"""Raised whenever the same training would give another rater."""


@dataclasses.dataclass(frozen=True)
class RaterTraining:
    """A task that trains a rater, or continues its training; does nothing if it is finished.

    Attributes:
        workdir: Folder of the training.
        flags: Flags of `datarater train` besides `--workdir`.
    """

    workdir: str
    flags: tuple[str, ...]

    @property
    def rater(self) -> Path:
        """Folder of the trained rater."""
        return Path(self.workdir) / "rater"

    @property
    def finished(self) -> bool:
        """Whether the training has ended: its summary is written last."""
        return (Path(self.workdir) / "summary.json").is_file()

    @property
    def seconds(self) -> float:
        """Wall time of the training, without what was stopped; 0 if it is not known."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            return float(json.loads(self._clock.read_text(encoding="utf-8"))["seconds"])
        return 0.0

    @property
    def _clock(self) -> Path:
        return Path(f"{self.workdir}.json")

    def __call__(self, report: Callable[[float], None]) -> None:
        """Trains the rater."""
        from datarater.meta_training.run.command import run_training

        started = time.monotonic()
        config = _config_of((f"--workdir={self.workdir}", *self.flags))
        # Its closing lines tell how to curate with this one rater.
        with contextlib.redirect_stdout(io.StringIO()):
            run_training(config, self.workdir, coordinator="", processes=1, process=0)
        self._clock.write_text(json.dumps({"seconds": time.monotonic() - started}) + "\n")


def _config_of(flags: Sequence[str]):  # type: ignore[no-untyped-def]
    from absl import flags as absl_flags

    from datarater.meta_training.train import parse_flags

    values = absl_flags.FlagValues()
    parse_flags(list(flags), values)
    return values.config


def check_flags(flags: Sequence[str]) -> None:
    """Refuses flags that `datarater train` does not take, before work begins.

    Raises:
        FlagError: If a flag is unknown, has a bad value, or is one that the evaluation sets.
    """
    from datarater.meta_training.config import checks
    from datarater.meta_training.errors import ConfigError

    for ours in ("data.inner", "data.outer", "data.prepared", "data.text_field", "seed"):
        if any(flag.partition("=")[0] == f"--config.{ours}" for flag in flags):
            raise FlagError(f"--rater_config: {ours} is set by the evaluation; leave it out")
    try:
        checks.check(_config_of(("--workdir=w", "--config.data.inner=i", *flags)))
    except ConfigError as error:
        raise FlagError(f"--train_raters and --rater_config: {error}") from error


def rater_training(data: Data, flags: Sequence[str], seed: int, output: Path) -> RaterTraining:
    """Returns the training of the rater of a seed on the pool and the documents to learn from.

    Args:
        data: The data in the rotation of the seed.
        flags: Flags of `datarater train`.
        seed: Seed of the training.
        output: Output folder of the evaluation.
    """
    values = {
        "version": RATER_VERSION,
        "pool": data.digest,
        "learning": data.learning_digest,
        "flags": list(flags),
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
    return RaterTraining(
        str(output / "raters" / digest),
        (
            *flags,
            f"--config.seed={seed}",
            f"--config.data.inner={data.pool_file()}",
            f"--config.data.outer={data.learning_file}",
        ),
    )


def start_rater(rater: str) -> str:
    """Returns the folder of the rater before its first meta-step, in the workdir of a rater.

    Example:
        >>> start_rater("work/rater"), start_rater("work/raters/step_00000050")
        ('work/raters/step_00000000', 'work/raters/step_00000000')
    """
    folder, _, name = rater.rstrip("/").rpartition("/")
    raters = "raters/step_00000000" if name == "rater" else "step_00000000"
    return f"{folder}/{raters}" if folder else raters


def check_start_rater(rater: str) -> None:
    """Refuses a rater whose workdir does not have the rater of its start.

    Raises:
        FlagError: If it is not in the workdir of a training.
        OSError: If the file system fails.
    """
    from datarater.rater_model.checkpoint import CheckpointError, load_statistics

    try:
        load_statistics(start_rater(rater))
    except CheckpointError as error:
        raise FlagError(
            f"--start_raters: {rater} must be a rater in the workdir that datarater train made, "
            f"beside the rater of its start; {error}"
        ) from error


def train_raters(
    trainings: Sequence[RaterTraining], workers: Workers, say: Callable[[str], None]
) -> None:
    """Trains the raters that are not trained yet, several at a time."""
    missing = [training for training in dict.fromkeys(trainings) if not training.finished]
    if not missing:
        return
    say(f"training {len(missing)} rater{'s' if len(missing) > 1 else ''}")
    done = 0
    for event in workers.run(missing):
        if event.finished:
            done += 1
            say(f"[{done}/{len(missing)}] rater in {missing[event.task].workdir}")
