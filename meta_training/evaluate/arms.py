"""The arms of an evaluation: what scores the documents of the pool.

Every arm gives each document a score. The best documents are kept up to an exact share of the bytes
or tokens, or the best chunks of each oversampled batch. `random` scores all alike, so that the
seeded tie-breaker decides.

    OUTPUT/scores/DIGEST.npz   the scores of an arm, and the seconds that they took

N counts documents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datarater.meta_training.evaluate.arm_names import (
    BATCH_TOP_K,
    DOCUMENTS,
    LABEL,
    OF_RATER,
    OF_TARGET,
    PERPLEXITY,
    RANDOM,
    RANDOM_AGAIN,
    RATER,
    START,
    UNFILTERED,
    without_floor,
)
from datarater.meta_training.evaluate.combining import mean_ranks
from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.keeping import keep_best, rank, seeded_hash, source_floors
from datarater.meta_training.evaluate.kept_files import find_in_pool
from datarater.meta_training.evaluate.model_scores import (
    POOL,
    TARGET,
    LanguageModelTask,
    RaterTask,
)
from datarater.meta_training.evaluate.pool import Data
from datarater.meta_training.evaluate.protocol import Model, Protocol
from datarater.meta_training.evaluate.raters import (
    RaterTraining,
    rater_training,
    start_rater,
    train_raters,
)
from datarater.meta_training.evaluate.text_filters import filter_scores
from datarater.meta_training.evaluate.walk import BatchTopK, KeptDocuments, Selection
from datarater.meta_training.evaluate.workers import Workers
from datarater.rater_model.atomic_files import replacing
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.jsonl import key_of
from datarater.rater_model.documents.records import ReadOptions

SCORES_VERSION = 2
"""Raised whenever the same arm on the same data would give other scores."""

_DRAWS = {RANDOM: 1, RANDOM_AGAIN: 2}
_LM_SEED = 1_000_003


@dataclasses.dataclass(frozen=True)
class ArmOptions:
    """What the arms are made of.

    Attributes:
        names: Names of the arms, `unfiltered` first.
        raters: Folders of rater checkpoints; seed s uses number s modulo their number.
        training: Flags of `datarater train`, to train a fresh rater for each seed; None not to.
        rotate: Whether the folds of the target change their roles from seed to seed.
        scores: Parquet files of users' scores, by the name of the arm.
        kept: Files of kept documents, by the name of the arm.
        combined: Weights of the arms whose mean rank an arm ranks by, by its name.
        fields: Fields of the documents of `kept`.
        selection: Way to select, `DOCUMENTS` or `BATCH_TOP_K`.
        source_floor: Share of each source that an arm's `floored` twin keeps at least, where its
            own share is not below that; None without twins.
        keep_unit: "bytes" or "tokens", the unit of kept shares of documents.
        model: Shape of the small language models of the perplexity arms.
        protocol: How they are trained.
    """

    names: tuple[str, ...]
    raters: tuple[str, ...] = ()
    training: tuple[str, ...] | None = None
    rotate: bool = False
    scores: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    combined: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    fields: ReadOptions = dataclasses.field(default_factory=ReadOptions)
    selection: str = DOCUMENTS
    source_floor: float | None = None
    keep_unit: str = "bytes"
    model: Model = dataclasses.field(default_factory=lambda: Model(32, 2, 96, 2))
    protocol: Protocol = dataclasses.field(default_factory=Protocol)

    def parts(self, name: str) -> tuple[str, ...]:
        """Returns the arms whose scores an arm ranks by: usually itself alone.

        Args:
            name: Name of the arm, which may be a twin with a floor.
        """
        name = without_floor(name)
        return tuple(self.combined.get(name, (name,)))

    def needs_rater(self, name: str) -> bool:
        """Returns whether an arm scores by a rater, alone or among others."""
        return not OF_RATER.isdisjoint(self.parts(name))

    @property
    def any_needs_rater(self) -> bool:
        """Whether any arm scores by a rater."""
        return any(map(self.needs_rater, self.names))


class Arms:
    """Scores documents and decides which are kept.

    Args:
        data: The data.
        options: What the arms are made of.
        output: Output folder, where scores are cached.
        workers: Processes that score with models.
        say: Prints a line of progress.
    """

    def __init__(
        self,
        data: Data,
        options: ArmOptions,
        output: Path,
        workers: Workers,
        say: Callable[[str], None],
    ) -> None:
        self._data = data
        self._options = options
        self._output = output
        self._workers = workers
        self._say = say
        self._scores: dict[tuple[str, int, str], NDArray[np.float64]] = {}
        self._counted: set[str] = set()
        self.seconds = 0.0
        self.notes: list[str] = []
        self.used_raters: list[str] = []
        self._sources = [] if options.source_floor is None else _distinct_sources(data)
        self._kept = {name: self._find(name) for name in options.kept if name in options.names}

    @property
    def own_shares(self) -> dict[str, float]:
        """Share of the pool's bytes of each arm of `--kept`, to four decimals."""
        bytes_N = self._data.bytes_N
        return {
            name: round(float(bytes_N[kept_N].sum() / bytes_N.sum()), 4)
            for name, kept_N in self._kept.items()
        }

    def data(self, seed: int) -> Data:
        """Returns the data in the rotation of a seed."""
        return self._data.at(seed if self._options.rotate else 0)

    def rotations(self, seeds: Iterable[int]) -> list[int]:
        """Returns the rotations of the target's folds in which arms of some seeds learn from it."""
        parts = {part for name in self._options.names for part in self._options.parts(name)}
        if parts.isdisjoint(OF_TARGET | OF_RATER):
            return []
        return sorted({self.data(seed).rotation for seed in seeds})

    @property
    def rater_per_seed(self) -> bool:
        """Whether more seeds need more raters, to be trained or at least to score the pool."""
        return self._options.training is not None or len(self._options.raters) > 1

    def needs_rater(self, name: str) -> bool:
        """Returns whether an arm scores by a rater, alone or among others."""
        return self._options.needs_rater(name)

    def prepare(self, name: str, seeds: Sequence[int]) -> float:
        """Makes the scores of an arm for seeds, and their raters.

        Returns:
            Seconds of wall time that this took when it was first done, beyond what was prepared
            before.
        """
        before = self.seconds
        if self.needs_rater(name):
            self.train_raters(seeds)
        if name != UNFILTERED and name not in self._kept:
            for seed in seeds:
                self.scores(name, seed)
        return self.seconds - before

    def train_raters(self, seeds: Iterable[int]) -> None:
        """Trains the raters of seeds, several at a time, where raters are to be trained."""
        if self._options.training is not None and self._options.any_needs_rater:
            trainings = [self._training(seed) for seed in seeds]
            train_raters(trainings, self._workers, self._say)
            for training in trainings:
                self._count(training.workdir, training.seconds / self._workers.processes)

    def _count(self, what: str, seconds: float) -> None:
        """Adds the seconds that something took, once."""
        if what not in self._counted:
            self._counted.add(what)
            self.seconds += seconds

    def rater(self, seed: int) -> str:
        """Returns the folder of the rater of a seed."""
        if self._options.training is not None:
            return str(self._training(seed).rater)
        return self._options.raters[seed % len(self._options.raters)]

    def _training(self, seed: int) -> RaterTraining:
        assert self._options.training is not None
        return rater_training(self.data(seed), self._options.training, seed, self._output)

    def select(self, name: str, keep: float, seed: int, batch: int) -> Selection:
        """Returns what an arm trains on.

        Args:
            name: Name of the arm.
            keep: Share of the bytes or tokens, or of the chunks of an oversampled batch.
            seed: Seed of the run.
            batch: B, windows of an update.
        """
        data = self._data
        if name == UNFILTERED:
            return KeptDocuments(np.ones(len(data.hashes_N), bool))
        if name in self._kept:
            return KeptDocuments(self._kept[name])
        sizes_N = data.bytes_N if self._options.keep_unit == "bytes" else data.tokens_N
        # A random arm draws anew for each seed; in any other, equal scores are in a fixed order.
        draw = _DRAWS.get(name, 0)
        ties_N = seeded_hash(data.hashes_N, seed if draw else 0, draw)
        scored = without_floor(name)
        scores_N = self.scores(scored, seed)
        if self._options.selection == BATCH_TOP_K:
            return BatchTopK(rank(scores_N, ties_N), best=batch, drawn=round(batch / keep))
        required_N = None
        if scored != name:
            floor = min(keep, self._options.source_floor or 0.0)
            required_N = source_floors(scores_N, sizes_N, floor, ties_N, self._sources)
        return KeptDocuments(keep_best(scores_N, sizes_N, keep, ties_N, required_N))

    def scores(self, name: str, seed: int = 0) -> NDArray[np.float64]:
        """Returns the scores of an arm, from memory, the cache, or made now."""
        data, parts = self.data(seed), self._options.parts(name)
        raters = {part: self._rater_of(part, seed) for part in parts}
        rotation = 0 if OF_TARGET.isdisjoint(parts) else data.rotation
        key = (name, rotation, ",".join(raters.values()))
        if key in self._scores:
            return self._scores[key]

        if name in self._options.combined:
            weights = self._options.combined[name]
            of_parts = [self.scores(part, seed) for part in weights]
            self._scores[key] = mean_ranks(of_parts, list(weights.values()))
        else:
            self._scores[key] = self._make(name, data, raters[name])
        return self._scores[key]

    def _rater_of(self, name: str, seed: int) -> str:
        """Returns the folder of the rater that an arm scores by; empty for none."""
        if name not in OF_RATER:
            return ""
        rater = self.rater(seed)
        if name == START:
            return start_rater(rater)
        if rater not in self.used_raters:
            self.used_raters.append(rater)
        return rater

    def _find(self, name: str) -> NDArray[np.bool_]:
        options, data = self._options, self._data
        found = find_in_pool(
            name, options.kept[name], options.fields, data.column("key"), data.hashes_N
        )
        if found.missing:
            self.notes.append(
                f"{name}: {found.missing:,} of the {found.read:,} documents in its files are not "
                "in the pool and not trained on"
            )
        if found.changed:
            self.notes.append(
                f"{name}: {found.changed:,} of the {found.read:,} documents in its files are in "
                "the pool by key only, with another text; the pool's is trained on"
            )
        return found.kept_N

    def _make(self, name: str, data: Data, rater: str) -> NDArray[np.float64]:
        if name in _DRAWS:
            return np.zeros(len(self._data.hashes_N))
        if name in self._options.scores:
            return self._from_files(name)
        if name == LABEL:
            return _numbers(self._data.column("label"))
        if name in PERPLEXITY:
            by_pool = self._cached("pool_lm", data, lambda: self._by_lm(POOL, data))
            return _perplexity_rank(name, by_pool)

        makers: dict[str, Callable[[], NDArray[np.float64]]] = {
            "target_likelihood": lambda: self._by_lm(TARGET, data),
            RATER: lambda: self._by_rater(rater),
            START: lambda: self._by_rater(rater),
        }

        def by_filter() -> NDArray[np.float64]:
            return filter_scores(name, data.texts, [document.text for document in data.learning])

        return self._cached(name, data, makers.get(name, by_filter), rater)

    def _cached(
        self, name: str, data: Data, make: Callable[[], NDArray[np.float64]], rater: str = ""
    ) -> NDArray[np.float64]:
        values: dict[str, Any] = {
            "version": SCORES_VERSION,
            "arm": name,
            "pool": data.digest,
            "learning": data.learning_digest if name in OF_TARGET else "",
        }
        if rater:
            from datarater.rater_model.checkpoint import load_rater

            values["rater"] = load_rater(rater).digest
        if name in ("pool_lm", "target_likelihood"):
            values["model"] = dataclasses.asdict(self._options.model)
            values["protocol"] = self._options.protocol.to_json()
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
        path = self._output / "scores" / f"{digest}.npz"
        if not path.is_file():
            self._say(f"scoring the pool: {rater or name}")
            started = time.monotonic()
            scores_N = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                np.savez(new, scores=scores_N, seconds=time.monotonic() - started)
        with np.load(path) as stored:
            self._count(path.stem, float(stored["seconds"]))
            scores: NDArray[np.float64] = stored["scores"]
        return scores

    def _by_lm(self, corpus: str, data: Data) -> NDArray[np.float64]:
        model, protocol = self._options.model, self._options.protocol
        task = LanguageModelTask(str(data.folder), data.rotation, corpus, model, protocol, _LM_SEED)
        return self._results([task])[0]

    def _by_rater(self, rater: str) -> NDArray[np.float64]:
        edges = np.linspace(0, len(self._data.hashes_N), 9).astype(int)
        tasks = [
            RaterTask(str(self._data.folder), rater, int(first), int(last))
            for first, last in itertools.pairwise(edges)
        ]
        return np.concatenate(self._results(tasks))

    def _results(self, tasks: Sequence[LanguageModelTask | RaterTask]) -> list[NDArray[np.float64]]:
        results = {event.task: event.result for event in self._workers.run(tasks) if event.finished}
        return [results[index] for index in range(len(tasks))]

    def _from_files(self, name: str) -> NDArray[np.float64]:
        scores_N = read_scores(name, self._options.scores[name], self._data.column("key"))
        missing = int(np.isnan(scores_N).sum())
        if missing:
            self.notes.append(
                f"{name}: {missing:,} of {len(scores_N):,} documents of the pool have no score; "
                "they are dropped first"
            )
        return scores_N


def read_scores(name: str, patterns: Sequence[str], keys_N: Sequence[str]) -> NDArray[np.float64]:
    """Returns the score of each key from Parquet files, NaN without one.

    Args:
        name: Name of the arm, for messages.
        patterns: Files or globs, such as RUN/scores. Columns: `score`, and either `key`, as score
            files have it, or `id`, the documents' own id.
        keys_N: Keys of the pool's documents.

    Raises:
        FlagError: If a column is missing, a key has two scores, or no document has one.
    """
    found: dict[str, float] = {}
    for info in list_files(patterns):
        try:
            table = pq.read_table(info.path)
        except pa.ArrowInvalid as error:
            raise FlagError(f"--scores {name}: {info.path} is not a Parquet file") from error
        identity = next((each for each in ("key", "id") if each in table.column_names), None)
        if identity is None or "score" not in table.column_names:
            raise FlagError(
                f"--scores {name}: {info.path} needs the columns score, and key or id; it has "
                f"{', '.join(table.column_names)}"
            )

        identities, scores = table[identity].to_pylist(), table["score"].to_pylist()
        for value, score in zip(identities, scores, strict=True):
            if value is None or score is None:
                continue
            key = value if identity == "key" else key_of(value, "")
            if found.setdefault(key, score) != score:
                raise FlagError(f"--scores {name}: {info.path}: {key} has two different scores")

    scores_N = np.array([found.get(key, np.nan) for key in keys_N], np.float64)
    if np.isnan(scores_N).all():
        raise FlagError(
            f"--scores {name}: no document of the pool has a score; keys of the pool look like "
            f"{keys_N[0]}"
        )
    return scores_N


def _distinct_sources(data: Data) -> list[str]:
    """Returns the source of each document of the pool."""
    sources = data.column("source")
    if len(set(sources)) < 2:
        raise FlagError(
            f"--source_floor: all documents of the pool have the source {sources[0]!r}; name the "
            "field of their sources by --source_field"
        )
    return sources


def _numbers(labels: Sequence[str]) -> NDArray[np.float64]:
    """Returns labels as numbers; a missing one is NaN."""
    words = {"": "nan", "true": "1", "false": "0"}
    if not any(labels):
        raise FlagError("--arms label: no document of the pool has a label; check --label_field")
    try:
        return np.array([float(words.get(label, label)) for label in labels], np.float64)
    except ValueError as error:
        raise FlagError(
            f"--label_field: labels must be numbers, higher is better; {error}"
        ) from error


def _perplexity_rank(name: str, log_probability_N: NDArray[np.float64]) -> NDArray[np.float64]:
    if name == "perplexity_low":
        return log_probability_N
    if name == "perplexity_high":
        return -log_probability_N
    rank_N = log_probability_N.argsort().argsort() / max(1, len(log_probability_N) - 1)
    return np.where(np.isnan(log_probability_N), np.nan, -np.abs(rank_N - 0.5))
