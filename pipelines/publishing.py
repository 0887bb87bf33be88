"""Publishing: the books are held, then the manifest and `_SUCCESS` are committed."""

import datetime
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam

from pipelines import commits, ledger
from pipelines.errors import BooksError
from pipelines.selecting import (
    CountKept,
    GroupCounts,
    KeptCounts,
    SelectionRequest,
    SplitCounts,
    find_cutoff,
    read_scoring,
)
from pipelines.shards import WriteShard, WrittenShard, plan_shards_of
from rater_model.selection import Boundary, TokenBudget, rule_from_json


class MergeSources(beam.CombineFn):
    """Adds up what is kept by source."""

    def create_accumulator(self) -> dict[str, KeptCounts]:
        """Counts nothing."""
        return {}

    def add_input(self, accumulator: dict[str, KeptCounts], element: GroupCounts) -> dict[str, KeptCounts]:
        """Adds one group's."""
        return self.merge_accumulators([accumulator, element.sources])

    def merge_accumulators(self, accumulators: Iterable[Mapping[str, KeptCounts]]) -> dict[str, KeptCounts]:
        """Adds several."""
        total: dict[str, KeptCounts] = {}
        for accumulator in accumulators:
            for source, counts in accumulator.items():
                total.setdefault(source, KeptCounts()).add(counts)
        return total

    def extract_output(self, accumulator: dict[str, KeptCounts]) -> dict[str, KeptCounts]:
        """The sum."""
        return accumulator


def check_books(
    request: SelectionRequest,
    scoring: Mapping[str, Any],
    boundary: Boundary,
    rows: list[SplitCounts],
    sources: Mapping[str, KeptCounts],
    written: Iterable[WrittenShard],
) -> KeptCounts:
    """Holds the books of a selection, by split, by source and in total.

    Args:
        request: the selection.
        scoring: `scoring.json`.
        boundary: with the cutoff.
        rows: what is kept of every split.
        sources: what is kept of every source.
        written: the committed output files.

    Returns:
        The totals.

    Raises:
        BooksError: naming what does not balance, and the numbers.
    """
    total = KeptCounts()
    for row in rows:
        row.counts.check(f"split {row.ordinal}")
        total.add(row.counts)
    total.check(request.selection.path)
    by_source = KeptCounts()
    for source, counts in sources.items():
        counts.check(f"source {source!r}")
        by_source.add(counts)
    if by_source != total:
        raise BooksError(f"the sources add up to {by_source}, but the splits to {total}")
    counted = scoring["counts"]
    expected = {
        "splits": (len(rows), scoring["splits"]),
        "records read": (total.read, counted["read"]),
        "documents scored": (total.kept + total.dropped, counted["scored"]),
        "records rejected": (total.rejected, sum(counted["rejected"].values())),
    }
    rule = rule_from_json(request.rule)
    if boundary.counted:
        expected["documents below the cutoff"] = (total.kept, boundary.kept)
        expected["tokens below the cutoff"] = (total.kept_tokens, boundary.kept_tokens)
        target = rule.target(counted["scored"], counted["tokens"])
        if not isinstance(rule, TokenBudget):
            expected[f"documents kept by {request.rule}"] = (total.kept, target)
        elif total.kept_tokens > target:
            raise BooksError(f"{total.kept_tokens} tokens are kept, over the budget of {target}")
    for what, (found, wanted) in expected.items():
        if found != wanted:
            raise BooksError(f"{what}: {found}, but {wanted} by the books of the scoring")
    kept_by_split = {row.ordinal: row.counts.kept for row in rows if row.counts.kept}
    written_by_split: dict[int, int] = {}
    for shard in written:
        for ordinal, count in shard.task.splits:
            written_by_split[ordinal] = written_by_split.get(ordinal, 0) + count
    if written_by_split != kept_by_split:
        wrong = sorted(set(written_by_split.items()) ^ set(kept_by_split.items()))[:5]
        raise BooksError(f"output files hold other documents than the splits keep: {wrong}")
    return total


def publish(
    request: SelectionRequest,
    boundary: Boundary,
    rows: Iterable[SplitCounts],
    sources: Mapping[str, KeptCounts],
    written: Iterable[WrittenShard],
) -> None:
    """Holds the books, then commits the manifest, then `_SUCCESS`.

    Raises:
        BooksError: the books do not balance; nothing is committed.
    """
    scoring = read_scoring(request.folder)
    shards = sorted(written, key=lambda shard: shard.task.name)
    total = check_books(request, scoring, boundary, list(rows), sources, shards)
    manifest = {
        **request.rule_fields(),
        "name": request.name,
        "cutoff": {"rank_key": f"{boundary.end:x}", "lowest_score": boundary.lowest_score()},
        "counts": {**total.to_json(), "rejected_by_reason": scoring["counts"]["rejected"]},
        "scored": scoring["counts"]["scored"],
        "sources": {source: counts.to_json() for source, counts in sources.items()},
        "files": [
            {
                "path": f"kept/{shard.task.name}",
                "format": shard.task.written,
                "documents": shard.task.documents,
                "bytes": shard.size,
                "sha256": shard.sha256,
            }
            for shard in shards
        ],
        "identity": scoring["identity"],
        "rater": scoring["identity"]["rater"],
        "versions": ledger.versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    commits.commit_if_absent(request.selection.manifest_path, ledger.to_json(manifest))
    commits.commit_if_absent(request.selection.success_path, b"")


class Publish(beam.DoFn):
    """`publish` as a step of the graph."""

    def __init__(self, request: SelectionRequest):
        self._request = request

    def process(
        self,
        scored: Any,
        boundary: Boundary,
        rows: Iterable[SplitCounts],
        sources: Mapping[str, KeptCounts],
        written: Iterable[WrittenShard],
    ) -> Iterator[str]:
        """One element starts it; the manifest's path out."""
        publish(self._request, boundary, rows, sources, written)
        yield self._request.selection.manifest_path


class SelectAndPublish(beam.PTransform):
    """From committed scores to kept documents; gives the manifest's path.

    Every step is idempotent, and what was committed before is not done again.
    """

    def __init__(self, request: SelectionRequest):
        super().__init__()
        self._request = request

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        """A collection of one element in, which says that `scoring.json` is committed."""
        boundary, groups = find_cutoff(scored, self._request)
        cutoff = beam.pvalue.AsSingleton(boundary)
        counts = groups | "Count kept" >> beam.ParDo(CountKept(self._request), cutoff)
        rows = counts | "By split" >> beam.FlatMap(_rows_of)
        sources = counts | "By source" >> beam.CombineGlobally(MergeSources())
        written = (
            scored
            | "Plan shards" >> beam.FlatMap(plan_shards_of, beam.pvalue.AsIter(rows), self._request)
            | "Spread shards" >> beam.Reshuffle()
            | "Write shard" >> beam.ParDo(WriteShard(self._request), cutoff)
        )
        return scored | "Publish" >> beam.ParDo(
            Publish(self._request),
            cutoff,
            beam.pvalue.AsIter(rows),
            beam.pvalue.AsSingleton(sources),
            beam.pvalue.AsIter(written),
        )


def _rows_of(counts: GroupCounts) -> list[SplitCounts]:
    return counts.splits
