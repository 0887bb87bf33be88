from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from datarater import cli
from datarater.meta_training.evaluate.recommending import recommend
from datarater.pipelines.commands.curate import make_parser
from datarater.pipelines.commands.requests import recommended_rule
from datarater.pipelines.runners.execution import Execution
from datarater.pipelines.selection.rules import KeepFraction
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import (
    RaterCheckpoint,
    Recommendation,
    load_recommendation,
    save_rater,
)
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig

CONFIG = RaterConfig(window=16, transformer=TransformerConfig(8, 1, 8, 1), ngram_rows=8)


def best(arm: str = "rater", verdict: str = "better") -> dict[str, Any]:
    return {
        "arm": arm,
        "keep": 0.75,
        "confidence": 0.99,
        "seeds": 8,
        "difference": {"mean": -0.05, "low": -0.08, "high": -0.02, "verdict": verdict},
    }


@pytest.fixture
def raters(tmp_path: Path) -> list[str]:
    for seed in (0, 1):
        params = jax.device_get(initialise_rater(CONFIG, jax.random.key(seed)))
        save_rater(tmp_path / str(seed), RaterCheckpoint(CONFIG, params, ByteTokenizer()))
    return [str(tmp_path / str(seed)) for seed in (0, 1)]


def rule_of(rater: str) -> KeepFraction:
    execution = Execution(PipelineOptions([]), "DirectRunner", local=True, workers=1)
    return recommended_rule(make_parser(), rater, execution)


def test_curate_keeps_the_share_that_the_evaluation_wrote_into_each_rater(
    raters: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    recommend({"best_fractions": [best("c4"), best()]}, [*raters, raters[0]], "pool", lines.append)
    assert len(lines) == 2
    found = [load_recommendation(rater) for rater in raters]
    assert all(isinstance(each, Recommendation) and each.corpus == "pool" for each in found)
    assert len({each.rater for each in found if each}) == 2
    for rater in raters:
        assert rule_of(rater) == KeepFraction("0.75")
        said = capsys.readouterr().err
        assert said.startswith(f"--keep_fraction 0.75, as {rater}/recommendation.json recommends: ")
        assert "on 8 seeds" in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("found", [[], [best("c4")], [best(verdict="undecided")]])
def test_what_is_not_shown_to_be_better_is_not_recommended(
    raters: list[str], found: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    recommend({"best_fractions": found}, raters, "pool", lambda line: None)
    assert load_recommendation(raters[0]) is None
    with pytest.raises(SystemExit):
        rule_of(raters[0])
    assert "--keep_fraction" in (said := capsys.readouterr().err)
    assert f"{raters[0]} recommends no share" in said


def test_curate_without_a_rule_is_refused_where_the_rater_recommends_none(
    raters: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a document"}\n')
    flags = [f"--input={corpus}", f"--rater={raters[0]}", f"--output={tmp_path / 'run'}"]
    assert cli.main(["curate", *flags]) == exit_codes.WRONG_USAGE
    assert "is required" in (said := capsys.readouterr().err)
    assert f"{raters[0]} recommends no share" in said
    assert not (tmp_path / "run").exists()

    # With a recommendation the other flags are still checked, and a dry run gets through.
    recommend({"best_fractions": [best()]}, raters, "pool", lambda line: None)
    assert cli.main(["curate", *flags, "--discard_fraction=0.5"]) == exit_codes.WRONG_USAGE
    assert "--discard_fraction" in capsys.readouterr().err
    assert cli.main(["curate", *flags, "--dry_run"]) == exit_codes.DONE
    assert "--keep_fraction 0.75, as " in capsys.readouterr().err


def test_a_rater_that_cannot_be_written_is_reported(raters: list[str], tmp_path: Path) -> None:
    (tmp_path / "0" / "recommendation.json").mkdir()
    lines: list[str] = []
    recommend({"best_fractions": [best()]}, raters, "pool", lines.append)
    assert lines[0].startswith(f"the best share is not written into {raters[0]}: ")
    assert load_recommendation(raters[1]) is not None
