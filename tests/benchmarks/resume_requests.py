"""What a million committed splits cost behind a slow network: requests, seconds and memory.

    python -m tests.benchmarks.resume_requests --splits 1000000 --milliseconds 20

A run folder with that many splits is in a simulated object store: an fsspec file system on which
every request takes time, and which generates the content of score files and plan shards instead of
storing it. The benchmark counts the requests of

- status, before anything is summarized and after everything is;
- resume, before anything is summarized (splits already scored are not scored again) and after
  everything is;
- select, from summaries to the cutoff, the documents kept of every split, the plan of output files
  and the reconciled counts.

Requests are counted at the file system. Work that a cluster would distribute (a group of splits, a
score file) is run here for `--sampled_groups` groups and multiplied; each row tells whether it is.
Memory is what a step adds to the peak of this process.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import json
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.spec import AbstractFileSystem

from datarater.pipelines.graph import cutoff_search, kept_rows, output_files, publishing
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.graph.scoring import ExpandGroup
from datarater.pipelines.run_folder import commits, progress, summaries
from datarater.pipelines.run_folder import plan as run_plan
from datarater.pipelines.run_folder.committed import scored_ordinals
from datarater.pipelines.run_folder.kept_counts import GroupCounts, KeptSplits
from datarater.pipelines.run_folder.layout import RunFolder, json_lines, to_json
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.run_folder.score_files import ScoreRows
from datarater.pipelines.selection.cutoffs import Cutoffs
from datarater.pipelines.selection.descent import Cutoff
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import KeepFraction, Threshold
from datarater.rater_model.documents.records import Compression, Document, Split
from tests.benchmarks.benchmark_support import machine
from tests.support.run_folders import committed_identity, scoring

ROOT = "/run"
PAGE = 1000
"""Names in one response to a listing, as in object stores."""


class SlowStore(AbstractFileSystem):
    """An object store that waits and counts; it stores small files and generates the others."""

    protocol = "slowstore"
    cachable = False
    wait = 0.02
    total = 0
    done = 0
    # Shared by all instances, as a store is.
    stored: dict[str, bytes] = {}  # noqa: RUF012
    requests: dict[str, int] = {}  # noqa: RUF012
    by_prefix: dict[str, list[int]] = {}  # noqa: RUF012
    score_file = b""
    lock = threading.Lock()

    @classmethod
    def _ask(cls, kind: str, count: int = 1) -> None:
        time.sleep(cls.wait * count)
        with cls.lock:
            cls.requests[kind] = cls.requests.get(kind, 0) + count

    def _generated(self, path: str) -> bytes | None:
        if match := re.search(r"/scores/\w\w/(\d+)\.parquet$", path):
            return self.score_file if int(match[1]) < self.done else None
        if match := re.search(r"/plan/p/splits-(\d+)\.jsonl$", path):
            first = int(match[1]) * run_plan.SPLITS_PER_GROUP
            last = min(first + run_plan.SPLITS_PER_GROUP, self.total)
            return json_lines(task_of(ordinal) for ordinal in range(first, last))
        return None

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        self._ask("get")
        path = self._strip_protocol(path)
        data = self.stored.get(path)
        if data is None:
            data = self._generated(path)
        if data is None:
            raise FileNotFoundError(path)
        return data[start:end]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self._ask("head")
        path = self._strip_protocol(path)
        data = self.stored.get(path)
        if data is None:
            data = self._generated(path)
        if data is None:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(data), "type": "file", "mtime": 0.0}

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        path = self._strip_protocol(path)
        prefix = path.rsplit("/", 1)[-1]
        entries = []
        if path.startswith(f"{ROOT}/scores/") and len(prefix) == 2:
            size = len(self.score_file)
            entries = [
                {
                    "name": f"{path}/{ordinal:08d}.parquet",
                    "size": size,
                    "type": "file",
                    "mtime": 0.0,
                }
                for ordinal in self.by_prefix.get(prefix, [])
                if ordinal < self.done
            ]

        children = {
            name[len(path) + 1 :].split("/")[0]
            for name in self.stored
            if name.startswith(path + "/")
        }
        for child in sorted(children):
            name = f"{path}/{child}"
            kind = "file" if name in self.stored else "directory"
            entries.append(
                {"name": name, "size": len(self.stored.get(name, b"")), "type": kind, "mtime": 0.0}
            )

        self._ask("list", max(1, -(-len(entries) // PAGE)))
        if not entries:
            raise FileNotFoundError(path)
        return entries

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._ask("put")
        path = self._strip_protocol(path)
        with self.lock:
            if mode == "create" and path in self.stored:
                raise FileExistsError(path)
            self.stored[path] = value

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return io.BytesIO(self.cat_file(path))

    def rm_file(self, path: str) -> None:
        self._ask("delete")
        self.stored.pop(self._strip_protocol(path), None)


def task_of(ordinal: int) -> SplitTask:
    """Returns a split of the generated plan."""
    split = Split(
        f"gs://crawl/{ordinal:08d}.jsonl.gz",
        "jsonl",
        Compression.GZIP,
        ordinal=ordinal,
        size=16 * 2**20,
    )
    return SplitTask(split, f"generation-{ordinal}", ordinal // run_plan.SPLITS_PER_GROUP)


def make_score_file(documents: int) -> bytes:
    """Returns the score file that every split has: scores from a normal distribution."""
    rng = np.random.default_rng(0)
    rows = ScoreRows(task_of(0).paths)
    records = [
        Document(f'"{row}"', "x", f"source-{row % 5}", row, 1, None) for row in range(documents)
    ]
    rows.add(records, rng.standard_normal(documents).astype(np.float32), np.full(documents, 100))
    return rows.to_parquet(task_of(0), "jsonl/gzip", "digest").read()


def numbered(counts: GroupCounts, group: int) -> GroupCounts:
    """Returns the counts of the first group as another group's."""
    first = group * run_plan.SPLITS_PER_GROUP
    splits = dataclasses.replace(counts.splits, ordinals_S=counts.splits.ordinals_S + first)
    return copy.deepcopy(dataclasses.replace(counts, group=group, splits=splits))


@dataclasses.dataclass
class Meter:
    """Measures steps and prints a row for each."""

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def measure(self, name: str, work: Callable[[], Any], times: float = 1.0) -> Any:
        """Runs a step and prints its row.

        Args:
            name: Name of the step.
            work: The step.
            times: Number of such steps in the whole run.

        Returns:
            The result of the step.
        """
        SlowStore.requests = {}
        before, started = peak_megabytes(), time.monotonic()
        result = work()
        seconds = time.monotonic() - started

        requests = {
            kind: round(count * times) for kind, count in sorted(SlowStore.requests.items())
        }
        row = {
            "step": name,
            "requests": sum(requests.values()),
            "by_kind": requests,
            "seconds_here": seconds,
            "multiplied": times,
            "megabytes": peak_megabytes() - before,
        }
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in requests.items())
        shared = "" if times == 1 else f"  (x{times:,.0f}, shared by workers)"
        print(
            f"{name:<44} {row['requests']:>11,} {seconds:>8.1f} s {row['megabytes']:>7.0f} MB  "
            f"{kinds}{shared}"
        )
        self.rows.append(row)
        return result


def peak_megabytes() -> float:
    """Returns the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Generates the run folder and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", type=int, default=1_000_000, help="committed splits")
    parser.add_argument("--milliseconds", type=float, default=20.0, help="duration of a request")
    parser.add_argument("--documents", type=int, default=200, help="documents in a split")
    parser.add_argument(
        "--sampled_groups", type=int, default=1, help="groups to run of what is multiplied"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()

    # The store does not wait until the run folder is complete.
    fsspec.register_implementation(SlowStore.protocol, SlowStore, clobber=True)
    SlowStore.wait, SlowStore.total, SlowStore.done = 0.0, args.splits, args.splits
    SlowStore.score_file = make_score_file(args.documents)
    folder = RunFolder(f"slowstore://{ROOT}")
    groups = -(-args.splits // run_plan.SPLITS_PER_GROUP)
    for ordinal in range(args.splits):
        SlowStore.by_prefix.setdefault(folder.score_path(ordinal).split("/")[-2], []).append(
            ordinal
        )
    commits.commit_if_absent(folder.identity_path, to_json(committed_identity(args.splits, groups)))
    SlowStore.wait = args.milliseconds / 1000

    meter = Meter()
    sampled = range(args.sampled_groups)
    times = groups / args.sampled_groups
    print(f"{args.splits:,} splits in {groups:,} groups, {args.milliseconds:g} ms a request")
    print(f"{'':<44} {'requests':>11} {'here':>10} {'memory':>10}")

    watcher = progress.Watcher(folder)
    status = meter.measure("status, nothing summarized", watcher.look)
    assert status.splits_done == args.splits
    meter.measure("status again, only what is new", watcher.look)

    scored_M = meter.measure(
        "resume, nothing summarized: list the scored", lambda: scored_ordinals(folder)
    )
    expand = ExpandGroup(folder)

    def expand_groups() -> None:
        for group in sampled:
            assert len(list(expand.process(group, scored_M))) == min(
                run_plan.SPLITS_PER_GROUP, args.splits
            )

    meter.measure("resume, nothing summarized: expand groups", expand_groups, times)

    def summarise() -> None:
        for group in sampled:
            first = group * run_plan.SPLITS_PER_GROUP
            last = min(first + run_plan.SPLITS_PER_GROUP, args.splits)
            summaries.summarise_group(folder, group, range(first, last))

    meter.measure("summarize", summarise, times)

    # All groups get the first one's summary; making the others is not measured.
    SlowStore.wait = 0.0
    one = commits.read_bytes(folder.summary_path(0))
    for group in range(groups):
        commits.commit_if_absent(folder.summary_path(group), one)
    SlowStore.wait = args.milliseconds / 1000
    meter.measure("status, all summarized", progress.Watcher(folder).look)
    meter.measure(
        "resume, all summarized: expand groups",
        lambda: [list(expand.process(group, scored_M)) for group in sampled],
        times,
    )

    def add_up() -> summaries.Summary:
        total = summaries.Summary()
        for group in sampled:
            total.add(summaries.read_summary(folder, group))
        return total

    total = meter.measure("add summaries up", add_up, times)
    scored = scoring(
        total.counts, splits=args.splits, sources=total.sources, histogram=total.histogram()
    )
    commits.commit_if_absent(folder.scoring_path, to_json(scored))
    meter.measure("status, all scored", progress.Watcher(folder).look)

    request = SelectionRequest(
        folder.path,
        Policy(KeepFraction("0.5")),
        seed=0,
        output_format="same",
        output_shard_bytes=2**27,
    )
    cutoffs = meter.measure("select: begin", lambda: cutoff_search.begin_selection(request))
    counter = cutoff_search.CountUndecided(request, folder)
    meter.measure(
        "select: a round of the descent",
        lambda: [list(counter.process(group, cutoffs)) for group in sampled],
        times,
    )
    keeper = kept_rows.CountKept(request)
    meter.measure(
        "select: count what is kept",
        lambda: [list(keeper.process(group, cutoffs)) for group in sampled],
        times,
    )

    one_group = next(iter(keeper.process(0, cutoffs)))
    counted = [numbered(one_group, group) for group in range(groups)]
    tasks = meter.measure(
        "select: plan the output files",
        lambda: list(output_files.plan_shards_of(None, counted, request)),
    )
    del tasks
    written = [
        output_files.WrittenShard(task.name, task.written, task.documents, 2**27, "0" * 64)
        for task in output_files.plan_shards(
            KeptSplits.merge(group.splits for group in counted), "same", 2**27
        )
    ]

    sources = publishing.MergeSources().merge_accumulators([group.sources for group in counted])
    merged = KeptSplits.merge(group.splits for group in counted)
    total_kept = merged.total()
    scored = dataclasses.replace(
        scored,
        counts=dataclasses.replace(
            scored.counts,
            read=total_kept.read,
            scored=total_kept.kept + total_kept.dropped,
            rejected_by_reason=Counter(not_json=total_kept.rejected),
        ),
    )
    threshold = SelectionRequest(
        folder.path, Policy(Threshold("0")), seed=0, output_format="same", output_shard_bytes=2**27
    )
    fixed = Cutoffs.fixed(threshold.policy, Cutoff(Threshold("0").end))
    del merged
    meter.measure(
        "select: reconcile the counts",
        lambda: publishing.reconcile_counts(
            threshold,
            scored,
            fixed,
            KeptSplits.merge(group.splits for group in counted),
            sources,
            written,
        ),
    )
    print(f"peak of this process: {peak_megabytes():,.0f} MB")
    if args.json:
        args.json.write_text(
            json.dumps({"machine": machine(), "rows": meter.rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
