"""Scored runs and selections from them without Beam: each step of the graph is called once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np

from datarater.pipelines.graph import (
    cutoff_search,
    kept_rows,
    output_files,
    planning,
    publishing,
    scoring,
)
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.output_files import JoinPieces, ShardTask, WriteShard, WrittenShard
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.graph.score_split import score_split
from datarater.pipelines.run_folder import commits, summaries
from datarater.pipelines.run_folder.kept_counts import GroupCounts
from datarater.pipelines.run_folder.manifest import Manifest, read_manifest
from datarater.pipelines.run_folder.plan import plan_of, read_group
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.pipelines.selection.cutoffs import Cutoffs, merge_answers
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import Threshold
from datarater.rater_model.text_scorer import ScoredTexts, TextScorer
from tests.support.run_folders import run_options

EVERYTHING = Policy(Threshold("-1e30"))
NOTHING = Policy(Threshold("1e30"))


def digest_score(text: str) -> float:
    """Returns the score that `DigestScorer` gives a text."""
    return float(np.float32(hashlib.sha256(text.encode()).digest()[0] / 7))


class DigestScorer(TextScorer):
    """Scores a text by its digest."""

    digest = "digest"

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Returns the scores of N texts."""
        return ScoredTexts(
            scores_N=np.asarray([digest_score(text) for text in texts], np.float32),
            tokens_N=np.asarray([len(text) for text in texts], np.int64),
        )


def score_run(inputs: Path | str, output: Path | str, **changes: Any) -> ScoringRequest:
    """Plans, scores and counts a corpus; returns the request."""
    request = ScoringRequest(Patterns((str(inputs),)), "rater", str(output), run_options())
    request = dataclasses.replace(request, **changes)
    planning.plan_now(request)
    total = summaries.Summary()
    for group in range(plan_of(request.folder).groups):
        score_group(request, group)
        total.add(summaries.read_summary(request.folder, group))
    scoring.finish_scoring(total, request.folder)
    return request


def score_group(request: ScoringRequest, group: int) -> None:
    """Scores and counts a group of a planned run."""
    tasks = read_group(request.folder, group)
    for task in tasks:
        content = score_split(task, request.options.read, DigestScorer())
        commits.commit_file(request.folder.score_path(task.split.ordinal), content)
    summaries.summarise_group(request.folder, group, [task.split.ordinal for task in tasks])


@dataclasses.dataclass
class Selecting:
    """A selection whose steps are taken one by one.

    Attributes:
        request: The selection.
        cutoffs: Its cutoffs.
        counts: What it keeps.
        tasks: The tasks of its second read.
    """

    request: SelectionRequest
    cutoffs: Cutoffs
    counts: list[GroupCounts]
    tasks: list[ShardTask]

    @classmethod
    def begin(cls, request: SelectionRequest) -> Selecting:
        """Finds the cutoffs and plans the output files."""
        folder, groups = request.folder, range(plan_of(request.folder).groups)
        cutoffs = cutoff_search.begin_selection(request)
        while not cutoffs.done:
            answers = [
                cutoffs.answers(
                    *kept_rows.keys_by_source(ScoreFile.read(folder, task.split.ordinal), 0)
                )
                for group in groups
                for task in read_group(folder, group)
            ]
            cutoffs = cutoffs.advance(merge_answers(answers))
        counts = [kept_rows.count_group(request, group, cutoffs) for group in groups]
        tasks = list(output_files.plan_shards_of(None, counts, request))
        return cls(request, cutoffs, counts, tasks)

    def write(self, tasks: Iterable[ShardTask]) -> Iterator[Any]:
        """Writes some files and pieces."""
        for task in tasks:
            yield from WriteShard(self.request).process(task, self.cutoffs)

    def finish(self) -> Manifest:
        """Writes, joins and publishes all that is not there; returns the manifest."""
        files: list[WrittenShard] = []
        pieces: dict[str, list[ShardTask]] = {}
        for result in self.write(self.tasks):
            if isinstance(result, beam.pvalue.TaggedOutput):
                name, task = result.value
                pieces.setdefault(name, []).append(task)
            else:
                files.append(result)
        for name, tasks in pieces.items():
            files += JoinPieces(self.request).process((name, reversed(tasks)))

        sources = publishing.MergeSources()
        by_source = sources.create_accumulator()
        for counted in self.counts:
            by_source = sources.add_input(by_source, counted)
        publishing.publish(self.request, self.cutoffs, self.counts, by_source, files)
        manifest = read_manifest(self.request.selection)
        assert manifest is not None
        return manifest


def select_from(run: str | Path, output_format: str, **changes: Any) -> tuple[Path, Manifest]:
    """Selects everything from a scored run, unless the policy is another one.

    Returns:
        The folder of the kept documents, and the manifest.
    """
    changes = {"policy": EVERYTHING, "name": output_format, **changes}
    request = SelectionRequest(
        str(run), seed=0, output_format=output_format, output_shard_bytes=2**20, **changes
    )
    manifest = Selecting.begin(request).finish()
    kept = Path(request.selection.path, "kept")
    check_files(kept, manifest)
    return kept, manifest


def check_files(kept: Path, manifest: Manifest) -> None:
    """Compares the manifest with the files that are there, and its counts with each other."""
    there = {path.relative_to(kept.parent): path for path in kept.rglob("*") if path.is_file()}
    assert sorted(map(str, there)) == [file.path for file in manifest.files]
    for file in manifest.files:
        data = there[Path(file.path)].read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        assert f".{file.format}" in file.path
    assert sum(file.documents for file in manifest.files) == manifest.counts.kept
