"""The sets of a run: disjoint by text, whatever their sources."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.meta_training.data.sets import SetNames, TextSet, open_sets
from datarater.meta_training.data.texts import DataError, EmptySetError
from datarater.rater_model.documents.files import NoInputError
from tests.support.prepared import ListedTexts, all_of
from tests.support.tensorflow_dataset import build_dataset


def write(path: Path, texts: Sequence[str], field: str = "text") -> str:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 0.3), min_size=3, max_size=3),
    st.sampled_from([(), ("validation",), ("test",), ("validation", "test")]),
)
def test_shares_of_the_pool_are_disjoint_and_together_the_pool(
    shares: list[float], others: Sequence[str]
) -> None:
    texts = [f"text {i}" for i in range(1000)]
    given = dict(zip(("outer", "validation", "test"), shares, strict=True))
    wanted: dict[str, Any] = {f"{role}_share": given[role] for role in ("outer", *others)}
    with tempfile.TemporaryDirectory() as folder:
        names = SetNames(inner=write(Path(folder) / "pool.jsonl", texts), **wanted)
        sets = open_sets(names)
    assert list(sets) == ["inner", "outer", *others]
    members = [list(each) for each in sets.values()]
    assert sorted(text for each in members for text in each) == sorted(texts)
    for role, each in sets.items():
        if role != "inner":
            assert abs(len(list(each)) / 1000 - given[role]) < 0.07


def test_shares_are_those_of_a_target_with_files_of_its_own(tmp_path: Path) -> None:
    pool = [f"text {i}" for i in range(300)]
    target = [f"text {i}" for i in range(200, 800)]
    names = SetNames(
        inner=write(tmp_path / "pool.jsonl", pool),
        outer=write(tmp_path / "target.jsonl", target),
        validation_share=0.3,
        test_share=0.2,
    )
    sets = {role: set(texts) for role, texts in open_sets(names).items()}
    assert sets["inner"] == set(pool) - set(target)
    held_out = [sets[role] for role in ("outer", "validation", "test")]
    assert sum(map(len, held_out)) == len(target)
    assert set.union(*held_out) == set(target)
    assert abs(len(sets["validation"]) / len(target) - 0.3) < 0.07
    assert abs(len(sets["test"]) / len(target) - 0.2) < 0.07


def test_a_share_of_several_targets_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a", "b"])
    names = SetNames(inner=path, outer={"one": path, "two": path}, validation_share=0.5)
    with pytest.raises(ValueError, match="a share of several outer sets cannot be held out"):
        open_sets(names)


def test_a_text_belongs_to_the_first_set_that_has_it(tmp_path: Path) -> None:
    names = SetNames(
        inner=write(tmp_path / "inner.jsonl", list("abcdefg")),
        outer={
            "one": write(tmp_path / "one.jsonl", list("fghi")),
            "two": write(tmp_path / "two.jsonl", list("fjk")),
        },
        validation=write(tmp_path / "validation.jsonl", list("dehl")),
        test=write(tmp_path / "test.jsonl", list("edm")),
    )
    sets = open_sets(names)
    assert {role: "".join(texts) for role, texts in sets.items()} == {
        "inner": "abc",
        "outer one": "fgi",
        "outer two": "jk",
        "validation": "hl",
        "test": "edm",
    }
    assert {role: texts.elsewhere for role, texts in sets.items()} == {
        "inner": 4,
        "outer one": 1,
        "outer two": 1,
        "validation": 2,
        "test": 0,
    }


def test_a_single_outer_set_of_several_has_its_plain_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a", "b"])
    outer = write(tmp_path / "b.jsonl", ["c"])
    assert list(open_sets(SetNames(inner=path, outer={"web": outer}))) == ["inner", "outer"]


def test_sets_of_files(tmp_path: Path) -> None:
    texts = [f"text number {i}" for i in range(400)]
    path = write(tmp_path / "a.jsonl", texts, "body")
    inner, outer = open_sets(SetNames(inner=path, outer_share=0.25), "body").values()
    assert sorted([*inner, *outer]) == sorted(texts)
    assert 50 < len(list(outer)) < 150

    target = write(tmp_path / "b.jsonl", texts[:50], "body")
    inner, outer = open_sets(SetNames(inner=path, outer=target), "body").values()
    assert list(inner) == texts[50:]
    assert list(outer) == texts[:50]
    with pytest.raises(DataError, match="the inner set has no document"):
        open_sets(SetNames(inner=path, outer=path), "body")
    with pytest.raises(NoInputError, match="nothing_here"):
        open_sets(SetNames(inner=str(tmp_path / "nothing_here*"), outer_share=0.5))


def test_sets_of_a_dataset_have_its_usable_texts(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(60)]
    build_dataset(tmp_path, {"train": [*texts, "  ", b"\xff"]})
    names = SetNames(inner="tfds:tiny", outer_share=0.3, test_share=0.2)
    sets = open_sets(names, tfds_data_dir=str(tmp_path))
    assert sorted(text for each in sets.values() for text in each) == sorted(texts)
    assert sets["inner"].rejected == {"text_empty": 1, "text_not_unicode": 1}


def test_a_file_without_a_document_makes_an_empty_set(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(EmptySetError, match=r"set has no document: .*a\.jsonl has 0 texts"):
        open_sets(SetNames(inner=str(tmp_path / "a.jsonl"), outer_share=0.5))


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_a_spread_sample_takes_each_document_once(size: int, count: int) -> None:
    texts = all_of("inner", ListedTexts([str(i) for i in range(size)]))
    sample = texts.spread(count)
    assert len(sample) == len(set(sample)) == min(size, count)
    assert sample == texts.spread(count)


def test_a_spread_sample_comes_from_all_over_the_set() -> None:
    source = ListedTexts([str(i) for i in range(1000)])
    sample = TextSet("inner", source, np.arange(1000) % 2 == 1).spread(10)
    assert sorted(int(text) // 250 for text in sample)[0] == 0
    assert len({int(text) // 250 for text in sample}) == 4
    assert all(int(text) % 2 for text in sample)
