"""A run in which no document could be scored says what is there, and can be planned anew."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarater.pipelines.commands import curate, score, select
from datarater.rater_model import exit_codes

TEXTS = ["one text", "another text", "a third one", "the last"]


def test_wrong_fields_are_named_and_corrected_in_the_same_run_folder(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"title": TEXTS, "text": TEXTS}), tmp_path / "b.parquet")
    output = tmp_path / "run"
    flags = ["--input", f"{tmp_path}/*.*", "--rater", str(rater), "--output", str(output)]
    keep = ["--keep_fraction", "0.5", "--name", "it"]

    for _ in range(2):  # the same command says the same again
        assert curate.main([*flags, *keep, "--text_field", "content"]) == exit_codes.EMPTY_CORPUS
        error = capsys.readouterr().err
        assert "no document could be scored: all 8 records are rejected" in error
        assert "the field 'content' is missing or null; the record's fields are: id, text" in error
        assert not (output / "selections/it/_SUCCESS").exists()
        assert not (output / "scoring.json").exists()
    listed = (output / "rejected/000000.jsonl").read_text()
    assert "its columns are: title, text" in listed

    assert curate.main([*flags, *keep]) == 0
    manifest = json.loads((output / "selections/it/manifest.json").read_bytes())
    assert (manifest["counts"]["read"], manifest["counts"]["kept"]) == (8, 4)

    # Once something is scored, other options are refused as before.
    refused = score.main([*flags, "--text_field", "title"])
    assert refused == exit_codes.OTHER_RUN
    assert (output / "scoring.json").exists()

    # A source without documents is refused by name before any work.
    weighted = ["--output", str(output), "--keep_fraction", "0.5", "--per", "source"]
    assert select.main([*weighted, "--source_weight", "nowhere=2"]) == exit_codes.WRONG_USAGE
    error = capsys.readouterr().err
    assert "--source_weight: no source is called 'nowhere'" in error
    assert not (output / "selections" / "keep-0.5-per-source").exists()
