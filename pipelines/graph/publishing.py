"""Publishing: reconciles the counts, then commits the manifest, the report and `_SUCCESS`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from datarater.pipelines.errors import CountsError
from datarater.pipelines.graph import output_formats
from datarater.pipelines.graph.output_files import (
    WrittenShard,
    committed_rule,
    names_of,
    plan_shards,
    remove_pieces,
)
from datarater.pipelines.graph.ranking import read_joins
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.kept_counts import GroupCounts, KeptCounts, KeptSplits
from datarater.pipelines.run_folder.layout import to_json
from datarater.pipelines.run_folder.manifest import (
    Draw,
    KeptFile,
    Manifest,
    ManifestCounts,
    MatchedCounts,
    Mixture,
)
from datarater.pipelines.run_folder.sampled_copies import commit_copies
from datarater.pipelines.run_folder.scored import Scoring, read_scoring
from datarater.pipelines.selection.cutoffs import Cutoffs
from datarater.pipelines.selection.descent import Unit
from datarater.pipelines.selection.policy import Scope
from datarater.rater_model.counted import counted
from datarater.report.selection import try_to_write_report


class MergeSources(beam.CombineFn):
    """Adds up the kept counts of every source."""

    def create_accumulator(self) -> dict[str, KeptCounts]:
        """Returns counts of no source."""
        return {}

    def add_input(
        self, accumulator: dict[str, KeptCounts], element: GroupCounts
    ) -> dict[str, KeptCounts]:
        """Adds the counts of one group."""
        return self.merge_accumulators([accumulator, element.sources])

    def merge_accumulators(
        self, accumulators: Iterable[Mapping[str, KeptCounts]]
    ) -> dict[str, KeptCounts]:
        """Adds several counts."""
        total: dict[str, KeptCounts] = {}
        for accumulator in accumulators:
            for source, counts in accumulator.items():
                total.setdefault(source, KeptCounts()).add(counts)
        return total

    def extract_output(self, accumulator: dict[str, KeptCounts]) -> dict[str, KeptCounts]:
        """Returns the sum by source."""
        return accumulator


def reconcile_counts(
    request: SelectionRequest,
    scoring: Scoring,
    cutoffs: Cutoffs,
    splits: KeptSplits,
    sources: Mapping[str, KeptCounts],
    written: Iterable[WrittenShard],
    name_of: Callable[[str], str] | None = None,
    ranked: Scoring | None = None,
) -> KeptCounts:
    """Reconciles the counts of a selection by split, by source and in total.

    Args:
        request: The selection.
        scoring: Counts of the scored corpus.
        cutoffs: Final cutoffs of the rule.
        splits: Kept counts of every split.
        sources: Kept counts of every source.
        written: Committed output files.
        name_of: Names the output file for an input file; None if they are numbered.
        ranked: Counts of the ranked documents; None if they are all scored ones.

    Returns:
        The totals.

    Raises:
        CountsError: Two counts differ; the message names them and the numbers.
    """
    # The splits and the sources add up to the same total.
    splits.check()
    total = splits.total()
    total.check(request.selection.path)
    by_source = KeptCounts()
    for source, counts in sources.items():
        counts.check(f"source {source!r}")
        by_source.add(counts)
    if by_source != total:
        raise CountsError(f"the sources add up to {by_source}, but the splits to {total}")

    # The total agrees with the scoring, the descent and the rule's target.
    expected = {
        "splits": (splits.splits, scoring.splits),
        "records read": (total.read, scoring.counts.read),
        "documents scored": (total.scored, scoring.counts.scored),
        "records rejected": (total.rejected, scoring.counts.rejected),
    }
    below = cutoffs.counted()
    if below is not None:
        expected["documents below the cutoffs"] = (total.kept, below[0])
        expected["tokens below the cutoffs"] = (total.kept_tokens, below[1])
    expected.update(_targets(request, cutoffs, ranked or scoring, total, sources))
    for name, (actual, correct) in expected.items():
        if actual != correct:
            raise CountsError(f"{name}: {actual}, but {correct} according to the scoring")

    # The output files are the planned ones. Their writers compared each split with the plan.
    planned = {
        (name, task.documents if name == task.name else 0)
        for task in plan_shards(splits, request.output_format, request.output_shard_bytes, name_of)
        for name in task.names
    }
    wrong = sorted(planned ^ {(shard.name, shard.documents) for shard in written})
    if wrong:
        raise CountsError(f"output files and splits differ in the kept documents: {wrong[:5]}")
    return total


def _targets(
    request: SelectionRequest,
    cutoffs: Cutoffs,
    scoring: Scoring,
    total: KeptCounts,
    sources: Mapping[str, KeptCounts],
) -> dict[str, tuple[int, int]]:
    """Returns what rules with an exact target kept, and the target from the scoring's counts.

    The scoring is that of the ranking if there is one: targets are of what conditions leave.

    Raises:
        CountsError: A token budget is exceeded, or a source has less than its minimum.
    """
    policy = request.policy
    if not cutoffs.own or not policy.rule.has_target:
        return {}

    # The rule applies to the corpus, or to each source with its own target.
    groups = [("", scoring.counts, total, policy.rule.target)]
    if policy.per is Scope.SOURCE:
        groups = [
            (
                f" of source {source!r}",
                counts,
                sources[source],
                functools.partial(policy.target_of, source),
            )
            for source, counts in scoring.sources.items()
        ]

    kept_and_target = {}
    for name, counts, kept, target_of in groups:
        target = target_of(counts.scored, counts.tokens)
        if policy.rule.unit is Unit.DOCUMENTS:
            if policy.per is Scope.CORPUS and policy.minimum:
                by_minimum = sum(
                    min(policy.minimum, counts.scored) for counts in scoring.sources.values()
                )
                target = max(target, by_minimum)
            kept_and_target[f"documents{name} kept by {policy.rule.name}"] = (
                kept.kept,
                target,
            )
        elif kept.kept_tokens > target and not policy.minimum:
            raise CountsError(
                f"{counted(kept.kept_tokens, 'token')}{name} are kept, over the budget of {target}"
            )

    if policy.minimum:
        for source, counts in scoring.sources.items():
            minimum = min(policy.minimum, counts.scored)
            if sources[source].kept < minimum:
                raise CountsError(
                    f"{counted(sources[source].kept, 'document')} of source {source!r} are kept, "
                    f"not {minimum}"
                )
    return kept_and_target


def publish(
    request: SelectionRequest,
    cutoffs: Cutoffs,
    groups: Iterable[GroupCounts],
    sources: Mapping[str, KeptCounts],
    written: Iterable[WrittenShard],
) -> None:
    """Reconciles the counts, then commits the manifest, writes the report and commits `_SUCCESS`.

    Files that describe all output files are committed just before the manifest.

    A report that cannot be written is counted and logged; the selection is complete without it.

    Args:
        request: The selection.
        cutoffs: Final cutoffs of the rule.
        groups: Kept counts of all groups of splits.
        sources: Kept counts of every source.
        written: Committed output files.

    Raises:
        CountsError: Two counts differ; nothing is committed.
    """
    options = committed_rule(request)
    scoring = read_scoring(request.folder, options.plans)
    ranked = read_scoring(request.ranked, options.plans)
    shards = sorted(written, key=lambda shard: shard.name)
    splits = KeptSplits.merge(group.splits for group in groups)
    total = reconcile_counts(
        request, scoring, cutoffs, splits, sources, shards, names_of(request, options), ranked
    )
    rejected = scoring.counts.rejected_by_reason

    manifest = Manifest(
        **vars(options),
        name=request.name,
        cutoff=cutoffs.to_json(),
        draw=_draw(cutoffs, total),
        counts=ManifestCounts(
            **vars(total),
            rejected_by_reason=rejected,
            excluded_by_reason=dict(ranked.counts.rejected_by_reason - rejected),
        ),
        scored=scoring.counts.scored,
        sources=dict(sources),
        joins=_matched(request, scoring, ranked),
        files=tuple(
            KeptFile(
                f"kept/{shard.name}",
                output_formats.ending(shard.written, shard.name),
                shard.documents,
                shard.size,
                shard.sha256,
                shard.input,
            )
            for shard in shards
        ),
        identity=scoring.identity,
        rater=scoring.identity.rater,
    )

    whole = _commit_whole_files(request, manifest)
    files = sorted([*manifest.files, *whole], key=lambda file: file.path)
    manifest = dataclasses.replace(manifest, files=tuple(files))
    mixture = to_json(Mixture.of(sources))
    commits.commit_if_absent(request.selection.mixture_path, mixture)
    commit_copies(request.selection, cutoffs.rule)
    commits.commit_if_absent(request.selection.manifest_path, to_json(manifest))
    remove_pieces(request.selection)
    if not try_to_write_report(request.folder, request.name, request.report_texts):
        Metrics.counter("datarater", "reports_not_written").inc()
    commits.commit_if_absent(request.selection.success_path, b"")


def _commit_whole_files(request: SelectionRequest, manifest: Manifest) -> list[KeptFile]:
    """Commits the files that describe all output files, such as an index; returns what is there."""
    trainer_format = output_formats.trainer_format(request)
    if trainer_format is None:
        return []
    described = dataclasses.replace(
        manifest, files=tuple(file for file in manifest.files if file.documents)
    )

    committed = []
    for name, content in trainer_format.whole_files(described).items():
        path = request.selection.kept_path(name)
        # A run that is resumed by another version keeps what is there.
        if not commits.commit_if_absent(path, content):
            content = commits.read_bytes(path)
        sha256 = hashlib.sha256(content).hexdigest()
        ending = output_formats.ending(request.output_format, name)
        committed.append(KeptFile(f"kept/{name}", ending, 0, len(content), sha256))
    return committed


def _matched(
    request: SelectionRequest, scoring: Scoring, ranked: Scoring
) -> dict[str, MatchedCounts]:
    """Returns the counts of the joined tables, and of the documents that they have rows of."""
    if request.ranking is None:
        return {}
    return {
        name: MatchedCounts(
            **vars(counts),
            matched=ranked.joined.get(name, 0),
            missing=scoring.counts.scored - ranked.joined.get(name, 0),
        )
        for name, counts in read_joins(request).items()
    }


def _draw(cutoffs: Cutoffs, total: KeptCounts) -> Draw | None:
    expected = cutoffs.expected()
    return None if expected is None else Draw(*expected, actual=total.written)


@beam.typehints.with_output_types(str)
class Publish(Step[SelectionRequest]):
    """Publishes a selection (`publish`); emits the manifest's path."""

    def process(
        self,
        scored: Any,
        cutoffs: Cutoffs,
        groups: Iterable[GroupCounts],
        sources: Mapping[str, KeptCounts],
        written: Iterable[WrittenShard],
    ) -> Iterator[str]:
        """Publishes the selection; `scored` is any element that starts the step."""
        publish(self._request, cutoffs, groups, sources, written)
        yield self._request.selection.manifest_path
