from __future__ import annotations

import pytest

from datarater.pipelines.batch.journal import ClaimNotes
from datarater.pipelines.batch.record import ComparedShare, Drift, LimitedMeasure, SourceShare
from datarater.pipelines.selection.drift import Measure
from datarater.rater_model.json_codec import from_plain, to_plain


@pytest.mark.parametrize(("limit", "past"), [(0.2, True), (0.4, False), (None, False)])
def test_a_measure_is_recorded_with_its_limit(limit: float | None, past: bool) -> None:
    assert to_plain(LimitedMeasure.of(Measure(0.3, 0.1), limit)) == {
        "value": 0.3,
        "by_chance": 0.1,
        "limit": limit,
        "past": past,
    }


def test_sources_with_and_without_a_reference_survive_json() -> None:
    measure = LimitedMeasure.of(Measure(0.3, 0.1), None)
    drift = Drift(
        10,
        20,
        measure,
        measure,
        {"a": SourceShare(4, 0.5, None), "b": ComparedShare(6, 0.5, 0.2, **vars(measure))},
    )
    plain = to_plain(drift)
    assert set(plain["kept_share"]["a"]) == {"documents", "share", "reference_share"}
    assert from_plain(Drift, plain) == drift


def test_only_kinds_of_notes_that_occur_are_recorded() -> None:
    assert to_plain(ClaimNotes()) == {}
    assert to_plain(ClaimNotes(late=2, sha256="x")) == {"late": 2, "sha256": "x"}
