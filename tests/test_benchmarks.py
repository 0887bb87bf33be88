"""The arithmetic of the benchmarks; the benchmarks themselves are commands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from datarater.meta_training.demo.corruption import NOISE_LEVELS, CorruptionKind
from datarater.meta_training.demo.ranking import auc
from datarater.meta_training.evaluate.raters import check_flags
from datarater.pipelines.commands.estimate import WorkerType
from tests.benchmarks import better_rater, corruption, mixed_corpus, sizing, toy_r2
from tests.benchmarks.benchmark_support import read_documents
from tests.benchmarks.held_out_works import OUTER, VALIDATION, WORKS, assign, shared_names
from tests.benchmarks.weighted_training import normal_scores
from tests.support import ROOT


def test_every_held_out_document_is_in_one_half_and_no_work_in_both(corpora: Path) -> None:
    records = [record for _, record in read_documents(f"{corpora}/dev_heldout/*.jsonl.gz")]
    documents = [assign(record["id"], record["text"], record["source"]) for record in records]
    assert {document.half for document in documents} == {OUTER, VALIDATION}
    assert {document.work for document in documents} == {work.name for work in WORKS}
    works = [{d.work for d in documents if d.half == half} for half in (OUTER, VALIDATION)]
    assert not works[0] & works[1]
    # Two documents belong to the same work if they share many rare names. Manila and Bintulu share
    # only place names, so they are two works.
    assert shared_names(documents)[0][1:3] == ("Manila", "Bintulu")


def test_a_document_whose_cues_do_not_tell_is_in_neither_half() -> None:
    assert assign("1", "nothing that stands in one work alone", "gutenberg").half == ""
    assert assign("2", "Gretchen and Hammond", "gutenberg").half == ""
    assert assign("3", "Gretchen", "a source without works").half == ""
    assert assign("4", "Gretchen", "gutenberg").half == VALIDATION


def test_every_source_of_the_corpora_has_a_quality(corpora: Path) -> None:
    sources = {
        document.source
        for document, _ in read_documents(f"{corpora}/dev/shard-0000[1-3]*.jsonl.gz")
    }
    assert sources <= set(mixed_corpus.QUALITY)


def test_corruption_figures_of_a_perfect_and_of_a_reversed_order() -> None:
    level_N = np.asarray([level for level in NOISE_LEVELS for _ in range(20)])
    source_N = np.asarray([str(kind) for _ in range(50) for kind in CorruptionKind])
    perfect = corruption.figures(-level_N, level_N, source_N)
    assert set(perfect) == {*map(str, CorruptionKind), corruption.TOGETHER}
    for values in perfect.values():
        assert values == pytest.approx(dict.fromkeys(values, 1.0))
    reversed_order = corruption.figures(level_N, level_N, source_N)[corruption.TOGETHER]
    assert reversed_order["auc"] == 0
    assert reversed_order["spearman"] == pytest.approx(-1)


def test_scores_that_are_length_alone_show_nothing_within_deciles() -> None:
    rng = np.random.default_rng(0)
    size_N = np.sort(rng.integers(200, 20_000, 5000))
    is_clean_N = rng.random(5000) < np.linspace(0.1, 0.9, 5000)
    assert auc(size_N, is_clean_N) > 0.75
    within = mixed_corpus.auc_within_deciles(size_N.astype(np.float64), is_clean_N, size_N)
    assert len(within) == mixed_corpus.DECILES
    assert np.mean(within) < 0.6


def test_the_weights_of_each_batch_sum_to_one_and_rise_with_the_scores() -> None:
    scores_N = np.arange(50) / 10
    weights, dealt = toy_r2.batch_weights(scores_N, 16, np.random.default_rng(0))
    assert len(set(dealt.tolist())) == len(weights) == 48
    for batch in range(3):
        here = slice(16 * batch, 16 * batch + 16)
        exponentials = np.exp(scores_N[dealt[here]])
        np.testing.assert_allclose(weights[here], exponentials / exponentials.sum())


def test_r_squared_is_the_share_of_the_variance_that_the_line_explains() -> None:
    rng = np.random.default_rng(0)
    x_N = rng.random(200)
    y_N = 3 - 2 * x_N + rng.normal(0, 0.3, 200)
    residuals_N = y_N - np.polyval(np.polyfit(x_N, y_N, 1), x_N)
    assert toy_r2.r_squared(x_N, y_N) == pytest.approx(1 - residuals_N.var() / y_N.var())
    assert toy_r2.r_squared(x_N, 1 - x_N) == pytest.approx(1)
    assert toy_r2.r_squared(x_N, np.ones(200)) == 0


def test_the_workers_for_some_hours_need_no_more_than_these_hours() -> None:
    machine = WorkerType("machine", vcpus=8, price=2.0)
    for hours in (0.5, 6.0, 71.0):
        by_hours = sizing.size(10**9, 500, 1e5, machine, hours=hours)
        assert by_hours.hours <= hours
        assert by_hours.workers == 8 * by_hours.machines
        assert sizing.size(10**9, 500, 1e5, machine, workers=by_hours.workers) == by_hours

        # One machine less would need longer.
        fewer = by_hours.workers - 8
        assert not fewer or sizing.size(10**9, 500, 1e5, machine, workers=fewer).hours > hours
        assert by_hours.price == pytest.approx(by_hours.worker_hours / 8 * 2.0)


def test_sizing_asks_for_either_workers_or_hours(capsys: pytest.CaptureFixture[str]) -> None:
    rates = ["--documents=1e9", "--tokens_per_document=500", "--tokens_per_second=1e5"]
    for flags in ([], ["--hours=6", "--workers=8"]):
        with pytest.raises(SystemExit):
            sizing.main([*rates, *flags])
        assert "exactly one of the number of workers and the hours" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sizing.main([*rates, "--hours=0"])
    assert "must be positive" in capsys.readouterr().err


def test_the_page_of_benchmarks_shows_what_sizing_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    (command,) = re.findall(r"^python -m tests.benchmarks.sizing (.*)$", page, re.MULTILINE)
    sizing.main(command.split())
    assert capsys.readouterr().out in page


@pytest.mark.parametrize("name", better_rater.VARIANTS)
def test_the_cost_of_each_variant_can_be_measured_in_a_few_steps(name: str) -> None:
    flags = better_rater.short_flags(better_rater.variant_of(name), steps=2)
    check_flags(flags)


def test_the_screening_design_recovers_the_effects_of_all_factors_at_once() -> None:
    rows = better_rater.screening_rows("length 128")
    assert len(rows) == len(better_rater.FACTORS) + 1
    for name in rows:
        check_flags(better_rater.short_flags(better_rater.variant_of(name), steps=2))

    rng = np.random.default_rng(0)
    on_RxF = np.array(list(rows.values()))
    true_F = np.where(np.arange(len(better_rater.FACTORS)) == 3, -0.1, 0.0)
    loss_R = 2.0 + on_RxF @ true_F
    np.testing.assert_allclose(better_rater.effects(on_RxF, loss_R)[0], true_F, atol=1e-12)

    effect_F, margin = better_rater.effects(on_RxF, loss_R + rng.normal(0, 0.01, len(rows)))
    assert np.flatnonzero(np.abs(effect_F) > margin).tolist() == [3]


def test_normal_scores_know_the_order_within_a_group_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    scores_N, bytes_N, group_N = (
        rng.normal(size=500),
        rng.integers(1, 9, 500),
        rng.integers(0, 3, 500),
    )
    z_N = normal_scores(scores_N, bytes_N, group_N)
    shift_N = np.array([0.0, 50.0, -7.0])[group_N]
    np.testing.assert_allclose(normal_scores(np.exp(scores_N) + shift_N, bytes_N, group_N), z_N)
    for group in range(3):
        mine = group_N == group
        assert (np.argsort(z_N[mine]) == np.argsort(scores_N[mine])).all()
        assert np.average(z_N[mine], weights=bytes_N[mine]) == pytest.approx(0, abs=0.01)
        assert np.average(z_N[mine] ** 2, weights=bytes_N[mine]) == pytest.approx(1, abs=0.05)
    unscored_N = np.where(np.arange(500) == 7, np.nan, scores_N)
    assert np.argmin(normal_scores(unscored_N, bytes_N, np.zeros(500, np.int64))) == 7
