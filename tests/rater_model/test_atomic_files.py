from __future__ import annotations

from pathlib import Path

import pytest

from datarater.rater_model.atomic_files import replacing, replacing_folder


def test_a_file_is_replaced_once_it_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    path.write_text("before")
    with replacing(path) as new:
        assert new.suffix == ".npz"
        new.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_written_whole_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    path.write_text("before")

    def fail() -> None:
        with replacing(path) as new:
            new.write_text("af")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "digest"
    with replacing_folder(folder) as new:
        (new / "old").touch()

    def fail() -> None:
        with replacing_folder(folder) as new:
            (new / "half").touch()
            raise ValueError("the input is damaged")

    with pytest.raises(ValueError, match="damaged"):
        fail()
    assert [path.name for path in folder.iterdir()] == ["old"]
    with replacing_folder(folder) as new:
        (new / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(folder.parent.iterdir()) == [folder]
