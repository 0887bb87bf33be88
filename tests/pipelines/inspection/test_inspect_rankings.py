"""`datarater inspect` decides as the output has it, for selections by more than the run's score."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.pipelines.commands import inspect
from datarater.pipelines.commands.ranking import ranking_options
from datarater.pipelines.errors import UsageError
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.inspection.found_documents import key_forms
from datarater.pipelines.inspection.inspection import ShownDocument, inspect_run
from datarater.pipelines.inspection.question import Question, Show
from datarater.pipelines.run_folder import commits, duplicates
from datarater.pipelines.run_folder.duplicates import DuplicateCounts
from datarater.pipelines.run_folder.manifest import read_manifest
from datarater.pipelines.run_folder.plan import plan_of, read_group
from datarater.pipelines.run_folder.ranking_options import NEAR_DUPLICATE, RankingOptions
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.pipelines.selection.policy import Scope
from datarater.pipelines.selection.rules import KeepFraction, Rule, TemperatureSample
from datarater.rater_model import exit_codes
from tests.pipelines.graph.test_ranking import RULES, Case, kept_rows_of
from tests.support.ranked_runs import Ranked, first_rows, oracle, place_of, select_now

Place = tuple[str, int]
WHERE = "source == 's0' or (lang.language is None or lang.language != 'fr') and quality.count != 1"
RANK_BY = "0.5 * rater + bytes"
NEIGHBOR = {
    "duplicate_of": '"the better one"',
    "similarity": 0.875,
    "exact": False,
    "duplicate_of_file": "f",
    "duplicate_of_position": 0,
}


def plant_duplicates(scoring: ScoringRequest, name: str, rng: random.Random) -> set[Place]:
    """Commits a deduplication that finds every fourth document; returns their places."""
    folder, found = scoring.folder, set()
    for group in range(plan_of(folder).groups):
        for task in read_group(folder, group):
            ordinal, rows = task.split.ordinal, []
            table = ScoreFile.read(folder, ordinal).table.to_pylist()
            for number, row in enumerate(table):
                if row["score"] is None or rng.randrange(4):
                    continue
                found.add((row["file"], row["position"]))
                own = {name: row[name] for name in ("key", "file", "position")}
                rows.append({**own, "split": ordinal, "row": number, **NEIGHBOR})
            part = pa.Table.from_pylist(rows, duplicates.SCHEMA)
            with duplicates.to_parquet([part], ordinal, DuplicateCounts()) as content:
                commits.commit_file(folder.duplicates(name).documents_path(ordinal), content)
    return found


@dataclasses.dataclass(frozen=True)
class Selected:
    """A finished selection, and all that brute force knows of it.

    Attributes:
        request: The selection.
        ranked: Documents that are ranked, the best first.
        excluded: Documents that are not.
        near_duplicates: Places of the near-duplicates.
        written: Number of times that the output files have each document.
    """

    request: SelectionRequest
    ranked: list[Ranked]
    excluded: list[Ranked]
    near_duplicates: set[Place]
    written: Counter[Place]

    @classmethod
    def make(
        cls, case: Case, rng: random.Random, rule: Rule, *, ranks: bool, dedup: bool, per: Scope
    ) -> Selected:
        near = plant_duplicates(case.scoring, "near", rng) if dedup else set()
        options = RankingOptions()
        if ranks:
            folder = Path(case.scoring.output).parent
            tables = {name: [str(folder / f"{name}-*.parquet")] for name in ("lang", "quality")}
            joined = ranking_options(tables, {"lang": "doc"}, WHERE, RANK_BY)
            assert joined is not None
            options = joined
        options = dataclasses.replace(options, duplicates="near" if dedup else "")
        request = case.request(rule, per=per, ranking=options if ranks or dedup else None)
        select_now(request)

        def judge(row: dict[str, Any]) -> tuple[float | None, int | None]:
            if (row["file"], row["position"]) in near:
                return None, row["tokens"]
            if not ranks:
                return row["score"], row["tokens"]
            key = row["key"]
            plain = key if key.startswith("sha256:") else str(json.loads(key))
            count = first_rows(case.qualities, "id").get(plain, {}).get("count")
            language = first_rows(case.languages, "doc").get(plain, {}).get("language")
            if row["source"] != "s0" and (language == "fr" or count is None or count == 1):
                return None, row["tokens"]
            return 0.5 * row["score"] + row["bytes"], row["tokens"]

        documents = oracle(request, judge)
        written = Counter((row["path"], row["position"]) for row in kept_rows_of(request))
        ranked = [one for one in documents if one.score is not None]
        excluded = [one for one in documents if one.score is None]
        return cls(request, ranked, excluded, near, written)

    def asked(self, **question: Any) -> list[ShownDocument]:
        """Returns the answer to a question, after a look at every decision in it."""
        inspection = inspect_run(self.request.folder, Question(**question), None, 2**28)
        documents = {place_of(one): one for one in [*self.ranked, *self.excluded]}
        for shown in inspection.documents:
            place = shown.file, shown.row["position"]
            document, decision = documents[place], shown.decision
            assert decision is not None
            assert decision.kept == (self.written[place] > 0)
            if isinstance(self.request.policy.rule, TemperatureSample):
                assert decision.copies == self.written[place]
            assert bool(decision.excluded) == (document.score is None)
            assert (decision.neighbor is not None) == (place in self.near_duplicates)
            assert decision.neighbor is None or decision.neighbor.key == NEIGHBOR["duplicate_of"]
            assert shown.scores["score"] == document.row["score"]
            if self.request.ranking is not None:
                assert shown.scores["ranked_by"] == document.score
            assert shown.text
        return list(inspection.documents)

    def places(self, **question: Any) -> list[Place]:
        """Returns the places of the documents of an answer, in its order."""
        return [(shown.file, shown.row["position"]) for shown in self.asked(**question)]

    def of(self, documents: Sequence[Ranked], source: str | None) -> list[Place]:
        """Returns the places of documents of a source, in their order."""
        return [place_of(one) for one in documents if source in (None, one.row["source"])]


@settings(max_examples=12)
@given(
    rng=st.randoms(use_true_random=False),
    rule=st.one_of(
        RULES,
        st.builds(
            TemperatureSample,
            st.integers(0, 90),
            st.just("0.75"),
            st.just(3),
            in_tokens=st.booleans(),
        ),
    ),
    ranks=st.booleans(),
    dedup=st.booleans(),
    per=st.sampled_from(Scope),
    count=st.integers(1, 6),
    skip=st.integers(0, 3),
)
def test_every_question_is_answered_as_brute_force_answers_it(
    rng: random.Random, rule: Rule, ranks: bool, dedup: bool, per: Scope, count: int, skip: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        case = Case.make(Path(folder), rng)
        it = Selected.make(case, rng, rule, ranks=ranks, dedup=dedup, per=per)
        page = slice(skip, skip + count)
        everything = sorted(map(place_of, [*it.ranked, *it.excluded]))
        source = rng.choice([None, "s0"])

        # By rank: only what is ranked, the best first.
        ranked = it.of(it.ranked, source)
        shown = {"count": count, "skip": skip, "source": source}
        assert it.places(show=Show.BEST, **shown) == ranked[page]
        assert it.places(show=Show.WORST, **shown) == ranked[::-1][page]

        # Near the cutoff: half of them from each side, and more from one if the other has too few.
        ranked = it.of(it.ranked, "s0")
        kept = sum(it.written[place] > 0 for place in ranked)
        near = {"show": Show.CUTOFF, "count": count, "source": "s0"}
        if isinstance(rule, TemperatureSample):
            with pytest.raises(UsageError, match="draws documents; it has no cutoff"):
                it.asked(**near)
        elif 0 < kept < len(ranked):
            after = min(len(ranked) - kept, max(count // 2, count - kept))
            first = max(0, kept - (count - after))
            assert it.places(**near) == ranked[first : first + count]

        # At random, and by key: also what is excluded.
        drawn = it.places(show=Show.RANDOM, count=count, seed=skip)
        assert len(set(drawn)) == min(count, len(everything))
        assert set(drawn) <= set(everything)
        key = rng.choice([*it.ranked, *it.excluded]).row["key"]
        forms = key_forms(key)  # 7 is an id as well as "7"
        expected = [one for one in [*it.ranked, *it.excluded] if one.row["key"] in forms]
        found = it.places(show=Show.KEY, keys=(key,), count=99)
        assert sorted(found) == sorted(map(place_of, expected))

        # What is excluded: by reason, in the order of the input.
        manifest = read_manifest(it.request.selection)
        assert manifest is not None
        excluded: list[Place] = []
        for reason, number in manifest.counts.excluded_by_reason.items():
            places = it.places(show=Show.EXCLUDED, reason=reason, count=999)
            assert len(places) == number
            assert places == sorted(places)
            assert (
                it.places(show=Show.EXCLUDED, reason=reason, **shown)
                == [place for place in places if place in it.of(it.excluded, source)][page]
            )
            excluded += places
            if reason == NEAR_DUPLICATE:
                assert set(places) == it.near_duplicates
        assert sorted(excluded) == sorted(map(place_of, it.excluded))
        if excluded:
            assert it.places(show=Show.EXCLUDED, count=999) == sorted(excluded)


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Selected:
    folder, rng = tmp_path_factory.mktemp("ranked"), random.Random(12)
    case = Case.make(folder, rng)
    rule = KeepFraction("1/2")
    return Selected.make(case, rng, rule, ranks=True, dedup=True, per=Scope.CORPUS)


def test_scores_reasons_and_neighbors_are_printed_side_by_side(
    it: Selected, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(it.request.folder.path)
    assert inspect.main([run, "--count", "1"]) == exit_codes.DONE
    out = capsys.readouterr().out
    best = it.ranked[0]
    assert f"selection: it, ranked by {it.request.ranking.rank_by}" in out  # type: ignore[union-attr]
    assert re.search(r"excluded before it ranks: .*near_duplicate \d+", out)
    assert f"1  score {best.row['score']:.6g}  ranked_by {best.score:.6g}  lang.language " in out
    assert "  quality.count " in out

    flags = [run, "--reason", NEAR_DUPLICATE, "--count", "1"]
    assert inspect.main(flags) == exit_codes.DONE
    out = capsys.readouterr().out
    assert "ranked_by missing" in out
    assert "dropped: near_duplicate" in out
    assert f"near-duplicate of {NEIGHBOR['duplicate_of']}  similarity 0.88" in out

    assert inspect.main([*flags, "--json"]) == exit_codes.DONE
    fields = json.loads(capsys.readouterr().out)
    assert (fields["kept"], fields["excluded"]) == (False, NEAR_DUPLICATE)
    assert (fields["duplicate_of"], fields["similarity"]) == (NEIGHBOR["duplicate_of"], 0.875)
    assert {"score", "ranked_by", "lang.language"} <= fields["scores"].keys()


def test_few_score_files_are_read_and_the_answer_says_what_is_left_out(it: Selected) -> None:
    question = Question(show=Show.EXCLUDED, count=999, max_score_files=1)
    inspection = inspect_run(it.request.folder, question, None, 2**28)
    assert len({shown.file for shown in inspection.documents}) <= 3  # files of one split
    assert len(inspection.documents) < len(it.excluded)
    assert any("--max_score_files 0 looks for more" in note for note in inspection.notes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reason", "rank_missing", "--selection", "none"], "the run has no selection none"),
        (["--reason", "tokens_missing"], "excludes no document for 'tokens_missing'; it does for"),
        (["--reason", NEAR_DUPLICATE, "--show", "rejected"], "--reason goes with --show excluded"),
    ],
)
def test_a_reason_that_the_selection_lacks_is_refused_by_name(
    it: Selected, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([it.request.folder.path, *flags]) == exit_codes.WRONG_USAGE
    assert message in capsys.readouterr().err
