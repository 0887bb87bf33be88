"""One suite for every available runner: the same kept documents, counts and exit codes."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import random
import re
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datarater.pipelines.commands import curate, score, select
from datarater.pipelines.graph import score_split
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import KeepFraction, TemperatureSample, TokenBudget
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import load_rater
from tests.support.corpora import as_lines, make_records
from tests.support.near_duplicates import SIMILARITY, WORDS, ComparedCorpus, changed, jaccard
from tests.support.ranked_runs import (
    Ranked,
    a_tokenizer,
    copies_one_by_one,
    expected_kept,
    first_rows,
    oracle,
    place_of,
    words_in,
    write_table,
)
from tests.support.raters import save_tiny_rater
from tests.support.run_folders import run_options
from tests.support.runners import (
    duplicates_in,
    kept_documents,
    one_flink_at_a_time,
    outcome,
    prism_flags,
    score_files,
)

RUNNERS = [
    "in-process",
    "multi-process",
    "prism",
    pytest.param("flink", marks=one_flink_at_a_time),
]


def run_flags(folder: Path, output: Path) -> list[str]:
    """Returns the flags of a run, whose documents two raters score in one read."""
    flags = ["--input", f"{folder}/in/*", "--output", str(output), "--rater", f"{folder}/rater"]
    flags += ["--rater", f"second={folder}/second", "--split_bytes", "4000"]
    return [*flags, "--max_windows", "4", "--workers_to_fill", "2"]


def write_labels(folder: Path, records: list[dict[str, Any]]) -> None:
    """Writes a table of labels with missing, repeated and strange keys, and missing values."""
    rng = random.Random(0)
    ids = [record["id"] for record in records if rng.random() < 0.8]
    rows = [
        {
            "id": id_,
            "language": rng.choice(["en", "de", "fr", None]),
            "count": rng.choice([3, 5, 5, 40, None, -1]),
        }
        for id_ in rng.sample([*ids, *ids[::5], "elsewhere", None], len(ids))
    ]
    files = [rows[::2], rows[1::2]]
    types = {"id": pa.string(), "language": pa.string(), "count": pa.int16()}
    write_table(folder, "labels", files, **types)
    (folder / "labels.json").write_text(json.dumps(files))


def chain(seed: int) -> list[dict[str, Any]]:
    """Returns documents of which the second is similar to both others, which are not."""
    rng = random.Random(seed)
    first = " ".join(rng.choices(WORDS, k=200))
    second = changed(first, 0.015, rng)
    texts = first, second, changed(second, 0.015, rng)
    return [{"id": f"c{seed}-{n}", "text": text, "source": "s0"} for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 30 splits with records to reject, ties and near-duplicates; raters; signals to join."""
    folder = tmp_path_factory.mktemp("runners")
    (folder / "in").mkdir()
    chains = [chain(seed) for seed in range(3)]
    all_records = []
    for number in range(8):
        records = make_records(60, number)
        records += [part[number // 3] for part in chains if number % 3 == 0]
        all_records += records
        lines = as_lines(records) + b'no JSON\n{"id": "same", "text": "the same text"}\n' * 3
        (folder / "in" / f"{number:02d}.jsonl").write_bytes(lines)
    write_labels(folder, all_records)
    save_tiny_rater(folder / "rater")
    save_tiny_rater(folder / "second", seed=1)
    a_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


SAMPLE = TemperatureSample(9000, "0.02", 3, in_tokens=True)
BUDGETS = {"ranked": TokenBudget(700), "unique": TokenBudget(4000)}


def selections(folder: Path, scored: Path) -> dict[str, list[str]]:
    """Returns the flags of selections by name, which also read the scores of another run."""
    # By two raters and two tables, one as large as the corpus, with equal keys; in the tokens that
    # a column counts.
    where = "labels.language in ('en', 'de') and other.tokens is not None"
    ranked = ["--join", f"labels={folder}/labels-*.parquet", "--join", f"other={scored}/scores"]
    ranked += ["--where", where, "--rank_by", "0.7 * rater + 0.3 * second"]
    ranked += ["--tokens_from", "labels.count", "--output_format", "scores"]

    # Without near-duplicates, in the tokens of another tokenizer, for a trainer.
    unique = ["--dedup", "similarity-0.8", "--where", "source != 's1'"]
    unique += ["--tokens_from", f"{folder}/tokenizer.json", "--output_format", "mds"]

    # In several copies.
    sampled = ["--sample_tokens", f"{SAMPLE.target_size}", "--temperature", f"{SAMPLE.temperature}"]
    sampled += ["--max_copies", f"{SAMPLE.max_copies}"]
    flags = {"ranked": ranked, "unique": unique, "sampled": sampled}
    for name, budget in BUDGETS.items():
        flags[name] += ["--token_budget", f"{budget.tokens}"]
    return {name: [*words, "--name", name] for name, words in flags.items()}


HALF = ["--keep_fraction", "0.5", "--dedup", "0.8", "--name", "half"]


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an undisturbed run in this process."""
    output = tmp_path_factory.mktemp("expected") / "run"
    assert curate.main([*run_flags(folder, output), *HALF]) == 0
    for flags in selections(folder, output).values():
        assert select.main(["--output", str(output), *flags]) == 0
    return output


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the rules keep of a run in plain Python."""

    folder: Path
    run: Path

    @functools.cached_property
    def compared(self) -> ComparedCorpus:
        """The corpus and its near-duplicates, which are as exact similarities say."""
        return ComparedCorpus.of(self.run, self.run / "duplicates/similarity-0.8")

    @functools.cached_property
    def labels(self) -> Mapping[str, dict[str, Any]]:
        """The first row of each key."""
        return first_rows(json.loads((self.folder / "labels.json").read_bytes()), "id")

    def judge(self, name: str, row: dict[str, Any]) -> tuple[float | None, int | None]:
        """Returns the number to rank a document by, and its tokens; see `oracle`."""
        place = row["file"], row["position"]
        if name == "ranked":
            label = self.labels.get(json.loads(row["key"]), {})
            count = label.get("count")
            is_met = label.get("language") in ("en", "de")
            score = 0.7 * row["score"] + 0.3 * row["score_second"]
            return score if is_met else None, count if count is not None and count >= 0 else None
        if name == "sampled":
            return row["score"], row["tokens"]
        is_left = place not in self.compared.dropped()
        if name == "unique":
            is_met = is_left and row["source"] != "s1"
            return row["score"] if is_met else None, words_in(self.compared.texts[place])
        return row["score"] if is_left else None, row["tokens"]

    def kept(self, name: str) -> list[tuple[Ranked, int]]:
        """Returns the kept documents of a selection and their copies."""
        request = SelectionRequest(str(self.run), Policy(SAMPLE), 0, "scores", 1)
        documents = oracle(request, lambda row: self.judge(name, row))
        ranked = [one for one in documents if one.score is not None]
        if name == "sampled":
            copies = copies_one_by_one(ranked, SAMPLE, 0)
            return [(one, number) for one, number in zip(ranked, copies, strict=True) if number]
        rule = BUDGETS.get(name, KeepFraction("0.5"))
        return [(one, 1) for one in expected_kept(documents, rule)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["half", "ranked", "unique", "sampled"])
def test_what_is_expected_of_all_runners_is_what_brute_force_keeps(
    folder: Path, expected: Path, name: str
) -> None:
    wanted = Expected(folder, expected)
    kept = wanted.kept(name)
    manifest = json.loads((expected / "selections" / name / "manifest.json").read_bytes())
    texts = wanted.compared.texts
    rows = kept_documents(expected / "selections" / name, manifest)
    if name == "ranked":
        actual = Counter((row["path"], row["position"], row["ranked_by"]) for row in rows)
        assert actual == Counter({(*place_of(one), one.score): 1 for one, _ in kept})
    else:
        actual = Counter(row["text"] for row in rows)
        copies: Counter[str] = Counter()
        for one, number in kept:
            copies[texts[place_of(one)]] += number
        assert actual == copies

    # The counts are those of the documents, and their copies are counted apart.
    counts = manifest["counts"]
    assert counts["read"] == counts["kept"] + counts["dropped"] + counts["rejected"]
    assert (counts["read"], counts["rejected"]) == (537, 24)
    assert counts["kept"] == len(kept) > 0
    assert counts["kept_tokens"] == sum(one.tokens for one, _ in kept)
    repeats = sum(number - 1 for _, number in kept)
    assert counts.get("repeats", 0) == repeats
    assert (repeats > 0) == (name == "sampled")
    for source, by_source in manifest["sources"].items():
        own = [(one, number) for one, number in kept if one.row["source"] == source]
        assert by_source["kept"] == len(own)

    mixture = json.loads((expected / "selections" / name / "mixture.json").read_bytes())
    written = sum(one.tokens * number for one, number in kept)
    assert mixture["tokens"] == written
    for source, part in mixture["sources"].items():
        own = [(one, number) for one, number in kept if one.row["source"] == source]
        assert part["copies"] == sum(number for _, number in own)
        tokens = sum(one.tokens * number for one, number in own)
        assert part["weight"] == pytest.approx(tokens / written)


@pytest.mark.slow
def test_the_expected_near_duplicates_are_as_exact_similarities_say(
    folder: Path, expected: Path
) -> None:
    compared = Expected(folder, expected).compared
    compared.check()
    is_chain = []
    for seed in range(3):
        first, second, third = (record["text"] for record in chain(seed))
        pairs = jaccard(first, second), jaccard(second, third), jaccard(first, third)
        is_chain.append(min(pairs[:2]) > SIMILARITY > pairs[2])
    assert any(is_chain)
    dropped = {compared.texts[place] for place in compared.dropped()}
    assert any(record["text"] in dropped for seed in range(3) for record in chain(seed))


@pytest.fixture(params=RUNNERS)
def runner_flags(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "flink":
        return list(request.getfixturevalue("flink_cluster").flags())
    if request.param == "prism":
        return prism_flags()
    return ["--local_workers", "2"] if request.param == "multi-process" else []


@pytest.mark.slow
def test_every_runner_keeps_the_same(
    folder: Path,
    expected: Path,
    runner_flags: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    args = [*run_flags(folder, output), *runner_flags]

    # The limit lies just below the true fraction (24 of 537). So it is certain only at the end of
    # scoring that it is passed, and every runner scores all splits first.
    assert score.main([*args, "--max_rejected_fraction", "0.044"]) == exit_codes.PAST_LIMIT
    printed = capfd.readouterr()
    assert re.match(
        r"datarater score: 24 of (the )?537 records (read so far )?are rejected \(not_json 24\)",
        printed.err.splitlines()[-1],
    )
    assert "runner: " in printed.out
    scored = score_files(output)
    assert len(scored) > 20
    assert not (output / "scoring.json").exists()

    # The same folder again: nothing is scored twice, and near-duplicates are left out.
    assert curate.main([*args, *HALF]) == 0
    assert outcome(output, "half") == outcome(expected, "half")
    assert duplicates_in(output) == duplicates_in(expected)
    assert len(duplicates_in(output)) >= 23

    # Other rules use the same scores, and those of another run.
    for name, flags in selections(folder, expected).items():
        assert select.main(["--output", str(output), *flags, *runner_flags]) == 0
        assert outcome(output, name) == outcome(expected, name)
    assert score_files(output) == scored
    assert not list(output.glob("attempts/*"))


loaded: list[str] = []


def load(path: str) -> Any:
    loaded.append(path)
    return load_rater(path)


def test_a_process_shares_one_rater(rater: Path) -> None:
    """Several bundles at once, each with a separately unpickled step, as in Beam's workers."""
    options = run_options(rater=load_rater(str(rater)).digest)
    request = ScoringRequest(Patterns(("x",)), str(rater), "run", options)
    pickled = pickle.dumps(score_split.ScoreSplit(request, load))
    steps = [pickle.loads(pickled) for _ in range(4)]

    def bundle(step: score_split.ScoreSplit) -> None:
        step.setup()
        step._rater = step._shared.acquire(step._load, tag=options.rater)

    threads = [threading.Thread(target=bundle, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == len({id(step._rater) for step in steps}) == 1
