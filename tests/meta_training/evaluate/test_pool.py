from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from datarater.meta_training.evaluate.errors import EmptyDataError, FlagError
from datarater.meta_training.evaluate.pool import DataOptions, prepare_data, take_data
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


def test_the_folds_of_the_target_are_disjoint_cover_it_and_change_roles(
    options: DataOptions, tmp_path: Path
) -> None:
    data = prepare_data(options, tmp_path / "out")
    texts = [[{document.text for document in part} for part in data.at(r).roles] for r in range(4)]
    assert texts[3] == texts[0]
    for learning, choice, test in texts:
        assert len(learning | choice | test) == len(learning) + len(choice) + len(test) == 12
    # Each document is learned from, chosen on and tested on once.
    for role in range(3):
        assert set.union(*(texts[rotation][role] for rotation in range(3))) == set.union(*texts[0])
    # A rater can be trained on exactly the part that rivals learn from.
    for rotation in range(3):
        written = list(read_file(str(data.at(rotation).learning_file)))
        assert {record.text for record in written if isinstance(record, Document)} == texts[
            rotation
        ][0]


def test_the_folds_do_not_depend_on_the_order_of_the_files(
    options: DataOptions, tmp_path: Path
) -> None:
    def folds(texts: list[str]) -> set[frozenset[str]]:
        path = tmp_path / f"{texts[0]}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        data = prepare_data(dataclasses.replace(options, target=(str(path),)), tmp_path / "out")
        return {frozenset(document.text for document in fold) for fold in data.target.folds}

    texts = [letter * 9 for letter in "abcdefghi"]
    assert folds(texts) == folds(texts[::-1])


def test_near_duplicates_and_works_stay_in_one_fold(options: DataOptions, tmp_path: Path) -> None:
    story = " ".join(f"word{i}" for i in range(30))
    texts = [story, f"Again: {story}", *(f"other text {i}" for i in range(10))]
    path = write(tmp_path / "works.jsonl", texts, work=[f"w{max(i, 9)}" for i in range(12)])
    target = dataclasses.replace(options, target=(path,))
    fold_of = {
        document.text: number
        for number, fold in enumerate(prepare_data(target, tmp_path / "a").target.folds)
        for document in fold
    }
    assert fold_of[story] == fold_of[f"Again: {story}"]
    by_work = prepare_data(dataclasses.replace(target, work_field="work"), tmp_path / "b")
    # The first ten are one work.
    assert sorted(map(len, by_work.target.folds)) == [1, 1, 10]


def test_validation_files_are_not_learned_from(options: DataOptions, tmp_path: Path) -> None:
    validation = write(tmp_path / "validation.jsonl", ["Target text 1", "new", "newer"])
    data = prepare_data(dataclasses.replace(options, validation=(validation,)), tmp_path / "out")
    for rotation in range(2):
        learning, choice, test = data.at(rotation).roles
        assert {document.text for document in (*choice, *test)} == {"Target text 1", "new", "newer"}
        assert choice
        assert test
        assert "target text 1" not in {document.text for document in learning}
        assert len(learning) == 11
    assert data.counts["target_documents_in_validation"] == 1


def test_without_a_target_whole_clusters_of_the_pool_are_held_out(
    options: DataOptions, tmp_path: Path
) -> None:
    stories = [" ".join(f"word{i}-{j}" for j in range(20)) for i in range(60)]
    pool = write(
        tmp_path / "own.jsonl", [text for story in stories for text in (story, f"A {story}")]
    )
    own = DataOptions(pool=(pool,), target_share=0.3)
    data = prepare_data(own, tmp_path / "out")
    held_out = {document.text for fold in data.target.folds for document in fold}
    left = set(data.texts())
    assert not held_out & left
    assert len(held_out) + len(left) == 120
    assert data.counts["pool_documents_held_out"] == len(held_out)
    assert 16 <= len(held_out) <= 60
    for story in stories:
        assert (story in held_out) == (f"A {story}" in held_out)
    # A rater is trained on what is left.
    stored = [record for record in read_file(str(data.pool_file())) if isinstance(record, Document)]
    assert [(record.text, record.source) for record in stored] == list(
        zip(data.texts(), data.column("source"), strict=True)
    )


def test_near_duplicates_of_the_target_are_left_out_of_the_pool(
    options: DataOptions, tmp_path: Path
) -> None:
    story = " ".join(f"word{i}" for i in range(40))
    target = write(tmp_path / "stories.jsonl", [story, "second", "third"])
    pool = write(tmp_path / "copies.jsonl", [f"He said: {story}", story, "unrelated", "third"])
    data = prepare_data(DataOptions(pool=(pool,), target=(target,)), tmp_path / "out")
    assert list(data.texts()) == ["unrelated"]
    assert data.counts["pool_documents_in_target"] == 2
    assert data.counts["pool_documents_near_target"] == 1


def test_prepared_data_is_taken_along_to_another_output(
    options: DataOptions, tmp_path: Path
) -> None:
    data = prepare_data(options, tmp_path / "out")
    taken = take_data(data.folder, tmp_path / "elsewhere")
    assert taken.digest == data.digest
    assert taken.folder.is_relative_to(tmp_path / "elsewhere")
    assert taken.learning_file.read_bytes() == data.learning_file.read_bytes()
    assert take_data(data.folder, tmp_path / "elsewhere").folder == taken.folder
    with pytest.raises(FlagError, match="--prepared"):
        take_data(tmp_path, tmp_path / "elsewhere")


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
    with pytest.raises(EmptyDataError, match="do not fill 3 folds"):
        prepare_data(dataclasses.replace(options, target=(one,)), tmp_path / "out")
    assert list((tmp_path / "out" / "data").iterdir()) == []
