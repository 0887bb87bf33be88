from __future__ import annotations

import dataclasses
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.errors import RunFolderMismatchError
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.identity import differences, input_differences
from datarater.pipelines.run_folder.layout import RunFolder, json_lines, to_json
from datarater.pipelines.run_folder.manifest import check_rule
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import KeepCount
from datarater.rater_model.documents.records import Compression, FileInfo, Split
from datarater.rater_model.json_codec import from_plain

VALUES = st.dictionaries(
    st.sampled_from("abc"), st.integers(0, 2) | st.dictionaries(st.sampled_from("xy"), st.text())
)


@given(VALUES, VALUES)
def test_differences_are_found_and_only_they(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert bool(differences(one, other)) == (one != other)


def test_differences_name_the_field_and_both_values() -> None:
    requested = {"read": {"text_field": "body"}, "rater": "x"}
    committed = {"read": {"text_field": "text"}, "rater": "x"}
    assert differences(requested, committed) == ["read.text_field is 'text' there, but 'body' now"]


def test_inputs_that_came_went_and_changed_are_named() -> None:
    then = [FileInfo("a", 1, "1"), FileInfo("b", 1, "1")]
    now = [FileInfo("b", 2, "2"), FileInfo("c", 1, "1")]
    lines = input_differences(now, then)
    assert lines == ["c is new", "a is gone", "b was modified (1 byte then, 2 now)"]
    many = [FileInfo(f"{index:03d}", 1, "1") for index in range(100)]
    assert input_differences(many, [])[-1] == "and 95 more"


def test_names_in_a_run_folder_are_the_readable_ones() -> None:
    folder = RunFolder("gs://bucket/run/")
    assert folder.identity_path == "gs://bucket/run/plan/identity.json"
    assert folder.score_path(17).startswith("gs://bucket/run/scores/")
    assert folder.score_path(17).endswith("/00000017.parquet")
    assert folder.selection("keep-0.5").kept_path("part").endswith("selections/keep-0.5/kept/part")


def test_score_files_spread_over_their_prefixes() -> None:
    folder = RunFolder("run")
    prefixes = [folder.score_path(ordinal).split("/")[2] for ordinal in range(20_000)]
    counts = [prefixes.count(prefix) for prefix in set(prefixes)]
    assert len(counts) == 256
    assert max(counts) < 2 * 20_000 / 256


def test_a_task_survives_json() -> None:
    task = SplitTask(Split("p", "jsonl", Compression.GZIP, 3, None, 1002, 5), "mtime-1", 1)
    assert from_plain(SplitTask, orjson.loads(json_lines([task]))) == task


def test_another_rule_under_the_same_name_is_refused(tmp_path: Path) -> None:
    selection = RunFolder(str(tmp_path)).selection("best")
    request = SelectionRequest(
        str(tmp_path), Policy(KeepCount(1)), seed=1, output_format="same", output_shard_bytes=5
    )
    assert not check_rule(selection, request.options)
    commits.commit_if_absent(selection.rule_path, to_json(request.options))
    assert check_rule(selection, request.options)
    with pytest.raises(RunFolderMismatchError, match="seed is 1 there, but 2 now"):
        check_rule(selection, dataclasses.replace(request, seed=2).options)
