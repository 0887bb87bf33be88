"""Scores one split: reads its records, scores them in batches and commits one score file.

`score_split` is the work itself. Two DoFns apply it to splits: `ScoreSplit` to those that the
runner deals out, and `ScoreFromRow` to those that the workers of one machine take by themselves.
The first commit of a score file wins, so a split that two workers score counts once.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils import shared

from datarater.pipelines import errors
from datarater.pipelines.bad_splits import (
    SPLIT_CHANGED,
    SPLIT_CRASHED,
    SPLIT_OUT_OF_MEMORY,
    SPLIT_UNREADABLE,
)
from datarater.pipelines.errors import (
    CurationError,
    InputChangedError,
    OutOfMemoryError,
    PoisonSplitError,
    RunFolderMismatchError,
    UnreadableInputError,
)
from datarater.pipelines.graph.cascade import CascadeScorer, Doubt
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits, split_marks, summaries
from datarater.pipelines.run_folder.committed import scored_ordinals
from datarater.pipelines.run_folder.identity import RunOptions
from datarater.pipelines.run_folder.plan import SplitTask, plans_of, unchanged
from datarater.pipelines.run_folder.score_files import SCORE_NOT_FINITE, ScoreRows, Section
from datarater.pipelines.run_folder.scored import read_scoring
from datarater.pipelines.run_folder.split_marks import Attempt
from datarater.rater_model.checkpoint import CheckpointError, RaterCheckpoint, load_rater
from datarater.rater_model.documents.content import content_digest
from datarater.rater_model.documents.formats import format_named
from datarater.rater_model.documents.reading import read_split, recognized
from datarater.rater_model.documents.records import (
    Compression,
    Document,
    ReadOptions,
    Record,
)
from datarater.rater_model.documents.store_errors import raising_os_errors
from datarater.rater_model.documents.unreadable import Unreadable
from datarater.rater_model.scoring_options import limit_cpu_threads
from datarater.rater_model.text_scorer import PendingScores, TextScorer

METRICS = "datarater"

# Size of a batch for the scorer: enough texts for full model calls at every length, and small
# enough to keep several in memory.
BATCH_RECORDS = 1024
BATCH_BYTES = 4 * 2**20
_GROUPS_IN_MEMORY = 8


def score_split(
    task: SplitTask,
    read: ReadOptions,
    rater: TextScorer,
    *,
    rejects: bool = False,
    retry_seconds: Sequence[float] = (),
    attempt: Attempt | None = None,
) -> IO[bytes]:
    """Reads and scores one split.

    Args:
        task: The split.
        read: How records are read.
        rater: The scorer.
        rejects: Whether a file of the split that cannot be read is rejected whole.
        retry_seconds: Seconds before each further try of the split, if a file would be rejected.
        attempt: Which files of the split ended workers; None if none did.

    Returns:
        The split's score file, to be read from its beginning.

    Raises:
        InputChangedError: The file has changed since it was planned.
        CurationError: The file cannot be read, or there is not enough memory.
    """
    waits = list(retry_seconds)
    bad: dict[int, CurationError] = {}
    if attempt is not None and attempt.bad:
        bad = {
            number: split_marks.poison(split_marks.describe(part))
            for number, part in enumerate(task.each())
            if number in attempt.bad
        }
        if not rejects:
            raise next(iter(bad.values()))
    begin = attempt.begin if attempt is not None and attempt.file_by_file else None

    while True:
        try:
            return _score_parts(task, read, rater, bad, begin)
        except _PartFailedError as failed:
            if not rejects:
                raise failed.error from failed.__cause__

            # A store may answer again before a file is given up.
            may_pass = type(failed.error) is UnreadableInputError
            if waits and may_pass:
                time.sleep(waits.pop(0))
            else:
                bad[failed.part] = failed.error


class _PartFailedError(Exception):
    """A file of a split could not be scored."""

    def __init__(self, part: int, error: CurationError):
        super().__init__(str(error))
        self.part = part
        self.error = error


def _score_parts(
    task: SplitTask,
    read: ReadOptions,
    rater: TextScorer,
    bad: Mapping[int, CurationError],
    begin: Callable[[int, SplitTask], None] | None,
) -> IO[bytes]:
    """Scores the files of a split, or rejects those that are known to be bad.

    Args:
        task: The split.
        read: How records are read.
        rater: The scorer.
        bad: Errors of the files that are known to be bad, by their numbers in the split.
        begin: Called with each file and its number before it is scored by itself; None to score
            the documents of several files together.

    Raises:
        _PartFailedError: A file could not be scored.
    """
    scoring = _BatchScoring(rater, task.paths)
    scored: list[Section] = []
    number, part = 0, task
    try:
        for number, part in enumerate(task.each()):
            if number in bad:
                scoring.reject(part, number, bad[number])
                scored.append(_UNREAD)
                continue
            if begin is not None:
                scoring.finish()
                begin(number, part)
            with unchanged(part) as fingerprint, raising_os_errors(part.split.path):
                split = recognized(part.split)
                for record in read_split(split, read):
                    scoring.add(record, number)
                layout = format_named(split.format).layout(split)
                content = content_digest(split, fingerprint)
            scored.append(Section(split.format, split.compression, layout, 0, content))
        scoring.finish()
    except InputChangedError as error:
        raise _PartFailedError(number, error) from error
    except OSError as error:
        unreadable = errors.reading_failed(part.split.path, error)
        raise _PartFailedError(number, unreadable) from error
    except MemoryError as error:
        too_large = OutOfMemoryError(
            f"{split_marks.describe(task)} needs more memory than is available; "
            "run the same command with fewer --local_workers or a smaller --tokens_per_batch, or "
            "continue without it by --on_bad_split reject"
        )
        raise _PartFailedError(number, too_large) from error

    return _to_parquet(scoring.rows, task, scored, rater.digest)


def reject_split(task: SplitTask, error: CurationError, options: RunOptions) -> IO[bytes]:
    """Returns the score file of a split that is rejected whole.

    Args:
        task: The split.
        error: What happened.
        options: Options of the run.
    """
    rows = ScoreRows(
        task.paths, has_student=options.cascade is not None, other_raters=options.other_raters
    )
    for number, part in enumerate(task.each()):
        rows.reject(part.split.start, _reason_to_reject(error), str(error), number)
    return _to_parquet(rows, task, [_UNREAD] * task.parts, options.rater)


_UNREAD = Section(
    Unreadable.name, Compression.NONE, layout=f"{Unreadable.name}/{Compression.NONE}", rows=0
)
"""A file that was not read."""


def _to_parquet(
    rows: ScoreRows, task: SplitTask, sections: Sequence[Section], rater_digest: str
) -> IO[bytes]:
    # What was recognized belongs into the score file: the second read does not look again.
    first = sections[0]
    split = dataclasses.replace(task.split, format=first.format, compression=first.compression)
    task = dataclasses.replace(task, split=split)
    if task.packed:
        return rows.to_parquet(task, first.layout, rater_digest, sections)
    return rows.to_parquet(task, first.layout, rater_digest, content=first.content)


def _reason_to_reject(error: CurationError) -> str:
    if isinstance(error, InputChangedError):
        return SPLIT_CHANGED
    if isinstance(error, OutOfMemoryError):
        return SPLIT_OUT_OF_MEMORY
    return SPLIT_CRASHED if isinstance(error, PoisonSplitError) else SPLIT_UNREADABLE


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Records that are scored together, the number of each one's file, and their scores."""

    records: list[Record]
    parts: list[int]
    scores: PendingScores


class _BatchScoring:
    """Scores the records of a split in batches, across its files.

    On a GPU the next records are read while some batches are scored (`TextScorer.batches_ahead`).

    Args:
        rater: The scorer.
        paths: Paths of the split's files, in order.

    Attributes:
        rows: Rows of the scored batches.
    """

    def __init__(self, rater: TextScorer, paths: Sequence[str]):
        self.rows = ScoreRows(paths, has_student=rater.has_student, other_raters=rater.other_raters)
        self._rater = rater
        self._records: list[Record] = []
        self._parts: list[int] = []
        self._bytes = 0
        self._pending: deque[_Batch] = deque()

    def add(self, record: Record, part: int) -> None:
        """Adds a record of a file, given by its number in the split."""
        self._records.append(record)
        self._parts.append(part)
        # A short text may be part of a large record.
        self._bytes += (
            max(record.size, len(record.raw or b""))
            if isinstance(record, Document)
            else len(record.excerpt)
        )
        if len(self._records) >= BATCH_RECORDS or self._bytes >= BATCH_BYTES:
            self._submit()
            self._collect(self._rater.batches_ahead)

    def reject(self, part: SplitTask, number: int, error: CurationError) -> None:
        """Rejects a file, given by its number in the split, whole."""
        self.finish()  # rows have the order of the files
        self.rows.reject(part.split.start, _reason_to_reject(error), str(error), number)

    def finish(self) -> None:
        """Scores the records that are left, and waits for all scores."""
        self._submit()
        self._collect(0)

    def _submit(self) -> None:
        texts = [record.text for record in self._records if isinstance(record, Document)]
        self._pending.append(_Batch(self._records, self._parts, self._rater.submit(texts)))
        self._records, self._parts, self._bytes = [], [], 0

    def _collect(self, ahead: int) -> None:
        """Adds the rows of the oldest batches until no more than `ahead` wait for their scores."""
        while len(self._pending) > ahead:
            batch = self._pending.popleft()
            scored = batch.scores.result()
            not_finite = self.rows.add(
                batch.records,
                scored.scores_N,
                scored.tokens_N,
                batch.parts,
                scored.by_rater_N,
                scored.other_scores,
            )

            Metrics.counter(METRICS, "documents").inc(len(scored.scores_N) - not_finite)
            Metrics.counter(METRICS, "tokens").inc(int(scored.tokens_N.sum()))
            reasons = Counter({SCORE_NOT_FINITE: not_finite})
            for record in batch.records:
                if not isinstance(record, Document):
                    reasons[str(record.reason)] += record.records
            for reason, count in (+reasons).items():
                Metrics.counter(METRICS, f"rejected_{reason}").inc(count)


class _Scoring(Step[ScoringRequest]):
    """Scores splits and commits their score files.

    The rater is loaded once per process. On a CPU it computes on one thread, and more processes add
    more speed; the threads of a process share a GPU.

    Args:
        request: The scoring.
        load: Loads the rater.
    """

    def __init__(
        self, request: ScoringRequest, load: Callable[[str], RaterCheckpoint] = load_rater
    ):
        super().__init__(request)
        self._load_rater = load
        self._shared = shared.Shared()
        self._rater: TextScorer | None = None

    def setup(self) -> None:
        """Prepares the process.

        The rater is not loaded before a split needs it: a resumed run may find all splits scored.
        """
        super().setup()
        limit_cpu_threads()
        split_marks.watch_launcher()

    def _load(self) -> TextScorer:
        # Loads JAX, which selecting does without.
        from datarater.rater_model.ngram_scorer import NgramScorer
        from datarater.rater_model.several_raters import make_several

        request, options = self._request, self._request.options
        rater = self._load_unchanged("rater", request.rater, options.rater)
        others = {
            name: self._load_unchanged(f"rater {name}", path, options.other_raters[name])
            for name, path in request.other_raters.items()
        }
        scorer = make_several(rater, others, options.scoring, reads_ahead=request.reads_ahead)
        if options.cascade is None:
            return scorer

        student = self._load_unchanged("student", request.student, options.cascade.student)
        # The band is that of the first plan: documents that were scored stay as they are.
        first_pass = read_scoring(request.first_pass.folder, plans=1)
        return CascadeScorer(
            NgramScorer(student),
            scorer,
            rater.tokenizer,
            Doubt.of(first_pass.histogram, options.cascade),
            options.cascade.offset,
        )

    def _load_unchanged(self, flag: str, path: str, digest: str) -> RaterCheckpoint:
        """Loads a rater, which must be the one that the run began with."""
        try:
            checkpoint = self._load_rater(path)
        except (CheckpointError, OSError) as error:
            raise CurationError(f"--{flag}: {error}") from error
        if checkpoint.digest != digest:
            raise RunFolderMismatchError(
                f"the {flag} {path} has changed: its digest is {checkpoint.digest}, but this run "
                f"began with {digest}"
            )
        return checkpoint

    def score(self, task: SplitTask, attempt: Attempt | None = None) -> None:
        """Scores a split and commits its score file; see `score_split`."""
        request = self._request
        # Beam shares the rater weakly: this reference keeps it alive between splits.
        self._rater = self._shared.acquire(self._load, tag=request.options.rater)
        scored = score_split(
            task,
            request.options.read,
            self._rater,
            rejects=request.rejects_bad_splits,
            retry_seconds=request.retry_seconds,
            attempt=attempt,
        )
        with scored:
            commits.commit_file(request.folder.score_path(task.split.ordinal), scored)
        Metrics.counter(METRICS, "splits_scored").inc()


@beam.typehints.with_output_types(tuple[int, int])
class ScoreSplit(_Scoring):
    """Scores a split, unless its score file is already committed."""

    def process(self, task: SplitTask) -> Iterator[tuple[int, int]]:
        """Scores one split; emits its group and ordinal once its score file is committed."""
        request = self._request
        path = request.folder.score_path(task.split.ordinal)
        if commits.exists(path):
            Metrics.counter(METRICS, "splits_found_scored").inc()
        else:
            self.score(task)
        yield task.group, task.split.ordinal


@beam.typehints.with_output_types(int)
class ScoreFromRow(_Scoring):
    """Scores splits that no other worker of this machine has taken, until none is left.

    Beam's local runner deals all splits out before the first one is read. A worker with many or
    long splits would then finish long after the others. Here each worker takes the biggest split
    left whenever it is free, and marks it (`datarater.pipelines.run_folder.split_marks`).
    """

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[int]:
        """Scores splits until none is left.

        Args:
            element: Number of the worker, and the numbers of all groups.

        Yields:
            The number of the worker.
        """
        slot, groups = element
        folder, launch = self._request.folder, self._request.launch

        # List the places of the splits without a score file, the biggest first. Their files are
        # read again when their turn comes: there may be millions.
        scored = set(scored_ordinals(folder).tolist())
        plans = plans_of(folder)
        places = [
            (-task.size, group, number)
            for group in sorted(groups)
            if not summaries.is_summarised(folder, group)
            for number, task in enumerate(plans.read_group(group))
            if task.split.ordinal not in scored
        ]
        places.sort()
        tasks_of = functools.lru_cache(maxsize=_GROUPS_IN_MEMORY)(plans.read_group)

        for _, group, number in places:
            task = tasks_of(group)[number]
            path = folder.score_path(task.split.ordinal)
            if commits.exists(path):
                continue
            try:
                with split_marks.taken(folder, task, launch) as attempt:
                    # Another worker may have committed it after the check above.
                    if attempt is not None and not commits.exists(path):
                        self.score(task, attempt)
            except PoisonSplitError as error:
                if not self._request.rejects_bad_splits:
                    raise
                with reject_split(task, error, self._request.options) as rejected:
                    commits.commit_file(path, rejected)

        yield slot
