from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import fsspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.batch.journal import (
    Claim,
    ClaimNotes,
    Decision,
    Expired,
    Expiry,
    Journal,
    NamedSelection,
    Publication,
    Reference,
    Release,
    State,
    Terms,
)
from datarater.pipelines.errors import CountsError
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import json_lines
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import KeepCount
from datarater.rater_model.documents.records import FileInfo
from tests.support.run_folders import run_options

FILES = [FileInfo(f"in/{index}", index, f"f{index}") for index in range(8)]


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"local": str(tmp_path / "state"), "memory": f"memory:/{tmp_path}/state"}[request.param]


def claim(date: str = "2026-01-31", inputs: str = "i") -> Claim:
    selection = SelectionRequest(
        "", Policy(KeepCount(1)), seed=1, output_format="same", output_shard_bytes=5
    )
    terms = Terms(run_options(), NamedSelection(**vars(selection.options), name="keep"), "digest")
    notes = ClaimNotes(late=1, sha256="n")
    return Claim(date, 1, 10, inputs, notes, terms, f"runs/{date}", "now")


def test_decisions_are_read_as_they_were_made(folder: str) -> None:
    journal = Journal(folder)
    decisions: list[Decision] = [
        Reference("run", "reference", "d", "r", "b"),
        claim("2026-01-30"),
        claim("2026-01-31"),
        Publication(2, "record", "published/2026-01-30"),
        Release(3, "in/1 has changed"),
        claim("2026-01-31", "j"),
        Publication(6, "record", "published/2026-01-31"),
        Expiry((2, 3), ()),
        Expired(8),
        Expiry((), (2,)),
    ]
    for decision in decisions:
        assert journal.append(decision)

    again = Journal(folder)
    assert again.read() == journal.state
    state = again.state
    assert state.number == len(decisions)
    assert state.reference == decisions[0]
    assert state.claims == {2: decisions[1], 6: decisions[5]}
    assert state.released_of("2026-01-31") == decisions[2]
    assert state.released_of("2026-01-30") is None
    assert state.unfinished() == []
    assert state.claim_of("2026-01-31") == 6
    assert state.expiries == {10: decisions[9]}
    assert state.scores_expired == {2, 3}
    assert state.all_expired == {2}


def test_a_released_batch_is_unfinished_until_it_is_published() -> None:
    state = State()
    for decision in (claim("2026-01-30"), claim("2026-01-31"), Release(1, "")):
        state.add(decision)
    assert state.unfinished() == ["2026-01-30", "2026-01-31"]
    state.add(claim("2026-01-30", "again"))
    state.add(Publication(4, "", ""))
    assert state.unfinished() == ["2026-01-31"]


@pytest.mark.parametrize(
    "decision",
    [
        claim(),
        Release(1, ""),
        Release(9, ""),
        Publication(1, "", ""),
        Expiry((3,), ()),
        Expiry((), (9,)),
        Expired(2),
    ],
)
def test_what_contradicts_the_journal_is_not_written(folder: str, decision: Decision) -> None:
    journal = Journal(folder)
    for before in (claim(), Publication(1, "", ""), claim("2026-02-01")):
        assert journal.append(before)
    known = copy.deepcopy(journal.state)
    with pytest.raises(ValueError, match=r"\w"):
        journal.append(decision)
    assert journal.state == known
    assert Journal(folder).read() == known


def test_of_two_concurrent_decisions_one_wins_and_the_other_learns_of_it(folder: str) -> None:
    first, second = Journal(folder), Journal(folder)
    for journal in (first, second):
        journal.read()
    assert first.append(claim())
    assert not second.append(claim("2026-02-01"))
    assert second.state == first.state
    assert second.append(claim("2026-02-01"))
    assert first.read() == second.state


def test_a_success_whose_reply_was_lost_is_a_success(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = commits.commit_if_absent

    def forgetful(path: str, data: bytes) -> bool:
        real(path, data)
        return False

    journal = Journal(folder)
    monkeypatch.setattr(commits, "commit_if_absent", forgetful)
    assert journal.append(claim())
    assert journal.state.number == 1


def test_a_listing_that_lags_behind_loses_nothing(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder)
    for date in ("2026-01-01", "2026-01-02", "2026-01-03"):
        journal.append(claim(date))
    listed = commits.list_folder(f"{folder}/journal")
    monkeypatch.setattr(commits, "list_folder", lambda _: listed[:1])
    assert Journal(folder).read() == journal.state


def test_a_journal_with_a_hole_is_refused(folder: str) -> None:
    journal = Journal(folder)
    for date in ("2026-01-01", "2026-01-02", "2026-01-03"):
        journal.append(claim(date))
    commits.remove(journal.path(2))
    with pytest.raises(CountsError, match=r"000002\.json is missing"):
        Journal(folder).read()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "damaged"),
        (b'{"format": 2, "kind": "claim"}', "format 2; this datarater reads up to 1"),
        (b'{"format": 1, "kind": "whim", "decision": {}}', "damaged"),
        (b'{"format": 1, "kind": "expired", "decision": {"expiry": 7}}', "contradicts"),
    ],
)
def test_an_invalid_entry_is_named(folder: str, data: bytes, message: str) -> None:
    journal = Journal(folder)
    commits.commit_if_absent(journal.path(1), data)
    with pytest.raises(CountsError, match=rf"000001\.json.*{message}"):
        journal.read()


def test_files_are_named_after_their_digest(folder: str) -> None:
    journal = Journal(folder)
    digest = journal.keep("inputs", json_lines(FILES))
    assert journal.keep("inputs", json_lines(FILES)) == digest
    taken = dataclasses.replace(claim(), inputs=digest)
    assert journal.inputs(taken) == FILES
    path = journal.kept("inputs", digest)
    commits.replace(path, b"{}")
    with pytest.raises(CountsError, match="damaged"):
        journal.inputs(taken)
    commits.remove(path)
    with pytest.raises(CountsError, match="missing"):
        journal.inputs(taken)


# --- two writers


class Writer:
    """Takes files for dates as a batch does, publishes, and sometimes releases files."""

    def __init__(self, folder: str, steps: list[tuple[str, int]]) -> None:
        self.journal = Journal(folder)
        self.steps = list(steps)
        self.published: list[int] = []

    def step(self) -> None:
        kind, number = self.steps.pop(0)
        if kind == "claim":
            self.journal.decide(lambda state: self._claim(state, f"2026-01-{number + 1:02d}"))
        else:
            self.journal.decide(lambda state: self._end(state, kind, number))

    def _claim(self, state: State, date: str) -> Claim | None:
        if state.claim_of(date) is not None:
            return None
        taken = {file for one in state.claims.values() for file in self.journal.inputs(one)}
        free = [file for file in FILES if file not in taken][:2]
        digest = self.journal.keep("inputs", json_lines(free))
        return dataclasses.replace(claim(date, digest), files=len(free))

    def _end(self, state: State, kind: str, number: int) -> Decision | None:
        unfinished = [number for number in state.claims if number not in state.publications]
        if not unfinished:
            return None
        chosen = unfinished[number % len(unfinished)]
        return Release(chosen, "") if kind == "release" else Publication(chosen, "", "")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "claim", "publish", "release"]), st.integers(0, 5)
    ),
    min_size=1,
    max_size=8,
)


@given(STEPS, STEPS, st.lists(st.booleans(), max_size=60))
def test_two_interleaved_writers_take_no_file_twice(
    ours: list[tuple[str, int]], theirs: list[tuple[str, int]], interruptions: list[bool]
) -> None:
    """The other writer may do a whole step before any commit of one writer."""
    file_system = fsspec.filesystem("memory")
    folder = "memory://interleaved/state"
    with contextlib.suppress(FileNotFoundError):
        file_system.rm("/interleaved", recursive=True)
    writers = (Writer(folder, ours), Writer(folder, theirs))
    at_work: list[Writer] = []
    turns = iter(interruptions)
    real = commits.commit_if_absent

    def interrupted(path: str, data: bytes) -> bool:
        other = writers[1] if at_work[-1] is writers[0] else writers[0]
        if len(at_work) == 1 and other.steps and next(turns, False):
            with working(other):
                other.step()
        return real(path, data)

    @contextlib.contextmanager
    def working(writer: Writer) -> Iterator[None]:
        at_work.append(writer)
        yield
        at_work.pop()

    with mock.patch.object(commits, "commit_if_absent", interrupted):
        while any(writer.steps for writer in writers):
            for writer in writers:
                if writer.steps:
                    with working(writer):
                        writer.step()
    state = Journal(folder).read()
    assert [writer.journal.read() for writer in writers] == [state, state]
    reader = Journal(folder)
    reader.read()
    taken = [file for one in state.claims.values() for file in reader.inputs(one)]
    assert len(taken) == len(set(taken))
    dates = [one.date for one in state.claims.values()]
    assert len(dates) == len(set(dates))
    assert set(state.publications) <= set(state.claims)
    # Both got what they asked for: every date that one of them claims has or had a claim.
    begun = {one.date for one in [*state.claims.values(), *state.released.values()]}
    assert begun == {
        f"2026-01-{number + 1:02d}" for kind, number in [*ours, *theirs] if kind == "claim"
    }
    entries = [
        orjson.loads(commits.read_bytes(reader.path(number)))
        for number in range(1, state.number + 1)
    ]
    assert len({entry["id"] for entry in entries}) == len(entries)
