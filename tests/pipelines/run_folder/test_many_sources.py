"""Corpora of very many sources: the counts stay bounded, and add up whatever the order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.pipelines.commands import curate, select
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.many_sources import OTHER_SOURCES, folded, sources_apart
from datarater.pipelines.run_folder.summaries import Summary
from datarater.rater_model import exit_codes
from tests.support.corpora import as_lines, make_records
from tests.support.raters import save_tiny_rater

NAMES = st.sampled_from(["", *"abcdefghij"])


@given(st.lists(NAMES), st.integers(1, 12))
def test_rows_of_sources_that_are_not_counted_apart_are_of_the_others(
    rows: list[str], max_sources: int
) -> None:
    names = sorted(set(rows))
    codes_R = np.asarray([names.index(row) for row in rows], np.int64)
    apart = sources_apart(names, max_sources)
    new_names, new_R = folded(names, codes_R, apart)
    assert len(set(new_names)) == len(new_names) <= max_sources + 2
    assert [new_names[code] for code in new_R] == [
        row if row in apart else OTHER_SOURCES for row in rows
    ]


@settings(max_examples=50)
@given(st.lists(st.lists(NAMES), max_size=6), st.integers(1, 12), st.randoms())
def test_counts_of_sources_do_not_depend_on_how_parts_are_merged(
    parts: list[list[str]], max_sources: int, random: st.DrawFn
) -> None:
    def merged(order: list[list[str]]) -> Summary:
        total = Summary(max_sources=max_sources)
        for part in order:
            one = Summary(max_sources=max_sources)
            for name in part:
                one.add(Summary(sources={name: Counts(1, 1)}, counts=Counts(1, 1)))
            total.add(one)
        return total

    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    total = merged(parts)
    assert total.sources == merged(shuffled).sources
    everything = Counter(name for part in parts for name in part)
    assert sum(counts.read for counts in total.sources.values()) == everything.total()
    for name, counts in total.sources.items():
        if name != OTHER_SOURCES:
            assert counts.read == everything[name]
    assert len(total.sources) <= max_sources + 2


def test_a_corpus_of_many_sources_is_selected_from_and_all_counts_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rater = save_tiny_rater(tmp_path / "rater")
    records = [
        {**record, "source": f"https://{number}.example.org"}
        for number, record in enumerate(make_records(60, 1))
    ]
    (tmp_path / "in.jsonl").write_bytes(as_lines(records) + b"no JSON\n")
    output = tmp_path / "run"
    args = ["--input", str(tmp_path / "in.jsonl"), "--rater", str(rater), "--output", str(output)]
    args += ["--split_bytes", "3000", "--max_sources", "5"]

    assert curate.main([*args, "--keep_fraction", "0.5"]) == 0
    scoring = json.loads((output / "scoring.json").read_bytes())
    manifest = json.loads((output / "selections/keep-0.5/manifest.json").read_bytes())
    assert len(scoring["sources"]) == 5 + 2  # and the records without a source
    assert scoring["sources"].keys() == manifest["sources"].keys()
    assert scoring["sources"][OTHER_SOURCES]["scored"] == 55
    assert sum(counts["kept"] for counts in manifest["sources"].values()) == 30
    assert sum(counts["read"] for counts in manifest["sources"].values()) == 61

    # A selection per source would be of sources that are none.
    capsys.readouterr()
    for more in (["--per", "source"], ["--min_per_source", "1"]):
        keep = ["--output", str(output), "--keep_fraction", "0.1", *more]
        assert select.main(keep) == exit_codes.FAILED
        said = capsys.readouterr().err
        assert "the corpus has more than the 6 that are counted apart" in said
        assert "--max_sources" in said
