"""Scoring: every split once, one committed score file each; then summaries, then `scoring.json`."""

import dataclasses
import datetime
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
from apache_beam.metrics import Metrics
from apache_beam.utils import shared
from numpy.typing import NDArray

from pipelines import attempts, commits, errors, lease, ledger, splits, summaries
from pipelines.errors import (
    BooksError,
    CurationError,
    EmptyCorpusError,
    RejectedShareError,
    RunFolderMismatchError,
    UsageError,
)
from pipelines.fingerprints import check_fingerprint
from pipelines.ledger import RunFolder, SplitTask
from pipelines.listing import PREFIXES, entries_of, merge_ordinals, ordinals_of, scored_ordinals
from pipelines.score_files import SCORE_NOT_FINITE, ScoreRows
from pipelines.summaries import Counts, Summary
from rater_model import scorer
from rater_model.checkpoint import RATER_FILE, CheckpointError, load_rater
from rater_model.documents import read_split
from rater_model.parquet import BrokenParquetError, ParquetReader
from rater_model.records import Document, FileInfo, Format, ReadOptions, Record, Split
from rater_model.scorer import Scorer, ScoringOptions
from rater_model.stores import raising_os_errors

METRICS = "datarater"

# A batch for the scorer: enough texts for full model calls at every length, little enough to hold several.
BATCH_RECORDS = 1024
BATCH_BYTES = 4 * 2**20


@dataclasses.dataclass(frozen=True)
class ScoringRequest:
    """All that scoring is told.

    Attributes:
        inputs: paths and globs.
        rater: path of the rater checkpoint.
        rater_digest: the digest that the rater has.
        output: the run folder.
        read: how records are read.
        scoring: every option that changes a score.
        split_bytes: about how many stored bytes a split has.
        max_rejected_fraction: the share of records that may be rejected; no part of the run's identity.
        max_read_amplification: see `splits.PlanRequest`.
        workers_to_fill: likewise.
        launch: id of the launch that does the work; "" for none, which leaves no marks of attempts.
        slots: worker processes of a supervised local run, which take splits from one row; 0 where the runner hands
            them out.
    """

    inputs: tuple[str, ...]
    rater: str
    rater_digest: str
    output: str
    read: ReadOptions
    scoring: ScoringOptions
    split_bytes: int
    max_rejected_fraction: float = 1.0
    max_read_amplification: float = 4.0
    workers_to_fill: int = 1
    launch: str = ""
    slots: int = 0

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.output)

    @property
    def plan(self) -> splits.PlanRequest:
        """What the plan is made from."""
        identity = {
            "rater": self.rater_digest,
            "scoring": self.scoring.to_json(),
            "scorer_version": scorer.SCORER_VERSION,
        }
        return splits.PlanRequest(
            self.inputs,
            self.output,
            self.read,
            self.split_bytes,
            identity,
            self.max_read_amplification,
            self.workers_to_fill,
        )


def rater_digest(path: str) -> str:
    """The digest of a rater checkpoint, which is checked whole.

    Raises:
        UsageError: there is no rater.
        CurationError: it cannot be loaded; the message says why.
    """
    try:
        return load_rater(path).digest
    except (CheckpointError, OSError) as error:
        absent = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
        if absent and not commits.exists(f"{path}/{RATER_FILE}"):
            raise UsageError(f"--rater: {error}") from error
        raise CurationError(f"--rater: {error}") from error


def layout_of(split: Split) -> str:
    """Names what a split's kept documents can share an output file with.

    JSONL: the compression, so that output can follow input. Parquet: a digest of the columns, since a file has
    one schema.
    """
    if split.format is not Format.PARQUET:
        return f"{split.format}/{split.compression}"
    try:
        with ParquetReader(split.path) as reader:
            text = reader.schema.to_string(show_field_metadata=False, show_schema_metadata=False)
    except BrokenParquetError:
        return f"{split.format}/unreadable"
    return f"{split.format}/{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def score_split(task: SplitTask, read: ReadOptions, rater: Scorer) -> bytes:
    """Reads and scores one split.

    Args:
        task: what to read.
        read: how.
        rater: scores texts.

    Returns:
        The content of its score file.

    Raises:
        InputChangedError: the file is not what was planned.
        CurationError: the file cannot be read.
    """
    check_fingerprint(task)
    rows = ScoreRows()
    batch: list[Record] = []
    batch_bytes = 0

    def score_batch() -> None:
        nonlocal batch_bytes
        scored = rater.score([record.text for record in batch if isinstance(record, Document)])
        not_finite = rows.add(batch, scored.scores_N, scored.tokens_N)
        Metrics.counter(METRICS, "documents").inc(len(scored.scores_N) - not_finite)
        Metrics.counter(METRICS, "tokens").inc(int(scored.tokens_N.sum()))
        reasons = Counter(str(record.reason) for record in batch if not isinstance(record, Document))
        reasons[SCORE_NOT_FINITE] += not_finite
        for reason, count in (+reasons).items():
            Metrics.counter(METRICS, f"rejected_{reason}").inc(count)
        batch.clear()
        batch_bytes = 0

    try:
        with raising_os_errors(task.split.path):
            for record in read_split(task.split, read):
                batch.append(record)
                batch_bytes += record.size if isinstance(record, Document) else len(record.excerpt)
                if len(batch) >= BATCH_RECORDS or batch_bytes >= BATCH_BYTES:
                    score_batch()
            score_batch()
            layout = layout_of(task.split)
    except OSError as error:
        raise errors.reading_failed(task.split.path, error) from error
    except MemoryError as error:
        raise CurationError(
            f"{attempts.describe(task.split)} needs more memory than there is; fewer --local_workers, smaller "
            "--max_record_bytes or --tokens_per_batch may help"
        ) from error
    check_fingerprint(task)
    return rows.to_parquet(task, layout, rater.digest)


class ExpandGroup(beam.DoFn):
    """Gives the splits of a group, unless all of it is summarised already; apart from them those that are scored."""

    SUMMARISED = "summarised"
    SCORED = "scored"

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def process(self, group: int, scored_M: NDArray[np.int64]) -> Iterator[Any]:
        """A group's number in.

        Args:
            group: the number.
            scored_M: the ordinals of all splits that were scored when they were listed, sorted.
        """
        if commits.exists(self._folder.summary_path(group)):
            yield beam.pvalue.TaggedOutput(self.SUMMARISED, group)
            return
        tasks = splits.read_group(self._folder, group)
        ordinals_S = np.asarray([task.split.ordinal for task in tasks], np.int64)
        for task, scored in zip(tasks, np.isin(ordinals_S, scored_M).tolist(), strict=True):
            if scored:
                yield beam.pvalue.TaggedOutput(self.SCORED, (group, task.split.ordinal))
            else:
                yield task


class CountFound(beam.DoFn):
    """Counts the splits that were scored before."""

    def process(self, scored: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """A group and an ordinal in, and out."""
        Metrics.counter(METRICS, "splits_found_scored").inc()
        yield scored


class _Scoring(beam.DoFn):
    """What scores splits and commits their score files.

    The rater is loaded once a process, and computes on one thread: workers are scaled by processes.
    """

    def __init__(self, request: ScoringRequest):
        self._request = request
        self._shared = shared.Shared()
        self._rater: Scorer | None = None

    def setup(self) -> None:
        """Nothing is loaded before a split needs it: a resumed run may find all splits done."""
        scorer.limit_cpu_threads()
        attempts.watch_launcher()

    def _load(self) -> Scorer:
        request = self._request
        try:
            checkpoint = load_rater(request.rater)
        except (CheckpointError, OSError) as error:
            raise CurationError(f"--rater: {error}") from error
        if checkpoint.digest != request.rater_digest:
            raise RunFolderMismatchError(
                f"the rater {request.rater} has changed: its digest is {checkpoint.digest}, but this run began with "
                f"{request.rater_digest}"
            )
        return Scorer(checkpoint, request.scoring)

    def score(self, task: SplitTask) -> None:
        """Scores a split and commits its score file."""
        request = self._request
        # Kept here too: what is shared lives only as long as somebody holds it.
        self._rater = self._shared.acquire(self._load, tag=request.rater_digest)
        path = request.folder.score_path(task.split.ordinal)
        commits.commit_if_absent(path, score_split(task, request.read, self._rater))
        Metrics.counter(METRICS, "splits_scored").inc()


class ScoreSplit(_Scoring):
    """Scores a split, unless its score file is committed."""

    def process(self, task: SplitTask) -> Iterator[tuple[int, int]]:
        """One split in; its group and ordinal out, once its score file is committed."""
        request = self._request
        path = request.folder.score_path(task.split.ordinal)
        if request.launch:
            lease.keep(request.folder.scoring_lease_path, request.launch)
        if commits.exists(path):
            Metrics.counter(METRICS, "splits_found_scored").inc()
        else:
            with attempts.marked(request.folder, task, request.launch):
                self.score(task)
        yield task.group, task.split.ordinal


class ScoreFromRow(_Scoring):
    """Scores splits that no other worker of this machine has taken, until all are taken.

    Beam's local runner deals all splits out before the first is read, so that a worker whose splits are many or
    long works on alone at the end. Here each worker takes the biggest split that is left, by its mark
    (`pipelines.attempts`), when it has done the one before.
    """

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[int]:
        """A worker's number and the numbers of all groups in; its number out when nothing is left to take."""
        slot, groups = element
        folder, launch = self._request.folder, self._request.launch
        scored = set(scored_ordinals(folder).tolist())
        tasks = [
            task
            for group in sorted(groups)
            if not commits.exists(folder.summary_path(group))
            for task in splits.read_group(folder, group)
            if task.split.ordinal not in scored
        ]
        tasks.sort(key=lambda task: -task.split.size)
        for task in tasks:
            path = folder.score_path(task.split.ordinal)
            if commits.exists(path):
                continue
            with attempts.taken(folder, task, launch) as mine:
                # Another worker may have committed it between the look and the taking.
                if mine and not commits.exists(path):
                    self.score(task)
        yield slot


class SummariseGroup(beam.DoFn):
    """Writes a group's rejected records and summary from its committed score files."""

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[int]:
        """A group and the ordinals of its scored splits in; the group out."""
        group, ordinals = element
        scored = sorted(set(ordinals))
        planned = [task.split.ordinal for task in splits.read_group(self._folder, group)]
        if scored != planned:
            missing = sorted(set(planned) - set(scored))
            raise BooksError(f"group {group}: the splits {missing[:5]} of the plan were not scored")
        summaries.summarise_group(self._folder, group, planned)
        yield group


class MergeSummaries(beam.CombineFn):
    """Adds summaries up."""

    def create_accumulator(self) -> Summary:
        """Counts nothing."""
        return Summary()

    def add_input(self, accumulator: Summary, element: Summary) -> Summary:
        """Adds one."""
        accumulator.add(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Summary]) -> Summary:
        """Adds several."""
        total = Summary()
        for accumulator in accumulators:
            total.add(accumulator)
        return total

    def extract_output(self, accumulator: Summary) -> Summary:
        """The sum."""
        return accumulator


def check_counts(counts: Counts, max_rejected_fraction: float) -> None:
    """Refuses a corpus without records, and one of which too much is rejected.

    Raises:
        EmptyCorpusError: no file holds any record.
        RejectedShareError: the share of rejected records is past the limit.
    """
    if not counts.read:
        raise EmptyCorpusError(
            "--input: there are files, but not one record in them; check the glob, or give the files that hold the "
            "documents"
        )
    rejected = counts.rejected.total()
    if rejected > max_rejected_fraction * counts.read:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.rejected.most_common(3))
        raise RejectedShareError(
            f"{rejected:,} of {counts.read:,} records are rejected ({reasons}), more than --max_rejected_fraction "
            f"{max_rejected_fraction:g}; correct the input or the read options, or raise the limit and run the same "
            "command to go on"
        )


def finish_scoring(total: Summary, folder: RunFolder, max_rejected_fraction: float = 1.0) -> None:
    """Commits `scoring.json`.

    Args:
        total: the sum of all groups' summaries.
        folder: the run folder.
        max_rejected_fraction: the share of records that may be rejected.

    Raises:
        BooksError: a group or split is missing, or the counts contradict each other.
        EmptyCorpusError: no file holds any record.
        RejectedShareError: the share of rejected records is past the limit.
    """
    identity = ledger.read_identity(folder)
    plan = splits.plan_of(folder)
    if (total.groups, total.splits) != (plan["groups"], plan["splits"]):
        raise BooksError(
            f"{folder.path}: {total.splits} splits in {total.groups} groups were scored, but the plan has "
            f"{plan['splits']} in {plan['groups']}"
        )
    total.counts.check(folder.path)
    for source, counts in total.sources.items():
        counts.check(f"{folder.path}, source {source!r}")
    check_counts(total.counts, max_rejected_fraction)
    fields = {
        "format": ledger.FORMAT_VERSION,
        "versions": ledger.versions(),
        "identity": identity,
        "splits": total.splits,
        "groups": total.groups,
        "counts": total.counts.to_json(),
        "sources": {source: counts.to_json() for source, counts in total.sources.items()},
        "histogram": total.histogram().to_json(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    commits.commit_if_absent(folder.scoring_path, ledger.to_json(fields))


class FinishScoring(beam.DoFn):
    """Commits `scoring.json`, and says so by one element."""

    def __init__(self, request: ScoringRequest):
        self._request = request

    def process(self, total: Summary) -> Iterator[str]:
        """The sum of all summaries in."""
        finish_scoring(total, self._request.folder, self._request.max_rejected_fraction)
        yield self._request.folder.scoring_path


class ScoreCorpus(beam.PTransform):
    """Plans and scores a corpus; gives one element once `scoring.json` is committed.

    Every step is idempotent, and what was committed before is not done again.
    """

    def __init__(self, request: ScoringRequest):
        super().__init__()
        self._request = request

    def expand(self, start: beam.PCollection) -> beam.PCollection:
        """A collection of one element in."""
        folder = self._request.folder
        groups = start | "Plan" >> splits.Plan(self._request.plan)
        if self._request.slots:
            groups = groups | "Score from one row" >> _ScoreLocally(self._request)
        # Listed a thousand to a request: a resumed run looks for no score file by itself.
        found = (
            start
            | "Prefixes" >> beam.FlatMap(_prefixes, beam.pvalue.AsIter(groups)).with_output_types(int)
            | "Spread prefixes" >> beam.Reshuffle()
            | "List scored" >> beam.Map(_scored_under, folder)
            | "Merge scored" >> beam.CombineGlobally(merge_ordinals)
        )
        expand = beam.ParDo(ExpandGroup(folder), beam.pvalue.AsSingleton(found))
        expanded = groups | "Expand group" >> expand.with_outputs(
            ExpandGroup.SUMMARISED, ExpandGroup.SCORED, main="splits"
        )
        scored_now = (
            expanded.splits
            | "Spread splits" >> _DealOut()
            | "Score split" >> beam.ParDo(ScoreSplit(self._request)).with_output_types(tuple[int, int])
        )
        scored_before = expanded[ExpandGroup.SCORED] | "Scored before" >> beam.ParDo(CountFound())
        scored = (
            (scored_now, scored_before)
            | "All splits" >> beam.Flatten()
            | "Group splits" >> beam.GroupByKey()
            | "Summarise group" >> beam.ParDo(SummariseGroup(folder))
        )
        return (
            (scored, expanded[ExpandGroup.SUMMARISED])
            | "All groups" >> beam.Flatten()
            | "Read summary" >> beam.Map(_read_summary, folder)
            | "Add summaries" >> beam.CombineGlobally(MergeSummaries())
            | "Finish scoring" >> beam.ParDo(FinishScoring(self._request))
        )


def _prefixes(start: Any, groups: Iterable[int]) -> Iterator[int]:
    # The groups are waited for, not looked at.
    yield from range(PREFIXES)


def _scored_under(prefix: int, folder: RunFolder) -> NDArray[np.int64]:
    return ordinals_of(entries_of(folder, prefix))


def _by_ordinal(task: SplitTask) -> tuple[int, SplitTask]:
    return task.split.ordinal, task


def _one_of(element: tuple[int, Iterable[SplitTask]]) -> SplitTask:
    return next(iter(element[1]))


class _DealOut(beam.PTransform):
    """Deals splits out evenly to all workers.

    A Reshuffle alone is not enough: Flink leaves out the second of two between which nothing is grouped, and all
    splits of a group stay where the group was. So they are grouped, each by itself.
    """

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """Splits in and out."""
        return (
            tasks
            | "By ordinal" >> beam.Map(_by_ordinal).with_output_types(tuple[int, SplitTask])
            | "Each by itself" >> beam.GroupByKey()
            | "Split" >> beam.Map(_one_of).with_output_types(SplitTask)
            | "Deal out" >> beam.Reshuffle()
        )


class _ScoreLocally(beam.PTransform):
    """Has all splits scored by the workers of this machine; gives the numbers of the groups when they are.

    What follows finds every split scored. The numbers go to each worker under a key of its own: the local runner
    deals keys out evenly.
    """

    def __init__(self, request: ScoringRequest):
        super().__init__()
        self._request = request

    def expand(self, groups: beam.PCollection) -> beam.PCollection:
        """The numbers of all groups in."""
        slots = self._request.slots
        ended = (
            groups
            | "To every worker" >> beam.FlatMap(_to_every_worker, slots).with_output_types(tuple[int, int])
            | "Gather groups" >> beam.GroupByKey()
            | "Score" >> beam.ParDo(ScoreFromRow(self._request)).with_output_types(int)
        )
        return (
            groups
            | "When all have ended" >> beam.Map(_first, beam.pvalue.AsIter(ended)).with_output_types(int)
            | "Spread groups" >> beam.Reshuffle()
        )


def _to_every_worker(group: int, slots: int) -> Iterator[tuple[int, int]]:
    for slot in range(slots):
        yield slot, group


def _first(group: int, ended: Iterable[int]) -> int:
    return group


def _read_summary(group: int, folder: RunFolder) -> Summary:
    return summaries.read_summary(folder, group)


def preflight(request: ScoringRequest) -> Sequence[FileInfo]:
    """What can be known before any work begins: the same checks that the graph makes, with clearer messages.

    Returns:
        The input files.

    Raises:
        CurationError: no input, no rater, no run folder that can be used.
        RunFolderMismatchError: the run folder is another run's.
        RejectedShareError: everything is scored, and too much was rejected.
    """
    commits.check_file_system(request.output)
    files = splits.list_inputs(request.inputs)
    splits.check_committed_plan(request.plan, files)
    scored = commits.read_if_there(request.folder.scoring_path)
    if scored is not None:
        check_counts(Counts.from_json(orjson.loads(scored)["counts"]), request.max_rejected_fraction)
    return files
