"""Work on the documents part by part: features, languages and scores, each part cached.

    OUTPUT/documents/DIGEST/parts/NAME/00003.npy    the values of documents 3,000 to 3,999

A run that was stopped loses only the parts in progress.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datarater.meta_training.analysis.documents import Documents, texts_of_part
from datarater.meta_training.analysis.features import FEATURES_VERSION, features_of
from datarater.meta_training.analysis.languages import LANGUAGES_VERSION, language_of
from datarater.meta_training.evaluate.budget import duration
from datarater.meta_training.evaluate.workers import Event
from datarater.rater_model.atomic_files import replacing
from datarater.rater_model.counted import counted

Run = Callable[[Sequence[Any]], Iterator[Event]]
"""Runs tasks and yields what they report, as `Workers.run` does."""


class PartTask(Protocol):
    """Work on one part that pickles.

    Attributes:
        folder: Folder of the documents.
        part: Number of the part.
    """

    folder: str
    part: int

    @property
    def name(self) -> str:
        """Name of the folder of its results; another one for other values."""

    def __call__(self, report: Callable[[float], None]) -> NDArray[Any]:
        """Returns a value or a row for each document of the part."""


@dataclasses.dataclass(frozen=True)
class FeatureTask:
    """Computes the features of a part."""

    folder: str
    part: int

    @property
    def name(self) -> str:
        """Name of the folder of its results."""
        return f"features-{FEATURES_VERSION}"

    def __call__(self, report: Callable[[float], None]) -> NDArray[np.float64]:
        """Returns the features, one row for each document."""
        return np.array([features_of(text) for text in texts_of_part(self.folder, self.part)])


@dataclasses.dataclass(frozen=True)
class LanguageTask:
    """Identifies the languages of a part."""

    folder: str
    part: int

    @property
    def name(self) -> str:
        """Name of the folder of its results."""
        return f"languages-{LANGUAGES_VERSION}"

    def __call__(self, report: Callable[[float], None]) -> NDArray[np.str_]:
        """Returns the codes of the languages."""
        return np.array([language_of(text) for text in texts_of_part(self.folder, self.part)])


@dataclasses.dataclass(frozen=True)
class ScoreTask:
    """Scores a part with a rater.

    Attributes:
        rater: Folder of the rater checkpoint.
        digest: Its digest.
    """

    folder: str
    part: int
    rater: str
    digest: str

    @property
    def name(self) -> str:
        """Name of the folder of its results."""
        from datarater.rater_model.scoring_options import SCORER_VERSION

        return f"scores-{SCORER_VERSION}-{self.digest[:32]}"

    def __call__(self, report: Callable[[float], None]) -> NDArray[np.float64]:
        """Returns the scores."""
        from datarater.meta_training.evaluate.model_scores import rater_scores

        texts = texts_of_part(self.folder, self.part)
        return rater_scores(self.rater, texts, len(texts), report)


def values_of(
    documents: Documents,
    what: str,
    tasks: Sequence[PartTask],
    run: Run,
    say: Callable[[str], None],
) -> NDArray[Any]:
    """Returns the results of tasks, one after the other, and computes those that are not cached.

    Args:
        documents: The documents.
        what: What is done, for the progress.
        tasks: A task for each part, all of one name.
        run: Runs tasks.
        say: Prints a line of progress.
    """
    folder = documents.folder / "parts" / tasks[0].name
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{task.part:05d}.npy" for task in tasks]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    if missing:
        say(f"{what}, {len(missing)} of {counted(len(tasks), 'part')}")
    started = said = time.monotonic()
    done = 0
    for event in run([tasks[index] for index in missing]) if missing else ():
        if not event.finished:
            continue
        _save(paths[missing[event.task]], event.result)
        done += 1
        now = time.monotonic()
        if now - said > 5 and done < len(missing):
            said = now
            left = (now - started) / done * (len(missing) - done)
            say(f"  {done} done; {duration(left)} left")
    return np.concatenate([np.load(path) for path in paths])


def _save(path: Path, values: NDArray[Any]) -> None:
    with replacing(path) as new:
        np.save(new, values)
