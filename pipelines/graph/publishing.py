"""Publishing: the books are held, then the manifest and `_SUCCESS` are committed."""

import datetime
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam

from datarater.pipelines.errors import CountsError
from datarater.pipelines.graph.cutoff_search import find_cutoffs, read_scoring
from datarater.pipelines.graph.kept_rows import CountKept
from datarater.pipelines.graph.output_files import (
    WriteShard,
    WrittenShard,
    plan_shards,
    plan_shards_of,
)
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.kept_counts import GroupCounts, KeptCounts, KeptSplits
from datarater.pipelines.run_folder.layout import to_json, versions
from datarater.pipelines.selection.cutoffs import Cutoffs
from datarater.pipelines.selection.policy import Scope
from datarater.pipelines.selection.rules import BatchTopK, Threshold, TokenBudget


class MergeSources(beam.CombineFn):
    """Adds up what is kept by source."""

    def create_accumulator(self) -> dict[str, KeptCounts]:
        """Counts nothing."""
        return {}

    def add_input(
        self, accumulator: dict[str, KeptCounts], element: GroupCounts
    ) -> dict[str, KeptCounts]:
        """Adds one group's."""
        return self.merge_accumulators([accumulator, element.sources])

    def merge_accumulators(
        self, accumulators: Iterable[Mapping[str, KeptCounts]]
    ) -> dict[str, KeptCounts]:
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
    cutoffs: Cutoffs,
    splits: KeptSplits,
    sources: Mapping[str, KeptCounts],
    written: Iterable[WrittenShard],
) -> KeptCounts:
    """Holds the books of a selection, by split, by source and in total.

    Args:
        request: the selection.
        scoring: `scoring.json`.
        cutoffs: of the rule.
        splits: what is kept of every split.
        sources: what is kept of every source.
        written: the committed output files.

    Returns:
        The totals.

    Raises:
        CountsError: naming what does not balance, and the numbers.
    """
    splits.check()
    total = splits.total()
    total.check(request.selection.path)
    by_source = KeptCounts()
    for source, counts in sources.items():
        counts.check(f"source {source!r}")
        by_source.add(counts)
    if by_source != total:
        raise CountsError(f"the sources add up to {by_source}, but the splits to {total}")
    counted = scoring["counts"]
    expected = {
        "splits": (len(splits.ordinals_S), scoring["splits"]),
        "records read": (total.read, counted["read"]),
        "documents scored": (total.kept + total.dropped, counted["scored"]),
        "records rejected": (total.rejected, sum(counted["rejected"].values())),
    }
    below = cutoffs.counted()
    if below is not None:
        expected["documents below the cutoffs"] = (total.kept, below[0])
        expected["tokens below the cutoffs"] = (total.kept_tokens, below[1])
    expected.update(_targets(request, cutoffs, scoring, total, sources))
    for what, (found, wanted) in expected.items():
        if found != wanted:
            raise CountsError(f"{what}: {found}, but {wanted} by the books of the scoring")
    # A file's writer has held what each of its splits gave against the plan.
    planned = {
        (task.name, task.documents)
        for task in plan_shards(splits, request.output_format, request.output_shard_bytes)
    }
    wrong = sorted(planned ^ {(shard.name, shard.documents) for shard in written})
    if wrong:
        raise CountsError(f"output files hold other documents than the splits keep: {wrong[:5]}")
    return total


def _targets(
    request: SelectionRequest,
    cutoffs: Cutoffs,
    scoring: Mapping[str, Any],
    total: KeptCounts,
    sources: Mapping[str, KeptCounts],
) -> dict[str, tuple[int, int]]:
    """What rules with an exact target kept, and the target, worked out anew from the counts of the scoring.

    Raises:
        CountsError: a token budget is passed.
    """
    policy = request.read_policy()
    if not cutoffs.own or isinstance(policy.rule, Threshold | BatchTopK):
        return {}
    groups = [("", scoring["counts"], total, policy.rule.target)]
    if policy.per is Scope.SOURCE:
        groups = [
            (
                f" of source {source!r}",
                counts,
                sources[source],
                functools.partial(Cutoffs.target_of, policy, source),
            )
            for source, counts in scoring["sources"].items()
        ]
    found = {}
    for what, counts, kept, target_of in groups:
        target = target_of(counts["scored"], counts["tokens"])
        if not isinstance(policy.rule, TokenBudget):
            if policy.per is Scope.CORPUS and policy.minimum:
                least = sum(
                    min(policy.minimum, counts["scored"]) for counts in scoring["sources"].values()
                )
                target = max(target, least)
            found[f"documents{what} kept by {request.policy['rule']}"] = (kept.kept, target)
        elif kept.kept_tokens > target and not policy.minimum:
            raise CountsError(
                f"{kept.kept_tokens} tokens{what} are kept, over the budget of {target}"
            )
    if policy.minimum:
        for source, counts in scoring["sources"].items():
            least = min(policy.minimum, counts["scored"])
            if sources[source].kept < least:
                raise CountsError(
                    f"{sources[source].kept} documents of source {source!r} are kept, not {least}"
                )
    return found


def publish(
    request: SelectionRequest,
    cutoffs: Cutoffs,
    groups: Iterable[GroupCounts],
    sources: Mapping[str, KeptCounts],
    written: Iterable[WrittenShard],
) -> None:
    """Holds the books, then commits the manifest, then `_SUCCESS`.

    Raises:
        CountsError: the books do not balance; nothing is committed.
    """
    scoring = read_scoring(request.folder)
    shards = sorted(written, key=lambda shard: shard.name)
    splits = KeptSplits.merge(group.splits for group in groups)
    total = check_books(request, scoring, cutoffs, splits, sources, shards)
    manifest = {
        **request.rule_fields(),
        "name": request.name,
        "cutoff": cutoffs.to_json(),
        **_draw(cutoffs, total),
        "counts": {**total.to_json(), "rejected_by_reason": scoring["counts"]["rejected"]},
        "scored": scoring["counts"]["scored"],
        "sources": {source: counts.to_json() for source, counts in sources.items()},
        "files": [
            {
                "path": f"kept/{shard.name}",
                "format": shard.written,
                "documents": shard.documents,
                "bytes": shard.size,
                "sha256": shard.sha256,
            }
            for shard in shards
        ],
        "identity": scoring["identity"],
        "rater": scoring["identity"]["rater"],
        "versions": versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    commits.commit_if_absent(request.selection.manifest_path, to_json(manifest))
    commits.commit_if_absent(request.selection.success_path, b"")


def _draw(cutoffs: Cutoffs, total: KeptCounts) -> dict[str, Any]:
    """What a rule that draws was expected to keep, and what it kept."""
    expected = cutoffs.expected()
    if expected is None:
        return {}
    return {
        "draw": {"expected": expected[0], "standard_deviation": expected[1], "actual": total.kept}
    }


class Publish(beam.DoFn):
    """`publish` as a step of the graph."""

    def __init__(self, request: SelectionRequest):
        self._request = request

    def process(
        self,
        scored: Any,
        cutoffs: Cutoffs,
        groups: Iterable[GroupCounts],
        sources: Mapping[str, KeptCounts],
        written: Iterable[WrittenShard],
    ) -> Iterator[str]:
        """One element starts it; the manifest's path out."""
        publish(self._request, cutoffs, groups, sources, written)
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
        cutoffs, groups = find_cutoffs(scored, self._request)
        cutoff = beam.pvalue.AsSingleton(cutoffs)
        counts = groups | "Count kept" >> beam.ParDo(CountKept(self._request), cutoff)
        sources = counts | "By source" >> beam.CombineGlobally(MergeSources())
        written = (
            scored
            | "Plan shards"
            >> beam.FlatMap(plan_shards_of, beam.pvalue.AsIter(counts), self._request)
            | "Spread shards" >> beam.Reshuffle()
            | "Write shard" >> beam.ParDo(WriteShard(self._request), cutoff)
        )
        return scored | "Publish" >> beam.ParDo(
            Publish(self._request),
            cutoff,
            beam.pvalue.AsIter(counts),
            beam.pvalue.AsSingleton(sources),
            beam.pvalue.AsIter(written),
        )
