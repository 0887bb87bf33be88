"""Files are found by folders, globs, braces and `~`, on the local disk and elsewhere."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.rater_model.documents import files
from datarater.rater_model.documents.files import (
    NoInputError,
    expand_braces,
    expand_home,
    list_files,
    split_on_commas,
)
from datarater.rater_model.documents.store_errors import MissingPackageError, UnknownProtocolError

TREE = (
    "README.md",
    "README",
    "LICENSE-CC.txt",
    "notes.md",
    ".gitattributes",
    "_SUCCESS",
    "a.jsonl",
    "b,c.jsonl",
    "readme-0001.jsonl.gz",
    "_more.jsonl",
    "data/d.parquet",
    "data/deep/e.jsonl",
    "data/_temporary/half.jsonl",
    "data/.cache/old.jsonl",
)
DATA = ["a.jsonl", "b,c.jsonl", "data/d.parquet", "data/deep/e.jsonl", "readme-0001.jsonl.gz"]


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder with `TREE` in it, local and on a file system that is not."""
    place = f"{tmp_path}/.hidden/in" if request.param == "local" else "memory:///files-test/in"
    for name in TREE:
        with fsspec.open(f"{place}/{name}", "wb", auto_mkdir=True) as file:
            file.write(name.encode())
    yield place
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/files-test", recursive=True)


def names(root: str, *patterns: str) -> list[str]:
    infos = list_files([f"{root}/{pattern}".rstrip("/") for pattern in patterns])
    for info in infos:
        assert info.path.startswith(f"{root}/")
        assert info.size == len(info.path) - len(root) - 1
    return [info.path.removeprefix(f"{root}/") for info in infos]


def test_a_folder_is_read_as_its_data_files(root: str) -> None:
    assert names(root, "") == DATA
    assert [info.path for info in list_files([f"{root}/"])] == [f"{root}/{name}" for name in DATA]
    assert names(root, "data", "a.jsonl", "data/deep") == [
        "a.jsonl",
        "data/d.parquet",
        "data/deep/e.jsonl",
    ]


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("*.jsonl", ["a.jsonl"]),
        ("_*", ["_SUCCESS", "_more.jsonl"]),
        ("[._]*", [".gitattributes", "_SUCCESS", "_more.jsonl"]),
        ("_SUCCESS", ["_SUCCESS"]),
        ("README*", ["README", "README.md"]),
        ("**/*.jsonl", ["a.jsonl", "data/deep/e.jsonl"]),
        ("**/_temporary/*", ["data/_temporary/half.jsonl"]),
        ("data/.cache", ["data/.cache/old.jsonl"]),
        ("data/.c*/*.jsonl", ["data/.cache/old.jsonl"]),
        ("data/**", ["data/d.parquet", "data/deep/e.jsonl"]),
        ("data/{d.parquet,deep/*}", ["data/d.parquet", "data/deep/e.jsonl"]),
        ("{a*,data/**/*}.{jsonl,parquet}", ["a.jsonl", "data/d.parquet", "data/deep/e.jsonl"]),
        ("{a.jsonl,data}", ["a.jsonl", "data/d.parquet", "data/deep/e.jsonl"]),
        ("*.{jsonl,zst}", ["a.jsonl"]),
    ],
)
def test_globs_leave_out_hidden_names_that_they_do_not_name(
    root: str, pattern: str, matches: list[str]
) -> None:
    os_names = names(root, pattern)
    assert [name for name in os_names if "," not in name] == matches


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("*.csv", r"no file matches .*\*\.csv'; check the path"),
        ("missing.jsonl", r"no file matches .*missing\.jsonl'"),
        ("{a,missing}.jsonl", r"no file matches .*/missing\.jsonl' \(from .*\{a,missing\}"),
        ("dat*", r"only folders; add '/\*\*'"),
        ("data/**.jsonl", r"\*\* as a whole path component"),
        ("*{.csv,.tsv}", "no file matches"),
    ],
)
def test_what_matches_nothing_is_named_with_a_remedy(root: str, pattern: str, says: str) -> None:
    with pytest.raises(NoInputError, match=says):
        list_files([f"{root}/{pattern}"])


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(NoInputError, match="has no data files"):
        list_files([str(tmp_path)])


def test_links_are_followed_once_and_broken_ones_fail(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jsonl").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in/pipe")
    assert [info.path for info in list_files([f"{tmp_path}/in"])] == [
        f"{tmp_path}/in/linked/a.jsonl"
    ]
    (tmp_path / "in/broken.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"broken\.jsonl"):
        list_files([f"{tmp_path}/in"])


def test_a_path_that_exists_is_taken_literally(tmp_path: Path) -> None:
    for name in ("{a,b}.jsonl", "a.jsonl", "[a].jsonl"):
        (tmp_path / name).touch()
    for name in ("{a,b}.jsonl", "[a].jsonl"):
        assert [info.path for info in list_files([f"{tmp_path}/{name}"])] == [f"{tmp_path}/{name}"]


def test_the_home_folder_is_expanded_in_local_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").touch()
    assert [info.path for info in list_files(["~/{a,b*}.jsonl"])] == [f"{tmp_path}/a.jsonl"]
    assert expand_home("~") == str(tmp_path)
    assert expand_home("~root/x") == os.path.expanduser("~root/x") != "~root/x"
    for same in ("a/~", "gs://bucket/~", "~no_such_user_here/x", "./~"):
        assert expand_home(same) == same


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        (" a , ,b,", ["a", "b"]),
        ("{a,b}", ["{a,b}"]),
        ("{a,{b,c}}x,d", ["{a,{b,c}}x", "d"]),
        ("{a,b", ["{a", "b"]),
        ("a},b", ["a}", "b"]),
        ("", []),
    ],
)
def test_commas_separate_outside_of_braces(text: str, parts: list[str]) -> None:
    assert split_on_commas(text) == parts


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a{,b}", ["a", "ab"]),
        ("{a,b}{c,d}", ["ac", "ad", "bc", "bd"]),
        ("{a,{b,c}d}", ["a", "bd", "cd"]),
        ("{x{a,b}}", ["{xa}", "{xb}"]),
        ("{a}", ["{a}"]),
        ("{a,b", ["{a,b"]),
        ("{{a,b}", ["{a", "{b"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern: str, expanded: list[str]) -> None:
    assert expand_braces(pattern) == expanded


@given(st.text("ab,{}", max_size=12))
def test_no_pattern_breaks_braces_and_commas(text: str) -> None:
    assert "".join(split_on_commas(text)).count("a") == text.count("a")
    assert expand_braces(text)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("gs://b/*.jsonl", "gcsfs", r"pip install 'datarater\[gcp\]'"),
        ("s3://b/a.jsonl", "s3fs", r"pip install 'datarater\[s3\]'"),
        ("hf://datasets/a/b", "huggingface_hub", r"pip install 'datarater\[hf\]'"),
    ],
)
def test_a_missing_package_is_one_line_that_names_the_extra(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = sys.modules["fsspec.registry"]._registry  # other tests may have loaded the package
    monkeypatch.delitem(loaded, url.partition(":")[0], raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    for look in (list_files, lambda urls: files.open_file(urls[0])):
        with pytest.raises(MissingPackageError, match=extra) as raised:
            look([url])
        assert raised.value.filename == url
        assert "\n" not in str(raised.value)
    with pytest.raises(MissingPackageError, match=extra):
        files.check_protocol(url)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(UnknownProtocolError, match="no file system abc://") as raised:
        list_files(["abc://x/*"])
    assert isinstance(raised.value, OSError)


@pytest.mark.parametrize("pattern", ["datasets/a/b/a.jsonl", "datasets/a/b/*.jsonl"])
def test_a_store_out_of_reach_is_no_missing_file(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    kind = fsspec.get_filesystem_class("memory")
    monkeypatch.setattr(kind, "info", refuse)
    monkeypatch.setattr(kind, "glob", refuse)
    with pytest.raises(OSError, match=r"cannot reach memory:// \(.*not known\); check") as raised:
        list_files([f"memory://{pattern}"])
    assert type(raised.value) is OSError
