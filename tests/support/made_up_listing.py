"""Plans listings of files that do not exist, to see what planning millions of files takes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import time
from collections.abc import Iterator

import numpy as np

from datarater.pipelines.graph import planning
from datarater.pipelines.graph.planning import FilePlan
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.rater_model.documents.records import Compression, FileInfo, ReadOptions
from tests.support.run_folders import run_options

SPLIT_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """A listing of files that do not exist, made while it is read.

    Attributes:
        count: Number of files.
        size: Size of each.
    """

    count: int
    size: int

    def files(self) -> Iterator[FileInfo]:
        """Yields the files, sorted by path."""
        for number in range(self.count):
            path = f"gs://crawl/2025/segment-{number:08d}.jsonl"
            yield FileInfo(path, self.size, f"generation-{number:016d}")


def plan(files: int, per_file: int, output: str) -> tuple[float, float]:
    """Plans a made-up listing; returns the megabytes added to this process's peak, and seconds.

    Args:
        files: Number of files.
        per_file: Number of splits of each; 0 for small files, which share splits.
        output: Run folder.
    """
    inputs = MadeUp(count=files, size=per_file * SPLIT_BYTES or 2000)
    request = ScoringRequest(inputs, "rater", output, run_options(split_bytes=SPLIT_BYTES))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    starts_S = np.arange(per_file, dtype=np.int64) * SPLIT_BYTES
    cuts_Sx3 = np.stack([starts_S, starts_S + SPLIT_BYTES, np.full(per_file, SPLIT_BYTES)], axis=1)

    def plan_file(info: FileInfo, read: ReadOptions, split_bytes: int) -> FilePlan:
        if not per_file:
            return FilePlan.of(info, read, split_bytes)
        return FilePlan(info, "jsonl", Compression.NONE, cuts_Sx3)

    planning.plan_now(request, plan_file)
    planning.list_inputs(request)  # as a run that resumes does
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak - before) / 1024, time.monotonic() - started


def plan_in_a_process(files: int, per_file: int, output: str) -> tuple[float, float]:
    """Does `plan` in a fresh process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(plan, (files, per_file, output))
