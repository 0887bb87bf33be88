"""Sources of training texts: disjoint by construction, refused with the names that exist."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from datarater.meta_training.data.texts import (
    DataError,
    FileTexts,
    TfdsTexts,
    open_source,
    text_hash,
)
from tests.support.tensorflow_dataset import build_dataset


def write(path: Path, texts: Sequence[str], field: str = "text") -> str:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


def test_files_give_their_texts_by_number(tmp_path: Path) -> None:
    texts = ["first", "zweiter über alles", "third 😀"]
    source = FileTexts(
        [write(tmp_path / "a.jsonl", texts[:2]), write(tmp_path / "b.jsonl", texts[2:])]
    )
    assert [source[i] for i in range(len(source))] == texts
    assert source.hash_N.tolist() == [text_hash(text) for text in texts]
    assert source.identity == FileTexts([str(tmp_path / "*.jsonl")]).identity
    write(tmp_path / "b.jsonl", ["another"])
    assert source.identity != FileTexts([str(tmp_path / "*.jsonl")]).identity


def test_records_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nno json\n{"id": 3}\n')
    source = FileTexts([str(path)])
    assert [source[i] for i in range(len(source))] == ["good"]
    assert sum(source.rejected.values()) == 2


def test_a_file_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    path = write(tmp_path / "x" / "a.jsonl", ["first", "second"])
    (tmp_path / "link.jsonl").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    spellings = ["x/../x/a.jsonl", "x/a.jsonl", "x/*.jsonl", path, f"file://{path}", "link.jsonl"]
    for spelling in spellings:
        assert len(FileTexts([spelling])) == 2
    together = FileTexts(spellings)
    assert [together[i] for i in range(len(together))] == ["first", "second"]
    assert together.identity == FileTexts([path]).identity
    write(tmp_path / "x" / "b.jsonl", ["first", "second"])
    assert len(FileTexts(["x/*.jsonl"])) == 4  # another file, though with the same content


def test_a_file_without_a_document_is_an_empty_source(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    assert len(FileTexts([str(tmp_path / "a.jsonl")])) == 0


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a prepared dataset `tiny` of two splits, and one without random access."""
    folder = tmp_path_factory.mktemp("datasets")
    build_dataset(
        folder,
        {"train": [f"text {i} é" for i in range(60)], "validation": ["held out", "  ", b"\xff"]},
    )
    build_dataset(folder, {"train": ["text"]}, name="sequential")
    # Writing in this format would need TensorFlow; what is read of it here is its name.
    described = folder / "sequential" / "1.0.0" / "dataset_info.json"
    described.write_text(described.read_text().replace('"array_record"', '"tfrecord"'))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tiny", 60),
        ("tiny:train", 60),
        ("tiny:1.0.0", 60),
        ("tiny:1.0.0:validation", 3),
        ("tiny:train[:10%]", 6),
        ("tiny:train[10:20]", 10),
        ("tiny:train+validation", 63),
    ],
)
def test_a_dataset_by_name(datasets: str, name: str, size: int) -> None:
    source = open_source(f"tfds:{name}", "text", datasets)
    assert len(source) == size
    assert "tiny/1.0.0" in source.identity


def test_a_dataset_gives_its_texts_by_number(datasets: str) -> None:
    source = TfdsTexts("tiny", "text", datasets)
    assert sorted(str(source[i]) for i in range(60)) == sorted(f"text {i} é" for i in range(60))
    assert TfdsTexts("tiny", "metadata.title", datasets)[0] == "a title"


def test_examples_that_cannot_be_used_are_counted(datasets: str) -> None:
    source = TfdsTexts("tiny:validation", "text", datasets)
    assert sorted(str(source[i]) for i in range(3)) == ["None", "None", "held out"]
    assert source.rejected == {"text_empty": 1, "text_not_unicode": 1}


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        (
            "tinny",
            "text",
            r"no dataset 'tinny' in .* \(it has .*tiny:1\.0\.0\); prepare it with: tfds build",
        ),
        (
            "tiny:2.0.0",
            "text",
            r"no dataset 'tiny' of version 2\.0\.0 .* \(it has .*tiny:1\.0\.0\)",
        ),
        ("tiny/english", "text", r"no dataset 'tiny/english' in .* \(it has"),
        ("tiny:test", "text", r"no split 'test'; tiny/1\.0\.0 has \['train', 'validation'\]"),
        ("tiny:train[:x]", "text", r"the split 'train\[:x\]' cannot be read"),
        ("tiny:train[:10%", "text", r"the split 'train\[:10%' cannot be read"),
        (
            "tiny:train[50%:20%]",
            "text",
            r"the split 'train\[50%:20%\]' cannot be read: one of its ranges ends before",
        ),
        (
            "tiny:train[5:4]",
            "text",
            r"the split 'train\[5:4\]' cannot be read: one of its ranges ends before",
        ),
        (
            "tiny:train+tests",
            "text",
            r"Unknown split 'tests'. Should be one of \['train', 'validation'\]",
        ),
        ("tiny:train+all[:5]", "text", r"the split 'train\+all\[:5\]' cannot be read"),
        ("tiny", "body", r"text_field='body' is not among its features: \['metadata', 'text'\]"),
        ("tiny", "text.body", r"text_field='text\.body' is not among its features"),
        ("a b", "text", "does not name a dataset"),
        ("sequential", "text", "has no random access; convert it: tfds convert_format"),
    ],
)
def test_a_dataset_that_is_not_there_is_refused_with_the_names_that_are(
    datasets: str, name: str, field: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        TfdsTexts(name, field, datasets)
    assert "\n" not in str(refused.value)


def rebuilt_identity(folder: Path, texts: Sequence[str], split: str = "train") -> str:
    shutil.rmtree(folder, ignore_errors=True)
    build_dataset(folder, {"train": texts, "test": texts[:1]})
    return TfdsTexts(f"tiny:{split}", "text", str(folder)).identity


def test_a_dataset_built_anew_is_told_by_its_texts(tmp_path: Path) -> None:
    texts = [f"text number {i}" for i in range(3000)]
    begun = rebuilt_identity(tmp_path / "one", texts)
    assert rebuilt_identity(tmp_path / "another place", texts) == begun
    assert rebuilt_identity(tmp_path / "one", [text[::-1] for text in texts]) != begun
    assert rebuilt_identity(tmp_path / "one", texts[1:] + texts[:1]) != begun
    assert (
        rebuilt_identity(tmp_path / "one", [*texts[:1234], "another, longer text", *texts[1235:]])
        != begun
    )
    few = rebuilt_identity(tmp_path / "one", texts[:50])
    assert rebuilt_identity(tmp_path / "one", [*texts[:20], texts[20][::-1], *texts[21:50]]) != few
    parts = {
        rebuilt_identity(tmp_path / "one", texts, split)
        for split in ("train", "train[:10]", "train[10:20]")
    }
    assert len(parts) == 3


def test_looking_for_a_dataset_s_identity_counts_nothing(datasets: str) -> None:
    assert TfdsTexts("tiny:validation", "text", datasets).rejected == {}


def test_damaged_examples_are_counted_and_a_lost_file_is_an_error(tmp_path: Path) -> None:
    build_dataset(tmp_path, {"train": [f"text {i} " * 50 for i in range(2000)]}, name="damaged")
    (file,) = (tmp_path / "damaged" / "1.0.0").glob("*.array_record*")
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(byte ^ 0xFF for byte in data[middle : middle + 2000])
    file.write_bytes(data)
    source = TfdsTexts("damaged", "text", str(tmp_path))
    lost = [source[i] for i in range(2000)].count(None)
    assert 0 < lost < 200
    assert source.rejected == {"record_corrupt": lost}
    file.unlink()
    with pytest.raises(OSError, match="tfds:damaged: example 0 cannot be read"):
        TfdsTexts("damaged", "text", str(tmp_path))[0]


def test_a_folder_without_datasets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which has no prepared dataset"):
        TfdsTexts("c4/en", "text", str(tmp_path))


def test_files_and_datasets_do_not_mix() -> None:
    with pytest.raises(DataError, match="mixes files and a TensorFlow dataset"):
        open_source("a.jsonl,tfds:c4", "text")
