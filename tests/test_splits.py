from pathlib import Path

import pytest

from pipelines import commits, ledger, splits
from pipelines.errors import BooksError, CurationError, RunFolderMismatchError
from pipelines.splits import PlanRequest
from rater_model.documents import list_files, plan_file
from rater_model.records import FileInfo, ReadOptions, Split


def request_for(corpus: Path, output: Path, **identity: str) -> PlanRequest:
    return PlanRequest((str(corpus / "*"),), str(output), ReadOptions(), 100, identity or {"rater": "r"})


def planned(request: PlanRequest) -> list[tuple[FileInfo, list[Split]]]:
    return [(info, plan_file(info, request.read, request.split_bytes)) for info in list_files(request.inputs)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, lines in (("b", 10), ("a", 30), ("c", 0)):
        (folder / f"{name}.jsonl").write_text('{"text": "some text"}\n' * lines)
    return folder


def test_ordinals_follow_path_and_start_whatever_the_order_of_planning(corpus: Path, tmp_path: Path) -> None:
    request = request_for(corpus, tmp_path / "run")
    splits.commit_plan(request, planned(request)[::-1])
    tasks = splits.read_group(request.folder, 0)
    assert [task.split.ordinal for task in tasks] == list(range(len(tasks)))
    places = [(task.split.path, task.split.start) for task in tasks]
    assert places == sorted(places)
    assert {Path(path).name for path, _ in places} == {"a.jsonl", "b.jsonl", "c.jsonl"}
    assert splits.plan_of(request.folder)["splits"] == len(tasks) > 8


def test_a_plan_is_cut_into_groups(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "SPLITS_PER_GROUP", 4)
    request = request_for(corpus, tmp_path / "run")
    splits.commit_plan(request, planned(request))
    plan = splits.plan_of(request.folder)
    groups = [splits.read_group(request.folder, group) for group in range(plan["groups"])]
    assert [len(group) for group in groups[:-1]] == [4] * (len(groups) - 1)
    assert sum(len(group) for group in groups) == plan["splits"]
    assert all(task.group == number for number, group in enumerate(groups) for task in group)


def test_the_first_plan_wins_and_another_run_is_refused(corpus: Path, tmp_path: Path) -> None:
    request = request_for(corpus, tmp_path / "run")
    assert not splits.check_committed_plan(request, list_files(request.inputs))
    splits.commit_plan(request, planned(request))
    first = commits.read_bytes(request.folder.identity_path)
    splits.commit_plan(request, planned(request))
    assert commits.read_bytes(request.folder.identity_path) == first
    with pytest.raises(RunFolderMismatchError, match="rater is 'r' there, but 's' now"):
        splits.commit_plan(request_for(corpus, tmp_path / "run", rater="s"), planned(request))
    (corpus / "a.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(RunFolderMismatchError, match=r"a\.jsonl has changed"):
        splits.check_committed_plan(request, list_files(request.inputs))


def test_a_plan_that_died_before_its_identity_does_not_stand_in_the_way(corpus: Path, tmp_path: Path) -> None:
    request = request_for(corpus, tmp_path / "run")
    splits.commit_plan(request, planned(request))
    Path(request.folder.identity_path).unlink()
    (corpus / "a.jsonl").write_text('{"text": "other"}\n')
    splits.commit_plan(request, planned(request))
    assert len(splits.read_group(request.folder, 0)) == splits.plan_of(request.folder)["splits"]
    assert splits.check_committed_plan(request, list_files(request.inputs))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BooksError, match="holds no plan"):
        splits.plan_of(ledger.RunFolder(str(tmp_path)))
    with pytest.raises(CurationError, match=r"nothing\.jsonl"):
        splits.list_inputs([str(tmp_path / "nothing.jsonl")])
