"""New files become a further plan of a run folder, and nothing that was there changes."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.pipelines.errors import CountsError, RunFolderMismatchError
from datarater.pipelines.graph import planning, scoring
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.run_folder import commits, summaries
from datarater.pipelines.run_folder.identity import InputDifferences, InputsDigest, joined
from datarater.pipelines.run_folder.layout import RunFolder, json_lines, to_json
from datarater.pipelines.run_folder.plan import plan_of, plans_of, read_group
from datarater.pipelines.run_folder.progress import Watcher
from datarater.pipelines.run_folder.scored import read_scoring
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.records import FileInfo
from tests.pipelines.graph.test_packing import request_for, scored, written
from tests.support.run_folders import committed_identity


def write(folder: Path, name: str, documents: int) -> None:
    folder.mkdir(exist_ok=True)
    rows = [
        json.dumps({"id": f"{name} {row}", "text": f"{name} {row}"}) for row in range(documents)
    ]
    (folder / name).write_text("".join(row + "\n" for row in rows))


@pytest.fixture
def request_to(tmp_path: Path) -> ScoringRequest:
    """A scoring of two files that is done."""
    for name, documents in (("a.jsonl", 9), ("c.jsonl", 5)):
        write(tmp_path / "in", name, documents)
    request = request_for(tmp_path / "in", tmp_path / "run")
    finish(request)
    return request


def finish(request: ScoringRequest) -> None:
    """Plans, scores and counts what is not there yet."""
    scored(request)
    total = summaries.Summary()
    for group in range(plan_of(request.folder).groups):
        total.add(summaries.read_summary(request.folder, group))
    scoring.finish_scoring(total, request.folder)


def contents(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_new_file_is_refused_with_the_flag_that_takes_it(
    request_to: ScoringRequest, tmp_path: Path
) -> None:
    write(tmp_path / "in", "b.jsonl", 3)
    before = contents(request_to.output)
    with pytest.raises(RunFolderMismatchError, match=r"b\.jsonl is new\. Add --append to score"):
        scoring.preflight(request_to)
    with pytest.raises(RunFolderMismatchError, match="--append"):
        planning.plan_now(request_to)
    assert contents(request_to.output) == before


def test_a_missing_file_is_refused_with_the_way_out(
    request_to: ScoringRequest, tmp_path: Path
) -> None:
    (tmp_path / "in" / "c.jsonl").unlink()
    with pytest.raises(
        RunFolderMismatchError, match=r"c\.jsonl is gone\. Restore the files .* add --append"
    ):
        scoring.preflight(request_to)
    appending = dataclasses.replace(request_to, append=True)
    assert scoring.preflight(appending).new == 0


def test_a_changed_file_is_refused_even_to_append(
    request_to: ScoringRequest, tmp_path: Path
) -> None:
    write(tmp_path / "in", "c.jsonl", 6)
    appending = dataclasses.replace(request_to, append=True)
    for request in (request_to, appending):
        with pytest.raises(
            RunFolderMismatchError, match=r"c\.jsonl was modified .*Restore the files"
        ):
            scoring.preflight(request)


def test_appended_files_follow_and_nothing_that_was_there_changes(
    request_to: ScoringRequest, tmp_path: Path
) -> None:
    write(tmp_path / "in", "b.jsonl", 3)
    before = contents(request_to.output)
    appending = dataclasses.replace(request_to, append=True)
    checked = scoring.preflight(appending)
    assert (checked.inputs.files, checked.new, checked.plans) == (3, 1, 2)
    finish(appending)
    after = contents(request_to.output)
    assert {path: after[path] for path in before} == before

    plans = plans_of(request_to.folder)
    assert (len(plans.identities), plans.groups, plans.end) == (2, 2, 3)
    assert [Path(info.path).name for info in plans.inputs()] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    (task,) = read_group(request_to.folder, 1)
    assert (Path(task.split.path).name, task.split.ordinal, task.group) == ("b.jsonl", 2, 1)

    counts = read_scoring(request_to.folder).counts
    assert (counts.read, read_scoring(request_to.folder, plans=1).counts.read) == (17, 14)
    status = Watcher(request_to.folder).look()
    assert status is not None
    assert (status.splits, status.splits_done, status.counts.read) == (2, 2, 17)

    # The same command again finds nothing to do, with and without the flag.
    for request in (appending, request_to):
        assert scoring.preflight(request).new == 0
        assert planning.list_inputs(request) == []
    assert contents(request_to.output) == after


def test_status_sees_an_append_while_it_watches(request_to: ScoringRequest, tmp_path: Path) -> None:
    watcher = Watcher(request_to.folder)
    status = watcher.look()
    assert status is not None
    assert (status.splits, status.finished) == (1, True)
    write(tmp_path / "in", "b.jsonl", 3)
    planning.plan_now(dataclasses.replace(request_to, append=True))
    status = watcher.look()
    assert status is not None
    assert (status.splits, status.splits_done, status.finished) == (2, 1, False)
    with pytest.raises(CountsError, match=r"scoring-0001\.json is missing"):
        read_scoring(request_to.folder)


def test_a_selection_after_appending_keeps_what_one_of_all_files_at_once_keeps(
    request_to: ScoringRequest, tmp_path: Path
) -> None:
    for name, documents in (("b.jsonl", 7), ("d.jsonl", 4)):
        write(tmp_path / "in", name, documents)
        finish(dataclasses.replace(request_to, append=True))
    assert len(plans_of(request_to.folder).identities) == 3
    at_once = dataclasses.replace(request_to, output=str(tmp_path / "at once"))
    finish(at_once)
    kept = [
        sorted(
            line for data in written(request, "jsonl", "0.5").values() for line in data.split(b"\n")
        )
        for request in (request_to, at_once)
    ]
    assert kept[0] == kept[1]


def test_only_the_new_files_need_to_be_named(request_to: ScoringRequest, tmp_path: Path) -> None:
    write(tmp_path / "more", "x.jsonl", 2)
    appending = request_for(tmp_path / "more", tmp_path / "run", append=True)
    finish(appending)
    assert read_scoring(request_to.folder).counts.read == 16
    assert plans_of(request_to.folder).identity.inputs == InputsDigest.of(
        [*list_files([str(tmp_path / "in")]), *list_files([str(tmp_path / "more")])]
    )


def test_a_plan_of_version_0_1_0_can_be_appended_to(tmp_path: Path) -> None:
    write(tmp_path / "in", "b.jsonl", 3)
    write(tmp_path / "in", "a.jsonl", 3)
    request = request_for(tmp_path / "in", tmp_path / "run", files_per_split=1, append=True)
    made = dataclasses.replace(request, output=str(tmp_path / "made"))
    planning.plan_now(made)
    old, infos = committed_identity(splits=2), list(request.inputs.files())
    folder = RunFolder(request.output)
    identity = dataclasses.replace(old, inputs=InputsDigest.of(infos), **vars(request.options))
    commits.commit_if_absent(folder.old_inputs_path("p"), json_lines(infos))
    commits.commit_if_absent(folder.old_splits_path("p", 0), json_lines(read_group(made.folder, 0)))
    commits.commit_if_absent(folder.identity_path, to_json(identity))

    write(tmp_path / "in", "c.jsonl", 3)
    finish(request)
    tasks = [task for group in (0, 1) for task in read_group(folder, group)]
    assert [(Path(task.split.path).name, task.split.ordinal) for task in tasks] == [
        ("a.jsonl", 0),
        ("b.jsonl", 1),
        ("c.jsonl", 2),
    ]
    assert read_scoring(folder).counts.read == 9


# --- differences of listings ---

LISTS = st.dictionaries(st.integers(0, 12), st.integers(0, 1), max_size=9).map(
    lambda sizes: [FileInfo(f"{number:02d}", size, "p") for number, size in sorted(sizes.items())]
)


@given(LISTS, LISTS)
def test_two_sorted_lists_are_joined_like_dictionaries(
    present: list[FileInfo], planned: list[FileInfo]
) -> None:
    now, then = ({file.path: file for file in files} for files in (present, planned))
    paths = sorted(now.keys() | then.keys())
    assert list(joined(present, planned)) == [(now.get(path), then.get(path)) for path in paths]
    found = InputDifferences.of(iter(present), iter(planned))
    changed = sum(now[path] != then[path] for path in now.keys() & then.keys())
    assert (found.new, found.gone, found.changed) == (
        len(now.keys() - then.keys()),
        len(then.keys() - now.keys()),
        changed,
    )
    assert len(found.describe("new", "gone", "changed")) <= 6


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 5), st.randoms())
def test_a_plan_is_the_same_in_whatever_order_its_chunks_are_planned(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[int],
    files_per_chunk: int,
    rng: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    for number, count in enumerate(documents):
        write(folder / "in", f"{number:02d}.jsonl", count)
    request = request_for(folder / "in", folder / "one", files_per_chunk=files_per_chunk)
    planning.plan_now(request)
    other = dataclasses.replace(request, output=str(folder / "other"))
    chunks = planning.list_inputs(other)
    rng.shuffle(chunks)
    done = [planning.plan_chunk(other, chunk) for chunk in [*chunks, *chunks[:2]]]
    rng.shuffle(done)
    planning.commit_plan(other, {one.chunk.number: one for one in done}.values())
    assert contents_below(folder / "one") == contents_below(folder / "other")


def contents_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): data for path, data in contents(str(folder)).items()}
