"""Runs an evaluation: prepares the data, scores it, trains the models and sums up.

Seeds come in order, each with all arms, so that every difference is a pair. A budget chooses the
seeds, and the arms with their shares (see `spending`).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import datarater
from datarater.meta_training.evaluate.arm_names import (
    OF_RATER,
    OF_SMALL_MODEL,
    RANDOM,
    UNFILTERED,
)
from datarater.meta_training.evaluate.arms import ArmOptions, Arms
from datarater.meta_training.evaluate.budget import duration
from datarater.meta_training.evaluate.pool import Data, DataOptions, prepare_data, take_data
from datarater.meta_training.evaluate.protocol import QUESTIONS, Model, Protocol
from datarater.meta_training.evaluate.questions import read_questions, store_questions
from datarater.meta_training.evaluate.recommending import recommend
from datarater.meta_training.evaluate.results import (
    BASELINE,
    Costs,
    Entry,
    Runs,
    mean_choice_loss,
    summarize,
)
from datarater.meta_training.evaluate.runs import (
    CapacityTask,
    PlannedRun,
    RunCache,
    RunResult,
    TrainTask,
    plan_run,
)
from datarater.meta_training.evaluate.spending import spend
from datarater.meta_training.evaluate.target import uneven_folds
from datarater.meta_training.evaluate.walk import Selection, cut_into_chunks, order_of_a_pass
from datarater.meta_training.evaluate.workers import Workers
from datarater.rater_model.atomic_files import replacing

MAX_SEEDS = 100
REPORT = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything that is asked of an evaluation.

    Attributes:
        data: Files of the pool and the target.
        arms: The arms.
        keeps: Shares that every arm but `unfiltered` keeps.
        model: Shape of the language models.
        protocol: How they are trained.
        seeds: Number of seeds; with a budget, their maximum.
        first_seed: The first of the seeds.
        budget: Seconds of wall time, those of cached runs included; None for no limit.
        processes: Worker processes.
        one_rater: Whether a single rater for all seeds is what the user wants.
        arm_keeps: Shares of single arms, in place of `keeps`.
        prepared: Folder of data that an earlier evaluation prepared; empty to read `data`.
        together: Models that an accelerator trains side by side; 0 for what fits.
        tasks: Files of each downstream task's questions, by its name.
        task_questions: Maximum number of questions of a task.
    """

    data: DataOptions
    arms: ArmOptions
    keeps: tuple[float, ...]
    model: Model
    protocol: Protocol
    seeds: int
    budget: float | None
    processes: int
    one_rater: bool
    first_seed: int = 0
    arm_keeps: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    prepared: str = ""
    together: int = 0
    tasks: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    task_questions: int = QUESTIONS

    def entries(self, own_shares: Mapping[str, float]) -> list[Entry]:
        """Returns the rows of the evaluation, the baseline first.

        Args:
            own_shares: Share of each arm that has one of its own; the random arm is run at it too.
        """
        names = [name for name in self.arms.names if name != UNFILTERED]
        shares = {
            name: [own_shares[name]]
            if name in own_shares
            else list(self.arm_keeps.get(name, self.keeps))
            for name in names
        }
        if RANDOM in shares:
            shares[RANDOM] += own_shares.values()
        return list(
            dict.fromkeys(
                [BASELINE, *(Entry(name, keep) for name in names for keep in shares[name])]
            )
        )


def run_evaluation(
    evaluation: Evaluation, output: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs what is not cached and writes `evaluation.json`.

    Args:
        evaluation: What is asked.
        output: Output folder.
        say: Prints a line of progress.

    Returns:
        The content of `evaluation.json`.

    Raises:
        EvaluationError: If the data or an arm is unusable, or a worker fails.
        OSError: If a file cannot be read or written.
    """
    files = [
        read_questions(name, patterns, evaluation.task_questions)
        for name, patterns in evaluation.tasks.items()
    ]
    questions = store_questions(files, output / "tasks") if files else None

    if evaluation.prepared:
        data = take_data(Path(evaluation.prepared), output)
    else:
        data = prepare_data(evaluation.data, output)
    for line in data_lines(data):
        say(line)

    with Workers(evaluation.processes, output / "compiled") as workers:
        arms = Arms(data, evaluation.arms, output, workers, say)
        trainer = Trainer(evaluation, data, arms, workers, output, say, questions)
        for line in trainer.fold_warnings(range(evaluation.seeds)):
            say(f"warning: {line}")
        if evaluation.budget is not None:
            report = spend(trainer, arms, evaluation.budget, evaluation.seeds, say)
        else:
            seeds = range(evaluation.seeds)
            trainer.train(trainer.entries, seeds)
            report = trainer.report(trainer.entries, seeds)
        recommend(report, arms.used_raters, data.digest, say)
        return report


def data_lines(data: Data) -> list[str]:
    """Returns what there is to say of the data."""
    counts = data.counts
    lines = [
        f"pool: {counts['pool_documents']:,} documents, {counts['pool_bytes'] / 1e6:.1f} MB; of "
        "the others, "
        + ", ".join(
            f"{counts[f'pool_documents_{name}']:,} {meaning}"
            for name, meaning in (
                ("in_target", "are in the target"),
                ("near_target", "nearly are"),
                ("held_out", "are held out as the target"),
            )
        ),
        f"target: {counts['learning_documents']:,} documents to learn from, "
        f"{counts['validation_documents']:,} for choices and the test",
    ]

    if counts.get("target_documents_in_validation"):
        lines.append(
            f"{counts['target_documents_in_validation']:,} documents of --target are in "
            "--validation too, or nearly, and not learned from"
        )
    if counts.get("rejected"):
        lines.append(f"skipped records that cannot be read: {counts['rejected']}")
    return lines


class Trainer:
    """Makes the runs of an evaluation, and sums them up.

    Seeds are counted from the evaluation's first seed.

    Args:
        evaluation: What is asked.
        data: The data.
        arms: Scores documents and decides which are kept.
        workers: Processes that train.
        output: Output folder.
        say: Prints a line of progress.
        questions: File of the questions that models answer; None for none.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        data: Data,
        arms: Arms,
        workers: Workers,
        output: Path,
        say: Callable[[str], None],
        questions: Path | None,
    ) -> None:
        self._evaluation = evaluation
        self._data = data
        self._arms = arms
        self._workers = workers
        self._output = output
        self._say = say
        self._questions = questions
        self.entries = evaluation.entries(arms.own_shares)
        self._cache = RunCache(output / "runs")
        self._results: dict[tuple[Entry, int], RunResult] = {}
        self._selections: dict[Entry, Selection] = {}

    def numbers(self, seeds: Sequence[int]) -> list[int]:
        """Returns the seeds as numbers of runs."""
        return [self._evaluation.first_seed + seed for seed in seeds]

    def train(self, entries: Sequence[Entry], seeds: Sequence[int]) -> None:
        """Makes sure that every entry has a run of each seed."""
        if any(self._arms.needs_rater(entry.arm) for entry in entries):
            self._arms.train_raters(self.numbers(seeds))

        # What runs twice by content runs once.
        model, protocol = self._evaluation.model, self._evaluation.protocol
        planned: dict[str, PlannedRun] = {}
        users: dict[str, list[tuple[Entry, int]]] = {}
        for seed in self.numbers(seeds):
            data = self._arms.data(seed)
            for entry in entries:
                if (entry, seed) in self._results:
                    continue
                selection = self._arms.select(entry.arm, entry.keep, seed, protocol.batch)
                self._selections.setdefault(entry, selection)
                run = plan_run(data, selection, model, protocol, seed, self._questions)
                cached = self._cache.load(run.spec)
                if cached is not None:
                    self._results[entry, seed] = cached
                    continue
                users.setdefault(run.spec.digest, []).append((entry, seed))
                planned[run.spec.digest] = run

        if planned:
            self._make(list(planned.values()), users)

    def _make(
        self, planned: Sequence[PlannedRun], users: Mapping[str, Sequence[tuple[Entry, int]]]
    ) -> None:
        """Makes runs, and reports each with the time that is left."""
        size = self._together(len(planned))
        groups = [tuple(planned[first : first + size]) for first in range(0, len(planned), size)]
        folder, cache = str(self._data.folder), str(self._cache.folder)
        tasks = [TrainTask(folder, cache, group) for group in groups]

        progress = [0.0] * len(tasks)
        started, done = time.monotonic(), 0
        for event in self._workers.run(tasks):
            progress[event.task] = event.share * len(groups[event.task])
            if not event.finished:
                continue
            left = (time.monotonic() - started) * (len(planned) / sum(progress) - 1)
            for run, result in zip(groups[event.task], event.result, strict=True):
                done += 1
                names = users[run.spec.digest]
                self._results.update(dict.fromkeys(names, result))
                entry, seed = names[0]
                self._say(
                    f"[{done}/{len(planned)}] {entry.arm}, keep {entry.keep:g}, seed {seed}: "
                    f"loss {result.final_loss:.4f} in {result.seconds:.0f} s; "
                    f"{duration(left)} left"
                )

    def _together(self, runs: int) -> int:
        """Returns the number of models that a process trains side by side."""
        evaluation = self._evaluation
        vocabulary = self._data.tokenizer.vocabulary_size
        question = CapacityTask(evaluation.model, evaluation.protocol, vocabulary)
        (fits,) = [event.result for event in self._workers.run([question]) if event.finished]
        most = evaluation.together if fits > 1 and evaluation.together else fits
        # Groups of one size share a compiled program.
        return -(-runs // -(-runs // most))

    def run_seconds(self, entries: Sequence[Entry], seeds: Sequence[int]) -> float:
        """Returns the wall time of a run, wherever it was spent; several at a time share it.

        It is the median of finished runs: the first run of a process compiles.
        """
        runs = self._runs(entries, seeds)
        return float(np.median([run.seconds for run in runs])) / self._evaluation.processes

    def spent_seconds(self, entries: Sequence[Entry], seeds: Sequence[int]) -> float:
        """Returns the wall time of all runs; arms that select the same share one."""
        runs = self._runs(entries, seeds)
        return sum(run.seconds for run in runs) / self._evaluation.processes

    def _runs(self, entries: Sequence[Entry], seeds: Sequence[int]) -> list[RunResult]:
        runs = [self._results[entry, seed] for seed in self.numbers(seeds) for entry in entries]
        return list({id(run): run for run in runs}.values())

    def choice_loss(self, entry: Entry, seeds: Sequence[int]) -> float:
        """Returns the mean final loss on the documents that choices are made on."""
        return mean_choice_loss([self._results[entry, seed] for seed in self.numbers(seeds)])

    def report(
        self,
        entries: Sequence[Entry],
        seeds: Sequence[int],
        screen: tuple[Sequence[Entry], Sequence[int]] | None = None,
    ) -> dict[str, Any]:
        """Writes `evaluation.json` and returns its content.

        Args:
            entries: Rows of the evaluation.
            seeds: Their seeds.
            screen: Entries and seeds that led to the rows, where those were chosen.
        """
        evaluation, data = self._evaluation, self._data
        options = dataclasses.asdict(evaluation)
        summary = self._summary(entries, seeds, screen)
        for row in summary["arms"]:
            row |= self._kept(Entry(row["arm"], row["keep"]))
        report = {
            "version": 1,
            "datarater": datarater.__version__,
            "options": options,
            "data": data.counts,
            "parameters": self._parameters(),
            **summary,
            "warnings": self.fold_warnings(seeds) + self._warnings(summary),
        }
        with replacing(self._output / REPORT) as new:
            new.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return report

    def _kept(self, entry: Entry) -> dict[str, int]:
        """Returns how much of the pool the first seed's first pass trains on."""
        data = self._data
        chunks = cut_into_chunks(data.token_ends_N, self._evaluation.protocol.length)
        chosen_C = order_of_a_pass(chunks, self._selections[entry], seed=0, number=0)
        tokens_N = np.bincount(
            chunks.document_C[chosen_C], chunks.size_C[chosen_C], minlength=len(data.bytes_N)
        )
        return {
            "kept_documents": int((tokens_N > 0).sum()),
            "kept_bytes": round(
                float((data.bytes_N * tokens_N / np.maximum(1, data.tokens_N)).sum())
            ),
            "kept_tokens": int(tokens_N.sum()),
        }

    def _summary(
        self,
        entries: Sequence[Entry],
        seeds: Sequence[int],
        screen: tuple[Sequence[Entry], Sequence[int]] | None,
    ) -> dict[str, Any]:
        def runs_of(entries: Sequence[Entry], seeds: Sequence[int]) -> Runs:
            numbers = self.numbers(seeds)
            return {entry: [self._results[entry, seed] for seed in numbers] for entry in entries}

        protocol = self._evaluation.protocol
        return summarize(
            runs_of(entries, seeds),
            self._costs(),
            protocol.batch * protocol.length,
            None if screen is None else runs_of(*screen),
        )

    def _costs(self) -> Costs:
        from datarater.meta_training.evaluate.gains import forward_flops, training_flops
        from datarater.rater_model.checkpoint import load_rater
        from datarater.rater_model.ngram_rater import NgramConfig

        evaluation, vocabulary = self._evaluation, self._data.tokenizer.vocabulary_size
        small, length = evaluation.arms.model.transformer, evaluation.arms.protocol.length
        of_small = forward_flops(small, length, vocabulary)
        scoring = dict.fromkeys(OF_SMALL_MODEL, of_small)
        if evaluation.arms.any_needs_rater:
            config = load_rater(self._arms.rater(evaluation.first_seed)).config
            # An n-gram rater adds one weight of each order per token.
            of_rater = (
                float(len(config.orders))
                if isinstance(config, NgramConfig)
                else forward_flops(config.transformer, config.window)
            )
            scoring |= dict.fromkeys(OF_RATER, of_rater)
        for name, weights in evaluation.arms.combined.items():
            scoring[name] = sum(scoring.get(part, 0.0) for part in weights)
        model = evaluation.model.transformer
        return Costs(training_flops(model, evaluation.protocol.length, vocabulary), scoring)

    def _parameters(self) -> int:
        from datarater.meta_training.evaluate.training import parameter_count

        return parameter_count(self._evaluation.model, self._data.tokenizer.vocabulary_size)

    def fold_warnings(self, seeds: Sequence[int]) -> list[str]:
        """Returns where the folds of the target differ by source in seeds that learn from it."""
        return uneven_folds(self._data.target, self._arms.rotations(self.numbers(seeds)))

    def _warnings(self, summary: dict[str, Any]) -> list[str]:
        warnings = list(self._arms.notes)
        arms = self._evaluation.arms
        raters = summary["seeds"] if arms.training is not None else len(arms.raters)
        too_few = arms.any_needs_rater and raters < summary["seeds"]
        if too_few and not self._evaluation.one_rater:
            warnings.append(
                f"{raters} rater{'s serve' if raters > 1 else ' serves'} {summary['seeds']} "
                "seeds: the interval leaves out part of the spread between raters; give one "
                "--rater per seed, or --fixed_rater if only this rater matters"
            )
        for row in summary["arms"]:
            if row["passes"] > 1:
                warnings.append(
                    f"{row['arm']}, keep {row['keep']:g}: trained on {row['passes']} passes over "
                    "its documents; give a larger pool, or fewer --steps"
                )
        if summary["seeds"] == 1:
            warnings.append("a single seed gives no interval")
        return warnings
