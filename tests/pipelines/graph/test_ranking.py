"""Selections by more than the run's score: exact, counted, and resumed, whatever the tables."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.pipelines.commands.ranking import ranking_options
from datarater.pipelines.errors import InputChangedError, RunFolderMismatchError
from datarater.pipelines.graph.cutoff_search import commit_rule
from datarater.pipelines.graph.ranking import FoundRows, rank_parts, rank_table
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.graph.token_counts import TokenCounterError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import read_json
from datarater.pipelines.run_folder.manifest import Manifest, Mixture, read_manifest
from datarater.pipelines.run_folder.ranking_options import RankingOptions
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.pipelines.run_folder.scored import read_scoring
from datarater.pipelines.run_folder.selection_progress import Phase, look_at_selection
from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.rules import (
    BatchTopK,
    KeepCount,
    KeepFraction,
    Rule,
    TemperatureSample,
    Threshold,
    TokenBudget,
)
from datarater.rater_model.text_scorer import ScoredTexts, TextScorer
from tests.support.corpora import as_lines, corpus_records, write_corpus
from tests.support.curation import read_kept
from tests.support.file_formats import tfrecord_of
from tests.support.ranked_runs import (
    a_tokenizer,
    copies_one_by_one,
    expected_kept,
    first_rows,
    oracle,
    place_of,
    rank_now,
    score_corpus,
    select_now,
    words_in,
    write_table,
)

WHERE = "lang.language in ('en', 'de') and (dup.duplicate_of is None or bytes > 6)"
RANK_BY = "0.5 * rater + quality.score"


class TiedScorer(TextScorer):
    """Scores a text by its digest, in so few steps that scores are often tied."""

    digest = "digest"

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        return ScoredTexts(
            scores_N=np.asarray([digest[0] % 4 for digest in digests], np.float32),
            tokens_N=np.asarray([digest[1] % 7 for digest in digests], np.int64),
        )


@dataclasses.dataclass(frozen=True)
class Case:
    """A scored corpus and three tables to join."""

    scoring: ScoringRequest
    languages: list[list[dict[str, Any]]]
    qualities: list[list[dict[str, Any]]]
    duplicates: list[list[dict[str, Any]]]
    options: RankingOptions

    @classmethod
    def make(cls, folder: Path, rng: random.Random, tokens_from: str = "") -> Case:
        """Makes a random corpus with rejects, equal ids and missing ids, and tables with gaps."""
        (folder / "in").mkdir()
        ids = [f"d{number}" for number in range(30)] + ["sa\u00e9", 'q"', "7"]
        for number in range(rng.randint(1, 4)):
            lines = []
            for _ in range(rng.randint(0, 25)):
                row: dict[str, Any] = {
                    "text": "x" * rng.randint(1, 9),
                    "source": f"s{rng.randrange(3)}",
                }
                if rng.random() < 0.9:
                    row["id"] = rng.choice([*ids, 7])
                if rng.random() < 0.9:
                    row["meta"] = {"n": rng.choice([0, 1, 5, 2.0, 2.5, None, -1, "3", True])}
                lines.append(json.dumps(row) if rng.random() < 0.9 else "bad")
            lines.append(json.dumps({"id": "last", "text": "text", "source": "s0"}))
            (folder / "in" / f"{number}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        scoring = score_corpus(
            folder / "in", folder / "run", TiedScorer(), files_per_split=rng.randint(1, 3)
        )

        def files(make: Any) -> list[list[dict[str, Any]]]:
            return [
                [make(rng.choice([*ids, None, "elsewhere"])) for _ in range(rng.randint(0, 60))]
                for _ in range(rng.randint(1, 3))
            ]

        languages = files(
            lambda id_: {"doc": id_, "language": rng.choice(["en", "en", "de", "de", "fr", None])}
        )
        qualities = files(
            lambda id_: {
                "id": id_,
                "score": rng.choice(
                    [*[0.1, 0.25, -0.5] * 4, 3e38, 1e39, None, float("nan")],
                ),
                "count": rng.choice([*[0, 1, 5] * 3, None, -1]),
            }
        )
        duplicates = files(
            lambda id_: {
                "key": None if id_ is None else json.dumps(id_, ensure_ascii=False),
                "duplicate_of": rng.choice([None, '"d1"']),
            }
        )
        options = ranking_options(
            {
                "lang": [
                    write_table(folder, "lang", languages, doc=pa.string(), language=pa.string())
                ],
                "quality": [
                    write_table(
                        folder,
                        "quality",
                        qualities,
                        id=pa.large_string(),
                        score=pa.float64(),
                        count=pa.int16(),
                    )
                ],
                "dup": [
                    write_table(
                        folder, "dup", duplicates, key=pa.string(), duplicate_of=pa.string()
                    )
                ],
            },
            {"lang": "doc"},
            WHERE,
            RANK_BY,
            tokens_from,
        )
        assert options is not None
        return cls(scoring, languages, qualities, duplicates, options)

    def request(self, rule: Rule, **changes: Any) -> SelectionRequest:
        policy = Policy(rule, changes.pop("per", Scope.CORPUS))
        fields = {"name": "it", "ranking": self.options, "rows_per_bucket": 9, "seed": 3}
        request = SelectionRequest(self.scoring.output, policy, 3, "scores", 2**20)
        return dataclasses.replace(request, **{**fields, **changes})

    def field_of(self, row: dict[str, Any]) -> int | None:
        """Returns the number of tokens that the record of a document states."""
        line = Path(row["file"]).read_bytes()[row["position"] :].split(b"\n")[0]
        count = json.loads(line).get("meta", {}).get("n")
        return {0: 0, 1: 1, 5: 5, 2.0: 2}.get(count) if type(count) in (int, float) else None

    def judge(self, row: dict[str, Any]) -> tuple[float | None, int | None]:
        """Judges a document as the rules say, from the tables as Python has them."""
        key = row["key"]
        plain = key if key.startswith("sha256:") else json.loads(key)
        plain = str(plain)
        language = first_rows(self.languages, "doc").get(plain, {}).get("language")
        quality = first_rows(self.qualities, "id").get(plain, {})
        duplicate = first_rows(self.duplicates, "key").get(key, {}).get("duplicate_of")
        score, tokens = quality.get("score"), row["tokens"]
        if self.options.tokens_field:
            tokens = self.field_of(row)
        elif self.options.tokens_from:
            count = quality.get("count")
            tokens = count if count is not None and count >= 0 else None
        meets = language in ("en", "de") and (duplicate is None or row["bytes"] > 6)
        if not meets or score is None or not np.isfinite(score):
            return None, tokens
        with np.errstate(over="ignore"):
            return float(np.float32(0.5 * row["score"] + score)), tokens


def test_random_cases_rank_some_documents_and_exclude_others() -> None:
    ranked = []
    for seed in range(12):
        with tempfile.TemporaryDirectory() as folder:
            case = Case.make(Path(folder), random.Random(seed))
            documents = oracle(case.request(KeepFraction(1)), case.judge)
            ranked.append((sum(one.score is not None for one in documents), len(documents)))
    assert sum(some > 0 for some, _ in ranked) >= 10
    assert sum(some for some, _ in ranked) > sum(count for _, count in ranked) / 6
    assert sum(some < count for some, count in ranked) >= 10


RULES = st.one_of(
    st.fractions(0, 1, max_denominator=6).map(KeepFraction),
    st.integers(0, 30).map(KeepCount),
    st.integers(0, 60).map(TokenBudget),
    st.sampled_from([Threshold("0.6"), Threshold("-1")]),
)


def kept_rows_of(request: SelectionRequest) -> list[dict[str, Any]]:
    """Returns the rows of the files that the manifest names, which are of the format scores."""
    manifest = read_manifest(request.selection)
    assert manifest is not None
    paths = [f"{request.selection.path}/{file.path}" for file in manifest.files]
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def check(case: Case, request: SelectionRequest, per_source: bool) -> Manifest:
    """Compares a selection with the oracle: documents, scores, signals and all counts."""
    documents = oracle(request, case.judge)
    rule = request.policy.rule
    sources = sorted({document.row["source"] for document in documents}) if per_source else [None]
    kept = [
        one
        for source in sources
        for one in expected_kept(
            [one for one in documents if source in (None, one.row["source"])], rule
        )
    ]
    rows = kept_rows_of(request)
    assert sorted((row["path"], row["position"], row["ranked_by"]) for row in rows) == sorted(
        (one.row["file"], one.row["position"], one.score) for one in kept
    )
    own = {(one.row["file"], one.row["position"]): one.row for one in documents}
    for row in rows:
        document = own[row["path"], row["position"]]
        assert row["datarater_score"] == document["score"]
        assert row["rater_tokens"] == document["tokens"]
        assert row["lang.language"] in ("en", "de")

    # Excluded documents are dropped, each for one reason, and the counts add up.
    manifest = read_manifest(request.selection)
    assert manifest is not None
    counts = manifest.counts
    assert counts.read == counts.kept + counts.dropped + counts.rejected
    assert counts.rejected == read_scoring(request.folder).counts.rejected
    assert counts.kept == len(kept)
    assert counts.kept_tokens == sum(one.tokens for one in kept)
    assert sum(counts.excluded_by_reason.values()) == sum(one.score is None for one in documents)
    for source, by_source in manifest.sources.items():
        assert by_source.kept == sum(one.row["source"] == source for one in kept)

    # So do those of the tables.
    for name, files, key in (
        ("lang", case.languages, "doc"),
        ("quality", case.qualities, "id"),
        ("dup", case.duplicates, "key"),
    ):
        table, all_rows = manifest.joins[name], [row for rows in files for row in rows]
        assert table.rows == len(all_rows)
        assert table.without_key == sum(row[key] is None for row in all_rows)
        distinct = len(first_rows(files, key))
        assert table.duplicates == table.rows - table.without_key - distinct
        assert table.matched + table.missing == len(documents)
    return manifest


@settings(max_examples=15)
@given(
    st.randoms(use_true_random=False),
    RULES,
    st.booleans(),
    st.sampled_from(["", "quality.count", "record.meta.n"]),
)
def test_any_rule_keeps_what_the_oracle_keeps(
    rng: random.Random, rule: Rule, per_source: bool, tokens_from: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        case = Case.make(Path(folder), rng, tokens_from)
        per = Scope.SOURCE if per_source else Scope.CORPUS
        request = case.request(rule, per=per)
        select_now(request)
        check(case, request, per_source)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case.make(tmp_path, random.Random(5))


def test_the_buckets_change_nothing(case: Case) -> None:
    rule = KeepFraction("1/2")
    results = []
    for name, rows in (("one", 2**18), ("many", 1)):
        request = case.request(rule, name=name, rows_per_bucket=rows)
        select_now(request)
        files = [
            commits.read_bytes(entry.path)
            for folder in sorted(commits.list_subfolders(request.ranking_folder.scores_path))
            for entry in commits.list_folder(f"{request.ranking_folder.scores_path}/{folder}")
        ]
        results.append((files, kept_rows_of(request), read_manifest(request.selection)))
    (files, kept, manifest), (again, kept_again, manifest_again) = results
    assert (files, kept) == (again, kept_again)
    assert manifest is not None
    assert manifest_again is not None
    assert (manifest.joins, manifest.counts) == (manifest_again.joins, manifest_again.counts)


def test_a_draw_takes_the_ranked_documents_alone(case: Case) -> None:
    request = case.request(BatchTopK(2, 4))
    select_now(request)
    ranked = {
        (one.row["file"], one.row["position"])
        for one in oracle(request, case.judge)
        if one.score is not None
    }
    manifest = read_manifest(request.selection)
    assert manifest is not None
    assert manifest.draw is not None
    assert manifest.draw.expected == pytest.approx(len(ranked) / 2)
    assert {(row["path"], row["position"]) for row in kept_rows_of(request)} <= ranked


def test_conditions_that_nothing_meets_keep_nothing(case: Case) -> None:
    options = dataclasses.replace(case.options, where="bytes > 1000", rank_by="", joins=())
    request = case.request(KeepFraction("1"), ranking=options)
    select_now(request)
    manifest = read_manifest(request.selection)
    assert manifest is not None
    assert manifest.counts.kept == 0
    assert manifest.counts.excluded_by_reason == {"condition_not_met": manifest.scored}


def test_without_a_number_the_scores_keep_their_bits(case: Case) -> None:
    options = RankingOptions(where="source != 's1'")
    request = case.request(KeepFraction("1"), ranking=options)
    select_now(request)
    assert all(row["ranked_by"] == row["datarater_score"] for row in kept_rows_of(request))
    assert {row["source"] for row in kept_rows_of(request)} == {"s0", "s2"}


def test_a_ranking_is_of_the_tables_that_it_began_with(case: Case, tmp_path: Path) -> None:
    request = case.request(KeepFraction("1/2"))
    commit_rule(request)
    other = dataclasses.replace(case.options, where="bytes > 3")
    with pytest.raises(
        RunFolderMismatchError, match=r"ranking\.where is .* there, but 'bytes > 3'"
    ):
        commit_rule(case.request(KeepFraction("1/2"), ranking=other))

    write_table(
        tmp_path, "lang", [[{"doc": "d1", "language": "en"}]], doc=pa.string(), language=pa.string()
    )
    with pytest.raises(InputChangedError, match=r"--join lang: .* was modified since"):
        rank_now(request)


@pytest.mark.parametrize("budget", [0, 40, 10**6])
def test_a_budget_in_the_tokens_of_another_tokenizer(tmp_path: Path, budget: int) -> None:
    """Of files of several formats, some in one split; texts that are left out are not counted."""
    write_corpus(tmp_path / "in")
    odd = {"id": "odd", "text": "the [CLS] fox", "source": "s0"}
    (tmp_path / "in/e.jsonl").write_bytes(as_lines([odd]))
    scoring = score_corpus(tmp_path / "in", tmp_path / "run", TiedScorer(), files_per_split=3)
    a_tokenizer().save(str(tmp_path / "tokenizer.json"))
    options = ranking_options({}, where="source != 's2'", tokens_from=f"{tmp_path}/tokenizer.json")
    policy = Policy(TokenBudget(budget))
    request = SelectionRequest(scoring.output, policy, 0, "scores", 2**20, ranking=options)
    select_now(request)

    records = [*corpus_records(), odd]
    counts = {json.dumps(one["id"]): words_in(one["text"]) for one in records}
    assert counts['"odd"'] == 5
    documents = oracle(
        request,
        lambda row: (row["score"] if row["source"] != "s2" else None, counts[row["key"]]),
    )
    kept = expected_kept(documents, policy.rule)
    rows = kept_rows_of(request)
    assert sorted((row["path"], row["position"], row["tokens"]) for row in rows) == sorted(
        (one.row["file"], one.row["position"], one.tokens) for one in kept
    )
    manifest = read_manifest(request.selection)
    assert manifest is not None
    assert manifest.counts.kept_tokens == sum(one.tokens for one in kept) <= budget
    assert len(kept) > 0 or not budget


def test_a_budget_by_a_field_of_the_records_of_several_formats(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = [
        {"id": f"d{n}", "text": f"the text {n}", "source": "s", "size": {"tokens": n % 9}}
        for n in range(60)
    ]
    (tmp_path / "in/a.jsonl").write_bytes(as_lines([*rows[:19], {"id": "none", "text": "text"}]))
    (tmp_path / "in/b.jsonl.gz").write_bytes(gzip.compress(as_lines(rows[20:30])))
    pq.write_table(pa.Table.from_pylist(rows[30:40]), tmp_path / "in/c.parquet", row_group_size=4)
    without = [{**row, "size": None} for row in rows[40:45]]
    pq.write_table(pa.Table.from_pylist(without), tmp_path / "in/d.parquet")
    flat = [{**row, "size.tokens": row["size"]["tokens"]} for row in rows[45:]]  # type: ignore[index]
    for row in flat:
        del row["size"]
    (tmp_path / "in/e.tfrecord").write_bytes(tfrecord_of(flat))
    scoring = score_corpus(tmp_path / "in", tmp_path / "run", TiedScorer(), files_per_split=2)
    options = ranking_options({}, tokens_from="record.size.tokens")
    policy = Policy(TokenBudget(90))
    request = SelectionRequest(scoring.output, policy, 0, "scores", 2**20, ranking=options)
    select_now(request)

    counts = {json.dumps(row["id"]): n % 9 for n, row in enumerate(rows) if n not in range(40, 45)}
    documents = oracle(request, lambda row: (row["score"], counts.get(row["key"])))
    kept = expected_kept(documents, policy.rule)
    actual = kept_rows_of(request)
    assert sorted((row["path"], row["position"], row["tokens"]) for row in actual) == sorted(
        (*place_of(one), one.tokens) for one in kept
    )
    assert {Path(row["path"]).suffix for row in actual} == {
        ".jsonl",
        ".gz",
        ".parquet",
        ".tfrecord",
    }
    manifest = read_manifest(request.selection)
    assert manifest is not None
    assert manifest.counts.excluded_by_reason == {"tokens_missing": 6}
    assert 0 < manifest.counts.kept_tokens <= 90


def test_a_tokenizer_or_an_input_that_changed_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in")
    scoring = score_corpus(tmp_path / "in", tmp_path / "run", TiedScorer())
    path = tmp_path / "tokenizer.json"
    a_tokenizer().save(str(path))
    options = ranking_options({}, tokens_from=str(path))
    request = SelectionRequest(
        scoring.output, Policy(TokenBudget(9)), 0, "scores", 2**20, ranking=options
    )
    content = path.read_text()
    path.write_text(content.replace("fox", "dog"))
    with pytest.raises(InputChangedError, match=r"--tokens_from: .* was modified"):
        rank_now(request)
    path.write_text(content)
    lines = (tmp_path / "in/a.jsonl").read_bytes()
    (tmp_path / "in/a.jsonl").write_bytes(lines[:-20])
    with pytest.raises(InputChangedError, match=r"a\.jsonl was modified"):
        rank_now(request)

    path.write_text("{}")
    with pytest.raises(TokenCounterError, match=r"--tokens_from: .* is not a tokenizer\.json"):
        ranking_options({}, tokens_from=str(path))


def test_a_ranking_shows_its_progress(case: Case) -> None:
    request = case.request(KeepFraction("1/2"))
    rank_now(request)
    done = look_at_selection(request.folder, "it", 1, 4)
    assert done.phase is Phase.SEARCHING
    commits.remove(request.ranking_folder.scoring_path)
    begun = look_at_selection(request.folder, "it", 1, 9)
    assert (begun.phase, begun.steps) == (Phase.RANKING, 9)
    assert 0 < begun.steps_done < 9
    assert f"ranked {begun.steps_done} of 9 splits" in begun.line()


def test_rows_are_judged_alike_in_any_row_groups(case: Case) -> None:
    """A long score file has several row groups, of which each is judged by itself."""
    scored = ScoreFile.read(case.scoring.folder, 0)
    found = FoundRows.of([], case.options)
    ((_, whole),) = rank_parts([scored], case.options, found)
    pieces = [
        dataclasses.replace(scored, table=scored.table.slice(first, 2), parts=())
        for first in range(0, scored.table.num_rows, 2)
    ]
    ranked = [part.table for _, part in rank_parts(pieces, case.options, found)]
    assert pa.concat_tables(ranked).to_pylist() == whole.table.to_pylist()
    reasons = Counter(whole.table.column("status").to_pylist())
    assert reasons["condition_missing"] > 0


@settings(max_examples=8)
@given(st.randoms(use_true_random=False), st.integers(0, 90), st.booleans(), st.booleans())
def test_copies_are_those_of_the_oracle_and_are_counted_apart(
    rng: random.Random, size: int, in_tokens: bool, is_ranked: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        case = Case.make(Path(folder), rng)
        rule = TemperatureSample(size, "0.75", 3, in_tokens=in_tokens)
        request = case.request(rule, ranking=case.options if is_ranked else None)
        select_now(request)

        judge = case.judge if is_ranked else (lambda row: (row["score"], row["tokens"]))
        ranked = [one for one in oracle(request, judge) if one.score is not None]
        copies = copies_one_by_one(ranked, rule, request.seed)
        expected = Counter({place_of(one): n for one, n in zip(ranked, copies, strict=True) if n})
        rows = kept_rows_of(request)
        assert Counter((row["path"], row["position"]) for row in rows) == expected

        manifest = read_manifest(request.selection)
        assert manifest is not None
        counts = manifest.counts
        assert counts.read == counts.kept + counts.dropped + counts.rejected
        assert (counts.kept, counts.written) == (len(expected), sum(expected.values()))
        tokens = {place_of(one): one.tokens for one in ranked}
        assert counts.kept_tokens == sum(tokens[place] for place in expected)
        written = sum(tokens[place] * number for place, number in expected.items())
        assert counts.kept_tokens + counts.repeat_tokens == written
        assert sum(file.documents for file in manifest.files) == counts.written

        # The mixture has the shares of the sources in what is written.
        mixture = read_json(request.selection.mixture_path, Mixture)
        assert mixture is not None
        assert mixture.tokens == written
        assert sum(part.copies for part in mixture.sources.values()) == counts.written
        if written:
            assert sum(part.weight for part in mixture.sources.values()) == pytest.approx(1)
        for name, part in mixture.sources.items():
            own = [place_of(one) for one in ranked if one.row["source"] == name]
            assert part.copied_tokens == sum(tokens[place] * expected[place] for place in own)
            assert part.documents == sum(expected[place] > 0 for place in own)


def test_every_format_has_every_copy(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in")
    scoring = score_corpus(tmp_path / "in", tmp_path / "run", TiedScorer(), files_per_split=1)
    policy = Policy(TemperatureSample(500, "2", 4, in_tokens=False))
    request = SelectionRequest(scoring.output, policy, 0, "same", 2**20)
    select_now(request)
    manifest = read_manifest(request.selection)
    assert manifest is not None
    assert manifest.counts.repeats > 0
    rows = read_kept(Path(request.selection.path))
    copies = Counter(row["id"] for row in rows)
    assert (len(copies), len(rows)) == (manifest.counts.kept, manifest.counts.written)
    assert {file.format for file in manifest.files} == {"jsonl", "jsonl.gz", "jsonl.zst", "parquet"}
    assert set(copies.values()) == {1, 2, 3, 4} & set(copies.values())
    assert max(copies.values()) > 1
    assert request.policy.name == "sample-count-500-t2-x4"


def test_a_number_that_is_too_large_is_no_count_of_tokens() -> None:
    table = pa.table(
        {
            "score": pa.array([1.0, 2.0], pa.float32()),
            "tokens": [5, 5],
            "bytes": [5, 5],
            "source": ["", ""],
            "status": pa.array(["scored", "scored"]).dictionary_encode(),
        }
    )
    counts = {"t.n": pa.array([2**32, 2**32 + 1])}
    ranked = rank_table(table, RankingOptions(tokens_from="t.n"), counts, {})
    assert ranked.column("tokens").to_pylist() == [2**32, 0]
    assert ranked.column("status").to_pylist() == ["scored", "tokens_missing"]
