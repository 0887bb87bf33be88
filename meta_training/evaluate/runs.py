"""Runs by content: what makes two runs the same, and the cache of finished runs.

A run is identified by the digest of everything that determines its result: the model, the protocol,
the seed, the pool with its tokenizer, the documents that losses are measured on, what is selected,
the questions of downstream tasks, and `RUN_VERSION`. The name of the arm is not among them: two
arms that select the same share their runs.

    OUTPUT/runs/DIGEST.json   the specification and the result of one run
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datarater.meta_training.evaluate.pool import Data, open_data
from datarater.meta_training.evaluate.protocol import Model, Protocol
from datarater.meta_training.evaluate.walk import Selection
from datarater.rater_model.atomic_files import replacing

RUN_VERSION = 2
"""Raised whenever the same specification would give another result."""


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """Everything that determines the result of a run.

    Attributes:
        model: Shape of the language model.
        protocol: How it is trained.
        seed: Seed of its initialization and walk.
        pool: Digest of the pool's texts and the tokenizer.
        validation: Digest of the documents that its losses are measured on.
        kept: Digest of the selection.
        questions: Digest of the questions of downstream tasks; empty without any.
        run_version: Version of the code that runs are made by.
    """

    model: Model
    protocol: Protocol
    seed: int
    pool: str
    validation: str
    kept: str
    questions: str = ""
    run_version: int = RUN_VERSION

    def to_json(self) -> dict[str, Any]:
        """Returns the specification as a JSON-able dict."""
        values = dataclasses.asdict(self)
        # Runs without questions keep the digest that they had before there were any.
        return values if self.questions else {k: v for k, v in values.items() if k != "questions"}

    @property
    def digest(self) -> str:
        """SHA-256 of the specification, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What is stored of a run.

    Attributes:
        curve: (step, test loss in nats per token) pairs, ascending.
        choice_loss: Final loss on the documents that choices are made on.
        by_source: Final test loss by source.
        passes: Number of passes over what is selected, the last one begun.
        seconds: Wall time of the run.
        tasks: Figures of each downstream task by name; see `multiple_choice.TaskResult`.
    """

    curve: list[tuple[int, float]]
    choice_loss: float
    by_source: dict[str, float]
    passes: int
    seconds: float
    tasks: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def final_loss(self) -> float:
        """Test loss at the end."""
        return self.curve[-1][1]


class RunCache:
    """Finished runs in a folder, one small JSON file each.

    Args:
        folder: Folder, created when the first run is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, spec: RunSpec) -> RunResult | None:
        """Returns the result of a run; None if it has not finished or its file is damaged."""
        try:
            values = json.loads(self._path(spec).read_text(encoding="utf-8"))
            if values["spec"] != spec.to_json():
                return None
            result = values["result"]
            curve = [(int(step), float(loss)) for step, loss in result["curve"]]
            return RunResult(**{**result, "curve": curve})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def store(self, spec: RunSpec, result: RunResult) -> None:
        """Stores the result of a run, completely or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(spec)
        values = {"spec": spec.to_json(), "result": dataclasses.asdict(result)}
        with replacing(path) as new:
            new.write_text(json.dumps(values) + "\n", encoding="utf-8")

    def _path(self, spec: RunSpec) -> Path:
        return self.folder / f"{spec.digest[:32]}.json"


class PlannedRun(NamedTuple):
    """A run that has yet to be made.

    Attributes:
        spec: What to run.
        selection: What it trains on.
        rotation: Roles of the target's folds.
        questions: File of the questions that the model answers in the end; None for none.
    """

    spec: RunSpec
    selection: Selection
    rotation: int
    questions: Path | None = None


@dataclasses.dataclass(frozen=True)
class CapacityTask:
    """Asks a worker process how many models are trained side by side there.

    Attributes:
        model: Shape of the models.
        protocol: How they are trained.
        vocabulary: Size of the vocabulary.
    """

    model: Model
    protocol: Protocol
    vocabulary: int

    def __call__(self, report: Callable[[float], None]) -> int:
        """Returns the number of models, 1 on a CPU."""
        from datarater.meta_training.evaluate import training

        return training.models_together(self.model, self.protocol, self.vocabulary)


def plan_run(
    data: Data,
    selection: Selection,
    model: Model,
    protocol: Protocol,
    seed: int,
    questions: Path | None = None,
) -> PlannedRun:
    """Returns the run of an arm, on data in the rotation of the seed.

    Args:
        data: The data.
        selection: What the run trains on.
        model: Shape of the language model.
        protocol: How it is trained.
        seed: Seed of its initialization and walk.
        questions: File of the questions that it answers, named by its digest; None for none.
    """
    spec = RunSpec(
        model,
        protocol,
        seed,
        data.digest,
        data.validation_digest,
        selection.digest,
        "" if questions is None else questions.stem,
    )
    return PlannedRun(spec, selection, data.rotation, questions)


@dataclasses.dataclass(frozen=True)
class TrainTask:
    """Runs for a worker process, which trains them together and stores the results itself.

    Attributes:
        data: Folder of the data.
        runs: Folder of the cache.
        planned: The runs, with one model and one protocol.
    """

    data: str
    runs: str
    planned: tuple[PlannedRun, ...]

    def __call__(self, report: Callable[[float], None]) -> list[RunResult]:
        """Trains, stores and returns the results, in the order of `planned`."""
        from datarater.meta_training.evaluate import training

        data, first = open_data(self.data), self.planned[0].spec
        jobs = [
            training.Job(data.at(each.rotation), each.selection, each.spec.seed)
            for each in self.planned
        ]
        made = training.train_together(jobs, first.model, first.protocol, report)
        cache, results = RunCache(Path(self.runs)), []
        for each, run in zip(self.planned, made, strict=True):
            answering = time.monotonic()
            tasks = _answers(each, run.params, data) if each.questions else {}
            seconds = run.seconds + time.monotonic() - answering
            result = RunResult(
                run.curve, run.choice_loss, run.by_source, run.passes, seconds, tasks
            )
            cache.store(each.spec, result)
            results.append(result)
        return results


def _answers(planned: PlannedRun, params: Any, data: Data) -> dict[str, dict[str, float]]:
    """Lets a trained model answer the questions of a run."""
    from datarater.meta_training.evaluate import training
    from datarater.meta_training.evaluate.multiple_choice import answer
    from datarater.meta_training.evaluate.questions import load_questions

    spec = planned.spec
    config = training.language_model_config(spec.model, data.tokenizer.vocabulary_size)
    files = load_questions(str(planned.questions))
    results = answer(params, files, config, data.tokenizer, spec.protocol.length)
    return {name: dataclasses.asdict(result) for name, result in results.items()}
