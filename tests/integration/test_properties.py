"""Curates random corpora: counts reconcile, the number kept is exact, kept records are untouched.

DATARATER_PROPERTY_CASES sets how many corpora are made (4), DATARATER_FUZZ_CASES how many files are
damaged.
"""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarater.pipelines.commands import curate
from datarater.rater_model.documents.files import file_info
from datarater.rater_model.documents.json_lines import SCORE_FIELD
from datarater.rater_model.documents.plain_text import PlainText
from datarater.rater_model.documents.reading import plan_file, read_file, read_split
from datarater.rater_model.documents.records import BadRecord, Document, ReadOptions
from datarater.rater_model.documents.tfrecord import with_float
from tests.support.corpora import as_lines, make_records
from tests.support.damaged_files import FORMATS, KINDS, MEMBERS, PACKERS, damaged
from tests.support.file_formats import examples_of, tfrecord_of, unpacked, wet_of

CASES = int(os.environ.get("DATARATER_PROPERTY_CASES", "4"))
FUZZ_CASES = int(os.environ.get("DATARATER_FUZZ_CASES", "400"))
SCORE = b',"datarater_score":'


def write_random_corpus(folder: Path, rng: random.Random) -> tuple[list[bytes], int]:
    """Writes files of random kinds; returns the readable records in order and the number of bad."""
    folder.mkdir()
    lines: list[bytes] = []
    bad = 0
    for index in range(rng.randint(1, 7)):
        records = make_records(rng.randint(0, 40), rng.randrange(1000))
        flat = [{"id": r["id"], "text": r["text"], "source": r["source"]} for r in records]
        kind = rng.choice(["jsonl", "jsonl", "warc", "tfrecord", "parquet", "txt"])
        suffix = rng.choice(
            sorted(PACKERS if kind in ("jsonl", "warc") else PACKERS.keys() - MEMBERS.keys())
        )
        path = folder / f"{index}.{kind}{'' if kind == 'parquet' else suffix}"
        if kind == "parquet":
            rows = rng.randint(1, 20)
            pq.write_table(
                pa.Table.from_pylist(flat or [{"id": "x", "text": "y"}]), path, row_group_size=rows
            )
        else:
            if kind == "jsonl":
                parts = as_lines(records).splitlines(keepends=True)
                for _ in range(rng.randrange(3)):
                    parts.insert(
                        rng.randint(0, len(parts)),
                        rng.choice([b"broken\n", b"{}\n", b"\r\n", b"  \n"]),
                    )
                data = rng.choice([b"", b"\xef\xbb\xbf"]) + b"".join(parts)
                data = data[: -1 if rng.random() < 0.3 and data.endswith(b"\n") else None]
            elif kind == "txt":
                data = " ".join(record["text"] for record in flat).encode() or b"text"
            else:
                data = (wet_of if kind == "warc" else tfrecord_of)(flat)
            path.write_bytes(PACKERS[suffix](data))
        for record in read_file(str(path)):
            if isinstance(record, BadRecord):
                bad += 1
            elif kind == "parquet":
                lines.append(json.dumps([record.key, record.text, record.source]).encode())
            else:
                lines.append(record.raw or PlainText().json_line(record, ReadOptions()))
    return lines, bad


def kept_records(output: Path, manifest: dict[str, Any]) -> list[bytes]:
    """Every kept record without its score, in the order of the files."""
    found = []
    for entry in manifest["files"]:
        path = output / "selections/it" / entry["path"]
        if entry["format"] == "parquet":
            for row in pq.read_table(path).to_pylist():
                found.append(
                    json.dumps(
                        [json.dumps(row["id"]), row["text"], row.get("source") or ""]
                    ).encode()
                )
            continue
        data = unpacked(path)
        match entry["format"].partition(".")[0]:
            case "jsonl":
                for line in data.split(b"\n")[:-1]:
                    head, _, tail = line.rpartition(SCORE)
                    found.append(head + b"}" + tail.partition(b"}")[2])
            case "tfrecord":
                found += [
                    example[: -len(with_float(b"", SCORE_FIELD, 0.0))]
                    for example in examples_of(data)
                ]
            case "warc":
                for record in data.split(b"WARC/1.0\r\n")[1:]:
                    plain = re.sub(rb"\r\nDataRater-Score: [^\r]*", b"", record, count=1)
                    found.append(b"WARC/1.0\r\n" + plain.removesuffix(b"\r\n\r\n"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", range(CASES))
def test_any_corpus_is_curated_exactly(rater: Path, tmp_path: Path, case: int) -> None:
    rng = random.Random(case)
    lines, bad = write_random_corpus(tmp_path / "in", rng)
    fraction = rng.choice(["0", "0.1", "1/3", "0.5", "1"])
    results = []
    for workers in ("1", "2") if case % 4 == 3 else ("1",):
        output = tmp_path / f"run{workers}"
        flags = [
            "--input",
            str(tmp_path / "in/*"),
            "--rater",
            str(rater),
            "--output",
            str(output),
            "--name",
            "it",
        ]
        flags += [
            "--split_bytes",
            str(rng.choice([300, 2000, 10**6])),
            "--output_shard_bytes",
            "3000",
        ]
        assert curate.main([*flags, "--keep_fraction", fraction, "--local_workers", workers]) == 0
        manifest = json.loads((output / "selections/it/manifest.json").read_bytes())
        counts = manifest["counts"]
        assert (
            counts["read"]
            == counts["kept"] + counts["dropped"] + counts["rejected"]
            == len(lines) + bad
        )
        assert counts["rejected"] == bad
        numerator, _, denominator = fraction.partition("/")
        exact = len(lines) / 3 if denominator else float(numerator) * len(lines)
        assert counts["kept"] == round(exact)
        kept = kept_records(output, manifest)
        # Equal records may stand in several files: the kept ones are found one after another.
        places = iter(lines)
        assert all(record in places for record in kept)
        assert len(kept) == counts["kept"]
        results.append(sorted(kept))
    # Splits of another size break ties between equal keys otherwise, and only those.
    assert len({len(result) for result in results}) == 1


@pytest.mark.slow
def test_counts_add_up_over_damaged_files_of_every_format(rater: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = random.Random(0)
    documents = bad = 0
    for case in range(max(len(KINDS), FUZZ_CASES // 10)):
        name, suffix = KINDS[case % len(KINDS)]
        path = folder / f"{case:05d}.{name}{suffix}"
        path.write_bytes(damaged(PACKERS[suffix](FORMATS[name]()), rng))
        for split in plan_file(file_info(str(path)), ReadOptions(), 2000):
            for record in read_split(split, ReadOptions()):
                documents += isinstance(record, Document)
                bad += record.records if isinstance(record, BadRecord) else 0
    flags = [
        "--input",
        str(folder / "*"),
        "--rater",
        str(rater),
        "--output",
        str(tmp_path / "run"),
        "--name",
        "it",
    ]
    assert curate.main([*flags, "--keep_fraction", "0.5", "--split_bytes", "2000"]) == 0
    manifest = json.loads((tmp_path / "run/selections/it/manifest.json").read_bytes())
    assert manifest["scored"] == documents
    assert manifest["counts"]["kept"] == round(documents / 2)
    # As planned: a split behind the damage is read, which a reading of the whole file would not
    # come to.
    assert manifest["counts"]["rejected"] == bad
    assert len(manifest["counts"]["rejected_by_reason"]) > 3
