from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.keeping import text_hash
from datarater.meta_training.evaluate.kept_files import find_in_pool, match
from datarater.rater_model.documents.jsonl import key_of
from datarater.rater_model.documents.records import ReadOptions

TEXTS = [f"document {number}" for number in range(6)]
KEYS = [key_of(number, text) for number, text in enumerate(TEXTS)]
HASHES = [text_hash(text) for text in TEXTS]

identities = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=8)


def find(*files: Path) -> tuple[list[int], int, int, int]:
    found = find_in_pool("mine", [str(file) for file in files], ReadOptions(), KEYS, HASHES)
    return np.flatnonzero(found.kept_N).tolist(), found.missing, found.changed, found.read


def test_documents_are_found_by_key_or_by_text_in_files_of_any_format(tmp_path: Path) -> None:
    lines = tmp_path / "kept.jsonl"
    lines.write_text(
        json.dumps({"id": 1, "text": "cut by a later step"})
        + "\n"
        + json.dumps({"text": "Document  4"})
        + "\n"
        + json.dumps({"id": 77, "text": "of another corpus"})
        + "\n"
    )
    table = tmp_path / "kept.parquet"
    pq.write_table(pa.table({"id": [5], "text": ["document 5"]}), table)
    assert find(lines) == ([1, 4], 1, 1, 3)
    assert find(lines, table) == ([1, 4, 5], 1, 1, 4)


def test_files_without_a_document_of_the_pool_are_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"id": 77, "text": "of another corpus"}) + "\n")
    with pytest.raises(
        FlagError, match=r"--kept mine: the files have 1 document, none of which is .* look like 0"
    ):
        find(other)


def test_one_of_two_documents_with_the_same_id_is_told_by_its_text() -> None:
    pool = [("1", 10), ("1", 11), ("2", 12)]
    assert match([("1", 11)], pool).kept_N.tolist() == [False, True, False]
    # A document that is found exactly is not taken by another one with the same key.
    assert match([("1", 99), ("1", 10)], pool).kept_N.tolist() == [True, True, False]


@given(identities, st.data())
def test_a_part_of_the_pool_is_found_exactly(
    pool: list[tuple[str, int]], data: st.DataObject
) -> None:
    part = data.draw(
        st.lists(st.sampled_from(range(len(pool))), unique=True) if pool else st.just([])
    )
    found = match([pool[index] for index in part], pool)
    assert sorted(np.array(pool, object)[found.kept_N].tolist()) == sorted(
        list(pool[index]) for index in part
    )
    assert (found.missing, found.changed, found.read) == (0, 0, len(part))


@given(identities, identities)
def test_a_document_is_missing_only_if_neither_its_key_nor_its_text_is_in_the_pool(
    documents: list[tuple[str, int]], pool: list[tuple[str, int]]
) -> None:
    found = match(documents, pool)
    keys, hashes = {key for key, _ in pool}, {hashed for _, hashed in pool}
    assert found.missing == sum(
        key not in keys and hashed not in hashes for key, hashed in documents
    )
    assert found.kept_N.sum() <= len(documents) - found.missing
