"""Small files in an object store are read in one request each, and a split needs few more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from datarater.pipelines.errors import InputChangedError
from datarater.pipelines.graph import planning
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.graph.score_split import ScoreSplit
from datarater.pipelines.run_folder import summaries
from datarater.pipelines.run_folder.plan import read_group, unchanged
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.documents.reading import read_file
from tests.integration.test_counting_stores import BUCKET, counting_store
from tests.support.request_log import Kind, RequestLog
from tests.support.run_folders import run_options

FILES = 12


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> Iterator[tuple[str, RequestLog]]:
    """A store with a corpus of small files: the URL of the bucket, and the log."""
    with counting_store(request.param) as log:
        file_system = fsspec.filesystem(request.param, use_listings_cache=False)
        for number in range(FILES):
            line = json.dumps({"id": number, "text": f"text number {number}"}) + "\n"
            file_system.pipe_file(f"{BUCKET}/in/{number:02d}.jsonl", line.encode())
        yield f"{request.param}://{BUCKET}", log


def planned(store: str, rater: Path, output: str, files_per_split: int) -> ScoringRequest:
    request = ScoringRequest(
        Patterns((f"{store}/in/*",)),
        str(rater),
        output,
        run_options(rater=load_rater(rater).digest),
        files_per_split=files_per_split,
    )
    planning.plan_now(request)
    return request


def test_a_split_of_small_files_takes_at_most_eight_requests_and_one_more_for_each_file(
    store: tuple[str, RequestLog], rater: Path
) -> None:
    url, log = store
    log.clear()
    request = planned(url, rater, f"{url}/run", files_per_split=4)
    assert log.requests(f"{BUCKET}/in/0") == 0, "planning opens no small file"

    tasks = read_group(request.folder, 0)
    assert [task.parts for task in tasks] == [4, 4, 4]
    work = ScoreSplit(request)
    work.setup()
    log.clear()
    for task in tasks:
        assert list(work.process(task)) == [(0, task.split.ordinal)]
    summaries.summarise_group(request.folder, 0, [task.split.ordinal for task in tasks])

    for number in range(FILES):
        assert log.by_kind(f"{BUCKET}/in/{number:02d}.jsonl") == {"get": 1}
    in_run = log.requests(f"{BUCKET}/run/")
    print(f"{in_run / len(tasks):.1f} requests a split: {log.by_kind(f'{BUCKET}/run/')}")
    # gcsfs looks for a missing file in two more ways.
    assert in_run <= (8 if url.startswith("s3") else 10) * len(tasks)
    assert log.requests() == in_run + FILES


def test_a_file_that_changed_since_it_was_planned_is_refused_by_the_answer_itself(
    store: tuple[str, RequestLog], rater: Path, tmp_path: Path
) -> None:
    url, log = store
    request = planned(url, rater, str(tmp_path / "run"), files_per_split=1)
    (first, second, *_) = read_group(request.folder, 0)
    log.clear()
    with unchanged(first):
        (document,) = read_file(first.split.path)
        assert document.position == 0
    assert log.by_kind(f"{BUCKET}/in/") == {"get": 1}

    file_system = fsspec.filesystem(url.split(":")[0])
    content = file_system.cat_file(second.split.path)
    file_system.pipe_file(second.split.path, b'{"text": "other"}\n')
    log.clear()
    with pytest.raises(InputChangedError, match="was modified"), unchanged(second):
        pytest.fail("it is not to be read")
    assert log.requests(f"{BUCKET}/in/", Kind.GET) == 1
    file_system.pipe_file(second.split.path, content)
