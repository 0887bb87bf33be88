"""Every file of a run folder that version 0.1.0 wrote has the same content if written again."""

from __future__ import annotations

from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from datarater.pipelines.batch.record import Record
from datarater.pipelines.run_folder.identity import CommittedIdentity
from datarater.pipelines.run_folder.kept_counts import GroupCounts
from datarater.pipelines.run_folder.layout import decode_lines, json_lines, to_json
from datarater.pipelines.run_folder.manifest import Manifest, SelectionOptions
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.run_folder.score_files import METADATA_KEY, Footer
from datarater.pipelines.run_folder.scored import Scoring
from datarater.pipelines.run_folder.summaries import SummaryFile
from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.json_codec import decode, to_plain
from tests.support import earlier_versions

INDENTED = {
    "run/plan/identity.json": CommittedIdentity,
    "run/scoring.json": Scoring,
    "run/selections/*/rule.json": SelectionOptions,
    "run/selections/*/manifest.json": Manifest,
    "state/records/*.json": Record,
    "published/*/manifest.json": Record,
}
COMPACT = {"run/selections/*/counts/*.json": GroupCounts}
SORTED = {"run/scores/summaries/*.json": SummaryFile}
LINES = {"run/plan/*/inputs.jsonl": FileInfo, "run/plan/*/splits-*.jsonl": SplitTask}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return earlier_versions.unpack(tmp_path_factory.mktemp("earlier") / "v0.1.0")


def the_one(artifacts: Path, pattern: str) -> bytes:
    (path,) = artifacts.glob(pattern)
    return path.read_bytes()


@pytest.mark.parametrize("pattern", INDENTED)
def test_files_for_people_are_written_byte_for_byte(artifacts: Path, pattern: str) -> None:
    data = the_one(artifacts, pattern)
    assert to_json(decode(INDENTED[pattern], data)) == data


@pytest.mark.parametrize("pattern", COMPACT)
def test_counts_are_written_byte_for_byte(artifacts: Path, pattern: str) -> None:
    data = the_one(artifacts, pattern)
    assert orjson.dumps(to_plain(decode(COMPACT[pattern], data))) == data


@pytest.mark.parametrize("pattern", SORTED)
def test_summaries_are_written_byte_for_byte(artifacts: Path, pattern: str) -> None:
    data = the_one(artifacts, pattern)
    plain = to_plain(decode(SORTED[pattern], data))
    assert orjson.dumps(plain, option=orjson.OPT_SORT_KEYS) == data


@pytest.mark.parametrize("pattern", LINES)
def test_lists_are_written_byte_for_byte(artifacts: Path, pattern: str) -> None:
    data = the_one(artifacts, pattern)
    assert json_lines(decode_lines("", LINES[pattern], data)) == data


def test_the_footers_of_score_files_are_written_byte_for_byte(artifacts: Path) -> None:
    paths = list(artifacts.glob("run/scores/*/*.parquet"))
    assert len(paths) > 5
    for path in paths:
        metadata = pq.read_schema(path).metadata
        assert orjson.dumps(to_plain(Footer.of(metadata))) == metadata[METADATA_KEY]
