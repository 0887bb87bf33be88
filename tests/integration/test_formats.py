"""Every format in, through the whole of curation; formats out for mixing elsewhere."""

import base64
import bz2
import functools
import gzip
import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

import datarater
from datarater.pipelines.commands import curate, select
from datarater.rater_model import exit_codes
from tests.support.corpora import as_lines, make_records
from tests.support.curation import curated
from tests.support.file_formats import examples_of, masked, tfrecord_of, unpacked, wet_of, zstd
from tests.support.tensorflow_dataset import build_dataset

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstd,
}


def kept_lines(output: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for entry in manifest["files"]:
        data = (output / "selections/it" / entry["path"]).read_bytes()
        name = entry["path"]
        if name.endswith(".gz"):
            data = gzip.decompress(data)
        elif name.endswith(".bz2"):
            data = bz2.decompress(data)
        elif name.endswith(".zst"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        rows += [json.loads(line) for line in data.splitlines()]
    return rows


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_wet_files_keep_url_and_date(rater: Path, tmp_path: Path, suffix: str) -> None:
    records = make_records(30, 1)
    (tmp_path / f"a.warc.wet{suffix}").write_bytes(COMPRESSIONS[suffix](wet_of(records)))
    manifest = curated(tmp_path / "a*", rater, tmp_path / "run", "--output_format", "jsonl")
    assert manifest["counts"]["read"] == 30
    texts = {f"<urn:uuid:{record['id']}>": record["text"] for record in records}
    rows = kept_lines(tmp_path / "run", manifest)
    assert len(rows) == 15
    for row in rows:
        assert row["text"] == texts[row["id"]]
        assert row["url"] == f"https://example.org/{row['id'][10:-1]}"
        assert (row["date"], row["language"]) == ("2024-05-18T01:58:10Z", "eng")
        assert np.isfinite(row["datarater_score"])


def test_damaged_and_foreign_warc_records_are_bad_records_one_by_one(
    rater: Path, tmp_path: Path
) -> None:
    good = [wet_of([record]).split(b"a: b\r\n\r\n")[1] for record in make_records(6, 2)]
    response = (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://x.org\r\n"
        b"Content-Type: application/http\r\n"
        b"Content-Length: 5\r\n\r\nHTTP/\r\n\r\n"
    )
    not_utf8 = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 2\r\n\r\n\xff\xfe\r\n\r\n"
    bad_length = good[1].replace(b"Content-Length: ", b"Content-Length: x")
    data = (
        good[0]
        + response
        + good[2]
        + bad_length
        + good[3]
        + b"garbage\r\n"
        + not_utf8
        + good[4]
        + good[5][:-20]
    )
    (tmp_path / "a.warc").write_bytes(data)
    manifest = curated(tmp_path / "a.warc", rater, tmp_path / "run")
    assert manifest["scored"] == 4
    assert manifest["counts"]["rejected_by_reason"] == {
        "no_text": 1,
        "record_corrupt": 2,
        "not_utf8": 1,
        "stream_truncated": 1,
    }


def test_rows_that_only_the_footer_counts_are_rejected_in_every_count(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [record["text"] for record in make_records(8, 1)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"content": texts}), tmp_path / "b.parquet", row_group_size=3)
    output = tmp_path / "run"
    flags = ["--input", str(tmp_path / "*.parquet"), "--rater", str(rater), "--name", "it"]
    flags += ["--output", str(output), "--keep_fraction", "0.5"]

    assert curate.main([*flags, "--max_rejected_fraction", "0.01"]) == exit_codes.PAST_LIMIT
    assert "8 of 16 records are rejected (no_text_column 8)" in capsys.readouterr().err
    assert curate.main(flags) == 0
    manifest = json.loads((output / "selections/it/manifest.json").read_bytes())
    counts = {name: manifest["counts"][name] for name in ("read", "kept", "dropped", "rejected")}
    assert counts == {"read": 16, "kept": 4, "dropped": 4, "rejected": 8}
    sources = manifest["sources"].values()
    assert sum(source["read"] for source in sources) == 16
    scoring = json.loads((output / "scoring.json").read_bytes())
    assert (scoring["counts"]["read"], scoring["counts"]["rejected"]["no_text_column"]) == (16, 8)
    (row,) = map(json.loads, (output / "rejected/000000.jsonl").read_text().splitlines())
    assert (row["position"], row["records"], row["reason"]) == (0, 8, "no_text_column")


def test_a_flood_of_bad_lines_is_counted_to_the_last_and_listed_in_part(
    rater: Path, tmp_path: Path
) -> None:
    good = [as_lines([record]) for record in make_records(8, 1)]
    lines = b"".join(good[:4]) + b"x\n" * 5000 + b"".join(good[4:]) + b"{}\n" * 2000
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    output = tmp_path / "run"
    flags = ["--input", str(tmp_path / "*.gz"), "--rater", str(rater), "--output", str(output)]
    assert curate.main([*flags, "--keep_fraction", "1"]) == 0

    reasons = {"not_json": 5000, "no_text": 2000}
    manifest = json.loads((output / "selections/keep-1/manifest.json").read_bytes())
    assert manifest["counts"]["rejected_by_reason"] == reasons
    counts = {name: manifest["counts"][name] for name in ("read", "kept", "dropped", "rejected")}
    assert counts == {"read": 7008, "kept": 8, "dropped": 0, "rejected": 7000}
    assert manifest["sources"][""]["rejected"] == 7000
    scoring = json.loads((output / "scoring.json").read_bytes())
    assert scoring["counts"]["rejected"] == reasons
    kept = gzip.decompress(
        (output / "selections/keep-1" / manifest["files"][0]["path"]).read_bytes()
    )
    assert kept.count(b"\n") == 8

    rows = list(map(json.loads, (output / "rejected/000000.jsonl").read_text().splitlines()))
    counted: Counter[str] = Counter()
    for row in rows:
        counted[row["reason"]] += row["records"]
    assert counted == reasons
    assert len(rows) == 1000 + 10 + 2
    assert datarater.read_scores(output)["records"].to_numpy().sum() == 7008


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_kept_warc_records_are_untouched_but_for_a_line_with_the_score(
    rater: Path, tmp_path: Path, suffix: str
) -> None:
    data = wet_of(make_records(30, 1)).replace(
        b"0\r\nContent", b"0\r\nDataRater-Score: 3\r\n of old\r\nContent", 1
    )
    (tmp_path / f"a.warc.wet{suffix}").write_bytes(COMPRESSIONS[suffix](data))
    manifest = curated(tmp_path / "a*", rater, tmp_path / "run")
    (entry,) = manifest["files"]
    assert entry["path"] == f"kept/part-00000-of-00001.warc{suffix}"
    path = tmp_path / "run/selections/it" / entry["path"]
    opening = b"WARC/1.0\r\n"
    originals = data.replace(b"DataRater-Score: 3\r\n of old\r\n", b"").split(opening)[2:]
    kept = unpacked(path).split(opening)[1:]
    assert len(kept) == 15
    places = iter(originals)
    for record in kept:
        header, _, content = record.partition(b"\r\n\r\n")
        header, _, score = header.rpartition(b"\r\nDataRater-Score: ")
        assert np.isfinite(float(score))
        assert header + b"\r\n\r\n" + content in places
    if suffix == ".gz":  # one member a record, as tools for crawls want it
        assert path.read_bytes().count(b"\x1f\x8b\x08\x00\x00\x00\x00\x00") == 15
    again = curated(path, rater, tmp_path / "again")
    assert again["counts"]["read"] == 15


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_kept_examples_are_untouched_and_gain_a_feature(
    rater: Path, tmp_path: Path, suffix: str
) -> None:
    rows: list[dict[str, Any]] = [
        {**record, "datarater_score": 7} for record in make_records(20, 1)
    ]
    rows = [{name: value for name, value in row.items() if name != "url"} for row in rows]
    (tmp_path / f"a.tfrecord{suffix}").write_bytes(COMPRESSIONS[suffix](tfrecord_of(rows)))
    manifest = curated(tmp_path / "a*", rater, tmp_path / "run")
    (entry,) = manifest["files"]
    assert entry["path"] == f"kept/part-00000-of-00001.tfrecord{suffix}"
    data = unpacked(tmp_path / "run/selections/it" / entry["path"])
    originals = iter(examples_of(tfrecord_of(rows)))
    kept = examples_of(data)
    assert len(kept) == 10
    for example in kept:
        original = next(original for original in originals if example.startswith(original))
        merged = protobuf_example().FromString(example)
        features = dict(merged.features.feature.items())
        # As TensorFlow's own parsers do, protocol buffers let the last of one name hold.
        assert np.isfinite(features.pop("datarater_score").float_list.value[0])
        before = dict(protobuf_example().FromString(original).features.feature.items())
        before.pop("datarater_score")
        assert features == before


@functools.cache
def protobuf_example() -> Any:
    """The class of `tf.train.Example`, from its published definition."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="test", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    lists = {
        "BytesList": field.TYPE_BYTES,
        "FloatList": field.TYPE_FLOAT,
        "Int64List": field.TYPE_INT64,
    }
    for name, kind in lists.items():
        file.message_type.add(name=name).field.add(
            name="value", number=1, label=field.LABEL_REPEATED, type=kind
        )
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(lists, 1):
        short = name.removesuffix("List").lower() + "_list"
        feature.field.add(
            name=short,
            number=number,
            label=1,
            type=field.TYPE_MESSAGE,
            type_name=f".test.{name}",
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=field.TYPE_STRING)
    entry.field.add(
        name="value", number=2, label=1, type=field.TYPE_MESSAGE, type_name=".test.Feature"
    )
    features.field.add(
        name="feature",
        number=1,
        label=3,
        type=field.TYPE_MESSAGE,
        type_name=".test.Features.FeatureEntry",
    )
    example = file.message_type.add(name="Example")
    example.field.add(
        name="features", number=1, label=1, type=field.TYPE_MESSAGE, type_name=".test.Features"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Example"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_tfrecords_keep_all_their_features(rater: Path, tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, Any]] = [
        {**record, "url": b"\xff\x00", "n": -index, "f": 0.5}
        for index, record in enumerate(make_records(20, 1))
    ]
    (tmp_path / f"a.tfrecord{suffix}").write_bytes(COMPRESSIONS[suffix](tfrecord_of(rows)))
    manifest = curated(tmp_path / "a*", rater, tmp_path / "run", "--output_format", "jsonl")
    assert (manifest["counts"]["read"], set(manifest["sources"])) == (20, {"s0", "s1", "s2"})
    expected = {row["id"]: row for row in rows}
    for row in kept_lines(tmp_path / "run", manifest):
        row.pop("datarater_score")
        assert row == {**expected[row["id"]], "url": base64.b64encode(b"\xff\x00").decode()}


def test_a_damaged_tfrecord_costs_itself_and_a_damaged_length_the_rest(
    rater: Path, tmp_path: Path
) -> None:
    parts = [tfrecord_of([{"id": r["id"], "text": r["text"]}]) for r in make_records(6, 3)]
    flipped = bytearray(parts[1])
    flipped[30] ^= 1
    no_example = b"\xff\xff\xff"
    head = struct.pack("<Q", 3)
    alien = head + masked(head) + no_example + masked(no_example)
    lost = bytearray(parts[4])
    lost[0] ^= 1
    (tmp_path / "a").write_bytes(
        parts[0] + bytes(flipped) + parts[2] + alien + parts[3] + bytes(lost) + parts[5]
    )
    manifest = curated(tmp_path / "a", rater, tmp_path / "run")
    assert manifest["scored"] == 3
    assert manifest["counts"]["rejected_by_reason"] == {"record_corrupt": 3}


def test_plain_text_files_are_one_document_each(rater: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text('"A quotation," he said.\n[1] and a note\n')
    (folder / "b.txt.gz").write_bytes(gzip.compress("Zwei Zeilen\r\nund Ümläute\r\n".encode()))
    (folder / "c.txt.bz2").write_bytes(bz2.compress(b"three"))
    (folder / "d.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "e.txt").write_bytes(b"")
    (folder / "f.txt.gz").write_bytes(gzip.compress(b"cut " * 1000)[:-9])
    (folder / "g.txt").write_bytes(b'{"id": 1, "text": "lines of JSON under another name"}\n')
    manifest = curated(folder / "*", rater, tmp_path / "run")
    assert manifest["scored"] == 4
    assert manifest["counts"]["rejected_by_reason"] == {"not_utf8": 1, "stream_truncated": 1}
    texts = {
        str(folder / "b.txt.gz"): "Zwei Zeilen\r\nund Ümläute\r\n",
        str(folder / "c.txt.bz2"): "three",
        str(folder / "a.txt"): '"A quotation," he said.\n[1] and a note\n',
        1: "lines of JSON under another name",
    }
    for row in kept_lines(tmp_path / "run", manifest):
        assert row["text"] == texts[row["id"]]


def test_bzip2_in_and_out_untouched(rater: Path, tmp_path: Path) -> None:
    lines = as_lines(make_records(40, 4))
    half = lines.index(b"\n", len(lines) // 2) + 1
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(lines[:half]) + bz2.compress(lines[half:]))
    (tmp_path / "b.jsonl.bz2").write_bytes(bz2.compress(lines)[:-30])
    (tmp_path / "c.jsonl.bz2").write_bytes(bz2.compress(lines) + b"garbage")
    manifest = curated(tmp_path / "*.bz2", rater, tmp_path / "run")
    assert manifest["scored"] == 80
    assert manifest["counts"]["rejected_by_reason"] == {
        "stream_truncated": 1,
        "trailing_garbage": 1,
    }
    kept = b""
    for entry in manifest["files"]:
        assert entry["format"] == "jsonl.bz2"
        kept += bz2.decompress((tmp_path / "run/selections/it" / entry["path"]).read_bytes())
    originals = set(lines.splitlines())
    for line in kept.splitlines():
        assert line.rsplit(b',"datarater_score"', 1)[0] + b"}" in originals


def test_dolma_attributes_and_scores_alone(rater: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    records = [make_records(20, seed) for seed in range(2)]
    records[0][3]["id"] = 7
    records[0][4]["text"] = "Ümläut"
    for name, part in zip("ab", records, strict=True):
        (folder / f"{name}.jsonl").write_bytes(as_lines(part))
    flags = ["--split_bytes", "1000"]
    manifest = curated(folder / "*", rater, tmp_path / "run", *flags)
    scores = {row["id"]: row["datarater_score"] for row in kept_lines(tmp_path / "run", manifest)}
    select_all = ["--output", str(tmp_path / "run"), "--keep_fraction", "1"]
    assert select.main([*select_all, "--output_format", "attributes", "--name", "dolma"]) == 0
    dolma = sorted((tmp_path / "run/selections/dolma/kept").iterdir())
    assert [path.name for path in dolma] == ["a.jsonl", "b.jsonl"]  # as the documents' files
    files = json.loads((tmp_path / "run/selections/dolma/manifest.json").read_bytes())["files"]
    assert [(file["path"], file["input"]) for file in files] == [
        (f"kept/{name}.jsonl", str(folder / f"{name}.jsonl")) for name in "ab"
    ]
    for path, part in zip(dolma, records, strict=True):
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert [row["id"] for row in rows] == [record["id"] for record in part]
        for row, record in zip(rows, part, strict=True):
            ((start, end, score),) = row["attributes"]["datarater__score"]
            assert (start, end) == (0, len(record["text"]))
            assert score == scores.get(record["id"], score)
    for path in folder.iterdir():
        path.unlink()  # scores alone need no second read
    assert select.main([*select_all, "--output_format", "scores", "--name", "scores"]) == 0
    (file,) = (tmp_path / "run/selections/scores/kept").iterdir()
    assert file.name == "part-00000-of-00001.scores.parquet"
    table = pq.read_table(file).to_pylist()
    assert [row["id"] for row in table] == [
        str(record["id"]) for part in records for record in part
    ]
    assert table[0]["path"] == str(folder / "a.jsonl")
    for row in table:
        assert np.float32(row["datarater_score"]) == np.float32(
            scores.get(row["id"], row["datarater_score"])
        )


def test_a_tensorflow_dataset_is_curated_by_name(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = make_records(40, 5)
    build_dataset(tmp_path / "datasets", {"train": [record["text"] for record in records]})
    flags = [
        "--tfds_data_dir",
        str(tmp_path / "datasets"),
        "--split_bytes",
        "20000",
        "--id_field",
        "metadata.title",
    ]
    manifest = curated("tfds:tiny:1.0.0:train", rater, tmp_path / "run", *flags)
    assert manifest["counts"]["read"] == 40
    (entry,) = manifest["files"]
    assert entry["format"] == "tfrecord"
    kept = examples_of((tmp_path / "run/selections/it" / entry["path"]).read_bytes())
    texts = [
        protobuf_example().FromString(data).features.feature["text"].bytes_list.value[0]
        for data in kept
    ]
    assert len(texts) == 20
    assert {text.decode() for text in texts} <= {record["text"] for record in records}
    wrong = [
        "--input",
        "tfds:tinny",
        "--rater",
        str(rater),
        "--output",
        str(tmp_path / "wrong"),
        "--keep_count",
        "1",
    ]
    assert curate.main([*wrong, *flags]) == exit_codes.WRONG_USAGE
    assert "it has tiny:1.0.0" in capsys.readouterr().err
