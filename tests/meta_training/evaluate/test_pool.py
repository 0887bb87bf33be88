from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from datarater.meta_training.evaluate.errors import EmptyDataError
from datarater.meta_training.evaluate.pool import DataOptions, prepare_data
from datarater.rater_model.documents.files import NoInputError
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document


def write(path: Path, texts: list[str], **fields: list[object]) -> str:
    lines = [
        json.dumps(
            {"id": index, "text": text, "source": f"s{index % 2}"}
            | {name: values[index] for name, values in fields.items()}
        )
        for index, text in enumerate(texts)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def options(tmp_path: Path) -> DataOptions:
    pool = [f"Pool text number {i} né" for i in range(20)] + ["target text 3", "Target  TEXT 5"]
    target = [f"target text {i}" for i in range(12)]
    return DataOptions(
        pool=(write(tmp_path / "pool.jsonl", pool, quality=[i / 2 for i in range(22)]),),
        target=(write(tmp_path / "target.jsonl", target),),
    )


def test_pool_documents_of_the_target_are_left_out_and_counted(
    options: DataOptions, tmp_path: Path
) -> None:
    data = prepare_data(options, tmp_path / "out")
    assert data.counts["pool_documents_in_target"] == 2
    assert list(data.texts()) == [f"Pool text number {i} né" for i in range(20)]
    assert list(data.texts(3, 5)) == ["Pool text number 3 né", "Pool text number 4 né"]
    assert data.column("key") == [str(i) for i in range(20)]


def test_the_target_is_split_into_disjoint_parts_that_cover_it(
    options: DataOptions, tmp_path: Path
) -> None:
    data = prepare_data(options, tmp_path / "out")
    learning = {document.text for document in data.learning}
    validation = {document.text for document in data.validation}
    assert learning
    assert validation
    assert not learning & validation
    assert learning | validation == {f"target text {i}" for i in range(12)}
    # A rater can be trained on exactly the part that rivals learn from.
    written = list(read_file(str(tmp_path / "out" / "target" / "learning.jsonl.gz")))
    assert {record.text for record in written if isinstance(record, Document)} == learning


def test_the_split_depends_on_a_document_alone(options: DataOptions, tmp_path: Path) -> None:
    before = prepare_data(options, tmp_path / "out")
    more = write(
        tmp_path / "more.jsonl", [f"target text {i}" for i in reversed(range(12))] + ["another"]
    )
    after = prepare_data(dataclasses.replace(options, target=(more,)), tmp_path / "out")
    kept = {document.text for document in after.validation} - {"another"}
    assert kept == {document.text for document in before.validation}


def test_validation_files_are_not_learned_from(options: DataOptions, tmp_path: Path) -> None:
    validation = write(tmp_path / "validation.jsonl", ["Target text 1", "new"])
    data = prepare_data(dataclasses.replace(options, validation=(validation,)), tmp_path / "out")
    assert {document.text for document in data.validation} == {"Target text 1", "new"}
    assert "target text 1" not in {document.text for document in data.learning}
    assert len(data.learning) == 11
    assert data.counts["target_documents_in_validation"] == 1


def test_bytes_are_the_tokens_of_the_byte_tokenizer(options: DataOptions, tmp_path: Path) -> None:
    data = prepare_data(options, tmp_path / "out")
    assert data.tokens_T.dtype == np.uint8
    ends = [0, *data.token_ends_N.tolist()]
    for index, text in enumerate(data.texts()):
        assert data.tokens_T[ends[index] : ends[index + 1]].tobytes().decode() == text


def test_a_bpe_is_trained_on_the_pool_and_its_ids_are_stored(
    options: DataOptions, tmp_path: Path
) -> None:
    bpe = dataclasses.replace(options, tokenizer="bpe", vocabulary_size=300)
    data = prepare_data(bpe, tmp_path / "out")
    assert data.tokens_T.dtype == np.uint16
    assert data.tokens_N.sum() < data.bytes_N.sum()
    expected = np.concatenate([data.tokenizer.encode(text) for text in data.texts()])
    np.testing.assert_array_equal(data.tokens_T, expected)
    assert data.digest != prepare_data(options, tmp_path / "out").digest


def test_labels_belong_to_the_documents_that_stay(options: DataOptions, tmp_path: Path) -> None:
    data = prepare_data(dataclasses.replace(options, label_field="quality"), tmp_path / "out")
    assert [float(label) for label in data.column("label")] == [i / 2 for i in range(20)]
    assert data.column("source")[:3] == ["s0", "s1", "s0"]


def test_prepared_data_is_opened_again_and_changed_files_are_read_again(
    options: DataOptions, tmp_path: Path
) -> None:
    first = prepare_data(options, tmp_path / "out")
    marker = first.folder / "marker"
    marker.touch()
    assert prepare_data(options, tmp_path / "out").folder == first.folder
    assert marker.exists()
    write(Path(options.pool[0]), ["something else entirely"])
    assert prepare_data(options, tmp_path / "out").digest != first.digest


def test_moved_files_keep_the_digest_that_runs_are_cached_by(
    options: DataOptions, tmp_path: Path
) -> None:
    before = prepare_data(options, tmp_path / "out")
    moved = Path(options.pool[0]).rename(tmp_path / "moved.jsonl")
    after = prepare_data(dataclasses.replace(options, pool=(str(moved),)), tmp_path / "out")
    assert after.folder != before.folder
    assert after.digest == before.digest


def test_data_that_is_missing_or_empty_is_refused(options: DataOptions, tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="nowhere"):
        prepare_data(dataclasses.replace(options, pool=("nowhere/*.jsonl",)), tmp_path / "out")
    target = Path(options.target[0])
    with pytest.raises(EmptyDataError, match="--pool has no document"):
        prepare_data(dataclasses.replace(options, pool=(str(target),)), tmp_path / "out")
    one = write(tmp_path / "one.jsonl", ["a single text"])
    with pytest.raises(EmptyDataError, match="--validation_share"):
        prepare_data(dataclasses.replace(options, target=(one,)), tmp_path / "out")
    assert list((tmp_path / "out" / "data").iterdir()) == []
