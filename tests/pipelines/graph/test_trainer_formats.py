"""Formats that trainers read: read back, each has every kept document with all that it had."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.pipelines.commands import requests, status
from datarater.pipelines.errors import (
    CountsError,
    CurationError,
    RunFolderMismatchError,
    UsageError,
)
from datarater.pipelines.graph.output_formats import trainer_format
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.graph.trainer_formats.hugging_face import size_category
from datarater.pipelines.graph.trainer_formats.mds import MdsFormat
from datarater.pipelines.graph.trainer_formats.megatron import _packed, token_type
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.manifest import TokenizerFields, read_manifest
from datarater.pipelines.run_folder.ranking_options import RankingOptions
from datarater.pipelines.run_folder.selection_progress import look_at_selection
from datarater.pipelines.runners import choice
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import TemperatureSample
from datarater.rater_model import exit_codes
from datarater.rater_model.documents.json_lines import SCORE_FIELD, dump_json
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document
from datarater.rater_model.documents.tfrecord import parse_example
from datarater.rater_model.plain_tokenizer import BYTES, load_plain_tokenizer
from tests.integration.test_counting_stores import BUCKET, running_store
from tests.support.file_formats import tfrecord_of, wet_of
from tests.support.ranked_runs import select_now
from tests.support.selections import (
    EVERYTHING,
    NOTHING,
    Selecting,
    digest_score,
    score_run,
    select_from,
)
from tests.support.trainer_files import read_mds, read_megatron

BYTE_TOKENS: dict[str, Any] = {
    "tokenizer_path": BYTES,
    "tokenizer": TokenizerFields(
        digest=BYTES, vocabulary_size=258, end_token="<separator>", end_id=257
    ),
}
FORMATS = ("array_record", "huggingface", "mds", "megatron")


def options(output_format: str) -> dict[str, Any]:
    return BYTE_TOKENS if output_format == "megatron" else {}


# --- reading back ---


def rows_of_array_record(kept: Path) -> list[dict[str, Any]]:
    from array_record.python import array_record_module  # type: ignore[import-untyped]

    rows = []
    for path in sorted(kept.glob("*.array_record")):
        reader = array_record_module.ArrayRecordReader(str(path))
        for data in reader.read(0, reader.num_records()):
            features = {name: values[0] for name, values in parse_example(data).items()}
            rows.append(
                {
                    name: value.decode() if isinstance(value, bytes) else value
                    for name, value in features.items()
                }
            )
        reader.close()
    return rows


def rows_of_hugging_face(kept: Path) -> list[dict[str, Any]]:
    return [
        row
        for path in sorted((kept / "data").glob("train-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def rows_of_megatron(kept: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(kept.glob("*.bin")):
        stem = path.with_suffix("")
        scores = pq.read_table(f"{stem}.scores.parquet").to_pylist()
        for tokens, row in zip(read_megatron(stem), scores, strict=True):
            assert (tokens[-1], len(tokens)) == (257, row.pop("tokens"))
            rows.append({**row, "text": bytes(tokens[:-1]).decode()})
    return rows


READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "array_record": rows_of_array_record,
    "huggingface": rows_of_hugging_face,
    "mds": read_mds,
    "megatron": rows_of_megatron,
}


def expected_row(record: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a JSON object with an id."""
    rest = {
        name: value
        for name, value in record.items()
        if name not in ("id", "text", "source", SCORE_FIELD)
    }
    identifier, source = record["id"], record.get("source", "")
    return {
        "id": identifier if isinstance(identifier, str) else dump_json(identifier),
        "text": record["text"],
        "source": source if isinstance(source, str) else dump_json(source),
        "metadata": rest,
        SCORE_FIELD: digest_score(record["text"]),
    }


def read(output_format: str, kept: Path) -> list[dict[str, Any]]:
    rows = READERS[output_format](kept)
    return [{**row, "metadata": json.loads(row["metadata"])} for row in rows]


RECORDS: list[dict[str, Any]] = [
    {"id": "a", "text": "plain", "source": "web", "url": "http://x", SCORE_FIELD: "old"},
    {"id": 7, "text": " with\r\nlines \x00 and é 🎈 ", "n": 2**70, "nested": {"text": [1, None]}},
    {"id": {"b": 1}, "text": "<|endoftext|><separator>", "source": 5},
    {"id": "é\u202e", "text": "x" * 300_000, "source": "b|<b>`c`"},
]


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored run of odd records in several formats of input."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "in").mkdir()
    (folder / "in/a.jsonl.gz").write_bytes(gzip.compress(lines(RECORDS)))
    rows = [
        {"id": 3, "text": "row", "source": "p", "tags": ["x", "y"], "meta": {"a": 1}},
        {"id": 4, "text": "ró\nw", "source": None, "tags": [], "meta": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "in/b.parquet")
    (folder / "in/c.tfrecord").write_bytes(
        tfrecord_of([{"id": "t", "text": "example", "source": "f", "lang": "en"}])
    )
    (folder / "in/d.wet").write_bytes(wet_of([{"id": "w", "text": "crawled"}]))
    score_run(folder / "in", folder / "run", files_per_split=1)
    return folder / "run"


@pytest.mark.parametrize("output_format", FORMATS)
def test_documents_of_every_input_read_back_with_their_score_and_metadata(
    run: Path, output_format: str
) -> None:
    kept, manifest = select_from(run, output_format, **options(output_format))
    rows = read(output_format, kept) if output_format != "array_record" else None
    if rows is None:
        # An example that was one keeps its own features.
        rows = rows_of_array_record(kept)
        (own,) = (row for row in rows if row["text"] == "example")
        assert own.pop("lang") == "en"
        own["metadata"] = '{"lang":"en"}'
        rows = [{**row, "metadata": json.loads(row["metadata"])} for row in rows]

    by_text = {row["text"]: row for row in rows}
    assert len(rows) == len(by_text) == manifest.counts.kept == 8
    for record in RECORDS:
        assert by_text[record["text"]] == expected_row(record)
    table = {"id": "3", "source": "p", "metadata": {"tags": ["x", "y"], "meta": {"a": 1}}}
    assert table.items() <= by_text["row"].items()
    assert {"source": "", "metadata": {"tags": [], "meta": None}}.items() <= by_text[
        "ró\nw"
    ].items()
    assert by_text["example"]["metadata"] == {"lang": "en"}
    assert by_text["crawled"]["metadata"]
    for row in rows:
        assert np.float32(row[SCORE_FIELD]) == np.float32(digest_score(row["text"]))


@pytest.mark.parametrize("output_format", FORMATS)
def test_pieces_change_no_byte_of_any_file(run: Path, output_format: str) -> None:
    _, one = select_from(run, output_format, **options(output_format))
    changes = {**options(output_format), "name": f"{output_format}-pieces", "second_read_bytes": 1}
    in_pieces, other = select_from(run, output_format, **changes)
    described = ("kept/README.md",)  # which names the selection
    assert [file for file in one.files if file.path not in described] == [
        file for file in other.files if file.path not in described
    ]
    assert not (in_pieces.parent / "pieces").exists()


# --- copies, and a ranking ---


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_copy_is_written_with_the_score_of_the_rater(
    output_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        records = [
            {"id": f"d{n}", "text": f"text {n}", "source": f"s{n % 3}"}
            for n in range(10 * number, 10 * number + 10)
        ]
        (tmp_path / f"{number}.jsonl").write_bytes(lines(records))
    score_run(tmp_path / "*.jsonl", tmp_path / "run", files_per_split=1)
    request = SelectionRequest(
        str(tmp_path / "run"),
        Policy(TemperatureSample(40, "3", 4, in_tokens=False)),
        0,
        output_format,
        2**20,
        name="copies",
        ranking=RankingOptions(where="source != 's2'", rank_by="0.5 * rater + bytes"),
        **options(output_format),
    )
    select_now(request)
    as_rows = dataclasses.replace(
        request, output_format="scores", name="rows", tokenizer=None, tokenizer_path=""
    )
    select_now(as_rows)

    manifest, expected = read_manifest(request.selection), read_manifest(as_rows.selection)
    assert manifest is not None
    assert expected is not None
    copies = Counter(
        row["id"]
        for file in expected.files
        for row in pq.read_table(f"{as_rows.selection.path}/{file.path}").to_pylist()
    )
    rows = read(output_format, Path(request.selection.path, "kept"))
    assert Counter(row["id"] for row in rows) == copies
    assert max(copies.values()) > 1
    for row in rows:
        assert np.float32(row[SCORE_FIELD]) == np.float32(digest_score(row["text"]))
        assert row["source"] != "s2"

    # The manifest tells documents and copies apart, and so does what describes the files.
    counts = manifest.counts
    assert (counts.kept, counts.written) == (len(copies), len(rows))
    assert counts == expected.counts
    assert sum(file.documents for file in manifest.files) == len(rows)
    assert counts.excluded_by_reason == {"condition_not_met": 10}
    if output_format == "huggingface":
        text = Path(request.selection.path, "kept/README.md").read_text()
        _, front, body = text.split("---\n", 2)
        info = yaml.safe_load(front)["dataset_info"]
        assert info["splits"] == [{"name": "train", "num_examples": len(rows)}]
        assert f"| Kept | {counts.kept} (" in body
        assert f"| Written with all copies | {len(rows)} (" in body
        assert "| Dropped: condition_not_met | 10 |" in body

    # A report and a status are made of it as of any other.
    assert Path(request.selection.report_path).exists()
    assert status.main([request.output]) == exit_codes.DONE
    assert "copies" in capsys.readouterr().out


# --- odd documents ---

TEXTS = st.text(min_size=1, max_size=30).filter(lambda text: not text.isspace())
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
IDS = st.integers() | st.text(min_size=1) | st.just("\ud800") | st.just([1, "a"])
ODD = st.lists(
    st.fixed_dictionaries(
        {"id": IDS, "text": TEXTS},
        optional={"source": st.text() | st.just("\udfff"), "more": JSON_VALUES, "": JSON_VALUES},
    ),
    max_size=4,
)


@settings(max_examples=15)
@given(records=ODD, output_format=st.sampled_from(FORMATS))
def test_odd_documents_read_back(records: list[dict[str, Any]], output_format: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.jsonl").write_bytes(lines([*records, {"id": "last", "text": "last"}]))
        score_run(folder / "in.jsonl", folder / "run")
        kept, _ = select_from(folder / "run", output_format, **options(output_format))
        rows = read(output_format, kept)
    assert len(rows) == len(records) + 1
    for record, row in zip(records, rows, strict=False):
        expected = expected_row(record)
        for field in ("id", "source"):  # lone surrogates are escaped
            escaped = expected[field].encode("utf-8", "surrogatepass").decode("utf-8", "replace")
            if escaped == expected[field]:
                assert row[field] == expected[field]
            else:
                assert re.search(r"\\ud[89a-f]", row[field])
        assert row["text"] == expected["text"]
        assert row[SCORE_FIELD] == expected[SCORE_FIELD]
        assert row["metadata"] == json.loads(dump_json(expected["metadata"]))


@pytest.mark.parametrize("output_format", FORMATS)
def test_nothing_kept_is_a_complete_selection(run: Path, output_format: str) -> None:
    changes = {**options(output_format), "policy": NOTHING, "name": f"no-{output_format}"}
    kept, manifest = select_from(run, output_format, **changes)
    assert manifest.counts.kept == 0
    names = {file.path for file in manifest.files}
    assert (
        names
        == {
            "array_record": set(),
            "huggingface": {"kept/README.md", "kept/data/train-00000-of-00001.parquet"},
            "mds": {"kept/index.json"},
            "megatron": set(),
        }[output_format]
    )
    if names:
        assert read(output_format, kept) == []


def test_an_id_and_a_source_that_are_too_long_stay_in_the_metadata(tmp_path: Path) -> None:
    record = {"id": "i" * 5000, "text": "t", "source": "s" * 5000}
    (tmp_path / "in.jsonl").write_bytes(lines([record]))
    score_run(tmp_path / "in.jsonl", tmp_path / "run")
    kept, _ = select_from(tmp_path / "run", "mds")
    (row,) = read("mds", kept)
    assert row["id"].startswith("sha256:")
    assert record["source"].startswith(row["source"])
    assert row["metadata"] == {"id": record["id"], "source": record["source"]}


def test_array_record_files_are_input_again(run: Path) -> None:
    kept, _ = select_from(run, "array_record", name="again")
    (path,) = kept.iterdir()
    documents = list(read_file(str(path)))
    assert {document.text for document in documents if isinstance(document, Document)} >= {
        record["text"] for record in RECORDS
    }
    assert len(documents) == 8


# --- several files for the same documents ---


def test_a_killed_writer_leaves_a_companion_that_the_next_one_takes(run: Path) -> None:
    expected, _ = select_from(run, "megatron", name="expected", **BYTE_TOKENS)
    request = SelectionRequest(
        str(run), EVERYTHING, 0, "megatron", 2**20, name="killed", **BYTE_TOKENS
    )
    selecting = Selecting.begin(request)
    selecting.finish()
    kept = Path(request.selection.path, "kept")
    for path in kept.glob("*.bin"):  # is committed last
        path.unlink()
    Path(request.selection.success_path).unlink()
    Path(request.selection.manifest_path).unlink()
    selecting.finish()
    contents = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert contents == {path.name: path.read_bytes() for path in expected.iterdir()}


@pytest.mark.parametrize("second_read_bytes", [None, 1])
def test_the_progress_counts_every_file_that_is_committed(
    run: Path, second_read_bytes: int | None
) -> None:
    changes = {**BYTE_TOKENS, "name": f"progress-{second_read_bytes}"}
    request = SelectionRequest(
        str(run),
        EVERYTHING,
        0,
        "megatron",
        2**20,
        second_read_bytes=second_read_bytes,
        **changes,
    )
    selecting = Selecting.begin(request)
    begun = look_at_selection(request.folder, request.name, 1)
    assert begun.steps == (3 if second_read_bytes is None else 3 + 4)
    assert begun.steps_done == 0
    selecting.finish()
    Path(request.selection.success_path).unlink()
    Path(request.selection.manifest_path).unlink()
    assert look_at_selection(request.folder, request.name, 1).steps_done == 3


def test_a_companion_of_another_content_is_never_mixed_with_new_tokens(run: Path) -> None:
    request = SelectionRequest(
        str(run), EVERYTHING, 0, "megatron", 2**20, name="mixed", **BYTE_TOKENS
    )
    selecting = Selecting.begin(request)
    kept = Path(request.selection.path, "kept")
    kept.mkdir(parents=True)
    (kept / "part-00000-of-00001.idx").write_bytes(b"of another version")
    with pytest.raises(CountsError, match="another content"):
        selecting.finish()


def test_an_mds_shard_of_more_than_four_gib_is_refused_by_a_writer() -> None:
    shard = MdsFormat().open([io.BytesIO()], 2)
    shard._max_bytes = 1000  # type: ignore[attr-defined]
    shard.add(b"x" * 100)
    with pytest.raises(CurationError, match="4 GiB"):
        shard.add(b"x" * 900)


def test_files_are_committed_to_an_object_store_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(RECORDS))
    with running_store("s3"):
        contents = []
        for output in (str(tmp_path / "run"), f"s3://{BUCKET}/run"):
            score_run(tmp_path / "in.jsonl", output)
            request = SelectionRequest(
                output, EVERYTHING, 0, "megatron", 2**20, second_read_bytes=1, **BYTE_TOKENS
            )
            manifest = Selecting.begin(request).finish()
            assert sum(file.documents for file in manifest.files) == len(RECORDS)
            for file in manifest.files:
                data = commits.read_bytes(f"{request.selection.path}/{file.path}")
                assert hashlib.sha256(data).hexdigest() == file.sha256
            contents.append(manifest.files)
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3


# --- the card ---


def test_the_card_says_what_the_manifest_says(run: Path) -> None:
    kept, manifest = select_from(run, "huggingface", name="card")
    text = (kept / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    info = fields["dataset_info"]
    assert info["splits"] == [
        {"name": "train", "num_bytes": manifest.counts.kept_bytes, "num_examples": 8}
    ]
    data = sum(file.bytes for file in manifest.files if file.documents)
    assert info["download_size"] == data
    assert [feature["name"] for feature in info["features"]] == pq.read_schema(
        next((kept / "data").iterdir())
    ).names
    assert fields["size_categories"] == ["n<1K"]
    assert manifest.rater in body
    assert "score at least" in body
    # A hostile source stays one cell.
    assert "| b&#124;&lt;b>`c` | 1 | 0 |" in body


def test_the_datasets_library_loads_the_folder_without_a_word_about_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="the datasets package is not installed")
    kept, manifest = select_from(run, "huggingface", name="load")
    loaded = datasets.load_dataset(str(kept), split="train", cache_dir=str(tmp_path))
    assert loaded.num_rows == manifest.counts.kept
    assert loaded.column_names == ["id", "text", "source", "metadata", SCORE_FIELD]
    assert [dict(row) for row in loaded] == rows_of_hugging_face(kept)


@pytest.mark.parametrize(
    ("documents", "category"),
    [(0, "n<1K"), (10**4, "10K<n<100K"), (10**6 - 1, "100K<n<1M"), (10**12, "n>1T")],
)
def test_size_categories_are_those_of_the_hub(documents: int, category: str) -> None:
    assert size_category(documents) == category


# --- tokens ---


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that is set to cut, to pad and to add special tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the text of a plain row"] * 9, trainer)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_tokens_of_a_tokenizer_json_are_those_of_the_whole_text_and_nothing_else(
    run: Path, tokenizer_file: Path
) -> None:
    plain = load_plain_tokenizer(str(tokenizer_file))
    fields = TokenizerFields(
        digest=plain.digest,
        vocabulary_size=plain.vocabulary_size,
        end_token="<|endoftext|>",
        end_id=plain.token_id("<|endoftext|>"),
    )
    changes = {"tokenizer": fields, "tokenizer_path": str(tokenizer_file), "name": "bpe"}
    kept, _ = select_from(run, "megatron", **changes)
    (path,) = kept.glob("*.bin")
    sequences = read_megatron(path.with_suffix(""))
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    texts = {tokenizer.decode(tokens[:-1]) for tokens in sequences}
    assert texts >= {record["text"] for record in RECORDS}
    for tokens in sequences:  # the name of the end token in a text is text
        assert [place for place, token in enumerate(tokens) if token == fields.end_id] == [
            len(tokens) - 1
        ]

    tokenizer_file.with_name("other.json").write_bytes(tokenizer_file.read_bytes() + b"\n")
    changes = {**changes, "tokenizer_path": str(tokenizer_file.with_name("other.json"))}
    with pytest.raises(CurationError, match=r"--output_tokenizer: .* has changed"):
        select_from(run, "megatron", **{**changes, "name": "other"})


@pytest.mark.parametrize(("vocabulary", "itemsize"), [(65_499, 2), (65_500, 4)])
def test_the_type_of_tokens_follows_the_vocabulary(
    run: Path, vocabulary: int, itemsize: int
) -> None:
    fields = dataclasses.replace(
        BYTE_TOKENS["tokenizer"], vocabulary_size=vocabulary, end_token="", end_id=None
    )
    request = SelectionRequest(
        str(run), EVERYTHING, 0, "megatron", 2**20, tokenizer=fields, tokenizer_path=BYTES
    )
    files = [io.BytesIO() for _ in range(3)]
    megatron = trainer_format(request)
    assert megatron is not None
    out = megatron.open(files, 1)
    tokens = np.arange(5).astype(token_type(vocabulary))
    row = {"id": "", "source": "", "metadata": "{}", SCORE_FIELD: 0.0, "tokens": 5}
    out.add(_packed(row, tokens))
    out.close()
    assert len(files[0].getvalue()) == 5 * itemsize
    assert files[1].getvalue()[17] == {2: 8, 4: 4}[itemsize]


# --- what is refused before work begins ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"output_format": "megatron"}, "--output_format megatron .*give --output_tokenizer"),
        (
            {"output_format": "mds", "output_tokenizer": "byte"},
            "--output_tokenizer is for --output_format megatron; mds has texts",
        ),
        (
            {"output_format": "jsonl", "output_end_token": "<s>"},
            "--output_end_token is a token of --output_tokenizer",
        ),
        (
            {"output_format": "mds", "output_shard_bytes": 2**32},
            "--output_shard_bytes: 4,294,967,296 bytes .* less than 4 GiB",
        ),
        (
            {"output_format": "megatron", "output_tokenizer": "missing.json"},
            "--output_tokenizer: .*missing.json",
        ),
        (
            {"output_format": "megatron", "output_tokenizer": __file__},
            "--output_tokenizer: .* is not a tokenizer.json",
        ),
        (
            {
                "output_format": "megatron",
                "output_tokenizer": "byte",
                "output_end_token": "<|endoftext|>",
            },
            "--output_end_token: .* no token '<.endoftext.>'; that of byte is <separator>",
        ),
    ],
)
def test_options_that_cannot_be_combined_are_refused_by_name(
    flags: dict[str, Any], message: str
) -> None:
    options = {"output": "run", "policy": EVERYTHING, "seed": 0, "output_shard_bytes": 2**20}
    with pytest.raises(UsageError, match=message):
        requests.selection_request(choice.choose([], 1), **{**options, **flags})


def test_the_tokenizer_is_a_part_of_what_a_selection_is(run: Path) -> None:
    options: dict[str, Any] = {"output": run, "policy": EVERYTHING, "seed": 0, "name": "tokenized"}
    options |= {"output_format": "megatron", "output_shard_bytes": 2**20}
    here = choice.choose([], 1)
    with_end = requests.selection_request(
        here, **options, output_tokenizer="byte", output_end_token="<separator>"
    )
    without = requests.selection_request(here, **options, output_tokenizer="byte")
    assert with_end.tokenizer == BYTE_TOKENS["tokenizer"]
    Selecting.begin(with_end).finish()
    with pytest.raises(RunFolderMismatchError, match="tokenizer"):
        Selecting.begin(without)
