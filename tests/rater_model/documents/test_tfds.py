"""Reading TensorFlow datasets by name, and ArrayRecord files, without TensorFlow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pytest

from datarater.rater_model.documents.array_record import ArrayRecord
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import plan_file, read_file, read_split, sniff
from datarater.rater_model.documents.records import (
    BadRecord,
    Compression,
    Document,
    ReadOptions,
    Reason,
)
from datarater.rater_model.documents.tfds import DatasetError, DatasetName, split_patterns
from tests.support import damaged_files
from tests.support.file_formats import tfrecord_of
from tests.support.tensorflow_dataset import build_dataset

TEXTS = [f"text number {index} é " + "words " * (index % 9) for index in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepares `tiny` as ArrayRecord in two versions, `lines` as TFRecord, `other` as Riegeli."""
    root = tmp_path_factory.mktemp("datasets")
    build_dataset(root, {"train": TEXTS, "validation": ["held out", "  ", b"\xff"]})
    shutil.copytree(root / "tiny/1.0.0", root / "tiny/0.9.0")
    for name, file_format in (("lines", "tfrecord"), ("other", "riegeli")):
        place = root / name / "english/2.0.0"
        shutil.copytree(root / "tiny/1.0.0", place, ignore=shutil.ignore_patterns("*array_record*"))
        info = json.loads((place / "dataset_info.json").read_text())
        info |= {"name": name, "fileFormat": file_format, "version": "2.0.0"}
        info["splits"] = [{**info["splits"][0], "shardLengths": ["200", "100"]}]
        (place / "dataset_info.json").write_text(json.dumps(info))
    rows = [{"text": text, "metadata/title": "a title"} for text in TEXTS]
    for shard, part in enumerate((rows[:200], rows[200:])):
        path = root / f"lines/english/2.0.0/lines-train.tfrecord-0000{shard}-of-00002"
        path.write_bytes(tfrecord_of(part))
    return root


def texts_of(patterns: Sequence[str], target: int = 10**9) -> list[str]:
    found = []
    for info in list_files(patterns):
        for split in plan_file(info, ReadOptions(), target):
            found += [
                record.text
                for record in read_split(split, ReadOptions())
                if isinstance(record, Document)
            ]
    return found


@pytest.mark.parametrize(
    "asked",
    [
        "tfds:tiny",
        "tfds:tiny:train",
        "tfds:tiny:1.0.0",
        "tfds:tiny:0.9.0:train",
        "tfds:lines/english:2.0.0:train",
    ],
)
def test_a_split_is_found_and_read(folder: Path, asked: str) -> None:
    assert sorted(texts_of(split_patterns(asked, "text", str(folder)))) == sorted(TEXTS)


def test_the_newest_version_is_taken_and_splits_are_joined(folder: Path) -> None:
    train, validation = split_patterns("tfds:tiny:train+validation", "metadata.title", str(folder))
    assert "/tiny/1.0.0/tiny-train.array_record-" in train
    assert "/tiny/1.0.0/tiny-validation.array_record-" in validation


def test_unusable_examples_have_reasons(folder: Path) -> None:
    (pattern,) = split_patterns("tfds:tiny:validation", "text", str(folder))
    records = [record for info in list_files([pattern]) for record in read_file(info.path)]
    assert [record.position for record in records] == [0, 1, 2]
    assert sorted(record.reason for record in records if isinstance(record, BadRecord)) == [
        Reason.TEXT_EMPTY,
        Reason.TEXT_NOT_UNICODE,
    ]


def test_nested_features_are_named_by_dots(folder: Path) -> None:
    (pattern,) = split_patterns("tfds:lines/english", "metadata.title", str(folder))
    (first, _) = list_files([pattern])
    records = list(read_file(first.path, ReadOptions(text_field="metadata.title", id_field="text")))
    assert {record.text for record in records if isinstance(record, Document)} == {"a title"}
    assert [record.key for record in records if isinstance(record, Document)][:2] == [
        json.dumps(text, ensure_ascii=False) for text in TEXTS[:2]
    ]


@pytest.mark.parametrize(
    ("asked", "field", "message"),
    [
        (
            "tfds:tinny",
            "text",
            r"there is no dataset 'tinny' in .* \(it has .*tiny:0\.9\.0, tiny:1\.0\.0\); prepare",
        ),
        (
            "tfds:tiny:2.0.0",
            "text",
            r"no dataset 'tiny' of version 2\.0\.0 in .* \(it has",
        ),
        ("tfds:lines", "text", r"no dataset 'lines' in .* \(it has lines/english:2\.0\.0"),
        ("tfds:tiny:test", "text", r"no split 'test'; tiny/1\.0\.0 has \['train', 'validation'\]"),
        ("tfds:tiny:train[:10%]", "text", "only whole splits are read"),
        (
            "tfds:tiny",
            "body",
            r"text_field='body' is not among its features: \['metadata', 'text'\]",
        ),
        ("tfds:tiny", "metadata", "text_field='metadata' is FeaturesDict, not text"),
        ("tfds:tiny", "text.body", "is not among its features"),
        (
            "tfds:other/english",
            "text",
            r"stored as riegeli, which is not supported; convert it: tfds convert_format",
        ),
        ("tfds:a b", "text", "does not name a dataset"),
    ],
)
def test_what_is_not_there_is_refused_with_the_names_that_are(
    folder: Path, asked: str, field: str, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        split_patterns(asked, field, str(folder))


def test_missing_shards_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "lines", tmp_path / "lines")
    (tmp_path / "lines/english/2.0.0/lines-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(DatasetError, match="1 of 2 files of the split 'train' exist"):
        split_patterns("tfds:lines/english", "text", str(tmp_path))


def test_an_empty_folder_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="which has no prepared dataset"):
        split_patterns("tfds:tiny", "text", str(tmp_path))


def test_names_are_taken_apart() -> None:
    assert DatasetName.parse("tfds:c4/en:3.0.1:train[:10%]") == DatasetName(
        "tfds:c4/en:3.0.1:train[:10%]", "c4/en", "3.0.1", "train[:10%]"
    )
    assert DatasetName.parse("tfds:c4/en").split == "train"


def test_array_records_are_cut_by_number_and_read_once(folder: Path) -> None:
    (pattern,) = split_patterns("tfds:tiny", "text", str(folder))
    (info,) = list_files([pattern])
    assert sniff(info.path) == ("array_record", Compression.NONE)
    whole = list(read_file(info.path))
    assert [record.position for record in whole] == list(range(300))
    for target in (10**9, 50_000, 1000):
        splits = plan_file(info, ReadOptions(), target)
        assert len(splits) == -(-info.size // target)
        assert [record for split in splits for record in read_split(split, ReadOptions())] == whole


def test_datasets_elsewhere_are_fetched_shard_by_shard(folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder / "tiny"), "/datasets/tiny", recursive=True)
    patterns = split_patterns("tfds:tiny", "text", "memory://datasets")
    assert sorted(texts_of(patterns, 1000)) == sorted(TEXTS)


def test_a_file_that_cannot_be_had_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Is a directory"):
        ArrayRecord().count_records(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        list(read_file(str(tmp_path / "a.array_record")))


@pytest.mark.parametrize("size", [100, 2**16 - 1, 2**16, 2**16 + 1, -1])
def test_an_array_record_file_that_is_cut_anywhere_is_rejected(tmp_path: Path, size: int) -> None:
    data = damaged_files.array_record()
    assert len(data) > 2**16 + 1
    path = tmp_path / "a.array_record"
    path.write_bytes(data[:size])
    (only,) = read_file(str(path))
    assert isinstance(only, BadRecord)
    assert only.reason is Reason.UNREADABLE_FILE
    path.write_bytes(data)
    assert all(isinstance(record, Document) for record in read_file(str(path)))


def test_damage_costs_its_records_and_a_lost_end_the_file(folder: Path, tmp_path: Path) -> None:
    (source,) = (folder / "tiny/1.0.0").glob("*train*")
    data = bytearray(source.read_bytes())
    path = tmp_path / "a.array_record"
    data[5000:5400] = bytes(byte ^ 0xFF for byte in data[5000:5400])
    path.write_bytes(data)
    records = list(read_file(str(path)))
    bad = [record for record in records if isinstance(record, BadRecord)]
    assert len(records) == 300
    assert 0 < len(bad) < 30
    assert {record.reason for record in bad} == {Reason.RECORD_CORRUPT}
    path.write_bytes(source.read_bytes()[:-100])
    (only,) = read_file(str(path))
    assert isinstance(only, BadRecord)
    assert only.reason is Reason.UNREADABLE_FILE
    assert "not a complete ArrayRecord file" in only.detail
