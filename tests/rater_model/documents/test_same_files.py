"""A file is listed once, whatever it is called; what is no file is not listed."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from datarater.rater_model.documents.files import NoInputError, list_files, local_path
from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.documents.same_files import SameFiles


def listed(*patterns: str) -> list[str]:
    return [info.path for info in list_files(patterns)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files and links to them, in which the test works."""
    (tmp_path / "h").mkdir()
    for name in ("a.jsonl", "b.jsonl", "h/c.jsonl"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "again.jsonl").symlink_to(tmp_path / "link.jsonl")
    (tmp_path / "to_h").symlink_to("h")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "names",
    [
        ("a.jsonl", "./a.jsonl"),
        ("a.jsonl", "h/../a.jsonl"),
        ("a.jsonl", "h//..//a.jsonl"),
        ("a.jsonl", "link.jsonl"),
        ("link.jsonl", "again.jsonl"),
        ("h/c.jsonl", "to_h/c.jsonl"),
        ("to_h/*", "h/c.jsonl"),
        ("{a,link}.jsonl",),
        ("h", "to_h"),
    ],
)
def test_a_file_is_listed_once_under_its_first_name(folder: Path, names: tuple[str, ...]) -> None:
    (one,) = listed(*names)
    assert os.path.samefile(one, "h/c.jsonl" if one.endswith("c.jsonl") else "a.jsonl")
    assert listed(*reversed(names)) == [one]
    assert len(listed(*names, *(f"{folder}/{name}" for name in names))) == 1


def test_a_url_of_a_local_file_is_the_same_file(folder: Path) -> None:
    assert len(listed("a.jsonl", f"file://{folder}/a.jsonl", f"file://{folder}//a.jsonl")) == 1


def test_all_links_of_a_glob_are_one_file_and_others_stay(folder: Path) -> None:
    assert [Path(path).name for path in listed("*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert len(listed("**/*.jsonl")) == 3
    (folder / "same.jsonl").hardlink_to("b.jsonl")
    assert [Path(path).name for path in listed("[bs]*.jsonl")] == ["b.jsonl", "same.jsonl"]


def test_a_link_that_is_listed_alone_keeps_its_name(folder: Path) -> None:
    for name in ("link.jsonl", "to_h/c.jsonl"):
        assert listed(f"{folder}/{name}") == [f"{folder}/{name}"]


def test_repeated_slashes_in_a_store_name_the_same_object() -> None:
    files = [
        FileInfo("s3://b//a", 1, "etag-1"),
        FileInfo("s3://b/a", 1, "etag-1"),
        FileInfo("s3://b/c", 1, "etag-1"),
        FileInfo("s3://b/x//d", 1, "etag-2"),
        FileInfo("s3://b/x/d", 1, "etag-3"),
    ]
    same_files = SameFiles(local_path)
    for file in files:
        same_files.add(file.path)
    paths = [file.path for file in same_files.once(files)]
    assert paths == ["s3://b//a", "s3://b/c", "s3://b/x//d", "s3://b/x/d"]


@pytest.mark.timeout(60)
def test_streams_sockets_and_devices_are_not_read(folder: Path) -> None:
    os.mkfifo("pipe.jsonl")
    server = socket.socket(socket.AF_UNIX)
    server.bind("s.jsonl")
    try:
        assert [Path(path).name for path in listed("[bps]*.jsonl")] == ["b.jsonl"]
        for name, kind in (("pipe.jsonl", "a stream"), ("s.jsonl", "a socket")):
            with pytest.raises(NoInputError, match=f"{name}' is {kind}, not a file"):
                listed(name)
        with pytest.raises(NoInputError, match="no file matches"):
            listed("[p]*.jsonl")
        with pytest.raises(NoInputError, match="is a device, not a file"):
            listed("/dev/null")
    finally:
        server.close()

    # A process substitution of the shell is a pipe with a name.
    reading, writing = os.pipe()
    thread = threading.Thread(target=os.close, args=(writing,))
    thread.start()
    with pytest.raises(NoInputError, match="write it to a file first"):
        listed(f"/dev/fd/{reading}")
    thread.join()
    os.close(reading)
    with (folder / "a.jsonl").open() as file, pytest.raises(NoInputError, match="of this process"):
        listed(f"/dev/fd/{file.fileno()}")


def test_a_name_that_is_not_utf8_is_refused_before_any_work(folder: Path) -> None:
    (folder / os.fsdecode(b"bad\xff.jsonl")).write_text("")
    with pytest.raises(NoInputError, match=r"bad\\xff.jsonl is not UTF-8; rename it"):
        listed("bad*")
    with pytest.raises(NoInputError, match="is not UTF-8"):
        listed(".")
