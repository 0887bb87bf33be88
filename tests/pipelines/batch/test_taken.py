"""Which batch took a file is known from a few compacted lists, and never differs from all lists."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datarater.pipelines.batch.journal import Journal, Release
from datarater.pipelines.batch.taken import BLOCK_CLAIMS, TakenFiles
from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import json_lines
from datarater.rater_model.documents.records import FileInfo
from tests.support.batches import claim

FILES = 40


def add_batches(folder: str, count: int, seed: int = 0) -> Journal:
    """Adds batches of random files, some of them released again."""
    journal = Journal(folder)
    journal.read()
    rng = random.Random(seed + journal.state.number)
    for _ in range(count):
        day = f"day-{journal.state.number:04d}"
        paths = rng.sample([f"in/ü-{number:03d}.jsonl" for number in range(FILES)], 6)
        infos = [FileInfo(path, 1, f"version-{rng.randrange(3)}") for path in sorted(paths)]
        assert journal.append(claim(day, journal.keep("inputs", json_lines(infos)), len(infos)))
        if rng.random() < 0.2:
            assert journal.append(Release(journal.state.number, "a test"))
    return journal


def from_all_lists(journal: Journal, paths: list[str]) -> dict[str, list[tuple[str, str]]]:
    taken: dict[str, dict[str, str]] = {}
    for one in journal.state.claims.values():
        for info in journal.inputs(one):
            if info.path in paths:
                taken.setdefault(info.path, {})[info.fingerprint] = one.date
    return {path: list(versions.items()) for path, versions in taken.items()}


def from_segments(
    journal: Journal, paths: list[str], max_rows: int = 10**6
) -> dict[str, list[tuple[str, str]]]:
    found = TakenFiles(journal, max_rows).fingerprints(dict.fromkeys(paths))
    return {path: list(versions.items()) for path, versions in found.items()}


PATHS = [f"in/ü-{number:03d}.jsonl" for number in range(0, FILES + 10, 3)]


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize("max_rows", [0, 10**6])
def test_compacted_lists_say_what_all_lists_say(tmp_path: Path, kind: str, max_rows: int) -> None:
    folder = str(tmp_path) if kind == "local" else f"memory:/{tmp_path}"
    for seed, count in enumerate([1, BLOCK_CLAIMS - 2, 3, BLOCK_CLAIMS**2, 5]):
        journal = add_batches(folder, count, seed)
        assert from_segments(journal, PATHS, max_rows) == from_all_lists(journal, PATHS)
        assert from_segments(journal, [], max_rows) == {}

    # A claim that is released after it was compacted is left out from then on.
    released = next(iter(journal.state.claims))
    assert journal.append(Release(released, "a test"))
    assert from_segments(journal, PATHS, max_rows) == from_all_lists(journal, PATHS)


def test_few_lists_are_read_once_the_others_are_compacted(tmp_path: Path) -> None:
    journal = add_batches(str(tmp_path), BLOCK_CLAIMS**2 + 3 * BLOCK_CLAIMS + 2)
    expected = from_segments(journal, PATHS)
    names = sorted(path.name for path in (tmp_path / "taken").iterdir())
    assert [name for name in names if name.startswith("2-")] == ["2-000000.parquet"]
    assert len([name for name in names if name.startswith("1-")]) == BLOCK_CLAIMS + 3

    # Only the lists of the last two claims are read again.
    begun = {**journal.state.released, **journal.state.claims}
    last = {begun[number].inputs for number in sorted(begun)[-2:]}
    for path in (tmp_path / "inputs").iterdir():
        if path.stem not in last:
            path.unlink()
    assert from_segments(journal, PATHS) == expected


def test_launches_at_once_and_killed_ones_make_the_same_segments(tmp_path: Path) -> None:
    journal = add_batches(str(tmp_path), BLOCK_CLAIMS**2 + 1)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: from_segments(journal, PATHS), range(4)))
    assert answers == [from_all_lists(journal, PATHS)] * 4
    segments = {path: path.read_bytes() for path in (tmp_path / "taken").iterdir()}

    # Whatever of them a killed launch did not make is made by the next, byte for byte.
    for path in list(segments)[::2]:
        path.unlink()
    assert from_segments(journal, PATHS) == answers[0]
    for path, content in segments.items():
        assert not path.exists() or path.read_bytes() == content


def test_a_segment_that_is_damaged_or_of_another_state_folder_is_refused_by_name(
    tmp_path: Path,
) -> None:
    journal = add_batches(str(tmp_path / "a"), BLOCK_CLAIMS)
    add = add_batches(str(tmp_path / "b"), BLOCK_CLAIMS, seed=1)
    from_segments(journal, PATHS)
    from_segments(add, PATHS)
    segment = tmp_path / "a/taken/1-000000.parquet"
    segment.write_bytes((tmp_path / "b/taken/1-000000.parquet").read_bytes())
    with pytest.raises(CountsError, match=r"1-000000\.parquet belongs to other entries.*remove it"):
        from_segments(journal, PATHS)
    segment.write_bytes(b"PAR1 and nothing more PAR1")
    with pytest.raises(CountsError, match=r"1-000000\.parquet cannot be read.*remove it"):
        from_segments(journal, PATHS)
    segment.unlink()
    assert from_segments(journal, PATHS) == from_all_lists(journal, PATHS)
    assert commits.exists(str(segment))
