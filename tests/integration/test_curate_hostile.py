"""Broken inputs: each alone, and all beside a whole corpus."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datarater.pipelines.commands import curate
from datarater.rater_model import exit_codes

# File: readable documents, rejected records by reason. As the corpora's own table says, and where
# that leaves a choice: zero-width characters count as text; a plain file under a compressed name is
# read as what it is.
HOSTILE: dict[str, tuple[int, dict[str, int]]] = {
    "array.json": (0, {"not_json": 3}),
    "blank_lines.jsonl": (3, {}),
    "bom.jsonl": (3, {}),
    "crlf.jsonl": (4, {}),
    "duplicate_ids.jsonl": (9, {}),
    "empty.jsonl": (0, {}),
    "empty.jsonl.gz": (0, {"stream_truncated": 1}),
    "empty.parquet": (0, {"unreadable_file": 1}),
    "empty_text.jsonl": (6, {"text_empty": 4}),
    "gzip_trailing_garbage.jsonl.gz": (4, {"trailing_garbage": 1}),
    "gzip_two_members.jsonl.gz": (7, {}),
    "huge_document.jsonl": (3, {}),
    "invalid_utf8.jsonl": (6, {"not_utf8": 6}),
    "line_separators.jsonl": (2, {}),
    "million_a.jsonl": (3, {}),
    "missing_text.jsonl": (3, {"no_text": 6}),
    "mixed_scripts.jsonl": (2, {}),
    "no_final_newline.jsonl": (3, {}),
    "no_rows.parquet": (0, {}),
    "not_gzip.jsonl.gz": (3, {}),
    "not_json.jsonl": (12, {"not_json": 7, "not_an_object": 4, "text_not_a_string": 1}),
    "not_parquet.parquet": (0, {"unreadable_file": 1}),
    "not_zstd.jsonl.zst": (2, {}),
    "nul_bytes.jsonl": (3, {"not_json": 2}),
    "only_bad_lines.jsonl": (0, {"no_text": 2, "not_json": 1, "text_empty": 1}),
    "random_bytes.jsonl": (0, {"not_utf8": 74}),
    "text_binary.parquet": (0, {"text_not_unicode": 6}),
    "text_nulls.parquet": (3, {"no_text": 2, "text_empty": 1}),
    "text_wrong_type.jsonl": (8, {"no_text": 1, "text_not_a_string": 7}),
    "truncated.jsonl.gz": (23, {"stream_truncated": 1}),
    "truncated.jsonl.zst": (0, {"stream_truncated": 1}),
    "truncated.parquet": (0, {"unreadable_file": 1}),
    "valid.jsonl.zst": (20, {}),
    "valid.parquet": (6, {}),
    "wrong_schema.parquet": (0, {"no_text_column": 6}),
}
ALONE = ("empty.jsonl", "only_bad_lines.jsonl", "truncated.jsonl.gz")
"""No record, no document, some documents. The drills curate every file alone."""


def curate_all(
    files: list[Path], rater: Path, output: Path, *more: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs the command; gives the manifest and the rejected records."""
    inputs = [word for file in files for word in ("--input", str(file))]
    args = [
        *inputs,
        "--rater",
        str(rater),
        "--output",
        str(output),
        "--max_windows",
        "4",
        "--name",
        "it",
        *more,
    ]
    assert curate.main(args) == 0
    manifest: dict[str, Any] = json.loads((output / "selections/it/manifest.json").read_bytes())
    rejected = [
        json.loads(line)
        for path in sorted((output / "rejected").glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]
    return manifest, rejected


def test_every_hostile_file_is_expected(corpora: Path) -> None:
    assert {path.name for path in (corpora / "hostile").iterdir()} == set(HOSTILE)


@pytest.mark.slow
def test_all_hostile_files_in_one_run(corpora: Path, rater: Path, tmp_path: Path) -> None:
    files = [corpora / "hostile" / name for name in HOSTILE]
    manifest, rejected = curate_all(files, rater, tmp_path / "run", "--keep_fraction", "0.5")
    readable = sum(documents for documents, _ in HOSTILE.values())
    assert manifest["scored"] == readable
    assert manifest["counts"]["kept"] == round(readable / 2)

    counted: Counter[tuple[str, str]] = Counter()
    for row in rejected:
        counted[Path(row["file"]).name, row["reason"]] += row["records"]
    expected = {
        (name, why): n for name, (_, reasons) in HOSTILE.items() for why, n in reasons.items()
    }
    assert counted == expected
    assert manifest["counts"]["rejected"] == sum(row["records"] for row in rejected)
    assert all(row["position"] >= 0 and row["detail"] for row in rejected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ALONE else pytest.mark.drill) for name in HOSTILE],
)
def test_a_hostile_file_alone(corpora: Path, rater: Path, tmp_path: Path, name: str) -> None:
    readable, reasons = HOSTILE[name]
    path = corpora / "hostile" / name
    if not readable:
        args = ["--input", str(path), "--rater", str(rater), "--output", str(tmp_path / "run")]
        assert curate.main([*args, "--keep_fraction", "0.5"]) == exit_codes.EMPTY_CORPUS
        return
    manifest, rejected = curate_all([path], rater, tmp_path / "run", "--keep_fraction", "0.5")
    counts = manifest["counts"]
    assert manifest["scored"] == readable
    assert counts["rejected_by_reason"] == reasons
    assert counts["kept"] == round(readable / 2)
    assert counts["read"] == counts["kept"] + counts["dropped"] + counts["rejected"]
    assert sum(row["records"] for row in rejected) == sum(reasons.values())
    for row in rejected:
        assert row["file"] == str(path)
        assert row["position"] >= 0
        assert row["detail"]


@pytest.mark.drill
def test_all_hostile_files_beside_a_whole_corpus_with_one_and_two_workers(
    corpora: Path, rater: Path, tmp_path: Path
) -> None:
    files = [corpora / "dev/*", *((corpora / "hostile" / name) for name in HOSTILE)]
    readable = 13_157 + sum(documents for documents, _ in HOSTILE.values())
    bad = sum(sum(reasons.values()) for _, reasons in HOSTILE.values())
    kept = []
    for workers in ("1", "2"):
        output = tmp_path / workers
        manifest, rejected = curate_all(
            files, rater, output, "--keep_fraction", "0.5", "--local_workers", workers
        )
        assert manifest["scored"] == readable
        assert manifest["counts"]["kept"] == round(readable / 2)
        assert manifest["counts"]["rejected"] == bad == sum(row["records"] for row in rejected)
        kept.append([(entry["path"], entry["sha256"]) for entry in manifest["files"]])
    assert kept[0] == kept[1]


@pytest.mark.drill
def test_half_of_the_dev_corpus_is_6578_documents(
    corpora: Path, rater: Path, tmp_path: Path
) -> None:
    manifest, rejected = curate_all(
        [corpora / "dev/*"], rater, tmp_path / "run", "--keep_fraction", "0.5"
    )
    assert (manifest["counts"]["read"], manifest["counts"]["kept"], rejected) == (13_157, 6_578, [])
