"""A split is scored the same whether its records are read ahead of the model or not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from datarater.pipelines.errors import CurationError
from datarater.pipelines.graph import planning
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.graph.score_split import BATCH_BYTES, BATCH_RECORDS, score_split
from datarater.pipelines.run_folder.plan import SplitTask, read_group
from datarater.rater_model.checkpoint import RaterCheckpoint, load_rater
from datarater.rater_model.documents.files import file_info
from datarater.rater_model.documents.records import Split
from datarater.rater_model.scorer import Scorer
from datarater.rater_model.text_scorer import PendingScores, ScoredTexts
from tests.support.devices import OnDevice
from tests.support.hostile_memory import FreeScorer
from tests.support.raters import save_tiny_rater
from tests.support.run_folders import run_options

BATCHES = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> RaterCheckpoint:
    return load_rater(str(save_tiny_rater(tmp_path_factory.mktemp("rater") / "rater")))


@pytest.fixture
def task(tmp_path: Path) -> SplitTask:
    """A split of six batches, with a rejected line in each."""
    lines = [
        json.dumps({"text": f"text {number} " * (number % 3 + 1)}) if number % 1000 else "no JSON"
        for number in range(BATCHES * BATCH_RECORDS)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    request = ScoringRequest(
        Patterns((str(tmp_path / "in.jsonl"),)), "rater", str(tmp_path / "run"), run_options()
    )
    planning.plan_now(request)
    (found,) = read_group(request.folder, 0)
    return found


class Counting(OnDevice):
    """Counts the batches that were submitted."""

    submitted = 0

    def submit(self, texts: Sequence[str]) -> PendingScores:
        self.submitted += 1
        return super().submit(texts)


def test_a_split_is_read_a_bounded_number_of_batches_ahead_and_scored_the_same(
    task: SplitTask, checkpoint: RaterCheckpoint
) -> None:
    read = run_options().read
    expected = score_split(task, read, Scorer(checkpoint)).read()
    device = Counting(checkpoint, batches_ahead=2)
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(score_split(task, read, device).read()))
    thread.start()

    # While the device stands still, reading goes on for two batches more, and then waits.
    ends = time.monotonic() + 60
    while device.submitted < 3 and time.monotonic() < ends:
        time.sleep(0.01)
    time.sleep(0.2)
    assert device.submitted == 3
    assert device.computed == 0
    assert not results

    device.may_compute.set()
    thread.join(60)
    assert device.submitted > BATCHES
    assert results == [expected]


def test_too_little_memory_while_scoring_ahead_ends_the_split_with_advice(
    task: SplitTask, checkpoint: RaterCheckpoint
) -> None:
    class OutOfMemory(OnDevice):
        def _call(self, tokens_BxL: np.ndarray, length_B: np.ndarray) -> NoReturn:
            raise MemoryError

    with pytest.raises(CurationError, match="needs more memory than is available"):
        score_split(task, run_options().read, OutOfMemory(checkpoint, batches_ahead=2))


def test_a_batch_is_small_where_short_texts_are_part_of_large_records(tmp_path: Path) -> None:
    line = json.dumps({"text": "a", "other": "o" * (BATCH_BYTES // 2)})
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join([line] * 5))
    scorer = BatchSizes()
    task = SplitTask(Split(str(path), "jsonl", ordinal=0), file_info(str(path)).fingerprint, 0)
    score_split(task, run_options().read, scorer)
    assert scorer.sizes == [2, 2, 1]


class BatchSizes(FreeScorer):
    """Notes the sizes of batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        self.sizes.append(len(texts))
        return super().score(texts)
